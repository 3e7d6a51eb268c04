"""Engines by the name that `config.pbtxt` gives in `backend`, imported when one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from serving.config import ModelConfig
from serving.engines.base import Engine
from serving.errors import ModelLoadError

ENGINES = {
    "onnxruntime": "serving.engines.onnx:load",
    "fake": "serving.engines.fake:load",
}
INSTALL_HINTS = {"onnxruntime": "pip install 'slipway[cpu]' or, for NVIDIA GPUs, 'slipway[gpu]'"}


def load_engine(config: ModelConfig, directory: Path) -> Engine:
    """Load the graph of one version directory with the engine its config names.

    Raises `ModelLoadError`, in one sentence, when the graph or the engine's package is unusable.
    """
    if config.backend not in ENGINES:
        raise ModelLoadError(
            f"model {config.name!r}: backend {config.backend!r} is not supported;"
            f" expected one of {', '.join(ENGINES)}"
        )
    module_name, _, attribute = ENGINES[config.backend].partition(":")
    try:
        load: Callable[[ModelConfig, Path], Engine] = getattr(import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        hint = INSTALL_HINTS.get(config.backend, "")
        raise ModelLoadError(
            f"model {config.name!r} needs the package {error.name!r}: {hint}"
        ) from error
    return load(config, directory)
