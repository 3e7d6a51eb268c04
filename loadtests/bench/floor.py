"""What the graphs alone can do: the rate at which nothing but they would translate.

Each of --processes encodes 32 of the texts of translation.py, those of like length together, or 32
windows of sound if the model hears, and then runs the step graph on 32 rows as often as an answer
has tokens on average, again and again, each with one thread. Nobody chooses a token, keeps a
request or speaks HTTP.

  python loadtests/bench/floor.py --model-repository model_repo --model translator
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from processes import ROOT
from texts import Writer

from serving.engines.onnx_graph import OnnxGraph, open_graph
from serving.repository import Repositories
from serving.speech.whisper import WAVEFORM
from serving.steppers.beginnings import alike, padded
from serving.steppers.tokens import DECODER_FILE, ENCODER_FILE
from serving.text import load_tokenizer
from serving.types import Tensors

ROWS = 32
_TEXTS = 2016


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add(
        "--model",
        default="translator",
        help="an encoder-decoder (translator)",
    )
    add("--processes", type=int, default=2, help="(2)")
    add("--seconds", type=float, default=10.0, help="(10)")
    add("--tokens", type=int, default=14, help="of an answer, on average (14)")
    options = parser.parse_args()
    task = (options.model_repository, options.model, options.seconds, options.tokens)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        found = pool.starmap(measure, [task] * options.processes)
    made = sum(rate for rate, _, _ in found)
    print(f"{made:,.0f} tokens/s")
    print(f"{1e6 * np.mean([step for _, step, _ in found]):.1f} µs of a core for a token")
    print(f"{1e6 * np.mean([take for _, _, take in found]):.1f} µs of a core for a source token")


@dataclass(frozen=True)
class Sources:
    """What an encoder is given for as many rows as are stepped, again and again."""

    feeds: Sequence[Sequence[Tensors]]
    """For each time, the runs that they take."""
    lengths: Sequence[Sequence[int]]
    """Positions that the decoder attends to in each row's source."""


def measure(
    repository: Path, model: str, seconds: float, tokens: int
) -> tuple[float, float, float]:
    """Tokens in a second; seconds for a token and for a source token."""
    [version] = Repositories([repository]).read(model)
    encoder = open_graph(version.directory / ENCODER_FILE, version.config)
    decoder = open_graph(version.directory / DECODER_FILE, version.config)
    hears = any(spec.name == WAVEFORM for spec in encoder.inputs)
    sources = _windows(encoder) if hears else _texts(version.directory)
    longest = max(map(max, sources.lengths))
    known: Tensors = {
        "input_ids": np.ones((ROWS, 1), np.int64),
        "positions": np.zeros((ROWS, 1), np.int64),
        "lengths": np.ones(ROWS, np.int32),
        "source_lengths": np.ones(ROWS, np.int32),
    }
    cache: Tensors = {
        spec.name: np.zeros((ROWS, spec.shape[1], longest, spec.shape[3]), np.float32)
        for spec in decoder.inputs
        if spec.name not in known
    }
    cache |= {
        name: array[:, :, :1].copy() for name, array in cache.items() if name.startswith("last_")
    }
    written = {
        f"present_{name.removeprefix('past_')}": array
        for name, array in cache.items()
        if not name.startswith("last_")
    }
    vocabulary = next(spec.shape[-1] for spec in decoder.outputs if spec.name == "logits")
    logits = np.empty((ROWS, vocabulary), np.float32)
    step = decoder.bind(known | cache, {"logits": logits} | written)
    stepping = taking = 0.0
    made = taken = 0
    started = time.monotonic()
    for feeds, lengths in cycle(zip(sources.feeds, sources.lengths, strict=True)):
        for feed in feeds:
            began = time.perf_counter()
            encoder.run(feed)
            taking += time.perf_counter() - began
        taken += sum(lengths)
        known["source_lengths"][:] = lengths
        for position in range(tokens):
            known["positions"][:] = position
            known["lengths"][:] = position + 1
            began = time.perf_counter()
            step()
            stepping += time.perf_counter() - began
        made += ROWS * tokens
        if time.monotonic() - started >= seconds:
            break
    return made / (time.monotonic() - started), stepping / made, taking / taken


def _texts(directory: Path) -> Sources:
    """Texts of all lengths, those of like length together."""
    tokenizer = load_tokenizer(directory)
    codes = [f">>{language}<<" for language in tokenizer.languages]
    writer = Writer(lambda text: len(tokenizer.encode(text)), codes)
    texts = [tokenizer.encode(each.text) for each in writer.mixed(_TEXTS)]
    feeds, lengths = [], []
    for start in range(0, len(texts) - ROWS + 1, ROWS):
        now = texts[start : start + ROWS]
        lengths.append([len(text) for text in now])
        feeds.append([_text_feed(group) for group in alike(now, lengths[-1])])
    return Sources(feeds, lengths)


def _text_feed(group: Sequence[Sequence[int]]) -> Tensors:
    ids = padded(group, 0)
    sizes = np.array([len(text) for text in group])
    mask = (np.arange(ids.shape[1]) < sizes[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def _windows(encoder: OnnxGraph) -> Sources:
    """Windows of noise, each by itself: they all take the same."""
    [waveform] = encoder.inputs
    noise = np.random.default_rng(1).normal(0.0, 0.1, waveform.shape[1])
    frames = next(spec.shape[2] for spec in encoder.outputs)
    feed = {WAVEFORM: noise[np.newaxis].astype(np.float32)}
    return Sources([[feed] * ROWS], [[frames] * ROWS])


if __name__ == "__main__":
    main()
