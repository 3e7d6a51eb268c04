"""From text to tokens and back: the tokenizers of text models, by the files that they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from serving.errors import ModelLoadError

# The file by which a tokenizer is known -> what loads it, and the extra with its packages.
TOKENIZERS = {
    "source.spm": "serving.text.marian:Marian.load",
    "tokenizer.json": "serving.text.hugging_face:HuggingFace.load",
}
INSTALL_HINT = "pip install 'slipway[text]'"


class Tokenizer(Protocol):
    """The tokens of one model's vocabulary, as transformers' tokenizer of that model has them."""

    special: frozenset[int]
    """Tokens of which a decoded text shows nothing."""

    unsettled: frozenset[int]
    """Tokens whose text depends on what follows: pieces of a character, a byte each."""

    languages: tuple[str, ...]
    """The target languages that a text can ask for, as `>>de<<` at its start."""

    source_language: str | None
    """The language that texts must be in, where the files say so."""

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """A model's input, with the special tokens that belong to it."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a model's output, without special tokens."""
        ...


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a version directory.

    Raises `ModelLoadError`, in one sentence, when its files or its package are unusable.
    """
    for file, place in TOKENIZERS.items():
        if (directory / file).exists():
            module_name, _, attribute = place.partition(":")
            class_name, _, method = attribute.partition(".")
            try:
                module = import_module(module_name)
            except ModuleNotFoundError as error:
                raise ModelLoadError(
                    f"{directory / file} needs the package {error.name!r}: {INSTALL_HINT}"
                ) from error
            load: Callable[[Path], Tokenizer] = getattr(getattr(module, class_name), method)
            return load(directory)
    raise ModelLoadError(f"{directory}: no tokenizer; expected one of {', '.join(TOKENIZERS)}")
