"""Long recordings: cut into windows that a model takes, and put together again.

Windows overlap, because a model hears the least at their ends. Of the frames of an overlap the
first half comes from the window before, the second half from the one after.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.speech.recognizer import RecognizerSettings


@dataclass(frozen=True, slots=True)
class Window:
    """Samples [start, stop) of a recording, and which of the frames they give are kept."""

    start: int
    stop: int
    first_frame: int
    last_frame: int | None
    """The first that is not kept, counted from the window's first frame; None for the end."""


def windows(samples: int, settings: RecognizerSettings) -> list[Window]:
    """The windows of a recording, in order.

    They are of equal length (the last may be shorter by a few frames), so they make full batches.
    """
    frame = settings.samples_per_frame
    longest = settings.max_frames * frame
    if samples <= longest:
        return [Window(0, samples, 0, None)]
    half = settings.overlap_frames // 2
    overlap = 2 * half * frame
    rest = samples - overlap
    count = -(-rest // (longest - overlap))
    hop = -(-rest // (count * frame)) * frame
    count = -(-rest // hop)
    return [
        Window(
            start=number * hop,
            stop=min(samples, (number + 1) * hop + overlap),
            first_frame=half if number else 0,
            last_frame=hop // frame + half if number < count - 1 else None,
        )
        for number in range(count)
    ]
