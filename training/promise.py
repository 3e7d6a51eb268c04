"""config.pbtxt of a model: what its callers may count on, whatever version answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from serving.config import STEPPER, ModelConfig
from serving.pbtxt import CONFIG_FILE, read_config
from training import durable
from training.errors import PublishRefused


def promise(model: Path, text: str) -> None:
    """Write the model's config.pbtxt if this is its first version; otherwise keep its promise.

    Raises `PublishRefused` if callers of the model were promised another task or interface.
    """
    durable.write_new(model / CONFIG_FILE, text)
    # Also after writing: another first publisher may have been faster, with another model.
    keep_promise(model, text)


def keep_promise(model: Path, text: str) -> None:
    """Raises `PublishRefused` if callers were promised what a version with this config.pbtxt does
    not have."""
    path = model / CONFIG_FILE
    promised = read_config(model)
    with TemporaryDirectory() as directory:
        twin = Path(directory) / model.name
        twin.mkdir()
        (twin / CONFIG_FILE).write_text(text, encoding="utf-8")
        offered = read_config(twin)
    for (what, one), (_, other) in zip(_interface(promised), _interface(offered), strict=True):
        if one != other:
            raise PublishRefused(
                f"{path} promises the {what} {one} and this version has {other}: publish it as"
                " another model with --name"
            )
    # What is stepped has no batches: its rows are independent.
    if STEPPER not in offered.parameters and promised.max_batch_size > offered.max_batch_size:
        raise PublishRefused(
            f"{path}: max_batch_size is {promised.max_batch_size}, and the export is proven up to"
            f" {offered.max_batch_size}"
        )


def _interface(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """What is promised, the easiest to understand first."""
    yield "task", repr(config.parameters.get("task"))
    for what, specs in (("input", config.inputs), ("output", config.outputs)):
        yield (
            what,
            ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs),
        )
    yield "file", repr(config.model_filename)
    yield "backend", repr(config.backend)
    yield "decoupled", repr(config.decoupled)
    yield "stepper", repr(config.parameters.get(STEPPER))
