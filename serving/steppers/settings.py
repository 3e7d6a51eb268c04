"""generation.json of a version directory: the facts of a model that generates text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, PositiveInt, model_validator

from serving.errors import InvalidRequest
from serving.model_file import read_model_file
from serving.steppers.parameters import GenerationParameters
from serving.types import Parameter

GENERATION_FILE = "generation.json"

_TokenId = Annotated[int, Field(ge=0)]


class GenerationSettings(BaseModel, frozen=True, extra="forbid", strict=True):
    """Of an encoder-decoder model (it has a `decoder_start_token_id`) or a decoder-only one.

    `max_length` and `max_source` count the positions of the decoder and of the encoder;
    `suppressed_token_ids` are never generated, `begin_suppressed_token_ids` not as the first token.
    """

    max_length: Annotated[int, Field(ge=2)]
    max_source: PositiveInt | None = None
    vocab_size: PositiveInt
    decoder_start_token_id: _TokenId | None = None
    forced_bos_token_id: _TokenId | None = None
    forced_eos_token_id: _TokenId | None = None
    eos_token_ids: tuple[_TokenId, ...]
    pad_token_id: _TokenId
    suppressed_token_ids: tuple[_TokenId, ...] = ()
    begin_suppressed_token_ids: tuple[_TokenId, ...] = ()
    defaults: GenerationParameters = GenerationParameters()

    @classmethod
    def load(cls, directory: Path) -> GenerationSettings:
        """Read the settings of a version directory. Raises `ModelLoadError`, naming the field."""
        return read_model_file(cls, directory / GENERATION_FILE)

    def save(self, directory: Path) -> None:
        (directory / GENERATION_FILE).write_text(self.model_dump_json(indent=2) + "\n")

    @property
    def is_encoder_decoder(self) -> bool:
        return self.decoder_start_token_id is not None

    @model_validator(mode="after")
    def _agree(self) -> GenerationSettings:
        if (self.max_source is None) == self.is_encoder_decoder:
            raise ValueError("max_source and decoder_start_token_id belong together")
        single = {
            name: getattr(self, name)
            for name in (
                "decoder_start_token_id",
                "forced_bos_token_id",
                "forced_eos_token_id",
                "pad_token_id",
            )
        }
        several = {
            *self.eos_token_ids,
            *self.suppressed_token_ids,
            *self.begin_suppressed_token_ids,
        }
        for token in [*single.values(), *several]:
            if token is not None and token >= self.vocab_size:
                raise ValueError(f"token {token} is not below vocab_size, {self.vocab_size}")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if single[name] in self.suppressed_token_ids:
                raise ValueError(f"{name} is one of suppressed_token_ids")
        return self

    def parameters(
        self, requested: Mapping[str, Parameter], input_tokens: int, prompt_tokens: int = 1
    ) -> GenerationParameters:
        """What holds for a request whose text has `input_tokens` tokens (special ones included).

        `prompt_tokens` are those with which an encoder-decoder model's own text begins.

        A default of `max_new_tokens` is cut to the positions that are left, a wish is refused.
        Raises `InvalidRequest` for parameters, and for an input that is longer than the model.
        """
        prompt = prompt_tokens if self.is_encoder_decoder else input_tokens
        longest = self.max_source or self.max_length - 1
        if not 1 <= input_tokens <= longest:
            raise InvalidRequest(
                f"the input has {input_tokens} tokens; the model reads at least 1"
                f" and at most {longest}"
            )
        room = self.max_length - prompt
        chosen = self.defaults.replaced(requested)
        if chosen.max_new_tokens <= room:
            return chosen
        if "max_new_tokens" in requested:
            raise InvalidRequest(
                f"parameter 'max_new_tokens': expected at most {room} after this input,"
                f" got {chosen.max_new_tokens}"
            )
        cut: dict[str, object] = {"max_new_tokens": room}
        if chosen.min_new_tokens > room:
            if "min_new_tokens" in requested:
                raise InvalidRequest(
                    f"parameter 'min_new_tokens': expected at most {room} after this input,"
                    f" got {chosen.min_new_tokens}"
                )
            cut["min_new_tokens"] = room
        return chosen.model_copy(update=cut)
