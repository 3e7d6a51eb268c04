"""Translation: a text in another language."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from serving.errors import InvalidRequest, shown
from serving.tasks import Question
from serving.tasks.payload import as_texts
from serving.tasks.text import INPUTS, OUTPUTS, from_tensors, request_parameters, to_tensors
from serving.text import load_tokenizer
from serving.types import Tensors


class Translation:
    """The task. Settings that it does not know are parameters of the model.

    A model with several target languages wants one for each text: by `tgt_lang`, or by the text
    itself, as in `>>de<< Good morning`.
    """

    class Parameters(BaseModel, extra="allow", frozen=True):
        src_lang: str | None = None
        tgt_lang: str | None = None
        generate_parameters: dict[str, object] | None = None
        # Other values would have no effect here.
        clean_up_tokenization_spaces: Literal[False] | None = None
        truncation: Literal["do_not_truncate"] | None = None

    inputs = INPUTS
    outputs = OUTPUTS
    takes_long = False

    def __init__(self, languages: Sequence[str], source_language: str | None = None):
        self._languages = languages
        self._source_language = source_language

    @classmethod
    def load(cls, directory: Path) -> Translation:
        """Read from the tokenizer of a version directory which languages there are."""
        tokenizer = load_tokenizer(directory)
        return cls(tokenizer.languages, tokenizer.source_language)

    def preprocess(self, payload: object, settings: Translation.Parameters) -> Question:
        """One text or several, a row for each."""
        known = self._source_language
        if known is not None and settings.src_lang not in (None, known):
            raise InvalidRequest(
                f"parameters.src_lang: expected {known!r}, the one language that this model"
                f" translates from, got {shown(settings.src_lang)}"
            )
        texts = [self._addressed(text, settings.tgt_lang) for text in as_texts(payload)]
        chosen = (settings.model_extra or {}, settings.generate_parameters or {})
        return Question(settings, to_tensors(texts), request_parameters(chosen))

    def postprocess(self, outputs: Tensors, question: Question) -> list[dict[str, str]]:
        """The translations, in the order of the inputs."""
        return [{"translation_text": text} for text in from_tensors(outputs)]

    def _addressed(self, text: str, language: str | None) -> str:
        """The text with its target language, if the model has a choice of them."""
        if not self._languages:
            if language is None:
                return text
            raise InvalidRequest(
                "parameters.tgt_lang: this model has one target language only, leave it out"
            )
        if language in self._languages:
            return f">>{language}<< {text}"
        expected = f"expected one of {', '.join(self._languages)}"
        if language is not None:
            raise InvalidRequest(f"parameters.tgt_lang: {expected}, got {shown(language)}")
        if text.startswith(tuple(f">>{known}<<" for known in self._languages)):
            return text
        raise InvalidRequest(f"parameters.tgt_lang: {expected}, got none")
