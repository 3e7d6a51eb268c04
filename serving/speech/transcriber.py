"""From a model's outputs for the pieces of one recording to its transcript."""

from __future__ import annotations

import numpy as np

from serving.errors import InferenceFailed
from serving.speech.ctc import LogProbs, Search
from serving.speech.recognizer import RecognizerSettings
from serving.speech.transcript import Transcript, spelt, transcript
from serving.speech.windows import Window


class Transcriber:
    """Takes in the pieces of a recording in order."""

    def __init__(self, settings: RecognizerSettings, search: Search):
        self._settings = settings
        self._search = search
        self._told = 0
        self._text_has_begun = self._space_is_due = False

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

    def news(self, *, final: bool = False) -> str:
        """The text that has become certain since this was last asked; if `final`, all the rest.

        All answers, one after another, are the transcript's text.
        """
        # Asked first, for a search may give up what was best.
        settled = None if final else self._search.settled() - self._told
        tokens = self._search.best(self._told)[:settled]
        self._told += len(tokens)
        text = ""
        for _, character in spelt(tokens, self._settings.vocabulary):
            if character.isspace():
                self._space_is_due = self._text_has_begun
            else:
                text += " " + character if self._space_is_due else character
                self._text_has_begun, self._space_is_due = True, False
        return text

    def transcript(self, duration_s: float) -> Transcript:
        """What the recording, which has lasted so long, says so far."""
        return transcript(
            self._search.best(), self._settings.vocabulary, self._settings.frame_s, duration_s
        )
