"""Whisper (Radford et al., 2022) as an encoder of waveforms and a decoder that is stepped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from torch.export import Dim
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from serving.speech.whisper import TRANSCRIBE, WAVEFORM, WhisperSettings
from serving.steppers.settings import GenerationSettings
from serving.triton_backend import MODEL_FILE, MODEL_TEXT
from training import durable
from training.errors import CheckpointError
from training.graphs.attention import KeysAndValues, attention_of
from training.graphs.checkpoint import GENERATION_FILE, read_object, tokenizer_files
from training.graphs.export import checked, require_room
from training.graphs.graphs import cache_names, cache_shape, source_decoder
from training.graphs.modules import Source
from training.graphs.names import DECODER_FILE, ENCODER_FILE
from training.graphs.settings import generation_settings, renormalized
from training.graphs.trace import trace
from training.recognizers.log_mel import LogMel
from training.recognizers.wav2vec2 import PREPROCESSOR_FILE

STEPPER = "recognition"
MAX_BATCH_SIZE = 32

_STRIDE = 2
"""Columns of the spectrogram for each position of the encoder, and for each time that is told."""

_ROWS = 8
"""That there is to be memory for, at least."""
_MEMORY_MB = 512
"""What a stepper has if nobody says."""


class Encoder(nn.Module):
    """Windows to what the decoder's layers need of them; its argument is the graph's input."""

    def __init__(self, model: WhisperForConditionalGeneration, extractor: WhisperFeatureExtractor):
        super().__init__()
        self.features = LogMel(extractor)
        self.encoder = model.model.encoder
        self.source = Source(model)

    def forward(self, waveform: Tensor) -> list[KeysAndValues]:
        hidden = self.encoder(self.features(waveform)).last_hidden_state
        keys_and_values: list[KeysAndValues] = self.source(hidden)
        return keys_and_values


def load_extractor(
    checkpoint: Path, model: WhisperForConditionalGeneration
) -> WhisperFeatureExtractor:
    """Raises `CheckpointError` for one that makes other spectrograms than the model reads."""
    path = checkpoint / PREPROCESSOR_FILE
    config = read_object(path)
    try:
        # A path of its own for every mistake, none of which is told in one sentence.
        extractor: Any = WhisperFeatureExtractor.from_dict(config)
        sizes = {
            "feature_size": (extractor.feature_size, model.config.num_mel_bins),
            "nb_max_frames": (
                extractor.nb_max_frames,
                _STRIDE * model.config.max_source_positions,
            ),
            "n_fft": (extractor.n_fft % 2, 0),
            "n_samples": (extractor.n_samples, extractor.nb_max_frames * extractor.hop_length),
            "dither": (extractor.dither, 0.0),
            "padding_value": (extractor.padding_value, 0.0),
        }
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: transformers cannot use it: {reason}") from error
    for name, (found, wanted) in sizes.items():
        if found != wanted:
            raise CheckpointError(f"{path}: {name} does not fit the model: {found}, not {wanted}")
    fitting: WhisperFeatureExtractor = extractor
    return fitting


def encoder_to_onnx(
    model: WhisperForConditionalGeneration, extractor: WhisperFeatureExtractor
) -> ModelProto:
    with attention_of(model.config, "eager"):
        return trace(
            Encoder(model, extractor),
            # Two rows, because one would be taken for a constant.
            {WAVEFORM: torch.zeros(2, extractor.n_samples)},
            [WAVEFORM],
            cache_names("cross", model.config.decoder_layers),
            {WAVEFORM: {0: Dim("batch")}},
        )


def hearing_settings(
    checkpoint: Path, model: WhisperForConditionalGeneration, extractor: WhisperFeatureExtractor
) -> WhisperSettings:
    """What recognizer.json holds. Raises `CheckpointError` for settings that have no equal."""
    path = checkpoint / GENERATION_FILE
    wanted = _Wanted.read(path, read_object(path))
    languages = {_code(token): number for token, number in (wanted.lang_to_id or {}).items()}
    forced = [token for _, token in wanted.forced_decoder_ids or ()]
    if not languages and set(forced) - {None, wanted.no_timestamps_token_id}:
        raise CheckpointError(
            f"{path} forces tokens, and has no lang_to_id and task_to_id to say what they mean"
        )
    no_times = wanted.no_timestamps_token_id
    last = wanted.max_initial_timestamp_index
    return WhisperSettings(
        type="whisper",
        sampling_rate=extractor.sampling_rate,
        window_samples=extractor.n_samples,
        samples_per_time=_STRIDE * extractor.hop_length,
        first_time_token=None if no_times is None else no_times + 1,
        no_times_token=no_times,
        last_initial_time=last,
        languages=languages,
        language=_language(wanted, languages, forced, path),
        tasks=wanted.task_to_id or {} if languages else {},
        task=wanted.task or TRANSCRIBE,
    )


class _Wanted(BaseModel, frozen=True):
    """What only Whisper has in generation_config.json."""

    lang_to_id: dict[str, int] | None = None
    task_to_id: dict[str, int] | None = None
    language: str | None = None
    task: str | None = None
    no_timestamps_token_id: int | None = None
    max_initial_timestamp_index: int | None = None
    forced_decoder_ids: list[tuple[int, int | None]] | None = None
    # With these a text would be chosen by what is not computed here.
    no_speech_threshold: None = None
    logprob_threshold: None = None
    compression_ratio_threshold: None = None
    condition_on_prev_tokens: bool | None = None

    @classmethod
    def read(cls, path: Path, config: dict[str, Any]) -> _Wanted:
        try:
            wanted = cls.model_validate(config)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise CheckpointError(
                f"{path}: {field}: {problem['msg']}, got {problem['input']!r}"
            ) from error
        if wanted.condition_on_prev_tokens:
            raise CheckpointError(
                f"{path}: condition_on_prev_tokens is set, and each window is heard for itself"
            )
        return wanted


def _language(
    wanted: _Wanted, languages: dict[str, int], forced: Sequence[int | None], path: Path
) -> str | None:
    """The one that is meant if nobody says; None if it is to be found."""
    if wanted.language is None:
        by_token = {number: code for code, number in languages.items()}
        return next((by_token[token] for token in forced if token in by_token), None)
    name = wanted.language.lower()
    code = TO_LANGUAGE_CODE.get(name, _code(name))
    if code not in languages:
        raise CheckpointError(f"{path}: language {wanted.language!r} is not one of lang_to_id")
    return code


def _code(token: str) -> str:
    """Of <|en|>."""
    return token.removeprefix("<|").removesuffix("|>")


def export(
    model: WhisperForConditionalGeneration,
    checkpoint: Path,
    extractor: WhisperFeatureExtractor,
    destination: Path,
) -> None:
    """Write graphs, settings, the tokenizer's files and Triton's model.py into a directory.

    Raises `CheckpointError`.
    """
    settings: GenerationSettings = checked(generation_settings(model))
    hearing = hearing_settings(checkpoint, model, extractor)
    for part in (model.model.encoder, model.model.decoder):
        require_room(part, checkpoint)
    graphs = {
        ENCODER_FILE: encoder_to_onnx(model, extractor),
        DECODER_FILE: source_decoder(model, renormalized(model)),
    }
    for name, graph in graphs.items():
        (destination / name).write_bytes(graph.SerializeToString())
    settings.save(destination)
    hearing.save(destination)
    for path in tokenizer_files(checkpoint):
        shutil.copyfile(path, destination / path.name)
    durable.write(destination / MODEL_FILE, MODEL_TEXT)


def memory_mb(model: WhisperForConditionalGeneration) -> int:
    """What the keys and values of some rows take, each as long as the model can hear and write."""
    layers, heads, head_dim = cache_shape(model)
    positions = model.config.max_source_positions + model.config.max_target_positions + 1
    row = 2 * 4 * layers * heads * head_dim * positions
    return max(_MEMORY_MB, -(-_ROWS * row // 2**20))


def config_text(name: str, model: WhisperForConditionalGeneration) -> str:
    """config.pbtxt."""
    parameters = {
        "task": "automatic-speech-recognition",
        "stepper": STEPPER,
        "memory_mb": memory_mb(model),
    }
    text = f"""\
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{WAVEFORM}"
  data_type: TYPE_FP32
  dims: [ -1 ]
}}
output {{
  name: "text_output"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
model_transaction_policy {{
  decoupled: true
}}
"""
    for key, value in parameters.items():
        text += f"""\
parameters {{
  key: "{key}"
  value {{ string_value: "{value}" }}
}}
"""
    return text
