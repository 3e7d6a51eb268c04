"""Transcripts as subtitles: SubRip (.srt) and WebVTT (W3C, "WebVTT: The Web Video Text Tracks")."""

from __future__ import annotations

from html import escape

from serving.speech.transcript import SegmentedTranscript, Transcript


def srt(transcript: Transcript | SegmentedTranscript) -> str:
    """Numbered segments; empty if nothing is said."""
    return "".join(
        f"{number}\n{_time(segment.start_s, ',')} --> {_time(segment.end_s, ',')}\n"
        f"{segment.text}\n\n"
        for number, segment in enumerate(transcript.segments(), start=1)
    )


def vtt(transcript: Transcript | SegmentedTranscript) -> str:
    """Segments after a header."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(segment.start_s, '.')} --> {_time(segment.end_s, '.')}\n"
        f"{escape(segment.text, quote=False)}\n\n"
        for segment in transcript.segments()
    )


def _time(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"
