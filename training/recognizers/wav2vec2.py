"""Wav2Vec2 with CTC (Baevski et al., "wav2vec 2.0", 2020), as one graph over waveforms.

A row ends before its first NaN, and is computed as if it were alone: what `transformers` takes over
a whole padded row, the mean and the deviation of samples and of channels, is taken here over the
part that is no padding. What the preprocessor does is in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from serving.speech.recognizer import RecognizerSettings
from training.errors import CheckpointError
from training.graphs.checkpoint import CONFIG_FILE, read_object
from training.graphs.trace import trace
from training.runs import GRAPH_FILE

WAVEFORM, LOGITS, FRAMES = "waveform", "logits", "frames"
MAX_BATCH_SIZE = 8
"""The largest batch that is proven, and hence the largest that may be served."""

PREPROCESSOR_FILE = "preprocessor_config.json"
VOCABULARY_FILE = "vocab.json"
TOKENIZER_FILE = "tokenizer_config.json"

_MAX_SECONDS, _OVERLAP_SECONDS = 20.0, 3.0
"""A longer recording is heard in windows, which have so much in common."""

_UNIT_VARIANCE_EPSILON = 1e-7
"""That of `Wav2Vec2FeatureExtractor`."""


@dataclass(frozen=True)
class Preprocessing:
    """preprocessor_config.json."""

    sampling_rate: int
    normalizes: bool

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """Raises `CheckpointError` for one that does what no graph here does."""
        path = checkpoint / PREPROCESSOR_FILE
        config = read_object(path)
        for name, only in (("feature_size", 1), ("padding_value", 0.0), ("padding_side", "right")):
            if config.get(name, only) != only:
                raise CheckpointError(f"{path}: {name} is {config[name]!r}, and has to be {only!r}")
        rate, normalizes = config.get("sampling_rate", 16_000), config.get("do_normalize", True)
        if type(rate) is not int or type(normalizes) is not bool:
            raise CheckpointError(
                f"{path}: expected a whole sampling_rate and do_normalize true or false, got"
                f" {rate!r} and {normalizes!r}"
            )
        return cls(rate, normalizes)


class Recognizer(nn.Module):
    """What is traced; its argument's name is that of the graph's input."""

    def __init__(self, model: Wav2Vec2ForCTC, *, normalizes: bool):
        super().__init__()
        self.model = model
        self._normalizes = normalizes
        self._shortest, self._stride = receptive_field(model.config)

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """From [batch, sample] to log-probabilities [batch, frame, class] and frames [batch, 1].

        `frames` is how many a row has; those after them are padding. There is one frame for every
        `stride` samples begun. A row shorter than what one frame looks at is followed by silence.
        """
        size = waveform.shape[1]
        missing = torch.isnan(waveform)
        places = torch.arange(size, device=waveform.device)
        lengths = torch.where(missing, places, size).amin(dim=1)
        present = places < lengths[:, None]
        samples = torch.where(present, waveform, 0.0)
        if self._normalizes:
            count = lengths.clamp(min=1)[:, None]
            centred = samples - samples.sum(dim=1, keepdim=True) / count
            centred = torch.where(present, centred, 0.0)
            variance = centred.square().sum(dim=1, keepdim=True) / count
            samples = centred / torch.sqrt(variance + _UNIT_VARIANCE_EPSILON)
        # With these, there are as many frames as the host expects of so many samples.
        whole = (size + self._stride - 1) // self._stride * self._stride
        beyond = self._shortest - self._stride
        samples = functional.pad(samples, (0, self._stride - 1 + beyond))[:, : whole + beyond]
        lengths = lengths.clamp(min=self._shortest)
        features = self._convolve(samples, lengths)
        frames = (lengths - self._shortest) // self._stride + 1
        return self._classify(features, frames), frames[:, None]

    def _convolve(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """[batch, frame, channel]. A frame looks at samples of its own row only."""
        features = samples[:, None]
        layers: Any = self.model.wav2vec2.feature_extractor.conv_layers
        for layer in layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                features = layer.conv(features)
                [kernel], [stride] = layer.conv.kernel_size, layer.conv.stride
                features = _normalized(features, (lengths - kernel) // stride + 1, norm)
                features = layer.activation(features)
            else:
                features = layer(features)
        return features.transpose(1, 2)

    def _classify(self, features: Tensor, frames: Tensor) -> Tensor:
        model = self.model.wav2vec2
        present = torch.arange(features.shape[1], device=features.device) < frames[:, None]
        hidden, _ = model.feature_projection(features)
        hidden = model.encoder(hidden, attention_mask=present).last_hidden_state
        return functional.log_softmax(self.model.lm_head(hidden), dim=-1)


def _normalized(features: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Each channel of [batch, channel, time] by its mean and deviation up to the row's length."""
    assert norm.num_groups == norm.num_channels, "each channel is a group of its own"
    present = (torch.arange(features.shape[2], device=features.device) < lengths[:, None])[:, None]
    count = lengths[:, None, None]
    mean = torch.where(present, features, 0.0).sum(dim=2, keepdim=True) / count
    centred = torch.where(present, features - mean, 0.0)
    variance = centred.square().sum(dim=2, keepdim=True) / count
    scaled = centred * torch.rsqrt(variance + norm.eps)
    return scaled * norm.weight[:, None] + norm.bias[:, None]


def receptive_field(config: Wav2Vec2Config) -> tuple[int, int]:
    """The samples that one frame looks at, and those from one frame to the next."""
    size, stride = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        size += (kernel - 1) * stride
        stride *= step
    return size, stride


def check_architecture(checkpoint: Path, config: Wav2Vec2Config) -> None:
    """Raises `CheckpointError` for what the graph leaves out."""
    for name in ("add_adapter", "adapter_attn_dim"):
        if getattr(config, name, None):
            raise CheckpointError(
                f"{checkpoint / CONFIG_FILE}: {name} is set, and adapters are not exported"
            )
    size, stride = receptive_field(config)
    if size < stride:
        raise CheckpointError(
            f"{checkpoint / CONFIG_FILE}: a frame looks at {size} samples, and the next begins"
            f" {stride} later: some are never heard"
        )


def to_onnx(model: Wav2Vec2ForCTC, *, normalizes: bool) -> ModelProto:
    """For any batch size and any number of samples."""
    convolution = model.wav2vec2.encoder.pos_conv_embed.conv
    if parametrize.is_parametrized(convolution):
        parametrize.remove_parametrizations(convolution, "weight")
    size, stride = receptive_field(model.config)
    return trace(
        Recognizer(model, normalizes=normalizes),
        # Two rows, because one would be taken for a constant.
        {WAVEFORM: torch.zeros(2, size + 10 * stride + 1)},
        [WAVEFORM],
        [LOGITS, FRAMES],
        {WAVEFORM: {0: Dim("batch"), 1: Dim("samples", min=1)}},
    )


def settings(
    checkpoint: Path, model: Wav2Vec2ForCTC, preprocessing: Preprocessing
) -> RecognizerSettings:
    """What recognizer.json holds. Raises `CheckpointError` for an unusable vocabulary."""
    path = checkpoint / VOCABULARY_FILE
    numbers = read_object(path)
    if any(isinstance(number, dict) for number in numbers.values()):
        raise CheckpointError(
            f"{path} has a vocabulary for each of several languages, and a model speaks one"
        )
    classes = model.lm_head.out_features
    tokens: dict[int, str] = {}
    for token, number in numbers.items():
        if type(number) is not int or not 0 <= number < classes:
            raise CheckpointError(
                f"{path}: {token!r} has the number {number!r}, and the model has {classes} classes"
            )
        tokens[number] = token
    tokenizer = _tokenizer_config(checkpoint)
    blank = numbers.get(tokenizer["pad_token"])
    if blank is None:
        raise CheckpointError(f"{path} has no {tokenizer['pad_token']!r}, which is CTC's blank")
    return RecognizerSettings(
        type="ctc",
        sampling_rate=preprocessing.sampling_rate,
        samples_per_frame=receptive_field(model.config)[1],
        blank=blank,
        vocabulary=tuple(_written(tokens.get(number, ""), tokenizer) for number in range(classes)),
        max_seconds=_MAX_SECONDS,
        overlap_seconds=_OVERLAP_SECONDS,
    )


_TOKENIZER_DEFAULTS: dict[str, Any] = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "word_delimiter_token": "|",
    "replace_word_delimiter_char": " ",
    "do_lower_case": False,
}
"""Those of `Wav2Vec2CTCTokenizer`."""


def _tokenizer_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / TOKENIZER_FILE
    config = _TOKENIZER_DEFAULTS | (read_object(path) if path.exists() else {})
    for name, default in _TOKENIZER_DEFAULTS.items():
        value = config[name]
        if isinstance(value, dict):
            value = config[name] = value.get("content")
        if type(value) is not type(default) and value is not None:
            raise CheckpointError(f"{path}: {name} is {value!r}, and has to be like {default!r}")
    return config


def _written(token: str, tokenizer: dict[str, Any]) -> str:
    """How a token is written in a text: those with another meaning are not."""
    if token in [tokenizer[f"{kind}_token"] for kind in ("pad", "bos", "eos", "unk")]:
        return ""
    if token == tokenizer["word_delimiter_token"]:
        return str(tokenizer["replace_word_delimiter_char"])
    return token.lower() if tokenizer["do_lower_case"] else token


def config_text(name: str, model: Wav2Vec2ForCTC) -> str:
    """config.pbtxt."""
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{WAVEFORM}"
  data_type: TYPE_FP32
  dims: [ -1 ]
  allow_ragged_batch: true
}}
output {{
  name: "{LOGITS}"
  data_type: TYPE_FP32
  dims: [ -1, {model.lm_head.out_features} ]
}}
output {{
  name: "{FRAMES}"
  data_type: TYPE_INT64
  dims: [ 1 ]
}}
dynamic_batching {{
  max_queue_delay_microseconds: 2000
}}
parameters {{
  key: "task"
  value {{ string_value: "automatic-speech-recognition" }}
}}
parameters {{
  key: "pad_value"
  value {{ string_value: "nan" }}
}}
parameters {{
  key: "max_padding"
  value {{ string_value: "0.25" }}
}}
parameters {{
  key: "unpad"
  value {{ string_value: "{LOGITS}={WAVEFORM}/{receptive_field(model.config)[1]}" }}
}}
"""


def export(
    model: Wav2Vec2ForCTC, checkpoint: Path, preprocessing: Preprocessing, destination: Path
) -> None:
    """Write the graph and recognizer.json into a directory. Raises `CheckpointError`."""
    written = settings(checkpoint, model, preprocessing)
    graph = to_onnx(model, normalizes=preprocessing.normalizes)
    (destination / GRAPH_FILE).write_bytes(graph.SerializeToString())
    written.save(destination)
