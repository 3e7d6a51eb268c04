"""From a model's outputs for the pieces of one recording to its transcript."""

from __future__ import annotations

import numpy as np

from serving.errors import InferenceFailed
from serving.speech.ctc import LogProbs, Search
from serving.speech.recognizer import RecognizerSettings
from serving.speech.transcript import Transcript, joined, transcript
from serving.speech.windows import Window


class Transcriber:
    """Takes in the pieces of a recording in order."""

    def __init__(self, settings: RecognizerSettings, search: Search):
        self._settings = settings
        self._search = search

    def push(self, log_probs: LogProbs, window: Window) -> None:
        """The frames of the next piece, [frame, class], without padding.

        Raises `InferenceFailed` for what no model of these settings should give.
        """
        classes = len(self._settings.vocabulary)
        if log_probs.shape[1] != classes or np.isnan(log_probs).any():
            raise InferenceFailed(
                f"logits of shape {list(log_probs.shape)}, or not numbers, where the vocabulary"
                f" has {classes} classes"
            )
        self._search.push(log_probs[window.first_frame : window.last_frame])

    def text(self) -> str:
        """What nothing that follows can change: every answer begins with the one before."""
        settled = self._search.best()[: self._search.settled()]
        return joined(settled, self._settings.vocabulary)

    def transcript(self, duration_s: float) -> Transcript:
        """What the recording, which has lasted so long, says so far."""
        return transcript(
            self._search.best(), self._settings.vocabulary, self._settings.frame_s, duration_s
        )
