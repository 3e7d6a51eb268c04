"""The proof that what is served hears and writes as `transformers` does, whoever else is heard.

Spectrogram, logits and greedy texts, with times and without, are compared with torch; texts are
asked for alone and in a storm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from serving.speech.whisper import TRANSCRIBE, WAVEFORM, WhisperSettings
from serving.steppers.recognition import RecognitionStepper
from serving.steppers.settings import GenerationSettings
from serving.steppers.times import TimedText
from serving.steppers.tokens import DECODER_FILE, ENCODER_FILE
from serving.types import Tensors
from training.graphs.parity import (
    BATCH_SIZES,
    TOLERANCE,
    by_graphs,
    check_choices,
    check_interface,
    difference,
)
from training.graphs.proof import without_warnings
from training.graphs.reference import Logits, ReferenceHost, Row
from training.graphs.served import (
    MEMORY_BYTES,
    PLAIN,
    SLOTS,
    TIE,
    Numbers,
    Wishes,
    none,
    open_graph,
    serve,
)
from training.parity import Check, ParityReport, at_most, hash_files
from training.recognizers.clips import Waveform, clips
from training.recognizers.log_mel import LogMel
from training.recognizers.whisper import memory_mb
from training.runs import FLOAT32

SPECTROGRAM_TOLERANCE = 1e-4
"""transformers' own two ways to compute it differ by a fifth of this."""

_CLIPS = 8
_LONGEST = 24
"""Tokens of the texts whose logits are compared."""
_NEW_TOKENS = 64


def prove(
    directory: Path, model: WhisperForConditionalGeneration, extractor: WhisperFeatureExtractor
) -> ParityReport:
    """Compare what is in `directory` with the model it was exported from."""
    settings = GenerationSettings.load(directory)
    waveforms = _waveforms(extractor)
    features = LogMel(extractor)
    host = ReferenceHost(directory, min(settings.max_length, 2 * _LONGEST))
    axes = f"{WAVEFORM} tensor(float) ['batch', {extractor.n_samples}]"
    checks = [*check_interface(host, model, [axes])]
    if all(check.passed for check in checks):
        checks.append(_spectrogram(features, extractor, waveforms))
        heard = [features(torch.from_numpy(waveform[np.newaxis])) for waveform in waveforms]
        checks += _logits(host, model, settings, waveforms, heard)
        with without_warnings():
            checks += _served(directory, model, settings, waveforms, heard)
    return ParityReport(
        precision=FLOAT32, checks=tuple(checks), measurements={}, files=hash_files(directory)
    )


def _waveforms(extractor: WhisperFeatureExtractor) -> list[Waveform]:
    """Windows of whole length, with silence after recordings of any length."""
    size = extractor.n_samples
    chance = np.random.default_rng(1)
    made = clips(
        chance.integers(size // 20, size + 1, _CLIPS - 1).tolist(), extractor.sampling_rate
    )
    return [np.pad(clip, (0, size - len(clip))) for clip in made]


def _spectrogram(
    features: LogMel, extractor: WhisperFeatureExtractor, waveforms: Sequence[Waveform]
) -> Check:
    # transformers does not annotate it.
    extract: Any = extractor
    largest = 0.0
    for waveform in waveforms:
        [expected] = extract(
            waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt"
        ).input_features
        [measured] = features(torch.from_numpy(waveform[np.newaxis]))
        largest = max(largest, float((measured - expected).abs().max()))
    return at_most("difference of the spectrogram", largest, SPECTROGRAM_TOLERANCE)


def _logits(
    host: ReferenceHost,
    model: WhisperForConditionalGeneration,
    settings: GenerationSettings,
    waveforms: Sequence[Waveform],
    heard: Sequence[torch.Tensor],
) -> list[Check]:
    chance = np.random.default_rng(0)
    longest = min(settings.max_length - 1, _LONGEST)
    targets = [
        [settings.decoder_start_token_id or 0, *chance.integers(0, settings.vocab_size, length)]
        for length in chance.integers(1, longest, len(waveforms)).tolist()
    ]
    expected: list[Logits] = []
    for features, target in zip(heard, targets, strict=True):
        with torch.no_grad():
            output = model(input_features=features, decoder_input_ids=torch.tensor([target]))
        expected.append(output.logits[0].numpy())
    rows = {size: [_row(host, waveform) for waveform in waveforms] for size in BATCH_SIZES}
    served = {size: by_graphs(host, rows[size], targets, size) for size in BATCH_SIZES}
    scale = max(1.0, *(float(np.abs(logits).max()) for logits in expected))
    return [
        *(
            at_most(
                f"difference from torch, batch of {size}",
                difference(logits, expected) / scale,
                TOLERANCE,
            )
            for size, logits in served.items()
        ),
        at_most(
            "difference between batched and alone",
            difference(served[max(BATCH_SIZES)], served[1]) / scale,
            TOLERANCE,
        ),
        check_choices(host),
    ]


def _row(host: ReferenceHost, waveform: Waveform) -> Row:
    assert host.encoder is not None, "whatever hears has an encoder"
    names = [spec.name for spec in host.encoder.get_outputs()]
    outputs = host.encoder.run(names, {WAVEFORM: waveform[np.newaxis]})
    return host.row(dict(zip(names, outputs, strict=True)))


def _served(
    directory: Path,
    model: WhisperForConditionalGeneration,
    settings: GenerationSettings,
    waveforms: Sequence[Waveform],
    heard: Sequence[torch.Tensor],
) -> list[Check]:
    hearing = WhisperSettings.load(directory)
    numbers = Numbers(settings)
    new_tokens = min(_NEW_TOKENS, settings.max_length // 2)
    wishes: Wishes = PLAIN | {"max_new_tokens": new_tokens}
    if hearing.languages:
        wishes["language"] = next(iter(hearing.languages))
    kinds = [False] if hearing.first_time_token is None else [False, True]
    cases: list[tuple[Tensors, Wishes]] = []
    differing: dict[bool, list[bool]] = {}
    stepper = RecognitionStepper(
        open_graph(directory / DECODER_FILE),
        open_graph(directory / ENCODER_FILE),
        settings,
        hearing,
        numbers,
        slots=SLOTS,
        memory_bytes=max(MEMORY_BYTES, memory_mb(model) << 20),
    )
    for times in kinds:
        chosen = wishes | {"return_timestamps": times}
        cases += [({WAVEFORM: waveform[np.newaxis]}, chosen) for waveform in waveforms]
    alone, in_a_storm = asyncio.run(serve(stepper, cases))
    for kind, times in enumerate(kinds):
        answers = alone[kind * len(waveforms) :][: len(waveforms)]
        differing[times] = [
            _differs(model, hearing, numbers, features, wishes, answer, times=times)
            for features, answer in zip(heard, answers, strict=True)
        ]
    return [
        *(
            none(
                f"of {len(found)} greedy texts {'with' if times else 'without'} times,"
                " served unlike generate()",
                found,
            )
            for times, found in differing.items()
        ),
        none(
            f"of {len(cases)} texts, served unlike alone in a storm",
            [other not in (None, text) for text, other in zip(alone, in_a_storm, strict=True)],
        ),
    ]


def _differs(
    model: WhisperForConditionalGeneration,
    hearing: WhisperSettings,
    numbers: Numbers,
    features: torch.Tensor,
    wishes: Wishes,
    answer: str,
    *,
    times: bool,
) -> bool:
    """Whether the first window's text is another than `generate()` writes, and not because two
    tokens are equally good."""
    tokens, nearest = _generate(model, hearing, features, wishes, times=times)
    if not times:
        return answer != numbers.decode(tokens) and nearest > TIE
    text = TimedText(numbers, hearing, 0, hearing.window_samples)
    expected = text.push(tokens) + text.finish()
    if hearing.languages:
        answer = answer.partition("|>")[2]
    return not answer.startswith(expected) and nearest > TIE


def _generate(
    model: WhisperForConditionalGeneration,
    hearing: WhisperSettings,
    features: torch.Tensor,
    wishes: Wishes,
    *,
    times: bool,
) -> tuple[list[int], float]:
    """New tokens by torch, without those that end a text, and how near a second one ever was."""
    spoken = {"language": wishes["language"], "task": TRANSCRIBE} if hearing.languages else {}
    # transformers does not annotate it.
    generate: Any = model.generate
    with torch.no_grad():
        output = generate(
            features,
            return_timestamps=times,
            max_new_tokens=wishes["max_new_tokens"],
            do_sample=False,
            num_beams=1,
            return_segments=True,
            force_unique_generate_call=True,
            return_dict_in_generate=True,
            output_scores=True,
            **spoken,
        )
    scores = [step[0].topk(2).values for step in output.scores]
    made = output.sequences[0, -len(scores) :].tolist()
    ends = {model.generation_config.eos_token_id, model.generation_config.pad_token_id}
    return [token for token in made if token not in ends], min(
        float(first - second) for first, second in scores
    )
