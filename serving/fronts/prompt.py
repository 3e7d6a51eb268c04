"""What a caller of OpenAI's API expects to hear, as hot words."""

from __future__ import annotations

from collections.abc import Sequence
from string import punctuation

from pydantic import ValidationError

from serving.fronts.checked import about
from serving.tasks.speech_recognition import SpeechRecognition


def expecting(
    task: SpeechRecognition, prompt: str, keywords: Sequence[str] = ()
) -> SpeechRecognition.Parameters:
    """The words of `prompt`, without what stands around them, and the phrases of `keywords`.

    Raises `InvalidRequest`.
    """
    words = (word.strip(punctuation) for word in prompt.split())
    hot_words = dict.fromkeys([*keywords, *filter(None, words)])
    try:
        return task.Parameters(hot_words=tuple(hot_words))
    except ValidationError as error:
        field = "keywords" if keywords else "prompt"
        raise about(field, error.errors()[0]["msg"]) from None
