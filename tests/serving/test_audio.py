from __future__ import annotations

import contextlib
import io
import itertools
import struct
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, TooLarge
from serving.speech.audio import MAX_MINUTES, decode
from tests.serving.recordings import CASES, FORMATS, RATE_HZ, encoded

Samples = npt.NDArray[Any]


def tone(seconds: float, rate_hz: int, pitch_hz: float = 440) -> Samples:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    samples: Samples = (0.5 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)
    return samples


def wav(samples: Samples) -> bytes:
    return encoded(samples, kind="wav of floats")


@pytest.mark.parametrize(("kind", "rate_hz", "channels"), CASES)
def test_every_format_rate_and_channel_count_gives_the_same_waveform(
    kind: str, rate_hz: int, channels: int
) -> None:
    waveform = decode(encoded(tone(1, rate_hz), rate_hz, kind, channels), RATE_HZ)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - RATE_HZ) <= 2
    error = (waveform - tone(1, RATE_HZ)[: len(waveform)])[1600:-1600]
    assert np.abs(error).max() < (0.001 if kind.startswith(("wav", "flac")) else 0.1)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seconds", [0.05, 600])
def test_short_and_long_recordings(kind: str, seconds: float) -> None:
    waveform = decode(encoded(tone(seconds, 8000), 8000, kind), RATE_HZ)
    assert len(waveform) == pytest.approx(seconds * RATE_HZ, abs=2)


def test_channels_are_averaged() -> None:
    left = tone(0.5, RATE_HZ)
    stereo = np.stack([left, np.zeros_like(left)], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, RATE_HZ, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(decode(buffer.getvalue(), RATE_HZ), left / 2, atol=1e-6)


def test_what_is_above_half_the_new_rate_is_filtered_out() -> None:
    high = encoded(tone(1, 48000, pitch_hz=12_000), 48000)
    assert np.abs(decode(high, RATE_HZ)[800:-800]).max() < 0.001


def test_silence_is_a_recording() -> None:
    assert not decode(wav(np.zeros(RATE_HZ)), RATE_HZ).any()


def test_what_is_too_loud_is_clipped() -> None:
    waveform = decode(wav(np.array([0.5, 3e38, -3e38] * 100, np.float32)), RATE_HZ)
    assert waveform.tolist() == [0.5, 1, -1] * 100


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(bad: float) -> None:
    samples = np.zeros(RATE_HZ, np.float32)
    samples[123] = bad
    with pytest.raises(InvalidRequest, match="sample 123 of the recording is not a finite"):
        decode(wav(samples), RATE_HZ)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.9])
def test_a_recording_cut_short_is_refused(kind: str, share: float) -> None:
    whole = encoded(tone(3, RATE_HZ), kind=kind)
    with pytest.raises(InvalidRequest, match=r"cut short|no known format"):
        decode(whole[: int(len(whole) * share)], RATE_HZ)


def tagged(mp3: bytes, tag: bytes) -> bytes:
    """With a tag, such as of a picture, before the first frame."""
    size = bytes((len(tag) >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + tag + mp3


def test_an_mp3_file_may_have_a_tag_of_any_size() -> None:
    whole = encoded(tone(3, RATE_HZ), kind="mp3")
    picture = tagged(whole, b"APIC" + bytes(40_000))
    assert len(decode(picture, RATE_HZ)) == pytest.approx(3 * RATE_HZ, abs=2)
    with pytest.raises(InvalidRequest, match=r"header says 3\.00 s, and \d\.\d\d s are there"):
        decode(picture[:-2000], RATE_HZ)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("tag", [b"TIT2\0\0\0\x05\0\0\0Info", b"APIC" + bytes(40_000)])
def test_an_mp3_file_that_does_not_tell_its_length_is_heard_to_its_end(
    channels: int, tag: bytes
) -> None:
    # From its first frames, which have fewer bits, nobody can guess how long it is.
    sound = np.concatenate([np.zeros(RATE_HZ), tone(2, RATE_HZ)])
    sound += np.random.default_rng(0).normal(0, 0.1, len(sound)) * (sound != 0)
    told = encoded(sound, kind="mp3", channels=channels)
    untold = told.replace(b"Xing", bytes(4), 1)
    assert untold != told
    # What the encoder put in front and behind is heard, too.
    assert 0 <= len(decode(tagged(untold, tag), RATE_HZ)) - len(sound) < 3000
    with pytest.raises(InvalidRequest, match="cut short"):
        decode(untold[:-100], RATE_HZ)


def wav_saying(size: int) -> bytes:
    whole = bytearray(encoded(tone(1, RATE_HZ)))
    struct.pack_into("<I", whole, whole.index(b"data") + 4, size)
    return bytes(whole)


def flac_saying(samples: int) -> bytes:
    whole = bytearray(encoded(tone(1, RATE_HZ), kind="flac"))
    whole[21] = (whole[21] & 0xF0) | (samples >> 32)
    struct.pack_into(">I", whole, 22, samples & 0xFFFFFFFF)
    return bytes(whole)


@pytest.mark.parametrize(
    "body",
    [wav_saying(2_000_000_000), wav_saying(1 << 31), flac_saying(1_000_000), flac_saying(1 << 35)],
)
def test_a_header_that_lies_takes_no_memory(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises((InvalidRequest, TooLarge), match=r"header says|the limit is 30 minutes"):
        decode(body, RATE_HZ)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize(
    "body", [wav_saying(0xFFFFFFFF), wav_saying(0x7FFFF000), flac_saying(0)], ids=len
)
def test_a_recording_from_a_pipe_does_not_know_its_length(body: bytes) -> None:
    np.testing.assert_allclose(decode(body, RATE_HZ), tone(1, RATE_HZ), atol=1e-4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the recording is empty; expected the bytes of a WAV"),
        (b"Dear server, please transcribe this letter.\n" * 9, "of no known format"),
        (b"RIFF", "of no known format"),
        (b"RF64\xff\xff\xff\xffWAVE", "of no known format"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 200, "no samples in its first 100 chunks"),
        (b"\xff", "of no known format"),
        (b"\xff\xfb" * 500, "damaged, cut short, or of a kind that cannot be decoded"),
        (b"ID3", "damaged, cut short"),
        (b"\xff\xfb\x90\0Xing", "damaged, cut short"),
        (b"ID3\x03\0\0\0\0\0\0" + b"a" * 500, "damaged, cut short"),
        (wav(np.zeros(0)), "has 0.0 ms; expected at least 10"),
        (wav(np.zeros(100)), "has 6.2 ms; expected at least 10"),
        (encoded(np.zeros(8000), 2000), "has 2000 samples a second; expected 4000 to 192000"),
        (encoded(np.zeros(8000), channels=9), "has 9 channels; expected 1 to 8"),
    ],
    # Some files have the time in them, and all processors have to name the tests alike.
    ids=itertools.count(),
)
def test_what_is_no_recording_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        decode(body, RATE_HZ)


def test_other_formats_of_libsndfile_are_not_tried() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(RATE_HZ), RATE_HZ, format="AIFF")
    with pytest.raises(InvalidRequest, match="of no known format"):
        decode(buffer.getvalue(), RATE_HZ)


def test_a_recording_may_last_so_long_and_no_longer() -> None:
    silence = np.zeros(MAX_MINUTES * 60 * 4000, np.int16)
    assert len(decode(encoded(silence, 4000, "flac"), RATE_HZ)) == MAX_MINUTES * 60 * RATE_HZ
    with pytest.raises(TooLarge, match="the recording has 1801 s or more"):
        decode(encoded(np.zeros(len(silence) + 4000), 4000, "flac"), RATE_HZ)
    # A file that does not tell its length is stopped while it is decoded.
    long = bytearray(encoded(np.zeros(len(silence) + 400_000), 4000, "flac"))
    long[21] &= 0xF0
    long[22:26] = bytes(4)
    with pytest.raises(TooLarge, match="or more; the limit is 30 minutes"):
        decode(bytes(long), RATE_HZ)


@given(st.binary(max_size=300), st.sampled_from(["", *FORMATS]))
def test_any_bytes_are_a_recording_or_a_clear_refusal(noise: bytes, kind: str) -> None:
    body = noise
    if kind:
        whole = bytearray(encoded(tone(0.2, RATE_HZ), kind=kind))
        for at, byte in enumerate(noise):
            whole[(at * 7 + byte) % len(whole)] ^= byte
        body = bytes(whole)
    with contextlib.suppress(InvalidRequest, TooLarge):
        assert np.isfinite(decode(body, RATE_HZ)).all()
