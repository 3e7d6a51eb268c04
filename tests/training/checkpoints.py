"""Small random checkpoints of models that can be imported, with tokenizers that work."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SENTENCES = (
    "A slipway is where a ship leaves the yard for the water.",
    "Ours takes a trained model from a checkpoint to answered requests.",
    "New requests join and finished ones leave at every step.",
    "The same files also load in another server, unmodified.",
    "Twelve hundred and four euros, please, by the end of the week.",
)
_PIECES = 90
VOCABULARY = _PIECES + 1
PAD = _PIECES


def marian(directory: Path, seed: int = 0, **settings: Any) -> MarianMTModel:
    """Two encoder and two decoder layers of four heads, as far as `settings` do not differ."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "activation_function": "swish",
        "scale_embedding": True,
        "init_std": 0.15,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
        "pad_token_id": PAD,
        "decoder_start_token_id": PAD,
    }
    model = MarianMTModel(MarianConfig(**config | settings))
    model.final_logits_bias.normal_()
    randomize(model)
    model.save_pretrained(directory)
    _save_marian_tokenizer(directory)
    return model


def gpt2(directory: Path, seed: int = 0, **settings: Any) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "vocab_size": _save_tokenizer(directory),
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(GPT2Config(**config | settings))
    randomize(model)
    model.save_pretrained(directory)
    return model


def llama(directory: Path, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """Grouped-query heads: four, of which two share keys and values."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "vocab_size": _save_tokenizer(directory),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**config | settings))
    randomize(model)
    model.save_pretrained(directory)
    return model


def wav2vec2(
    directory: Path, seed: int = 0, *, normalizes: bool = True, **settings: Any
) -> Wav2Vec2ForCTC:
    """Seven convolutions as every published one has them, and two layers of four heads."""
    torch.manual_seed(seed)
    letters = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHR'")
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    # transformers does not annotate them.
    tokenizer: Any = Wav2Vec2CTCTokenizer
    tokenizer(directory / "vocab.json").save_pretrained(directory)
    extractor: Any = Wav2Vec2FeatureExtractor
    extractor(do_normalize=normalizes).save_pretrained(directory)
    config: dict[str, Any] = {
        "vocab_size": len(letters),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**config | settings))
    randomize(model)
    model.save_pretrained(directory)
    return model


def whisper(
    directory: Path, seed: int = 0, *, languages: tuple[str, ...] = ("en", "de"), **settings: Any
) -> WhisperForConditionalGeneration:
    """Hears two seconds at a time, and writes up to 48 tokens; without languages, English only."""
    torch.manual_seed(seed)
    text = _save_tokenizer(directory)
    names = ["<|eos|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages)]
    names += ["<|translate|>", "<|transcribe|>"] if languages else []
    names.append("<|notimestamps|>")
    positions = 100
    times = [f"<|{time / 50:.2f}|>" for time in range(positions + 1)]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens(names)
    tokenizer.add_tokens(times)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokens = {name: text + number for number, name in enumerate([*names, *times])}
    eos, start = tokens["<|eos|>"], tokens["<|startoftranscript|>"]
    config: dict[str, Any] = {
        "vocab_size": text + len(tokens),
        "num_mel_bins": 80,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": positions,
        "max_target_positions": 48,
        "init_std": 0.3,
        "pad_token_id": eos,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "decoder_start_token_id": start,
    }
    model = WhisperForConditionalGeneration(WhisperConfig(**config | settings))
    randomize(model)
    generation: Any = model.generation_config
    # As it is made, what it says besides is taken for the model's own and forgotten.
    generation._from_model_config = False
    generation.max_length = 48
    generation.suppress_tokens = [5, 7, start]
    generation.begin_suppress_tokens = [9, eos]
    generation.no_timestamps_token_id = tokens["<|notimestamps|>"]
    generation.max_initial_timestamp_index = 50
    generation.is_multilingual = bool(languages)
    if languages:
        generation.lang_to_id = {f"<|{code}|>": tokens[f"<|{code}|>"] for code in languages}
        generation.task_to_id = {
            task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate")
        }
    model.save_pretrained(directory)
    extractor: Any = WhisperFeatureExtractor
    extractor(chunk_length=2).save_pretrained(directory)
    return model


def randomize(model: torch.nn.Module) -> None:
    """Biases and norms too: as they are made, they change nothing and would hide a mistake."""
    model.train(False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and "position" not in name:
                weight.add_(0.1 * torch.randn_like(weight))


def _save_marian_tokenizer(directory: Path) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=trained,
        vocab_size=_PIECES,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    pieces = ["</s>", "<unk>", *(piece for piece in pieces if not piece.startswith("<"))]
    assert len(pieces) <= _PIECES, "more pieces than the checkpoints have room for"
    vocabulary = {piece: index for index, piece in enumerate(pieces)} | {"<pad>": PAD}
    for name in ("source.spm", "target.spm"):
        (directory / name).write_bytes(trained.getvalue())
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"})
    )


def _save_tokenizer(directory: Path) -> int:
    """Byte-level pairs, as GPT-2's; returns how many tokens there are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())
