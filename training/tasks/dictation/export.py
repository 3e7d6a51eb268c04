"""From a finished run to what is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import WhisperForConditionalGeneration

from training import durable
from training.graphs.proof import without_warnings
from training.parity import ParityReport
from training.recognizers import whisper, whisper_proof
from training.runs import FLOAT32, PARITY_FILE, RunDirectory
from training.tasks.dictation import network
from training.tasks.dictation.evaluate import to_windows, write
from training.tasks.dictation.vocabulary import Vocabulary
from training.tasks.dictation.workload import DictationWorkload
from training.tasks.speech_recognition.corpus import RATE_HZ
from training.tasks.speech_recognition.evaluate import heard_batches, places
from training.tasks.speech_recognition.export import ANSWER_FILE, EXAMPLE_FILE

_CANDIDATES = 32
"""Held-out recordings among which an example is sought: the longest that comes out right."""


def export(run: RunDirectory, workload: DictationWorkload) -> ParityReport:
    """Raises `ParityError` with the first check that failed; the report is written all the same."""
    model, vocabulary = network.load(run.checkpoint)
    extractor = whisper.load_extractor(run.checkpoint, model)
    destination = run.export(FLOAT32)
    with durable.staged_directory(destination.parent) as staged:
        whisper.export(model, run.checkpoint, extractor, staged)
        with without_warnings():
            _write_example(staged, model, vocabulary, workload)
        parity = whisper_proof.prove(staged, model, extractor)
        parity.save(staged / PARITY_FILE)
        shutil.rmtree(destination, ignore_errors=True)
        durable.move_into_place(staged, destination)
    parity.require()
    return parity


def _write_example(
    directory: Path,
    model: WhisperForConditionalGeneration,
    vocabulary: Vocabulary,
    workload: DictationWorkload,
) -> None:
    """A held-out voice in noise, and what the model writes of it, right if it ever is."""
    place = places(workload.recipe.acoustics)["noise at 20 dB"]
    examples = workload.split.held_out[:_CANDIDATES]
    [(batch, waveforms)] = heard_batches(workload.corpus, examples, place, torch.device("cpu"))
    heard = write(model, workload.features(to_windows(waveforms, workload.samples)), vocabulary)
    said = [workload.corpus.texts[index] for index in batch]
    right = [number for number, text in enumerate(heard) if text == said[number]]
    chosen = max(right or range(len(heard)), key=lambda number: len(said[number]))
    samples = np.round(waveforms[chosen].numpy() * 32767.0).astype(np.int16)
    soundfile.write(directory / EXAMPLE_FILE, samples, RATE_HZ, subtype="PCM_16")
    answer = json.dumps({"answer": heard[chosen]}, ensure_ascii=False)
    durable.write(directory / ANSWER_FILE, answer + "\n")
