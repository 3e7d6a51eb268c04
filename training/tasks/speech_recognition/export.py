"""From a checkpoint to the directory that is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch

from training import durable
from training.parity import ParityReport
from training.runs import FLOAT32, PARITY_FILE, RunDirectory
from training.tasks.speech_recognition.corpus import RATE_HZ
from training.tasks.speech_recognition.evaluate import heard_batches, pad, places, reader
from training.tasks.speech_recognition.graphs import graph_file, save_settings, to_onnx
from training.tasks.speech_recognition.network import Recognizer, load_model
from training.tasks.speech_recognition.verify import verify
from training.tasks.speech_recognition.workload import SpeechWorkload

EXAMPLE_FILE = "example.wav"
ANSWER_FILE = "example.json"
_CANDIDATES = 32
"""Held-out recordings among which an example is sought: the longest that comes out right."""


def export(run: RunDirectory, workload: SpeechWorkload) -> ParityReport:
    """Write the graph with what it needs to be served, and the proof that it equals the model.

    Raises `ParityError` with the first check that failed; the report is written all the same.
    """
    model = load_model(run.checkpoint)
    language = "en" if workload.recipe.data.source == "espeak" else None
    destination = run.export(FLOAT32)
    with durable.staged_directory(destination.parent) as staged:
        graph = to_onnx(model)
        (staged / graph_file(model.config)).write_bytes(graph.SerializeToString())
        save_settings(staged, model.config, language)
        _write_example(staged, model, workload)
        parity = verify(staged, model, workload)
        parity.save(staged / PARITY_FILE)
        shutil.rmtree(destination, ignore_errors=True)
        durable.move_into_place(staged, destination)
    parity.require()
    return parity


@torch.no_grad()
def _write_example(directory: Path, model: Recognizer, workload: SpeechWorkload) -> None:
    """A held-out voice in noise, and what it says; what the model hears, if it is never right."""
    place = places(workload.recipe.acoustics)["noise at 20 dB"]
    examples = workload.split.held_out[:_CANDIDATES]
    cpu = torch.device("cpu")
    [(batch, waveforms)] = heard_batches(workload.corpus, examples, place, cpu)
    logits, frames = model(pad(waveforms))
    heard = reader(model.config)(logits, frames)
    said = [workload.corpus.texts[index] for index in batch]
    right = [number for number, text in enumerate(heard) if text == said[number]]
    chosen = max(right or range(len(heard)), key=lambda number: len(said[number]))
    samples = np.round(waveforms[chosen].numpy() * 32767.0).astype(np.int16)
    soundfile.write(directory / EXAMPLE_FILE, samples, RATE_HZ, subtype="PCM_16")
    answer = json.dumps({"answer": heard[chosen]}, ensure_ascii=False)
    durable.write(directory / ANSWER_FILE, answer + "\n")
