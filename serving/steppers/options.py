"""What config.pbtxt's parameters say of a stepper."""

from __future__ import annotations

from serving.config import ModelConfig
from serving.errors import ModelLoadError


def count(config: ModelConfig, key: str, default: int) -> int:
    """A whole number of the parameters. Raises `ModelLoadError`."""
    text = config.parameters.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise ModelLoadError(
            f"model {config.name!r}: parameters {key} must be a whole number of 1 or more,"
            f" got {text!r}"
        )
    return int(text)
