"""What a model hears in recordings that it did not learn from, and how many words are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jiwer
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from serving.speech.lexicon import Lexicon, LexiconSearch
from serving.tasks.speech_recognition import HORIZON_S
from training.record import Record
from training.split import Indices
from training.tasks.speech_recognition.acoustics import hear
from training.tasks.speech_recognition.corpus import RATE_HZ, Corpus
from training.tasks.speech_recognition.network import (
    BLANK,
    CHUNK_FRAMES,
    SAMPLES_PER_FRAME,
    RecognizerConfig,
)
from training.tasks.speech_recognition.recipe import Acoustics

BATCH = 32
_SEED = 5
"""Of the noise in which every model is judged."""

Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From waveforms to logits and frames; see `Recognizer.forward`."""

Read = Callable[[Tensor, Tensor], list[str]]
"""From logits and frames to the text of each row."""


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
    spelt_word_errors: float | None = None
    """Word error rate of the likeliest characters, whatever words they make; None where that is
    how texts are read anyway."""
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


def reader(config: RecognizerConfig) -> Read:
    """Reads as the model's server does."""
    vocabulary = config.vocabulary
    if not config.words:
        return partial(read_off, vocabulary=vocabulary)
    lexicon = Lexicon(config.words, vocabulary, BLANK)
    horizon = round(HORIZON_S * RATE_HZ / SAMPLES_PER_FRAME)

    def read(logits: Tensor, frames: Tensor) -> list[str]:
        texts = []
        for row, end in zip(logits.cpu().numpy(), frames.flatten().tolist(), strict=True):
            search = LexiconSearch(lexicon, horizon)
            for start in range(0, end, CHUNK_FRAMES):
                search.push(row[start : min(end, start + CHUNK_FRAMES)])
                if config.architecture == "live":
                    # Who listens wants to know what is certain after every chunk.
                    search.settled()
            text = "".join(vocabulary[token.id] for token in search.best())
            texts.append(" ".join(text.split()))
        return texts

    return read


@torch.no_grad()
def transcribe(
    model: Model,
    corpus: Corpus,
    examples: Indices,
    place: Acoustics,
    read: Read,
    device: torch.device,
) -> dict[int, str]:
    """What the model hears in each example, by its index."""
    texts: dict[int, str] = {}
    for batch, waveforms in heard_batches(corpus, examples, place, device):
        logits, frames = model(pad(waveforms))
        texts.update(zip(batch.tolist(), read(logits, frames), strict=True))
    return texts


def score(
    corpus: Corpus, texts: dict[int, str], place: str, spelt: dict[int, str] | None = None
) -> Score:
    """Compare what was heard with what was said; there is at least one text.

    `spelt` are the same by the likeliest characters, if they were read otherwise.
    """
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
        spelt_word_errors=_rates(corpus, spelt, list(spelt))[0] if spelt else None,
        per_voice=tuple(per_voice),
    )


def _rates(corpus: Corpus, texts: dict[int, str], indices: Sequence[int]) -> tuple[float, float]:
    said = [corpus.texts[index] for index in indices]
    heard = [texts[index] for index in indices]
    return float(jiwer.wer(said, heard)), float(jiwer.cer(said, heard))
