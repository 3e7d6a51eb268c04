"""What is possible at most: the graph alone without a server, and the server without a graph.

The bare graph runs in batches that were made beforehand, again and again; nobody speaks HTTP,
queues or scatters. The fake engine answers at once, so what is measured is the gateway: parsing,
batching and answering the very requests that the model gets.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import drawing_floor
import floor
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from processes import alone

from loadreport.calls import Call, tensor_call
from loadreport.models import ShippedModel
from loadreport.pools import Sample
from serving.diffusion.settings import UNET_FILE
from serving.repository import ModelVersion, Repositories

_SEARCH_SHARE = 0.1
"""Of the time of a measurement, that each way is tried for, to find the best."""
_BATCHES = (1, 4, 16, 64)
_ECHO = "echo"
_SAMPLES_OF_A_CHUNK = 1920

Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Floor:
    """A way to run the graph alone, and the rates that it reached, in requests a second."""

    way: str
    rounds: list[float]


class GraphFloor:
    """The graph alone, each time in a process of its own, which leaves nothing behind."""

    def __init__(
        self, repository: Path, model: ShippedModel, samples: Sequence[Sample], seconds: float
    ):
        self._given = (repository, model.name, list(samples))
        self._kind = model.kind
        self._seconds, self._search_s = seconds, _SEARCH_SHARE * seconds
        self._best: tuple[int, int] | None = None
        self._drawing: drawing_floor.Way | None = None
        self.floor = Floor("", [])

    def measure(self, work_per_request: float | None) -> None:
        """Add a round. `work_per_request` is what a model that takes steps makes for a request."""
        repository, name, _ = self._given
        if self._kind in ("text", "dictation"):
            tokens = round(work_per_request or 1)
            cores = os.cpu_count() or 1
            rate = alone(_steps_of_a_text, repository, name, self._seconds, tokens, cores)
            way = f"encoder and step graph alone on {floor.ROWS} rows, {tokens} tokens a request"
            self._add(f"{way}, a thread on each of {cores} cores", rate / tokens)
            return
        if self._kind == "picture":
            rows = work_per_request or 1
            if self._drawing is None:
                found = alone(drawing_floor.search, repository, name, self._search_s)
                self._drawing, _ = max(found, key=lambda pair: pair[1])
            drawing = self._drawing
            rate = alone(drawing_floor.measure, repository, name, drawing, self._seconds)
            batches = f"in batches of {drawing.batch}, {drawing.layout}"
            self._add(f"{UNET_FILE} alone {batches}, {rows:.0f} rows a picture", rate / rows)
            return
        if self._best is None:
            self._best = alone(_best, *self._given, self._search_s)
        batch, threads = self._best
        rate = alone(_one_graph, *self._given, self._best, self._seconds)
        layout = "a thread for each core" if threads == 1 else "all cores for one run"
        self._add(f"the graph alone in batches of {batch}, {layout}", rate)

    def _add(self, way: str, rate: float) -> None:
        self.floor = Floor(way, [*self.floor.rounds, rate])


def write_fake(repository: Path, model: ShippedModel, destination: Path) -> None:
    """A repository with a model of the same name and input, which computes nothing.

    It answers with a number that stands beside the input, for answers are small, and some inputs
    are not.
    """
    config = _version(repository, model.name).config
    [input] = [spec for spec in config.inputs if spec.name == model.input]
    # The shipped models batch, so the first axis counts rows.
    dims = f"dims: {json.dumps(list(input.shape[1:]))}"
    ragged = "allow_ragged_batch: true " if model.input in config.ragged else ""
    directory = destination / model.name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(
        f"""name: "{model.name}"
backend: "fake"
max_batch_size: {config.max_batch_size}
input {{ name: "{_ECHO}" data_type: TYPE_FP32 dims: [ 1 ] }}
input {{ name: "{input.name}" data_type: {_datatype(input.datatype)} {dims} {ragged}}}
output {{ name: "{model.output}" data_type: TYPE_FP32 dims: [ 1 ] }}
dynamic_batching {{ }}
"""
    )


def fake_calls(model: ShippedModel, samples: Sequence[Sample]) -> list[Call]:
    """Always protocol v2 over HTTP, for an engine that computes nothing has no task.

    Of live speech, which is a sequence of requests, each is one chunk.
    """
    if model.kind == "live":
        samples = [
            replace(sample, tensor=sample.tensor[:, :_SAMPLES_OF_A_CHUNK]) for sample in samples
        ]
    beside = np.ones((1, 1), np.float32)
    return [tensor_call(model, sample, {_ECHO: beside}) for sample in samples]


def _datatype(name: str) -> str:
    return "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"


def _version(repository: Path, name: str) -> ModelVersion:
    [version] = Repositories([repository]).read(name)
    return version


def _best(
    repository: Path, name: str, samples: Sequence[Sample], seconds: float
) -> tuple[int, int]:
    """Rows of a batch and threads of a run, by trying."""
    most = max(1, _version(repository, name).config.max_batch_size)
    batches = [batch for batch in _BATCHES if batch <= most]
    ways = [(batch, threads) for batch in batches for threads in {1, os.cpu_count() or 1}]
    # Twice, for others may have had the cores meanwhile.
    return max(ways * 2, key=lambda way: _one_graph(repository, name, samples, way, seconds))


def _one_graph(
    repository: Path,
    name: str,
    samples: Sequence[Sample],
    way: tuple[int, int],
    seconds: float,
) -> float:
    """Requests in a second: a session for every so many threads that all cores have work."""
    batch, threads = way
    version = _version(repository, name)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = str(version.directory / version.config.model_filename)
    sessions = [
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range((os.cpu_count() or 1) // threads)
    ]
    feeds, requests = _feeds(version, sessions[0], samples, batch)
    for session in sessions:
        # The first run with a shape is slow: memory is set aside for it.
        for feed in feeds:
            session.run(None, feed)
    done = [0.0] * len(sessions)
    deadline = time.perf_counter() + seconds

    def loop(place: int) -> None:
        turn = place
        while time.perf_counter() < deadline:
            sessions[place].run(None, feeds[turn % len(feeds)])
            done[place] += requests[turn % len(feeds)]
            turn += 1

    started = time.perf_counter()
    workers = [threading.Thread(target=loop, args=(place,)) for place in range(len(sessions))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - started)


def _feeds(
    version: ModelVersion, session: Any, samples: Sequence[Sample], batch: int
) -> tuple[list[Feed], list[float]]:
    """Batches of like length, padded, and how many requests each of them is.

    Of live speech a row is a chunk, and a request as many as its recording has; what a sequence
    remembers is zero, which costs the same.
    """
    config = version.config
    rows = [sample.tensor[0] for sample in samples]
    share = 1.0
    if config.sequences is not None:
        chunks = [-(-len(row) // _SAMPLES_OF_A_CHUNK) for row in rows]
        rows = [row[:_SAMPLES_OF_A_CHUNK] for row in rows]
        share = len(rows) / sum(chunks)
    rows.sort(key=len)
    rows *= -(-batch // len(rows))
    padding = float(config.parameters.get("pad_value", "0"))
    [given] = config.inputs
    feeds = []
    for start in range(0, len(rows) - batch + 1, batch):
        group = rows[start : start + batch]
        padded = np.full((batch, *max(row.shape for row in group)), padding, group[0].dtype)
        for line, row in zip(padded, group, strict=True):
            line[: len(row)] = row
        states: Feed = {
            spec.name: np.zeros([batch, *spec.shape[1:]], np.float32)
            for spec in session.get_inputs()
            if spec.name != given.name
        }
        feeds.append({given.name: padded, **states})
    return feeds, [batch * share] * len(feeds)


def _steps_of_a_text(
    repository: Path, name: str, seconds: float, tokens: int, processes: int
) -> float:
    """Tokens in a second."""
    rates: list[float] = []
    # ONNX Runtime computes outside of Python's lock.
    workers = [
        threading.Thread(
            target=lambda: rates.append(floor.measure(repository, name, seconds, tokens)[0])
        )
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)
