"""config.pbtxt of a model that generates text: what its callers may count on."""

from __future__ import annotations

from pathlib import Path

from serving.pbtxt import CONFIG_FILE, read_config
from serving.types import DYNAMIC, TensorSpec
from training import durable
from training.errors import PublishRefused

STEPPER = "generation"
MAX_BATCH_SIZE = 32

_INPUT = TensorSpec("text_input", "BYTES", (DYNAMIC, 1))
_OUTPUT = TensorSpec("text_output", "BYTES", (DYNAMIC, 1))


def promise(model: Path, task: str) -> None:
    """Write the model's config.pbtxt if this is its first version; otherwise keep its promise.

    Raises `PublishRefused` if callers of the model were promised another task or interface.
    """
    durable.write_new(model / CONFIG_FILE, _config_text(model.name, task))
    # Also after writing: another first publisher may have been faster, with another model.
    keep_promise(model, task)


def keep_promise(model: Path, task: str) -> None:
    """Raises `PublishRefused` if callers were promised another task or interface."""
    path = model / CONFIG_FILE
    config = read_config(model)
    for what, promised, offered in (
        ("input", config.inputs, (_INPUT,)),
        ("output", config.outputs, (_OUTPUT,)),
        ("backend", config.backend, "python"),
        ("decoupled", config.decoupled, True),
        ("task", config.parameters.get("task"), task),
        ("stepper", config.parameters.get("stepper"), STEPPER),
    ):
        if promised != offered:
            raise PublishRefused(
                f"{path} promises the {what} {_describe(promised)} and this version has"
                f" {_describe(offered)}: publish it as another model with --name"
            )


def _describe(promised: object) -> str:
    if isinstance(promised, tuple):
        return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in promised)
    return repr(promised)


def _config_text(name: str, task: str) -> str:
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{_INPUT.name}"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
output {{
  name: "{_OUTPUT.name}"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
model_transaction_policy {{
  decoupled: true
}}
parameters {{
  key: "task"
  value {{ string_value: "{task}" }}
}}
parameters {{
  key: "stepper"
  value {{ string_value: "{STEPPER}" }}
}}
"""
