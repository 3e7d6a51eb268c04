"""Small tokenizers of every kind, trained here."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "twenty-one days ago, in about 3 hours, the day after tomorrow",
    "der schnelle braune Fuchs springt über den faulen Hund",
    "le vif renard brun saute par-dessus le chien paresseux, n'est-ce pas ?",
    "¿dónde está la biblioteca? El año pasado costó 12,50 €",
    "日本語のテキスト と 中文文本 и русский текст",
    "emoji 😀 👩‍👩‍👧 and accents é à ü ñ",
] * 4


def write_marian(directory: Path, *, byte_fallback: bool = False) -> Path:
    """Into a directory what transformers' MarianTokenizer reads."""
    directory.mkdir(parents=True, exist_ok=True)
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(directory / "source"),
        vocab_size=420 if byte_fallback else 150,
        byte_fallback=byte_fallback,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "source.vocab").unlink()
    model = (directory / "source.model").rename(directory / "source.spm")
    (directory / "target.spm").write_bytes(model.read_bytes())
    pieces = SentencePieceProcessor(model_file=str(model))
    names = ["</s>", "<unk>", ">>de<<", ">>fr<<"]
    names += [pieces.id_to_piece(number) for number in range(pieces.get_piece_size())]
    names.append("<pad>")
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "source_lang": "en"})
    )
    return directory


def write_byte_level(directory: Path) -> Path:
    """Into a directory a tokenizer like GPT-2's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _save(tokenizer, directory, "<|endoftext|>")


def write_byte_fallback(directory: Path) -> Path:
    """Into a directory a tokenizer like Llama's: it begins a text with `<s>`."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    names += sorted({letter for line in CORPUS[:4] for letter in line} - {" "})
    names += ["th", "the", "▁the", "er"]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("e", "r")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return _save(tokenizer, directory, "</s>")


def write_metaspace(directory: Path) -> Path:
    """Into a directory a unigram tokenizer like T5's."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _save(tokenizer, directory, "</s>")


def _save(tokenizer: tokenizers.Tokenizer, directory: Path, eos: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos})
    )
    return directory
