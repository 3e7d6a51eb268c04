"""From the bytes of a recording to one waveform: decoded, mixed down, resampled.

libsndfile decodes and soxr resamples, both in blocks, so that what a file says of itself never
decides how much memory it takes.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from serving.errors import InvalidRequest, TooLarge

Waveform = npt.NDArray[np.float32]
"""One channel, [samples], -1 to 1."""

MAX_MINUTES = 30
MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 192_000
MIN_MS = 10
"""Less is nearly always a mistake, and nothing can be heard in it."""

EXPECTED = "expected the bytes of a WAV, FLAC, OGG or MP3 file"

_LEAST, _BLOCK = 1 << 12, 1 << 16
"""Samples that are read at once: libsndfile fills with zeros what it has no samples for."""
_UNKNOWN = (1 << 63) - 1
"""The number of samples of a file that does not tell it, such as one written into a pipe."""
_WITHOUT_END = (0xFFFFFFFF, 0x7FFFF000)
"""Sizes by which ffmpeg and sox say that they did not know the size of what was to come."""
_MAX_CHUNKS = 100
"""Of a WAV file before its samples: there are seldom more than five."""
_FIRST_FRAME = 1 << 13
"""Bytes after the tag of an MP3 file within which its first frame is looked for."""


def decode(body: bytes, rate_hz: int) -> Waveform:
    """The waveform at `rate_hz`: the mean of all channels, with values beyond ±1 clipped.

    Raises `InvalidRequest` for what is no whole recording, `TooLarge` for what is too long.
    """
    if not body:
        raise InvalidRequest(f"the recording is empty; {EXPECTED}")
    if not _is_known(body):
        raise InvalidRequest(f"the recording is of no known format; {EXPECTED}")
    _check_wav(body)
    _check_ogg(body)
    tells_length = _tells_length(body)
    try:
        with _Stream(io.BytesIO(body) if tells_length else _Endless(body)) as stream:
            claimed = stream.frames if tells_length else _UNKNOWN
            _check_header(stream, claimed)
            waveform, decoded = _read(stream, rate_hz)
            rate = stream.samplerate
    except soundfile.LibsndfileError:
        raise InvalidRequest(
            f"the recording is damaged, cut short, or of a kind that cannot be decoded; {EXPECTED}"
        ) from None
    if decoded < claimed != _UNKNOWN:
        raise InvalidRequest(
            f"the recording is damaged or cut short: its header says {claimed / rate:.2f} s,"
            f" and {decoded / rate:.2f} s are there"
        )
    if len(waveform) * 1000 < MIN_MS * rate_hz:
        raise InvalidRequest(
            f"the recording has {decoded / rate * 1000:.1f} ms; expected at least {MIN_MS}"
        )
    return np.clip(waveform, -1, 1, out=waveform)


class Resampler:
    """Brings one waveform to another rate while it comes in. It keeps back some milliseconds."""

    def __init__(self, from_hz: int, to_hz: int):
        self._stream = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")

    def push(self, samples: Waveform, *, is_last: bool = False) -> Waveform:
        if self._stream is None:
            return samples
        resampled: Waveform = self._stream.resample_chunk(samples, last=is_last)
        return resampled


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # it has no type information
    """Read from its beginning to its end only.

    A file that can be sought is positioned anew after every read, which costs time, and fails
    where the length is unknown.
    """

    def seekable(self) -> bool:
        return False


class _Endless(io.BytesIO):
    """A file that says to be longer than it is, and comes to its end all the same.

    libsndfile guesses from its size and its first frame how long an MP3 file lasts that does not
    tell it, and reads no further. Such a guess may be a quarter of the truth.
    """

    _size_is_asked = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._size_is_asked = whence == io.SEEK_END and offset == 0
        return super().seek(offset, whence)

    def tell(self) -> int:
        return 1 << 40 if self._size_is_asked else super().tell()


def _is_known(body: bytes) -> bool:
    """libsndfile reads two dozen formats; those that nobody records in are not let near it."""
    is_wav = body[:4] == b"RIFF" and body[8:12] == b"WAVE"
    is_mp3 = body[:3] == b"ID3" or (body[0] == 0xFF and body[1:2] >= b"\xe0")
    return is_wav or is_mp3 or body[:4] in (b"fLaC", b"OggS")


def _check_wav(body: bytes) -> None:
    """Compare what a WAV file says with what there is, for libsndfile corrects it in silence."""
    if body[8:12] != b"WAVE":
        return
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(body):
            return
        name, size = struct.unpack_from("<4sI", body, at)
        there = len(body) - at - 8
        if name == b"data":
            if there < size and size not in _WITHOUT_END:
                raise InvalidRequest(
                    f"the recording is cut short: its header says {size} bytes of samples, and"
                    f" {there} are there"
                )
            return
        at += 8 + size + size % 2
    raise InvalidRequest(f"the recording has no samples in its first {_MAX_CHUNKS} chunks")


def _check_ogg(body: bytes) -> None:
    """Look whether the last page of an OGG file says that it is the last (RFC 3533, section 6)."""
    if body[:4] != b"OggS":
        return
    at = body.rfind(b"OggS")
    count = body[at + 26 : at + 27]
    size = 27 + sum(count) + sum(body[at + 27 : at + 27 + sum(count)])
    if at + size > len(body) or not body[at + 5] & 4:
        raise InvalidRequest("the recording is cut short: its last page is not there")


def _check_header(stream: soundfile.SoundFile, claimed: int) -> None:
    if not 1 <= stream.channels <= MAX_CHANNELS:
        raise InvalidRequest(
            f"the recording has {stream.channels} channels; expected 1 to {MAX_CHANNELS}"
        )
    if not MIN_RATE_HZ <= stream.samplerate <= MAX_RATE_HZ:
        raise InvalidRequest(
            f"the recording has {stream.samplerate} samples a second;"
            f" expected {MIN_RATE_HZ} to {MAX_RATE_HZ}"
        )
    if claimed != _UNKNOWN:
        _check_length(stream, claimed)


def _check_length(stream: soundfile.SoundFile, frames: int) -> None:
    if frames > MAX_MINUTES * 60 * stream.samplerate:
        raise TooLarge(
            f"the recording has {frames / stream.samplerate:.0f} s or more; the limit is"
            f" {MAX_MINUTES} minutes"
        )


def _tells_length(body: bytes) -> bool:
    """Whether a file's length is told and not guessed, as of an MP3 file without the right tag."""
    start = 0
    if body[:3] == b"ID3":
        # Seven bits of each byte say how long the tag is; pictures are in it (id3.org, ID3v2.4).
        bits = "".join(f"{byte & 127:07b}" for byte in body[6:10])
        start = 10 + int(bits or "0", 2)
        if body[start : start + 4] == b"fLaC":
            return True
    elif body[0] != 0xFF:
        return True
    frame = body[start : start + _FIRST_FRAME]
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    # The flag says that the number of frames is there.
    return at >= 0 and int.from_bytes(frame[at + 4 : at + 8], "big") & 1 == 1


def _read(stream: soundfile.SoundFile, rate_hz: int) -> tuple[Waveform, int]:
    """All samples at the new rate, and how many there were at the old one."""
    resampler = Resampler(stream.samplerate, rate_hz)
    blocks = []
    decoded = 0
    while True:
        # One more than there should be, by which the end is known.
        size = min(_BLOCK, max(_LEAST, stream.frames - decoded + 1))
        block = stream.read(size, dtype="float32", always_2d=True)
        if not np.isfinite(block).all():
            first = decoded + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise InvalidRequest(
                f"sample {first} of the recording is not a finite number; expected -1 to 1"
            )
        decoded += len(block)
        _check_length(stream, decoded)
        is_last = len(block) < size
        blocks.append(resampler.push(_mixed_down(block), is_last=is_last))
        if is_last:
            return np.concatenate(blocks), decoded


def _mixed_down(block: Waveform) -> Waveform:
    """From [sample, channel]. One channel goes the short way, as nearly all recordings have."""
    np.clip(block, -1, 1, out=block)
    mono: Waveform = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    return mono
