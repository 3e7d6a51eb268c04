"""What the graphs alone can do: the rate at which nothing but they would translate.

Each of --processes encodes 32 of the texts of translation.py, those of like length together, and
then runs the step graph on 32 rows as often as an answer has tokens on average, again and again,
each with one thread. Nobody chooses a token, keeps a request or speaks HTTP.

  python loadtests/bench/floor.py --model-repository model_repo --model translator
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np
from processes import ROOT
from texts import Writer

from serving.engines.onnx_graph import open_graph
from serving.repository import Repositories
from serving.steppers.beginnings import alike, padded
from serving.steppers.tokens import DECODER_FILE, ENCODER_FILE
from serving.text import load_tokenizer
from serving.types import Tensors

ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="translator", help="an encoder-decoder (translator)")
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


def measure(
    repository: Path, model: str, seconds: float, tokens: int
) -> tuple[float, float, float]:
    """Tokens in a second; seconds for a token and for a source token."""
    [version] = Repositories([repository]).read(model)
    encoder = open_graph(version.directory / ENCODER_FILE, version.config)
    decoder = open_graph(version.directory / DECODER_FILE, version.config)
    tokenizer = load_tokenizer(version.directory)
    codes = [f">>{language}<<" for language in tokenizer.languages]
    writer = Writer(lambda text: len(tokenizer.encode(text)), codes)
    texts = [tokenizer.encode(each.text) for each in writer.mixed(2000)]
    longest = max(map(len, texts))
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
    while time.monotonic() - started < seconds:
        now = [texts[(made + index) % len(texts)] for index in range(ROWS)]
        for group in alike(now, [len(text) for text in now]):
            ids = padded(group, 0)
            lengths = np.array([len(text) for text in group])
            mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
            began = time.perf_counter()
            encoder.run({"input_ids": ids, "attention_mask": mask})
            taking += time.perf_counter() - began
        taken += sum(map(len, now))
        known["source_lengths"][:] = [len(text) for text in now]
        for position in range(tokens):
            known["positions"][:] = position
            known["lengths"][:] = position + 1
            began = time.perf_counter()
            step()
            stepping += time.perf_counter() - began
        made += ROWS * tokens
    return made / (time.monotonic() - started), stepping / made, taking / taken


if __name__ == "__main__":
    main()
