"""What the graph alone can do: the rate at which nothing but it would hear recordings.

Batches of like length, padded beforehand, run one after the other, again and again: as the model's
config has it, and with one thread for each core. Nobody decodes a file or a text or speaks HTTP.

  python loadtests/bench/speech_floor.py --model-repository model_repo --model spoken-numbers
"""

from __future__ import annotations

import argparse
import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import clips
import numpy as np
import numpy.typing as npt
import soundfile
from clips import Clip
from processes import ROOT

from serving.config import InstanceGroup, InstanceKind, ModelConfig
from serving.engines.onnx_session import Session, SessionSettings, open_sessions
from serving.repository import ModelVersion, Repositories
from serving.speech.windows import Window
from serving.tasks.speech_recognition import SpeechRecognition, load

BATCHES = (1, 2, 4, 8, 16, 32)
CONFIGURED, CORE_EACH = "as configured", "a thread for each core"
LAYOUTS = (CONFIGURED, CORE_EACH)
_WARMUP_S = 0.5

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Way:
    layout: str
    batch: int


@dataclass(frozen=True)
class Rate:
    audio_s_per_s: float
    cores: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="spoken-numbers", help="one that hears whole recordings")
    add("--seconds", type=float, default=3.0, help="for each way (3)")
    options = parser.parse_args()
    with TemporaryDirectory() as directory:
        heard = clips.mixed(Path(directory), 256, 1)
        for way, rate in search(options.model_repository, options.model, heard, options.seconds):
            print(
                f"{way.layout}, batches of {way.batch}: {rate.audio_s_per_s:,.0f} s of audio in a"
                f" second on {rate.cores:.2f} cores"
            )


def search(
    repository: Path, model: str, heard: Sequence[Clip], seconds: float
) -> list[tuple[Way, Rate]]:
    """The rate of every way."""
    ways = [Way(layout, batch) for layout in LAYOUTS for batch in BATCHES]
    return [(way, measure(repository, model, heard, way, seconds)) for way in ways]


def measure(repository: Path, model: str, heard: Sequence[Clip], way: Way, seconds: float) -> Rate:
    version = _version(repository, model)
    sessions = _sessions(version, way.layout)
    batches = _batches(heard, way.batch, version.config)
    Random(way.batch).shuffle(batches)
    turns = itertools.count()
    _run(sessions, batches, turns, _WARMUP_S)
    started, cpu_s = time.perf_counter(), time.process_time()
    done = _run(sessions, batches, turns, seconds)
    elapsed = time.perf_counter() - started
    return Rate(done / elapsed, (time.process_time() - cpu_s) / elapsed)


def texts(repository: Path, model: str, heard: Sequence[Clip]) -> list[tuple[str, str]]:
    """Of each recording alone: the likeliest class of every frame, in numbers, and the text."""
    version = _version(repository, model)
    task = load(version.directory)
    assert isinstance(task, SpeechRecognition), "a bare graph is read by the searches of CTC"
    [session, *_] = _sessions(version, CONFIGURED)
    found = []
    for [samples], _ in _batches(heard, 1, version.config, in_order=True):
        [logits] = session.run(["logits"], {"waveform": samples[np.newaxis]}, as_ort_values=False)
        path = logits[0].argmax(axis=1)
        transcriber = task.transcriber(task.Parameters())
        transcriber.push(logits[0], Window(0, len(samples), 0, None))
        found.append((" ".join(map(str, path)), transcriber.transcript(0.0).text))
    return found


def _version(repository: Path, model: str) -> ModelVersion:
    [version] = Repositories([repository]).read(model)
    return version


def _sessions(version: ModelVersion, layout: str) -> list[Session]:
    config = version.config
    if layout == CORE_EACH:
        config = replace(
            config,
            instance_groups=(InstanceGroup(InstanceKind.CPU, os.cpu_count() or 1),),
            parameters={**config.parameters, "intra_op_thread_count": "1"},
        )
    settings = SessionSettings(str(version.directory), config.parameters, config.graph_level)
    return open_sessions(version.directory / config.model_filename, config, settings)


def _batches(
    heard: Sequence[Clip], size: int, config: ModelConfig, *, in_order: bool = False
) -> list[tuple[Samples, float]]:
    """Waveforms [row, sample], and the seconds of audio in each batch."""
    padding = float(config.parameters.get("pad_value", "0"))
    ordered = heard if in_order else sorted(heard, key=lambda clip: clip.seconds)
    batches = []
    for start in range(0, len(ordered), size):
        group = ordered[start : start + size]
        rows = [soundfile.read(f"{clip.stem}.wav", dtype="float32")[0] for clip in group]
        padded = np.full((len(rows), max(map(len, rows))), padding, np.float32)
        for row, samples in zip(padded, rows, strict=True):
            row[: len(samples)] = samples
        batches.append((padded, sum(clip.seconds for clip in group)))
    return batches


def _run(
    sessions: Sequence[Session],
    batches: Sequence[tuple[Samples, float]],
    turns: itertools.count[int],
    seconds: float,
) -> float:
    """Seconds of audio that all sessions have heard, each in a thread of its own."""
    done = [0.0] * len(sessions)
    deadline = time.perf_counter() + seconds

    def loop(place: int) -> None:
        while time.perf_counter() < deadline:
            waveforms, audio_s = batches[next(turns) % len(batches)]
            sessions[place].run(["logits", "frames"], {"waveform": waveforms}, as_ort_values=False)
            done[place] += audio_s

    threads = [threading.Thread(target=loop, args=(place,)) for place in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


if __name__ == "__main__":
    main()
