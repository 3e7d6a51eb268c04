from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ModelLoadError
from serving.speech.chunks import Chunker
from serving.speech.recognizer import RecognizerSettings
from serving.speech.windows import windows

SETTINGS: dict[str, Any] = {
    "type": "ctc",
    "sampling_rate": 16000,
    "samples_per_frame": 640,
    "blank": 0,
    "vocabulary": ["", " ", "a"],
    "max_seconds": 30,
    "overlap_seconds": 4,
}


@given(
    st.integers(1, 2_000_000),
    st.integers(1, 700),
    st.integers(3, 40),
    st.integers(0, 19),
)
def test_windows_keep_every_frame_once_and_fit_the_model(
    samples: int, frame: int, longest: int, overlap: int
) -> None:
    overlap = min(overlap, (longest - 1) // 2)
    settings = RecognizerSettings(
        type="ctc",
        sampling_rate=16000,
        samples_per_frame=frame,
        blank=0,
        vocabulary=("", "a"),
        max_seconds=(longest + 0.5) * frame / 16000,
        overlap_seconds=(overlap + 0.5) * frame / 16000,
    )
    samples = min(samples, 3000 * frame)
    kept: list[int] = []
    cut = windows(samples, settings)
    for window in cut:
        assert 0 <= window.start < window.stop <= samples
        assert window.start % frame == 0
        count = -(-(window.stop - window.start) // frame)
        assert count <= longest
        frames = range(count)[window.first_frame : window.last_frame]
        kept += [window.start // frame + at for at in frames]
        assert len(frames) > 0
    assert kept == list(range(-(-samples // frame)))
    assert len({window.stop - window.start for window in cut[:-1]}) <= 1


@given(
    st.lists(st.integers(0, 300), max_size=20),
    st.integers(1, 5),
    st.integers(0, 12),
)
def test_chunks_keep_every_frame_once_whatever_the_delay(
    pieces: list[int], chunk_frames: int, delay: int
) -> None:
    frame = 10
    settings = RecognizerSettings(
        type="ctc-live",
        sampling_rate=16000,
        samples_per_frame=frame,
        blank=0,
        vocabulary=("", "a"),
        chunk_samples=chunk_frames * frame,
        delay_frames=delay,
    )
    chunker = Chunker(settings)
    chunks = [
        chunk for size in pieces for chunk in chunker.push(np.ones(size, np.float32))
    ] + chunker.finish()
    total = sum(pieces)
    assert {len(samples) for samples, _ in chunks} == {chunk_frames * frame}
    heard = np.concatenate([samples for samples, _ in chunks])
    assert heard[:total].all()
    assert not heard[total:].any()
    # What the model says of frame n comes out as frame n + delay.
    frames = np.arange(len(chunks) * chunk_frames).reshape(len(chunks), chunk_frames) - delay
    kept = [
        row[window.first_frame : window.last_frame]
        for row, (_, window) in zip(frames, chunks, strict=True)
    ]
    assert np.concatenate(kept).tolist() == list(range(-(-total // frame)))


def test_settings_are_saved_and_read(tmp_path: Path) -> None:
    (tmp_path / "recognizer.json").write_text(json.dumps(SETTINGS))
    settings = RecognizerSettings.load(tmp_path)
    assert (settings.frame_s, settings.max_frames, settings.overlap_frames) == (0.04, 750, 100)
    settings.save(tmp_path)
    assert RecognizerSettings.load(tmp_path) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "seq2seq"}, "type: Input should be 'ctc' or 'ctc-live'"),
        ({"type": "ctc-live"}, "chunk_samples must be a multiple of samples_per_frame"),
        ({"type": "ctc-live", "chunk_samples": 700}, "chunk_samples must be a multiple"),
        ({"max_seconds": None}, "max_seconds and overlap_seconds are required"),
        ({"blank": 3}, "blank is not one of the 3 classes"),
        ({"max_seconds": 7}, "more than twice overlap_seconds"),
        ({"samples_per_frame": "640"}, "samples_per_frame: Input should be a valid integer"),
        ({"bonus": 1}, "bonus: Extra inputs are not permitted"),
    ],
)
def test_unusable_settings_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "recognizer.json").write_text(json.dumps(SETTINGS | changes))
    with pytest.raises(ModelLoadError, match=message):
        RecognizerSettings.load(tmp_path)


def test_settings_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"recognizer\.json: cannot be read"):
        RecognizerSettings.load(tmp_path)
