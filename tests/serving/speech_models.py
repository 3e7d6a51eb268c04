"""A recogniser of tones (see `recordings`), as small as a speech model can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.speech.recognizer import RecognizerSettings
from tests.serving.recordings import BLANK, FRAME, RATE_HZ, VOCABULARY, pitch_hz
from tests.support import write_config

CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "waveform" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true } ]
output [
  { name: "logits" data_type: TYPE_FP32 dims: [ -1, 28 ] },
  { name: "frames" data_type: TYPE_INT64 dims: [ 1 ] }
]
dynamic_batching { max_queue_delay_microseconds: 2000 }
parameters { key: "task" value { string_value: "automatic-speech-recognition" } }
parameters { key: "pad_value" value { string_value: "nan" } }
parameters { key: "unpad" value { string_value: "logits=waveform/640" } }
parameters { key: "max_padding" value { string_value: "0.25" } }
"""

CHUNK_FRAMES = 4
LIVE_CONFIG = """
backend: "onnxruntime"
default_model_filename: "chunk.onnx"
max_batch_size: 64
input [ { name: "waveform" data_type: TYPE_FP32 dims: [ 2560 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 4, 28 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 10000000
  oldest { max_candidate_sequences: 1024 max_queue_delay_microseconds: 2000 }
  state [
    {
      input_name: "state_tail" output_name: "next_state_tail"
      data_type: TYPE_FP32 dims: [ 640 ]
    }
  ]
}
parameters { key: "task" value { string_value: "automatic-speech-recognition" } }
"""

CERTAINTY = 80
"""Log-odds for every unit of a tone's amplitude."""
QUIET = 0.1
"""The amplitude below which nothing is said."""


def settings(**changes: Any) -> RecognizerSettings:
    return RecognizerSettings.model_validate(
        {
            "type": "ctc",
            "sampling_rate": RATE_HZ,
            "samples_per_frame": FRAME,
            "blank": BLANK,
            "vocabulary": VOCABULARY,
            "max_seconds": 10.0,
            "overlap_seconds": 2.0,
            **changes,
        }
    )


def write_recognizer(repository: Path, name: str, **changes: Any) -> Path:
    """A version directory with its config.pbtxt; returns the model's directory."""
    directory = write_config(repository, name, CONFIG)
    (directory / "1").mkdir(exist_ok=True)
    settings(**changes).save(directory / "1")
    onnx.save(graph(), directory / "1" / "model.onnx")
    return directory


def write_live(repository: Path, name: str, **changes: Any) -> Path:
    """The same of a model that hears live; returns the model's directory."""
    directory = write_config(repository, name, LIVE_CONFIG)
    (directory / "1").mkdir(exist_ok=True)
    settings(
        type="ctc-live",
        max_seconds=None,
        overlap_seconds=None,
        chunk_samples=CHUNK_FRAMES * FRAME,
        delay_frames=1,
        **changes,
    ).save(directory / "1")
    onnx.save(chunk_graph(), directory / "1" / "chunk.onnx")
    return directory


def graph() -> onnx.ModelProto:
    """Frames of a whole waveform. NaN is padding, and is taken for silence."""
    nodes = [
        helper.make_node("IsNaN", ["waveform"], ["is_padding"]),
        helper.make_node("Where", ["is_padding", "zero", "waveform"], ["samples"]),
        helper.make_node("Not", ["is_padding"], ["is_sample"]),
        helper.make_node("Cast", ["is_sample"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones", "channel"], ["length"]),
        helper.make_node("Add", ["length", "one_less"], ["length_up"]),
        helper.make_node("Div", ["length_up", "frame"], ["frames"]),
        *_hearing(),
    ]
    constants = {"one_less": np.array(FRAME - 1), "frame": np.array(FRAME)}
    values = helper.make_tensor_value_info
    return _model(
        nodes,
        [values("waveform", TensorProto.FLOAT, ["batch", "samples"])],
        [
            values("logits", TensorProto.FLOAT, ["batch", "frames_out", len(VOCABULARY)]),
            values("frames", TensorProto.INT64, ["batch", 1]),
        ],
        constants,
    )


def chunk_graph() -> onnx.ModelProto:
    """Frames of one chunk, one frame late: its state is the last frame of the chunk before."""
    size = CHUNK_FRAMES * FRAME
    nodes = [
        helper.make_node("Concat", ["state_tail", "waveform"], ["heard"], axis=1),
        helper.make_node("Split", ["heard", "sizes"], ["samples", "next_state_tail"], axis=1),
        *_hearing(),
    ]
    values = helper.make_tensor_value_info
    return _model(
        nodes,
        [
            values("waveform", TensorProto.FLOAT, ["batch", size]),
            values("state_tail", TensorProto.FLOAT, ["batch", FRAME]),
        ],
        [
            values("logits", TensorProto.FLOAT, ["batch", CHUNK_FRAMES, len(VOCABULARY)]),
            values("next_state_tail", TensorProto.FLOAT, ["batch", FRAME]),
        ],
        {"sizes": np.array([size, FRAME])},
    )


def _hearing() -> list[onnx.NodeProto]:
    """From `samples` to `logits`: for every frame, how loud is each pitch?"""
    return [
        helper.make_node("Unsqueeze", ["samples", "channel"], ["channels"]),
        helper.make_node(
            "Conv", ["channels", "filters"], ["parts"], strides=[FRAME], pads=[0, FRAME - 1]
        ),
        helper.make_node("Split", ["parts", "halves"], ["even", "odd"], axis=1),
        helper.make_node("Mul", ["even", "even"], ["even_energy"]),
        helper.make_node("Mul", ["odd", "odd"], ["odd_energy"]),
        helper.make_node("Add", ["even_energy", "odd_energy"], ["energy"]),
        helper.make_node("Sqrt", ["energy"], ["amplitude"]),
        helper.make_node("ReduceMax", ["amplitude", "channel"], ["loudest"]),
        helper.make_node("Mul", ["loudest", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "quiet"], ["blank"]),
        helper.make_node("Concat", ["blank", "amplitude"], ["classes"], axis=1),
        helper.make_node("Transpose", ["classes"], ["by_frame"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["by_frame", "certainty"], ["odds"]),
        helper.make_node("LogSoftmax", ["odds"], ["logits"], axis=2),
    ]


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, Any],
) -> onnx.ModelProto:
    time_s = np.arange(FRAME) / RATE_HZ
    angles = 2 * np.pi * np.outer([pitch_hz(character) for character in VOCABULARY[1:]], time_s)
    filters = np.concatenate([np.cos(angles), np.sin(angles)]) * 2 / FRAME
    pitches = len(VOCABULARY) - 1
    constants = {
        **constants,
        "filters": filters[:, np.newaxis].astype(np.float32),
        "zero": np.array(0, np.float32),
        "quiet": np.array(QUIET, np.float32),
        "certainty": np.array(CERTAINTY, np.float32),
        "channel": np.array([1]),
        "halves": np.array([pitches, pitches]),
    }
    initializers = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    made = helper.make_graph(nodes, "tones", inputs, outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
