"""generation.json: how a checkpoint wants its texts to be generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import WhisperForConditionalGeneration

from training.errors import CheckpointError
from training.graphs.checkpoint import Model, output_layer

DEFAULT_NEW_TOKENS = 128
"""Where a checkpoint does not say how long a text may become."""

_HONOURED = {
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens"),
    *("num_beams", "length_penalty", "early_stopping"),
    *("do_sample", "temperature", "top_k", "top_p"),
    *("repetition_penalty", "no_repeat_ngram_size", "renormalize_logits"),
    *("bad_words_ids", "suppress_tokens"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("eos_token_id", "pad_token_id", "bos_token_id"),
}

_WITHOUT_EFFECT_ON_TEXT = {
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("return_dict_in_generate", "output_attentions", "output_hidden_states"),
    *("output_scores", "output_logits", "remove_invalid_values", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config"),
    # How tokens are guessed ahead; those that come out are the same.
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "max_matching_ngram_size", "speculation_type"),
    *("transformers_version", "_from_model_config"),
}

_NEUTRAL: dict[str, float] = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
}
"""With these values they change nothing."""


def generation_settings(model: Model | WhisperForConditionalGeneration) -> dict[str, Any]:
    """What generation.json holds. Raises `CheckpointError`, naming a setting that has no equal."""
    wanted = _set_by(model)
    config = model.config
    positions = sources = getattr(config, "max_position_embeddings", None)
    if isinstance(model, WhisperForConditionalGeneration):
        positions, sources = config.max_target_positions, config.max_source_positions
    pads = [wanted.get("pad_token_id"), *_tokens(wanted, "eos_token_id"), 0]
    settings = {
        "max_length": positions,
        "max_source": sources if config.is_encoder_decoder else None,
        "vocab_size": output_layer(model).out_features,
        "decoder_start_token_id": None,
        "forced_bos_token_id": _token(wanted, "forced_bos_token_id"),
        "forced_eos_token_id": _token(wanted, "forced_eos_token_id"),
        "eos_token_ids": _tokens(wanted, "eos_token_id"),
        "pad_token_id": next(token for token in pads if token is not None),
        "suppressed_token_ids": _suppressed(wanted),
        "begin_suppressed_token_ids": sorted(wanted.get("begin_suppress_tokens", [])),
        "defaults": _defaults(wanted),
    }
    if config.is_encoder_decoder:
        starts = [wanted.get(name) for name in ("decoder_start_token_id", "bos_token_id")]
        settings["decoder_start_token_id"] = next(
            (token for token in starts if token is not None), None
        )
        if settings["decoder_start_token_id"] is None:
            raise CheckpointError("decoder_start_token_id is not set, and no text can begin")
    _check_tokens(settings)
    limit = wanted.get("max_length")
    if limit is not None and not config.is_encoder_decoder:
        # Counts the prompt too, and so it is a limit to the positions.
        settings["max_length"] = min(positions, limit)
    return settings


def renormalized(model: Model | WhisperForConditionalGeneration) -> list[int]:
    """Tokens that the checkpoint wants to have no part in any probability.

    `renormalize_logits` computes probabilities after the suppressed tokens are taken out, which
    beams depend on. The graph takes them out of the logits.
    """
    wanted = _set_by(model)
    return _suppressed(wanted) if wanted.get("renormalize_logits") else []


def _set_by(model: Model | WhisperForConditionalGeneration) -> Mapping[str, Any]:
    """What the checkpoint sets, all of which can be honoured."""
    generation = model.generation_config
    assert generation is not None, "a model that generates has a generation config"
    known = generation.__class__().to_dict()
    wanted = {
        name: value
        for name, value in generation.to_dict().items()
        if value is not None and name in known
    }
    honoured = _HONOURED
    if isinstance(model, WhisperForConditionalGeneration):
        honoured = _HONOURED | {"begin_suppress_tokens"}
    for name, value in wanted.items():
        if name in honoured or name in _WITHOUT_EFFECT_ON_TEXT or value is False or value == []:
            continue
        if value != _NEUTRAL.get(name):
            raise _refusal(name, value, "which Slipway does not generate with")
    if wanted.get("do_sample") and wanted.get("num_beams", 1) > 1:
        raise _refusal("do_sample", True, "which does not go with num_beams greater than 1")
    if wanted.get("min_length") and not model.config.is_encoder_decoder:
        raise _refusal(
            "min_length", wanted["min_length"], "which counts the prompt: set min_new_tokens"
        )
    if wanted.get("renormalize_logits") and wanted.get("num_beams", 1) > 1:
        for name, neutral in (("repetition_penalty", 1.0), ("no_repeat_ngram_size", 0)):
            if wanted.get(name, neutral) != neutral:
                raise _refusal(name, wanted[name], "which does not go with renormalize_logits here")
    return wanted


def _check_tokens(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if not name.endswith(("_token_id", "_token_ids")):
            continue
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not 0 <= token < settings["vocab_size"]:
                raise CheckpointError(
                    f"{name} is {token}, and the model has {settings['vocab_size']} tokens"
                )


def _defaults(wanted: Mapping[str, Any]) -> dict[str, Any]:
    new_tokens = wanted.get("max_new_tokens")
    if new_tokens is None:
        # The first of an encoder-decoder's tokens, or the shortest prompt, counts as well.
        new_tokens = wanted.get("max_length", DEFAULT_NEW_TOKENS + 1) - 1
    least = wanted.get("min_new_tokens")
    if least is None:
        least = max(0, wanted.get("min_length", 0) - 1)
    return {
        "max_new_tokens": new_tokens,
        "num_beams": wanted.get("num_beams", 1),
        "length_penalty": float(wanted.get("length_penalty", 1.0)),
        "early_stopping": wanted.get("early_stopping", False),
        "do_sample": wanted.get("do_sample", False),
        "temperature": float(wanted.get("temperature", 1.0)),
        "top_k": wanted.get("top_k", 50),
        "top_p": float(wanted.get("top_p", 1.0)),
        "repetition_penalty": float(wanted.get("repetition_penalty", 1.0)),
        "no_repeat_ngram_size": wanted.get("no_repeat_ngram_size", 0),
        "min_new_tokens": least,
        "seed": None,
    }


def _suppressed(wanted: Mapping[str, Any]) -> list[int]:
    words: Sequence[Sequence[int]] = wanted.get("bad_words_ids", [])
    if any(len(word) != 1 for word in words):
        raise _refusal("bad_words_ids", words, "and only single tokens can be suppressed")
    return sorted({*(word[0] for word in words), *wanted.get("suppress_tokens", [])})


def _tokens(wanted: Mapping[str, Any], name: str) -> list[int]:
    value = wanted.get(name, [])
    return list(value) if isinstance(value, list | tuple) else [value]


def _token(wanted: Mapping[str, Any], name: str) -> int | None:
    tokens = _tokens(wanted, name)
    if len(tokens) > 1:
        raise _refusal(name, tokens, "and only one token can be forced")
    return tokens[0] if tokens else None


def _refusal(name: str, value: object, reason: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's generation settings have {name}={value!r}, {reason}")
