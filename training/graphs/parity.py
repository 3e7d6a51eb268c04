"""The proof that the graphs generate what the checkpoint does.

They run in the plainest host there is (`ReferenceHost`), and are compared with torch: names and
axes, logits after every token in batches of rows of different ages, and greedily generated texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration

from training.graphs.checkpoint import Model, output_layer
from training.graphs.graphs import cache_shape
from training.graphs.names import BEST, LOGITS
from training.graphs.reference import Logits, ReferenceHost, Row, present_of
from training.graphs.settings import generation_settings, renormalized
from training.parity import Check, ParityReport, at_most, hash_files

PRECISION = "float32"
TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest logit, or to 1 if that is less."""

BATCH_SIZES = (1, 2, 8)
_SOURCES = ("input_ids", "attention_mask")
_SOURCE = "tensor(int64) ['batch', 'source']"
_TEXTS = 20
_LONGEST = 24
"""Tokens of the texts that are compared, at most."""


@dataclass(frozen=True)
class Text:
    """What a model reads and what it then says, as tokens."""

    source: tuple[int, ...] | None
    """Of an encoder-decoder model."""
    target: tuple[int, ...]


def verify_generation(
    directory: Path, model: Model, prompts: Sequence[Sequence[int]]
) -> ParityReport:
    """Compare the graphs in `directory` with their model, on random texts and on real ones.

    `prompts` are real ones, as tokens: source texts of an encoder-decoder model.
    """
    settings = generation_settings(model)
    host = ReferenceHost(directory, min(settings["max_length"], 2 * _LONGEST))
    checks = [*check_interface(host, model, [f"{name} {_SOURCE}" for name in _SOURCES])]
    if all(check.passed for check in checks):
        never = renormalized(model)
        texts = _texts(model, settings, prompts)
        expected = [_by_torch(model, text, never) for text in texts]
        scale = max(1.0, *(float(finite(logits).max()) for logits in expected))
        targets = [text.target for text in texts]
        served = {
            size: by_graphs(host, [host.begin(text.source) for text in texts], targets, size)
            for size in BATCH_SIZES
        }
        checks += [
            at_most(
                f"difference from torch, batch of {size}",
                difference(logits, expected) / scale,
                TOLERANCE,
            )
            for size, logits in served.items()
        ]
        largest = max(BATCH_SIZES)
        checks.append(
            at_most(
                "difference between batched and alone",
                difference(served[largest], served[1]) / scale,
                TOLERANCE,
            )
        )
        if settings["max_source"] is None:
            checks.append(
                at_most(
                    "difference between a prompt at once and its tokens one by one",
                    difference(_at_once(host, texts), [logits[-1:] for logits in served[1]])
                    / scale,
                    TOLERANCE,
                )
            )
        differing = sum(
            _differs_from_generate(host, model, text, settings, TOLERANCE * scale)
            for text in texts[:_TEXTS]
        )
        checks += [
            at_most("greedy texts that differ from generate()", differing, 0),
            check_choices(host),
        ]
    return ParityReport(
        precision=PRECISION,
        checks=tuple(checks),
        measurements={},
        files=hash_files(directory),
    )


def check_interface(
    host: ReferenceHost,
    model: Model | WhisperForConditionalGeneration,
    encoder_inputs: Sequence[str],
) -> tuple[Check, ...]:
    """Names and axes; `encoder_inputs` are those of an encoder, if there is one."""

    def check(name: str, measured: Sequence[Any], limit: Sequence[str]) -> Check:
        text = ", ".join(f"{spec.name} {spec.type} {spec.shape}" for spec in measured)
        expected = ", ".join(limit)
        return Check(name=name, measured=text, limit=expected, passed=text == expected)

    config = model.config
    layers, heads, head_dim = cache_shape(model)
    vocabulary = output_layer(model).out_features
    tokens = "1" if config.is_encoder_decoder else "'tokens'"
    past = [
        f"past_{kind}_{layer} tensor(float) ['batch', {heads}, 'capacity', {head_dim}]"
        for layer in range(layers)
        for kind in ("key", "value")
    ]
    cross = [line.replace("past_", "cross_").replace("capacity", "source") for line in past]
    inputs = [
        f"input_ids tensor(int64) ['batch', {tokens}]",
        f"positions tensor(int64) ['batch', {tokens}]",
        "lengths tensor(int32) ['batch']",
    ]
    outputs = [
        f"{LOGITS} tensor(float) ['batch', {vocabulary}]",
        f"{BEST} tensor(int64) ['batch']",
    ]
    checks = []
    if host.encoder is not None:
        positions = getattr(config, "max_source_positions", "'source'")
        encoded = [line.replace("'source'", str(positions)) for line in cross]
        checks += [
            check(
                "encoder's inputs",
                host.encoder.get_inputs(),
                encoder_inputs,
            ),
            check("encoder's outputs", host.encoder.get_outputs(), encoded),
        ]
        last = [line.replace("past_", "last_").replace("'capacity'", "1") for line in past]
        inputs += ["source_lengths tensor(int32) ['batch']", *past, *cross, *last]
        outputs += [present_of(line) for line in (*past, *cross)]
    else:
        inputs += past
        outputs += [present_of(line) for line in past]
    return (
        *checks,
        check("decoder's inputs", host.decoder.get_inputs(), inputs),
        check("decoder's outputs", host.decoder.get_outputs(), outputs),
    )


def check_choices(host: ReferenceHost) -> Check:
    """Of all that the host has run."""
    return at_most("best tokens that are not the largest logit's", host.wrong_choices, 0)


def _texts(model: Model, settings: dict[str, Any], prompts: Sequence[Sequence[int]]) -> list[Text]:
    """Real ones and random ones, of many lengths."""
    rng = np.random.default_rng(0)

    def random(vocabulary: int, longest: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocabulary, rng.integers(1, longest + 1)).tolist())

    vocabulary = settings["vocab_size"]
    longest = min(settings["max_length"] - 1, _LONGEST)
    real = [tuple(prompt[:longest]) for prompt in prompts[:_TEXTS] if prompt]
    if settings["max_source"] is None:
        return [Text(None, prompt) for prompt in real] + [
            Text(None, random(vocabulary, longest)) for _ in range(_TEXTS)
        ]
    start = settings["decoder_start_token_id"]
    source_vocabulary = model.config.vocab_size
    sources = real + [random(source_vocabulary, longest) for _ in range(_TEXTS)]
    return [Text(source, (start, *random(vocabulary, longest - 1))) for source in sources]


def _by_torch(model: Model, text: Text, never: Sequence[int]) -> Logits:
    """[token, vocabulary], of one pass over the whole text."""
    target = torch.tensor([text.target])
    with torch.no_grad():
        if text.source is None:
            output = model(input_ids=target)
        else:
            output = model(input_ids=torch.tensor([text.source]), decoder_input_ids=target)
    logits: Logits = output.logits[0].numpy()
    logits[:, list(never)] = -np.inf
    return logits


def by_graphs(
    host: ReferenceHost, rows: Sequence[Row], targets: Sequence[Sequence[int]], size: int
) -> list[Logits]:
    """[token, vocabulary] of each row with its target, token by token, `size` of them together;
    every second run one more joins."""
    logits: list[list[Logits]] = [[] for _ in rows]
    waiting = list(range(len(rows)))
    active: list[int] = []
    turn = 0
    while waiting or active:
        if waiting and len(active) < size and (not active or turn % 2 == 0):
            active.append(waiting.pop(0))
        tokens = [[targets[index][rows[index].length]] for index in active]
        for index, row in zip(active, host.run([rows[i] for i in active], tokens), strict=True):
            logits[index].append(row)
        active = [index for index in active if rows[index].length < len(targets[index])]
        turn += 1
    return [np.stack(rows) for rows in logits]


def _at_once(host: ReferenceHost, texts: Sequence[Text]) -> list[Logits]:
    """[1, vocabulary] of each, all as one batch of prompts."""
    rows = [host.begin() for _ in texts]
    return [logits[None] for logits in host.run(rows, [text.target for text in texts])]


def _differs_from_generate(
    host: ReferenceHost, model: Model, text: Text, settings: dict[str, Any], tie: float
) -> bool:
    """Whether a greedy text is another, other than by choosing between two equally good tokens."""
    prompt = text.target if text.source is None else text.target[:1]
    new_tokens = min(_LONGEST, settings["max_length"] - len(prompt))
    expected = _generate(model, text, settings, new_tokens)
    row = host.begin(text.source)
    logits = host.run([row], [prompt])[0]
    for position, token in enumerate(expected):
        logits = logits.copy()
        logits[settings["suppressed_token_ids"]] = -np.inf
        forced = None
        if position == new_tokens - 1:
            forced = settings["forced_eos_token_id"]
        elif position == 0 and text.source is not None:
            forced = settings["forced_bos_token_id"]
        chosen = int(logits.argmax()) if forced is None else forced
        if chosen != token:
            return not logits[chosen] - logits[token] <= 2 * tie
        if position < len(expected) - 1:
            logits = host.run([row], [[token]])[0]
    return False


def _generate(
    model: Model, text: Text, settings: dict[str, Any], new_tokens: int
) -> tuple[int, ...]:
    """New tokens by torch, the one that ends the text included."""
    # `transformers` does not annotate it.
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        bad_words_ids=[[token] for token in settings["suppressed_token_ids"]] or None,
        **{
            name: settings[name]
            for name in (
                "decoder_start_token_id",
                "forced_bos_token_id",
                "forced_eos_token_id",
                "pad_token_id",
            )
        },
        eos_token_id=settings["eos_token_ids"] or None,
    )
    prompt = torch.tensor([text.target if text.source is None else text.source])
    with torch.no_grad():
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy
        )
    start = len(text.target) if text.source is None else 1
    return tuple(output[0, start:].tolist())


def difference(one: Sequence[Logits], other: Sequence[Logits]) -> float:
    """The largest, where either is finite; two infinities are the same."""
    largest = 0.0
    for left, right in zip(one, other, strict=True):
        with np.errstate(invalid="ignore"):
            difference = np.where(left == right, 0, np.abs(left - right))
        largest = max(largest, float(difference.max()))
        if np.isnan(difference).any():
            return float("nan")
    return largest


def finite(logits: Logits) -> Logits:
    magnitudes: Logits = np.abs(logits)
    return magnitudes[np.isfinite(magnitudes)]
