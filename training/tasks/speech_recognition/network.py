"""The acoustic models: causal convolutions, then GRUs or a transformer, then CTC's classes.

All of it but the layers in the middle looks only backwards. So what pads a waveform at its end
never reaches a frame before it, and a live recogniser computes what it would of the whole file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training import durable
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Weights
from training.record import Record
from training.tasks.speech_recognition.corpus import RATE_HZ
from training.tasks.speech_recognition.features import CONTEXT, HOP, LogMel
from training.tasks.speech_recognition.middle import BothWays, Forwards, SelfAttention
from training.tasks.speech_recognition.recipe import Masks

STRIDE = 3
"""Columns of the spectrogram for each frame."""
SAMPLES_PER_FRAME = STRIDE * HOP
"""30 ms: the fastest speaker spells 28 letters in a second."""
CHUNK_FRAMES = 4
"""Of a live recogniser: 120 ms."""
BLANK = 0
_KERNELS = (3, 5)

States = dict[str, Tensor]
"""What a live recogniser keeps between two chunks, by name; each [batch, …], zero at first."""


class RecognizerConfig(Record):
    """Everything needed to build the network again; saved as the checkpoint's config.json."""

    architecture: Literal["recurrent", "transformer", "live"]
    vocabulary: tuple[str, ...]
    """Characters by class; the first, which is empty, is CTC's blank."""
    words: tuple[str, ...] = ()
    """All that may be written, if no others may."""
    mean: tuple[float, ...]
    """Per band of the spectrogram, over the training part."""
    std: tuple[float, ...]
    width: int
    hidden: int
    layers: int
    heads: int
    delay: int
    """Frames of what comes after that a live recogniser hears before it answers."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]


class Recognizer(nn.Module):
    """Log-probabilities of characters, every 30 ms of a waveform."""

    def __init__(self, config: RecognizerConfig, masks: Masks | None = None):
        """`masks` are for training, and without effect in evaluation mode."""
        super().__init__()
        self.config = config
        self.features = LogMel(config.mean, config.std)
        self.masks = SpecAugment(masks) if masks is not None else nn.Identity()
        narrow, wide = _KERNELS
        self.narrow = nn.Conv1d(len(config.mean), config.width, narrow)
        self.wide = nn.Conv1d(config.width, config.width, wide, stride=STRIDE)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in _KERNELS)
        self.middle = _middle(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(self.middle.width, len(config.vocabulary))

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """From [batch, sample], -1 to 1, to logits [batch, frame, class] and frames [batch, 1].

        A row ends before its first NaN; `frames` says how many frames it has, a part of one
        counted as a whole. Those after them are padding. The logits are log-probabilities; those
        of a live recogniser are what `step` gives `config.delay` frames later, in silence after
        the end.
        """
        samples, lengths = _ended(waveform)
        frames = (lengths + SAMPLES_PER_FRAME - 1) // SAMPLES_PER_FRAME
        states = self.begin(samples.shape[0])
        if isinstance(self.middle, Forwards):
            samples = functional.pad(samples, (0, self.config.delay * SAMPLES_PER_FRAME))
        framed, _ = self._convolve(samples, states)
        heard = self.middle(framed, frames)
        if isinstance(self.middle, Forwards):
            heard = heard[:, self.config.delay :]
        return self._classify(heard), frames[:, None]

    def begin(self, batch: int) -> States:
        """States before the first sample."""
        narrow, wide = _KERNELS
        device = self.classify.weight.device
        states = {
            "samples": torch.zeros(batch, CONTEXT, device=device),
            "features": torch.zeros(batch, len(self.config.mean), narrow - 1, device=device),
            "convolved": torch.zeros(batch, self.config.width, wide - STRIDE, device=device),
        }
        if isinstance(self.middle, Forwards):
            shape = (batch, self.config.layers, self.config.hidden)
            states["recurrent"] = torch.zeros(shape, device=device)
        return states

    def step(self, samples: Tensor, states: States) -> tuple[Tensor, States]:
        """One chunk, [batch, whole frames × SAMPLES_PER_FRAME]: its logits, and the next states."""
        assert isinstance(self.middle, Forwards), "only the live architecture hears chunks"
        framed, after = self._convolve(samples, states)
        heard, after["recurrent"] = self.middle.step(framed, states["recurrent"])
        return self._classify(heard), after

    def _convolve(self, samples: Tensor, states: States) -> tuple[Tensor, States]:
        """From whole frames of samples to [batch, frame, width], and what the next chunk needs."""
        samples = torch.cat([states["samples"], samples], dim=1)
        features = self.masks(self.features(samples))
        features = torch.cat([states["features"], features], dim=2)
        convolved = _activate(self.narrow(features), self.norms[0])
        convolved = torch.cat([states["convolved"], convolved], dim=2)
        framed = _activate(self.wide(convolved), self.norms[1])
        after = {
            "samples": samples[:, -states["samples"].shape[1] :],
            "features": features[:, :, -states["features"].shape[2] :],
            "convolved": convolved[:, :, -states["convolved"].shape[2] :],
        }
        return framed.transpose(1, 2), after

    def _classify(self, heard: Tensor) -> Tensor:
        return functional.log_softmax(self.classify(self.dropout(heard)), dim=2)


class SpecAugment(nn.Module):
    """Hides stripes of a spectrogram while training, as dropout hides numbers."""

    def __init__(self, settings: Masks):
        super().__init__()
        self.settings = settings

    def forward(self, features: Tensor) -> Tensor:
        """[batch, band, column]; what is hidden becomes the mean, which is zero."""
        if not self.training:
            return features
        settings = self.settings
        columns = settings.time_seconds * RATE_HZ / HOP
        hidden = _stripes(features, 2, settings.times, columns)
        hidden = hidden | _stripes(
            features, 1, settings.bands, settings.band_fraction * features.shape[1]
        )
        return features.masked_fill(hidden, 0.0)


def _stripes(features: Tensor, dim: int, count: int, widest: float) -> Tensor:
    """Where stripes across one axis are: true in [batch, band or 1, column or 1]."""
    batch, size = len(features), features.shape[dim]
    width = widest * torch.rand(batch, count, 1, device=features.device)
    start = (size - width) * torch.rand(batch, count, 1, device=features.device)
    place = torch.arange(size, device=features.device)
    inside = ((place >= start) & (place < start + width)).any(dim=1)
    return inside[:, None, :] if dim == 2 else inside[:, :, None]


def save_model(directory: Path, config: RecognizerConfig, weights: Weights) -> None:
    directory.mkdir(exist_ok=True)
    config.save(directory / CONFIG_FILE)
    durable.write(directory / WEIGHTS_FILE, safetensors.torch.save(weights))


def load_model(directory: Path) -> Recognizer:
    """Build the network of a checkpoint, in evaluation mode."""
    model = Recognizer(RecognizerConfig.load(directory / CONFIG_FILE))
    model.load_state_dict(safetensors.torch.load_file(directory / WEIGHTS_FILE))
    return model.eval()


def halve(weights: Weights) -> Weights:
    """The nearest weights that 16 bits hold, so that a graph may store them in half the bytes."""
    return {name: tensor.half().float() for name, tensor in weights.items()}


def _middle(config: RecognizerConfig) -> BothWays | Forwards | SelfAttention:
    if config.architecture == "transformer":
        return SelfAttention(
            config.width, config.hidden, config.layers, config.heads, config.dropout
        )
    kind = BothWays if config.architecture == "recurrent" else Forwards
    return kind(config.width, config.hidden, config.layers, config.dropout)


def _ended(waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Samples [batch, whole frames × SAMPLES_PER_FRAME] without NaN, and each row's number."""
    size = waveform.shape[1]
    places = torch.arange(size, device=waveform.device)
    missing = torch.isnan(waveform)
    lengths = torch.where(missing, places, size).amin(dim=1)
    samples = torch.where(places < lengths[:, None], waveform, 0.0)
    whole = (size + SAMPLES_PER_FRAME - 1) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME
    return functional.pad(samples, (0, SAMPLES_PER_FRAME - 1))[:, :whole], lengths


def _activate(convolved: Tensor, norm: nn.Module) -> Tensor:
    normalized: Tensor = norm(convolved.transpose(1, 2))
    return functional.relu(normalized).transpose(1, 2)
