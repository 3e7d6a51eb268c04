"""The shipped models: what each is asked through which front, and how soon it should answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loadreport.pools import POOLS, Sample

Front = Literal["v2_http", "v2_grpc", "task", "openai", "stream"]
"""Protocol v2 over HTTP or gRPC; POST /models/NAME; OpenAI's routes; generate_stream."""

Kind = Literal["label", "text", "speech", "live", "dictation", "picture"]
"""What the answer is; live speech goes to the model in pieces, and so not as one v2 request."""


@dataclass(frozen=True)
class ShippedModel:
    name: str
    kind: Kind
    input: str
    output: str
    fronts: tuple[Front, ...]
    """The first is measured if none is chosen."""
    bound_ms: float
    """That 99 of 100 answers should be within, for a rate to count as borne."""

    def samples(self) -> list[Sample]:
        return POOLS[self.name]()


_ALL: tuple[Front, ...] = ("v2_http", "v2_grpc", "task")

MODELS: Mapping[str, ShippedModel] = {
    model.name: model
    for model in (
        ShippedModel("digits", "label", "image", "logits", _ALL, 50),
        ShippedModel("translator", "text", "text_input", "text_output", (*_ALL, "stream"), 250),
        ShippedModel("spoken-numbers", "speech", "waveform", "logits", (*_ALL, "openai"), 250),
        ShippedModel("spoken-numbers-live", "live", "waveform", "logits", ("task", "openai"), 500),
        ShippedModel(
            *("spoken-numbers-whisper", "dictation", "waveform", "text_output"),
            *((*_ALL, "openai"), 1000),
        ),
        ShippedModel(
            "digits-diffusion", "picture", "prompt", "image", (*_ALL, "openai", "stream"), 1000
        ),
    )
}
