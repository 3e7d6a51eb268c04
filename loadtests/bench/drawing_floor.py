"""What the network alone can do: the rate at which nothing but it would draw.

Batches of rows run one after the other, again and again, with one thread for each core or with one
for all of them. Nobody solves an equation, keeps a request or speaks HTTP.

  python loadtests/bench/drawing_floor.py --model-repository model_repo --model digits-diffusion
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from processes import ROOT

from serving.diffusion.settings import UNET_FILE, DiffusionSettings
from serving.engines.onnx_graph import OnnxGraph, open_graph
from serving.repository import Repositories
from serving.types import Tensors

BATCHES = (1, 2, 4, 8, 16, 32)
CORE_EACH, ALL_CORES = "a thread for each core", "all cores for one run"
LAYOUTS = (CORE_EACH, ALL_CORES)
_WARMUP_S = 0.3


@dataclass(frozen=True)
class Way:
    layout: str
    batch: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="digits-diffusion", help="one that draws")
    add("--seconds", type=float, default=3.0, help="for each way (3)")
    options = parser.parse_args()
    for way, rate in search(options.model_repository, options.model, options.seconds):
        print(f"{way.layout}, batches of {way.batch}: {rate:,.0f} rows in a second")


def search(repository: Path, model: str, seconds: float) -> list[tuple[Way, float]]:
    """The rate of every way, in rows in a second."""
    ways = [Way(layout, batch) for layout in LAYOUTS for batch in BATCHES]
    return [(way, measure(repository, model, way, seconds)) for way in ways]


def measure(repository: Path, model: str, way: Way, seconds: float) -> float:
    [version] = Repositories([repository]).read(model)
    settings = DiffusionSettings.load(version.directory)
    cores = os.cpu_count() or 1
    threads = cores if way.layout == ALL_CORES else 1
    parameters = {**version.config.parameters, "intra_op_thread_count": str(threads)}
    config = replace(version.config, parameters=parameters)
    graphs = [open_graph(version.directory / UNET_FILE, config) for _ in range(cores // threads)]
    sample = settings.sample
    shape = way.batch, sample.channels, sample.height, sample.width
    inputs: Tensors = {
        "sample": np.random.default_rng(0).normal(size=shape).astype(np.float32),
        "timestep": np.linspace(0, 900, way.batch, dtype=np.float32),
    }
    if settings.classes:
        inputs["class_labels"] = np.arange(way.batch) % len(settings.classes)
    _run(graphs, inputs, _WARMUP_S)
    started = time.perf_counter()
    runs = _run(graphs, inputs, seconds)
    return runs * way.batch / (time.perf_counter() - started)


def _run(graphs: list[OnnxGraph], inputs: Tensors, seconds: float) -> int:
    """Runs of all graphs, in a thread for each."""
    done = [0] * len(graphs)
    deadline = time.perf_counter() + seconds

    def loop(place: int) -> None:
        while time.perf_counter() < deadline:
            graphs[place].run(inputs)
            done[place] += 1

    threads = [threading.Thread(target=loop, args=(place,)) for place in range(len(graphs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


if __name__ == "__main__":
    main()
