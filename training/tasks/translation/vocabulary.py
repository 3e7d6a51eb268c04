"""Pieces of words, shared by all languages, in the files that Marian's tokenizer reads."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from training import durable

SOURCE_FILE = "source.spm"
TARGET_FILE = "target.spm"
VOCABULARY_FILE = "vocab.json"
CONFIG_FILE = "tokenizer_config.json"

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"


class Vocabulary:
    """Numbers for pieces: those of sentencepiece, and one more for padding."""

    def __init__(self, model: bytes, languages: Sequence[str]):
        self.languages = tuple(languages)
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pad = len(self._pieces)
        self.end = self._pieces.eos_id()
        self._codes = {code: self._pieces.piece_to_id(_symbol(code)) for code in languages}

    def __len__(self) -> int:
        return self.pad + 1

    def encode_source(self, text: str, language: str) -> list[int]:
        return [self._codes[language], *self._pieces.encode(text), self.end]

    def encode_target(self, text: str) -> list[int]:
        return [*self._pieces.encode(text), self.end]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._pieces.decode([number for number in ids if number != self.pad]))

    def save(self, directory: Path, longest: int) -> None:
        durable.write(directory / SOURCE_FILE, self._model)
        durable.write(directory / TARGET_FILE, self._model)
        numbers = {self._pieces.id_to_piece(number): number for number in range(self.pad)}
        vocabulary = json.dumps({**numbers, PAD: self.pad}, ensure_ascii=False, indent=0)
        durable.write(directory / VOCABULARY_FILE, vocabulary + "\n")
        config = {
            "tokenizer_class": "MarianTokenizer",
            "source_lang": "en",
            "target_lang": "+".join(self.languages),
            "unk_token": UNKNOWN,
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": longest,
            "separate_vocabs": False,
        }
        durable.write(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def train_vocabulary(sentences: Sequence[str], languages: Sequence[str], size: int) -> Vocabulary:
    """The same sentences in the same order make the same vocabulary."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        # The unigram model considers only what several different words share, and so would cut even
        # "The" in two: there are few different words here, each in many sentences.
        model_type="bpe",
        vocab_size=size - 1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        # "siebenundsechzig" is learned from "siebenundzwanzig" only if it is not one piece.
        max_sentencepiece_length=8,
        # A number is translated digit by digit, or each would have to be learned by itself.
        split_digits=True,
        user_defined_symbols=[_symbol(code) for code in languages],
        eos_id=0,
        unk_id=1,
        bos_id=-1,
        pad_id=-1,
        # Sums of floating-point numbers depend on how many threads share them.
        num_threads=1,
        minloglevel=2,
    )
    return Vocabulary(model.getvalue(), languages)


def _symbol(language: str) -> str:
    """What a source text begins with, to say into which language it goes."""
    return f">>{language}<<"
