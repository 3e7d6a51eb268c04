"""config.pbtxt of a model that generates text: what its callers may count on."""

from __future__ import annotations

from pathlib import Path

from training import promise as promised

STEPPER = "generation"
MAX_BATCH_SIZE = 32


def promise(model: Path, task: str) -> None:
    """See `training.promise`."""
    promised.promise(model, config_text(model.name, task))


def config_text(name: str, task: str) -> str:
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "text_input"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
output {{
  name: "text_output"
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
