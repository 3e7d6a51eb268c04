"""Small models that generate text, with random weights, as version directories: real graphs, real
tokenizers, and nothing that makes sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
)

from tests.serving.text_models import write_byte_level, write_marian
from training.graphs.export import export_generation

LONGEST = 128

_exported: dict[str, dict[str, bytes]] = {}
"""By task the files of a version of its model: always the same, and long to trace."""


def marian(vocabulary: int, *, eos: int, pad: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model: Any = MarianMTModel(
        MarianConfig(
            vocab_size=vocabulary,
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            max_position_embeddings=LONGEST,
            pad_token_id=pad,
            eos_token_id=eos,
            decoder_start_token_id=pad,
            forced_eos_token_id=None,
            init_std=0.3,
            scale_embedding=True,
        )
    )
    return model.eval()


def gpt2(vocabulary: int, *, eos: int, pad: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=LONGEST,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=pad,
            initializer_range=0.3,
        )
    )
    return model.eval()


def llama(vocabulary: int, *, eos: int, pad: int, seed: int = 0) -> Any:
    """With a key-value head for every two heads."""
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LONGEST,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=pad,
            initializer_range=0.3,
        )
    )
    return model.eval()


def write_translator(repository: Path, name: str, *, settings: str = "") -> Path:
    """A Marian model; returns its checkpoint directory."""
    checkpoint = write_marian(repository.parent / f"{name}-checkpoint")
    vocabulary = len(json.loads((checkpoint / "vocab.json").read_text()))
    model = marian(vocabulary, eos=0, pad=vocabulary - 1)
    return _write(repository, name, model, checkpoint, "translation", settings)


def write_language_model(repository: Path, name: str, *, settings: str = "") -> Path:
    """A model of GPT-2's architecture; returns its checkpoint directory."""
    checkpoint = write_byte_level(repository.parent / f"{name}-checkpoint")
    vocabulary = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab_size()
    model = gpt2(vocabulary, eos=0, pad=0)
    return _write(repository, name, model, checkpoint, "text_generation", settings)


def _write(
    repository: Path, name: str, model: Any, checkpoint: Path, task: str, settings: str
) -> Path:
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(checkpoint)
    version = repository / name / "1"
    if task not in _exported:
        export_generation(checkpoint, version)
        _exported[task] = {path.name: path.read_bytes() for path in version.iterdir()}
    version.mkdir(parents=True, exist_ok=True)
    for file, content in _exported[task].items():
        (version / file).write_bytes(content)
    (repository / name / "config.pbtxt").write_text(
        f"""
backend: "python"
max_batch_size: 32
input {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }}
output {{ name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }}
model_transaction_policy {{ decoupled: true }}
parameters {{ key: "stepper" value {{ string_value: "generation" }} }}
parameters {{ key: "task" value {{ string_value: "{task}" }} }}
{settings}
"""
    )
    return checkpoint
