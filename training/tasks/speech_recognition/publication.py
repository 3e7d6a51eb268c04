"""A recogniser in a model repository: its config.pbtxt, its card, its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from serving.tasks.speech_recognition import INPUT, LOGITS, SpeechRecognition, load
from training.checkpoint import CONFIG_FILE as CHECKPOINT_CONFIG_FILE
from training.parity import ParityReport
from training.promise import promise
from training.runs import RunDirectory
from training.tasks.speech_recognition.card import model_card
from training.tasks.speech_recognition.export import ANSWER_FILE
from training.tasks.speech_recognition.graphs import (
    CHUNK_FILE,
    NEXT_STATE,
    STATE,
)
from training.tasks.speech_recognition.network import (
    SAMPLES_PER_FRAME,
    Recognizer,
    RecognizerConfig,
)
from training.tasks.speech_recognition.recipe import SpeechRecipe
from training.tasks.speech_recognition.report import SpeechReport
from training.tasks.speech_recognition.verify import MAX_BATCH_SIZE

TASK = "automatic-speech-recognition"


class SpeechPublication:
    packages = ("espeakng-loader", "jiwer", "num2words", "soundfile", "soxr", "transformers")

    def __init__(
        self, run: RunDirectory, recipe: SpeechRecipe, precision: str, parity: ParityReport
    ):
        self.recipe = recipe
        self.precision = precision
        self.parity = parity
        self.report = SpeechReport.load(run.report)
        self._run = run

    @property
    def metrics(self) -> dict[str, float | None]:
        return self.report.figures

    def require_quality(self) -> None:
        self.report.require(self.recipe.acceptance, self._run.path)

    def promise(self, model: Path) -> None:
        """By task, inputs and outputs."""
        network = RecognizerConfig.load(self._run.checkpoint / CHECKPOINT_CONFIG_FILE)
        task = load(self._run.export(self.precision))
        assert isinstance(task, SpeechRecognition), "what is exported has CTC. This is a bug."
        promise(model, _config_text(model.name, network, task))

    def card(self, name: str, commands: Sequence[str]) -> str:
        export = self._run.export(self.precision)
        answer = json.loads((export / ANSWER_FILE).read_text(encoding="utf-8"))["answer"]
        sizes = {path.name: path.stat().st_size for path in sorted(export.iterdir())}
        return model_card(name, self.recipe, self.report, self.parity, commands, answer, sizes)


def _config_text(name: str, network: RecognizerConfig, task: SpeechRecognition) -> str:
    live = task.settings.is_live
    ragged = "" if live else "\n  allow_ragged_batch: true"
    text = f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
"""
    if live:
        text += f'default_model_filename: "{CHUNK_FILE}"\n'
    for kind, tensors, extra in (("input", task.inputs, ragged), ("output", task.outputs, "")):
        for spec in tensors:
            dims = ", ".join(str(size) for size in spec.shape[1:])
            text += f"""\
{kind} {{
  name: "{spec.name}"
  data_type: TYPE_{spec.datatype}
  dims: [ {dims} ]{extra}
}}
"""
    text += _sequences(network) if live else _BATCHES
    parameters = {"task": TASK, "intra_op_thread_count": "1"}
    if not live:
        parameters |= {
            "pad_value": "nan",
            "max_padding": "0.05",
            "unpad": f"{LOGITS}={INPUT}/{SAMPLES_PER_FRAME}",
        }
    for key, value in parameters.items():
        text += f"""\
parameters {{
  key: "{key}"
  value {{ string_value: "{value}" }}
}}
"""
    return text


# A recurrent network has little for a second thread to do, so batches run side by side instead: one
# more than the two cores of the machine it was measured on, so that none waits for the event loop.
# Beyond a few recordings a batch leaves the caches of a core and gains nothing more, so it is not
# worth waiting or padding for.
_BATCHES = """\
dynamic_batching {
  preferred_batch_size: [ 4 ]
}
instance_group {
  count: 3
}
"""


def _sequences(network: RecognizerConfig) -> str:
    """The server keeps each recording's state, and steps those of many together."""
    text = """\
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest {
    max_candidate_sequences: 1024
    max_queue_delay_microseconds: 2000
  }
"""
    for name, state in Recognizer(network).begin(1).items():
        dims = ", ".join(str(size) for size in state.shape[1:])
        text += f"""\
  state {{
    input_name: "{STATE}{name}"
    output_name: "{NEXT_STATE}{name}"
    data_type: TYPE_FP32
    dims: [ {dims} ]
  }}
"""
    return text + "}\n"
