"""The proof that what is served generates what the checkpoint does, whoever generates beside.

The graphs run in the stepper and under the scheduler that serve them. Texts are asked for alone and
in a storm: at random moments, all beside one another, some leaving before their end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from serving.engines.onnx_graph import OnnxGraph
from serving.engines.onnx_session import SessionSettings
from serving.scheduling.meter import LateMeter
from serving.scheduling.stepper import Stepper
from serving.scheduling.stepping import StepScheduler
from serving.steppers.generation import INPUT as TEXT
from serving.steppers.generation import GenerationStepper
from serving.steppers.settings import GenerationSettings
from serving.steppers.tokens import DECODER_FILE, ENCODER_FILE, OUTPUT
from serving.text import Tokenizer, load_tokenizer
from serving.types import InferRequest, Parameter, Tensors
from training.graphs.checkpoint import Model
from training.graphs.settings import renormalized
from training.parity import Check

Tokens = Sequence[int]
Wishes = dict[str, Parameter]

TIE = 1e-4
"""Two logits nearer than this are equally good: torch and ONNX Runtime sum in different orders."""

SLOTS = 64
MEMORY_BYTES = 512 << 20
_NEW_TOKENS = 64
PLAIN: Wishes = {
    "do_sample": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""Whatever a checkpoint's own defaults are."""
_BEAMS: Wishes = {"num_beams": 4}
_LEAVE_BEFORE_THEIR_END = 0.2


class Numbers:
    """A tokenizer whose texts are the numbers of tokens, so that tokens are what is compared."""

    languages: tuple[str, ...] = ()
    source_language: str | None = None
    unsettled: frozenset[int] = frozenset()

    def __init__(self, settings: GenerationSettings):
        self.eos: int | None = None
        self.special = frozenset(settings.eos_token_ids)

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: Tokens) -> str:
        return " ".join(str(token) for token in tokens if token not in self.special)


def verify_served(directory: Path, model: Model, inputs: Sequence[Tokens]) -> tuple[Check, ...]:
    """Compare what is served of these inputs with `generate()`: greedily, and of a part of them
    with beams."""
    settings = GenerationSettings.load(directory)
    longest = min(_NEW_TOKENS, settings.max_length // 2)
    most = settings.max_source or settings.max_length - longest
    inputs = [tokens[:most] for tokens in inputs if tokens]
    greedy = PLAIN | {"max_new_tokens": longest}
    with_beams = [(tokens, greedy | _BEAMS) for tokens in inputs[::5]]
    sampled: list[tuple[Tokens, Wishes]] = [
        (tokens, greedy | {"do_sample": True, "seed": seed})
        for seed, tokens in enumerate(inputs[1::5])
    ]
    cases = [*((tokens, greedy) for tokens in inputs), *with_beams, *sampled]
    stepper = _stepper(directory, settings, Numbers(settings))
    asked = [(_tensors(" ".join(map(str, tokens))), wishes) for tokens, wishes in cases]
    alone, in_a_storm = asyncio.run(serve(stepper, asked))
    compared = len(inputs) + len(with_beams)
    differing = [
        _differs(model, settings, case, [int(number) for number in served.split()])
        for case, served in zip(cases[:compared], alone[:compared], strict=True)
    ]
    return (
        none(f"of {len(inputs)} greedy texts, served unlike generate()", differing[: len(inputs)]),
        none(
            f"of {len(with_beams)} texts with 4 beams, served unlike generate()",
            differing[len(inputs) :],
        ),
        none(
            f"of {len(cases)} texts of all kinds, served unlike alone in a storm",
            [other not in (None, text) for text, other in zip(alone, in_a_storm, strict=True)],
        ),
    )


def generate_served(directory: Path, texts: Sequence[str], wishes: Wishes) -> list[str]:
    """What is served for these texts, all asked for at the same time."""
    settings = GenerationSettings.load(directory)

    async def ask_all() -> list[str]:
        stepper = _stepper(directory, settings, load_tokenizer(directory))
        async with _scheduler(stepper) as scheduler:
            return await asyncio.gather(
                *(_ask(scheduler, _tensors(text), wishes) for text in texts)
            )

    return asyncio.run(ask_all())


async def _ask(scheduler: StepScheduler[Any], inputs: Tensors, wishes: Wishes) -> str:
    request = InferRequest("", inputs, parameters=wishes)
    answer: bytes = (await scheduler.infer(request, 1))[OUTPUT][0, 0]
    return answer.decode()


async def serve(
    stepper: Stepper[Any], cases: Sequence[tuple[Tensors, Wishes]]
) -> tuple[list[str], list[str | None]]:
    """What is served to each, asked for one by one, and all at once; None for who left."""
    chance = np.random.default_rng(0)

    async def ask_in_a_storm(
        scheduler: StepScheduler[Any], inputs: Tensors, wishes: Wishes
    ) -> str | None:
        await asyncio.sleep(chance.random() * len(cases) * 0.005)
        asking = asyncio.create_task(_ask(scheduler, inputs, wishes))
        if chance.random() < _LEAVE_BEFORE_THEIR_END:
            await asyncio.sleep(chance.random() * 0.05)
            asking.cancel()
        await asyncio.wait([asking])
        return None if asking.cancelled() else asking.result()

    async with _scheduler(stepper) as scheduler:
        alone = [await _ask(scheduler, *case) for case in cases]
        return alone, await asyncio.gather(*(ask_in_a_storm(scheduler, *case) for case in cases))


def _tensors(text: str) -> Tensors:
    return {TEXT: np.array([[text.encode()]], np.object_)}


def _differs(
    model: Model, settings: GenerationSettings, case: tuple[Tokens, Wishes], served: list[int]
) -> bool:
    """Whether `generate()` says otherwise, and not because two tokens are equally good."""
    tokens, wishes = case
    expected = _generate(model, settings, tokens, wishes)
    if served == expected:
        return False
    if wishes["num_beams"] != 1:
        return True
    ends = settings.eos_token_ids[0]
    position = next(
        index
        for index, pair in enumerate(zip([*served, ends], [*expected, ends], strict=False))
        if pair[0] != pair[1]
    )
    one, other = [*served, ends][position], [*expected, ends][position]
    logits = _logits_after(model, settings, tokens, expected[:position])
    return not abs(float(logits[one] - logits[other])) <= TIE


def _logits_after(
    model: Model, settings: GenerationSettings, tokens: Tokens, made: Tokens
) -> torch.Tensor:
    with torch.no_grad():
        if settings.decoder_start_token_id is None:
            output: Any = model(input_ids=torch.tensor([[*tokens, *made]]))
        else:
            begun = torch.tensor([[settings.decoder_start_token_id, *made]])
            output = model(input_ids=torch.tensor([list(tokens)]), decoder_input_ids=begun)
    logits: torch.Tensor = output.logits[0, -1]
    return logits


@asynccontextmanager
async def _scheduler(stepper: Stepper[Any]) -> AsyncIterator[StepScheduler[Any]]:
    scheduler = StepScheduler[Any](stepper, None, meter=LateMeter())
    try:
        yield scheduler
    finally:
        await scheduler.stop()
        stepper.close()


def open_graph(path: Path) -> OnnxGraph:
    return OnnxGraph(path, SessionSettings(str(path)).open(path, None).session)


def _stepper(
    directory: Path, settings: GenerationSettings, tokenizer: Tokenizer
) -> GenerationStepper:
    return GenerationStepper(
        open_graph(directory / DECODER_FILE),
        open_graph(directory / ENCODER_FILE) if settings.is_encoder_decoder else None,
        settings,
        tokenizer,
        slots=SLOTS,
        memory_bytes=MEMORY_BYTES,
    )


def _generate(
    model: Model, settings: GenerationSettings, tokens: Tokens, wishes: Wishes
) -> list[int]:
    """The new tokens by torch, without those that end a text."""
    # transformers does not annotate it.
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        **wishes,
        bad_words_ids=[[token] for token in settings.suppressed_token_ids] or None,
        renormalize_logits=bool(renormalized(model)),
        decoder_start_token_id=settings.decoder_start_token_id,
        forced_bos_token_id=settings.forced_bos_token_id,
        forced_eos_token_id=settings.forced_eos_token_id,
        eos_token_id=list(settings.eos_token_ids) or None,
        pad_token_id=settings.pad_token_id,
    )
    inputs = torch.tensor([list(tokens)])
    with torch.no_grad():
        output: Any = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), generation_config=config
        )
    made = output[0, 1 if settings.is_encoder_decoder else len(tokens) :].tolist()
    ends = {*settings.eos_token_ids, settings.pad_token_id}
    return [token for token in made if token not in ends]


def none(name: str, differs: Sequence[bool]) -> Check:
    count = sum(differs)
    return Check(name=name, measured=float(count), limit=0.0, passed=count == 0)
