"""What a model hears in recordings that it did not learn from, and how many words are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jiwer
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.record import Record
from training.split import Indices
from training.tasks.speech_recognition.acoustics import hear
from training.tasks.speech_recognition.corpus import Corpus
from training.tasks.speech_recognition.network import BLANK
from training.tasks.speech_recognition.recipe import Acoustics

BATCH = 32
_SEED = 5
"""Of the noise in which every model is judged."""

Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From waveforms to logits and frames; see `Recognizer.forward`."""


class VoiceScore(Record):
    voice: str
    words: int
    word_errors: float
    """Rates: what is left out, put in or another, of what was said."""
    character_errors: float


class Score(Record):
    """Of everything that was heard in one place."""

    place: str
    utterances: int
    word_errors: float
    character_errors: float
    per_voice: tuple[VoiceScore, ...]


def places(acoustics: Acoustics) -> dict[str, Acoustics]:
    """Where a model is judged, by voices as they are; level and silence are those of training."""

    def place(noise_db: float, rooms: float) -> Acoustics:
        unchanged = {"playback": (1.0, 1.0), "tilt_db": (0.0, 0.0)}
        return acoustics.model_copy(
            update={"noise_db": (noise_db, noise_db), "rooms": rooms, **unchanged}
        )

    return {
        "without noise": place(60.0, 0.0),
        "noise at 20 dB": place(20.0, 0.0),
        "noise at 10 dB": place(10.0, 0.0),
        "noise at 20 dB, in a room": place(20.0, 1.0),
    }


def pad(waveforms: Sequence[Tensor]) -> Tensor:
    """[waveform, sample], with NaN after the end of each."""
    return pad_sequence(list(waveforms), batch_first=True, padding_value=float("nan"))


def heard_batches(
    corpus: Corpus, examples: Indices, place: Acoustics, device: torch.device
) -> Iterator[tuple[Indices, list[Tensor]]]:
    """Recordings of like length, each the same whenever it is judged with the same others."""
    generator = torch.Generator(device)
    generator.manual_seed(_SEED)
    order = examples[np.argsort(corpus.lengths[examples], kind="stable")]
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        yield batch, hear(corpus.read(batch), place, generator)


def read_off(logits: Tensor, frames: Tensor, vocabulary: Sequence[str]) -> list[str]:
    """The text of each row: its likeliest classes, repetitions as one, without blanks."""
    best: npt.NDArray[np.int64] = logits.argmax(dim=2).cpu().numpy()
    texts = []
    for row, end in zip(best, frames.flatten().tolist(), strict=True):
        path = row[:end]
        kept = path[(path != BLANK) & (np.diff(path, prepend=BLANK) != 0)]
        texts.append(" ".join("".join(vocabulary[i] for i in kept).split()))
    return texts


@torch.no_grad()
def transcribe(
    model: Model,
    corpus: Corpus,
    examples: Indices,
    place: Acoustics,
    vocabulary: Sequence[str],
    device: torch.device,
) -> dict[int, str]:
    """What the model hears in each example, by its index."""
    texts: dict[int, str] = {}
    for batch, waveforms in heard_batches(corpus, examples, place, device):
        logits, frames = model(pad(waveforms))
        texts.update(zip(batch.tolist(), read_off(logits, frames, vocabulary), strict=True))
    return texts


def score(corpus: Corpus, texts: dict[int, str], place: str) -> Score:
    """Compare what was heard with what was said; there is at least one text."""
    voices: dict[str, list[int]] = {}
    for index in sorted(texts):
        voices.setdefault(corpus.voices[index], []).append(index)
    words, characters = _rates(corpus, texts, list(texts))
    per_voice = []
    for voice, indices in sorted(voices.items()):
        rates = _rates(corpus, texts, indices)
        count = sum(len(corpus.texts[index].split()) for index in indices)
        per_voice.append(
            VoiceScore(voice=voice, words=count, word_errors=rates[0], character_errors=rates[1])
        )
    return Score(
        place=place,
        utterances=len(texts),
        word_errors=words,
        character_errors=characters,
        per_voice=tuple(per_voice),
    )


def _rates(corpus: Corpus, texts: dict[int, str], indices: Sequence[int]) -> tuple[float, float]:
    said = [corpus.texts[index] for index in indices]
    heard = [texts[index] for index in indices]
    return float(jiwer.wer(said, heard)), float(jiwer.cer(said, heard))
