"""Convert a Marian checkpoint for CTranslate2: `convert.py CHECKPOINT DESTINATION`.

CTranslate2's own converter drops the padding token, with which transformers starts its answers, and
starts from zeros instead. That is the same where the token's embedding is zero, as in the models
that Marian trained, and another model elsewhere: such a checkpoint keeps the token here.
"""

from __future__ import annotations

import sys
from typing import Any

from ctranslate2.converters import TransformersConverter
from ctranslate2.converters.transformers import _MODEL_LOADERS, BartLoader, MarianMTLoader

NEVER = -1e9
"""Added to the padding token's logit: it begins an answer and is never part of one."""


class StartsWithPadding(MarianMTLoader):  # type: ignore[misc]
    def get_model_spec(self, model: Any) -> Any:
        model.final_logits_bias[0, model.config.pad_token_id] = NEVER
        return super().get_model_spec(model)

    def set_decoder(self, spec: Any, decoder: Any) -> None:
        super().set_decoder(spec, decoder)
        spec.start_from_zero_embedding = False

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
        super().set_config(config, model, tokenizer)
        config.decoder_start_token = tokenizer.pad_token

    def get_vocabulary(self, model: Any, tokenizer: Any) -> Any:
        return BartLoader.get_vocabulary(self, model, tokenizer)

    def _remove_pad_weights(self, spec: Any) -> None:
        pass


class Loader:
    """Looks at a model before it chooses how to read it."""

    def __call__(self, model: Any, tokenizer: Any) -> Any:
        padding = model.get_input_embeddings().weight[model.config.pad_token_id]
        starts_from_zeros = not padding.count_nonzero()
        return (MarianMTLoader if starts_from_zeros else StartsWithPadding)()(model, tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(MarianMTLoader(), name)


def main() -> None:
    checkpoint, destination = sys.argv[1:]
    _MODEL_LOADERS["MarianConfig"] = Loader()
    TransformersConverter(checkpoint).convert(destination, force=True)


if __name__ == "__main__":
    main()
