"""What a recogniser learns from: synthesised utterances, the user's recordings, and noise."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch

from training.errors import DataError
from training.recipes.spoken_numbers import spoken_numbers
from training.split import sha256_hex
from training.tasks.speech_recognition.acoustics import hear
from training.tasks.speech_recognition.corpus import (
    RATE_HZ,
    Corpus,
    hash_corpus,
    open_corpus,
    split_corpus,
)
from training.tasks.speech_recognition.espeak import INVENTED, SPEAKERS, Spoken, synthesize
from training.tasks.speech_recognition.evaluate import places
from training.tasks.speech_recognition.manifest import read_manifest
from training.tasks.speech_recognition.recipe import Acoustics
from training.tasks.speech_recognition.spoken import draw, draw_invented, make_corpus
from training.tasks.speech_recognition.utterances import normalize, say_something

# Synthesised


def test_every_utterance_is_words_of_letters() -> None:
    chance = Random(1)
    texts = {normalize(say_something(chance)) for _ in range(2000)}
    assert len(texts) > 1500
    for text in texts:
        assert re.fullmatch(r"[a-z]+('[a-z]+)?( [a-z]+('[a-z]+)?)*", text), text


def test_the_seed_decides_what_is_said_and_every_sample_of_it() -> None:
    spoken = draw(12, seed=3)
    assert draw(12, seed=3) == spoken
    assert draw(12, seed=4) != spoken
    once, again = synthesize(spoken, RATE_HZ), synthesize(spoken, RATE_HZ)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert one.sounds == other.sounds
    assert all(len(one.samples) > 0.15 * RATE_HZ for one in once)
    assert all(np.abs(one.samples.astype(int)).max() > 1000 for one in once)


def test_sounds_are_told_with_their_times() -> None:
    spoken = Spoken("six, six", "en", "m1", speed=120, pitch=50, range=50)
    [recording] = synthesize([spoken], RATE_HZ)
    starts = [start for start, _ in recording.sounds]
    names = [name for _, name in recording.sounds]
    assert starts == sorted(starts)
    assert starts[-1] <= len(recording.samples)
    assert "".join(names) == "sIkssIks"
    # A pause is quiet, and a vowel is not.
    loudness = {name: [] for name in names}  # type: dict[str, list[float]]
    for (start, name), end in zip(recording.sounds, [*starts[1:], None], strict=True):
        if len(piece := recording.samples[start:end].astype(float)):
            loudness[name].append(float(np.sqrt(np.mean(piece**2))))
    assert max(loudness[""]) < 0.2 * min(loudness["I"])


def test_utterances_are_kept_and_no_held_out_speaker_was_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus = make_corpus(60, 20, seed=1)
    [kept] = (tmp_path / "slipway").iterdir()
    written = (kept / "audio.npz").stat().st_mtime_ns
    again = make_corpus(60, 20, seed=1)
    assert (kept / "audio.npz").stat().st_mtime_ns == written
    np.testing.assert_array_equal(corpus.samples, again.samples)
    assert corpus.sounds is not None
    assert again.sounds is not None
    np.testing.assert_array_equal(corpus.sounds.starts, again.sounds.starts)
    assert hash_corpus(corpus) == hash_corpus(again)

    speakers = speakers_of_parts(corpus)
    assert all(speakers)
    assert sum(map(len, speakers)) == len(set.union(*speakers))


def speakers_of_parts(corpus: Corpus) -> list[set[str]]:
    split = split_corpus(corpus)
    return [
        {corpus.voices[index].split("+")[1] for index in part}
        for part in (split.train, split.validation, split.held_out)
    ]


def test_invented_speakers_are_learned_from_and_move_nobody_else() -> None:
    def corpus(*utterances: Spoken) -> Corpus:
        count = len(utterances)
        return Corpus(
            texts=("one",) * count,
            voices=tuple(f"{one.accent}+{one.speaker}" for one in utterances),
            groups=tuple(sha256_hex(one.speaker.encode()) for one in utterances),
            digests=tuple(map(str, range(count))),
            samples=np.zeros(count, np.int16),
            lengths=np.ones(count, np.int64),
        )

    real = draw(2000, seed=1)
    without = speakers_of_parts(corpus(*real))
    train, *judges = speakers_of_parts(corpus(*real, *draw_invented(10, seed=1)))
    assert [train - {INVENTED}, *judges] == without
    assert INVENTED in train
    assert set.union(*without) == set(SPEAKERS)


def test_each_invented_speaker_sounds_as_drawn() -> None:
    spoken = draw_invented(4, seed=1)
    assert len({one.timbre for one in spoken}) == 4
    alike = [replace(spoken[0], timbre=one.timbre) for one in (*spoken, spoken[0])]
    *heard, again = synthesize(alike, RATE_HZ)
    timbres = [spectrum(one.samples) for one in (*heard, again)]
    for number, one in enumerate(timbres[1:-1]):
        assert all(np.abs(one - other).max() > 3.0 for other in timbres[: number + 1])
    np.testing.assert_allclose(timbres[-1], timbres[0], atol=1.0)


def spectrum(samples: np.ndarray) -> np.ndarray:
    """Decibels in eight equal bands, on average 0."""
    power = np.abs(np.fft.rfft(samples.astype(float))) ** 2
    levels: np.ndarray = 10.0 * np.log10([band.mean() for band in np.array_split(power, 8)])
    levels -= levels.mean()
    return levels


# The user's own


def write(folder: Path, name: str, seconds: float, rate_hz: int, channels: int) -> None:
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = 0.5 * np.sin(2 * np.pi * 440.0 * time)
    soundfile.write(folder / name, np.stack([tone] * channels, axis=1), rate_hz)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "a.wav", 1.0, 8_000, 1)
    write(tmp_path, "b.flac", 0.5, 44_100, 2)
    write(tmp_path, "c.ogg", 2.0, 48_000, 1)
    for number in range(3):
        write(tmp_path, f"{number}.wav", 0.3 + 0.1 * number, RATE_HZ, 1)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:9_000])
    return tmp_path


ROWS = ["a.wav,Twenty-one!", 'b.flac,"It\'s  noon, stop."', "c.ogg,Größe"]
MORE = [f"{number}.wav,word" for number in range(3)]


def listed(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_recordings_of_any_rate_and_format_are_read(folder: Path, encoding: str) -> None:
    manifest = listed(folder, "path,text", *ROWS, *MORE, encoding=encoding)
    corpus = read_manifest(manifest, longest_seconds=30.0)
    assert corpus.texts[:3] == ("twenty one", "it's noon stop", "grösse")
    np.testing.assert_allclose(corpus.lengths[:3], [16_000, 8_000, 32_000], atol=2)
    for recording in corpus.read([0, 1, 2]):
        spectrum = np.abs(np.fft.rfft(recording))
        assert spectrum.argmax() * RATE_HZ / len(recording) == pytest.approx(440.0, abs=3.0)
        assert np.abs(recording.astype(int)).max() == pytest.approx(16_384, rel=0.1)
    assert len(split_corpus(corpus).held_out) == 1


def test_a_voice_is_in_one_part(folder: Path) -> None:
    rows = [f"{number % 3}.wav,word,{number % 6}" for number in range(12)]
    corpus = read_manifest(listed(folder, "path,text,voice", *rows), 30.0)
    split = split_corpus(corpus)
    assert {corpus.voices[index] for index in split.held_out}.isdisjoint(
        corpus.voices[index] for index in (*split.train, *split.validation)
    )


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["file,text"], r"mine\.csv: the first line must name the columns path, text"),
        (["path,text", "a.wav"], r"mine\.csv, line 2: expected 2 fields"),
        (["path,text", "a.wav,b,c"], r"mine\.csv, line 2: expected 2 fields"),
        (["path,text", ROWS[0], "a.wav,?!"], r"mine\.csv, line 3: the text has no words"),
        (["path,text", "x.wav,one"], r"mine\.csv, line 2: .*x\.wav: No such file"),
        (
            ["path,text", "mine.csv,one"],
            r"line 2: .*mine\.csv: the recording is of no known format",
        ),
        (["path,text", "cut.wav,one"], r"line 2: .*cut\.wav: the recording is cut short"),
        (
            ["path,text", "c.ogg,one"],
            r"line 2: .*c\.ogg: expected a recording of 0\.1 to 1\.5 s.*, got 2",
        ),
        (["path,text", ROWS[0]], r"mine\.csv has 1 different recordings; expected at least 5"),
        (["path,text,voice", *(f"{row},me" for row in MORE)], r"has 1 different voices"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(
    folder: Path, lines: list[str], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        read_manifest(listed(folder, *lines), longest_seconds=1.5)
    assert "\n" not in str(caught.value)


def test_source_and_file_belong_together(folder: Path) -> None:
    with pytest.raises(DataError, match=r"--data FILE\.csv"):
        open_corpus(spoken_numbers(own_data=True).data, None, 1)
    with pytest.raises(DataError, match="drop --data"):
        open_corpus(spoken_numbers().data, folder, 1)
    with pytest.raises(DataError, match="No such file"):
        open_corpus(spoken_numbers(own_data=True).data, folder / "nowhere.csv", 1)


# Heard

QUIET = Acoustics(
    silence_seconds=(0.1, 0.1),
    playback=(1.0, 1.0),
    tilt_db=(0.0, 0.0),
    level_db=(-20.0, -20.0),
    noise_db=(100.0, 100.0),
    rooms=0.0,
    reverberation_seconds=(0.3, 0.3),
    direct_db=(0.0, 0.0),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tone(samples: int) -> np.ndarray:
    wave: np.ndarray = (8000 * np.sin(0.2 * np.arange(samples))).astype(np.int16)
    return wave


@pytest.mark.parametrize("noise_db", [20.0, 10.0])
def test_the_noise_is_as_loud_as_asked_for(noise_db: float) -> None:
    recordings = [tone(16_000), tone(9_000)]
    noisy = QUIET.model_copy(update={"noise_db": (noise_db, noise_db)})
    clean, heard = (hear(recordings, place, generator()) for place in (QUIET, noisy))
    for recording, one, other in zip(recordings, clean, heard, strict=True):
        assert len(one) == len(recording) + 3200
        speech = one[1600:-1600].square().mean()
        assert 10.0 * speech.log10() == pytest.approx(-20.0, abs=0.1)
        assert one[:1500].abs().max() < 1e-4
        noise = (other - one).square().mean()
        assert 10.0 * (speech / noise).log10() == pytest.approx(noise_db, abs=1.5)


def test_a_room_echoes_after_the_end() -> None:
    room = QUIET.model_copy(update={"rooms": 1.0, "silence_seconds": (0.2, 0.2)})
    [dry], [wet] = (
        hear([tone(8000)], place.model_copy(update={"silence_seconds": (0.2, 0.2)}), generator())
        for place in (QUIET, room)
    )
    assert dry[-3000:].abs().max() < 1e-4
    assert wet[-3100:-2500].abs().max() > 1e-3
    assert wet[:3000].abs().max() < 1e-4


def test_a_faster_playback_is_shorter_and_higher() -> None:
    fast = QUIET.model_copy(update={"playback": (1.25, 1.25)})
    [heard] = hear([tone(16_000)], fast, generator())
    assert len(heard) == pytest.approx(16_000 / 1.25 + 3200, abs=2)
    loudest = int(torch.fft.rfft(heard).abs().argmax()) * RATE_HZ / len(heard)
    assert loudest == pytest.approx(1.25 * 0.2 * RATE_HZ / (2 * np.pi), abs=2.0)


def test_a_tilt_is_for_high_frequencies() -> None:
    low, high = (
        (4000 * np.sin(2 * np.pi * hz * np.arange(16_000) / RATE_HZ)) for hz in (250, 4000)
    )
    tilted = QUIET.model_copy(update={"tilt_db": (12.0, 12.0)})
    [heard] = hear([(low + high).astype(np.int16)], tilted, generator())
    levels = torch.fft.rfft(heard[1600:-1600]).abs()
    # Of the six octaves from 125 Hz to 8 kHz there are four between them.
    assert 20.0 * (levels[4000] / levels[250]).log10() == pytest.approx(8.0, abs=0.1)


def test_voices_are_judged_as_they_are() -> None:
    for place in places(spoken_numbers().acoustics).values():
        assert (place.playback, place.tilt_db) == ((1.0, 1.0), (0.0, 0.0))


def test_the_generator_decides_what_is_heard() -> None:
    acoustics = spoken_numbers().acoustics
    recordings = [tone(4000), tone(7000)]
    [one, other, third] = (hear(recordings, acoustics, generator(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one[1], other[1])
    assert len(one[1]) != len(third[1]) or not torch.equal(one[1], third[1])
    assert all(heard.abs().max() <= 1.0 for heard in (*one, *third))
