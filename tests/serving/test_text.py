"""Tokenizers equal those of transformers; streamed text equals text decoded at once."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import MarianTokenizer, PreTrainedTokenizerFast

from serving.errors import ModelLoadError
from serving.text import Tokenizer, load_tokenizer
from serving.text.hugging_face import HuggingFace
from serving.text.marian import Marian
from serving.text.stream import StopStrings, TextStream
from tests.serving.text_models import (
    CORPUS,
    write_byte_fallback,
    write_byte_level,
    write_marian,
    write_metaspace,
)

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

KINDS: dict[str, Callable[[Path], Path]] = {
    "marian": write_marian,
    "marian-bytes": lambda path: write_marian(path, byte_fallback=True),
    "byte-level": write_byte_level,
    "byte-fallback": write_byte_fallback,
    "metaspace": write_metaspace,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: write(root / kind) for kind, write in KINDS.items()}


@pytest.fixture(scope="module", params=KINDS)
def directory(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Path:
    return directories[request.param]


@pytest.fixture(scope="module")
def ours(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    if not (directory / "source.spm").exists():
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_file=str(directory / "tokenizer.json"),
            eos_token="<|endoftext|>" if directory.name == "byte-level" else "</s>",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sacremoses")
        return MarianTokenizer(
            source_spm=str(directory / "source.spm"),
            target_spm=str(directory / "target.spm"),
            vocab=str(directory / "vocab.json"),
        )


LETTERS = "the quick<>/s|unkpad_de\0\n\t▁é日😀\u200d\u00a0�A¿ "
TEXTS = st.lists(
    st.sampled_from(
        [*LETTERS, "</s>", "<unk>", "<pad>", ">>de<<", ">>xx<<", "<|endoftext|>", "the "]
    )
).map("".join)


@PATIENT
@given(TEXTS)
def test_tokens_are_those_of_transformers(ours: Tokenizer, theirs: Any, text: str) -> None:
    assert ours.encode(text) == theirs(text).input_ids


@pytest.mark.parametrize("text", [*CORPUS[:7], "", "\0", "a" * 50_000, "日本 " * 9_000])
def test_real_texts_survive(ours: Tokenizer, theirs: Any, text: str) -> None:
    tokens = ours.encode(text)
    assert tokens == theirs(text).input_ids
    assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)


def chunks_of(tokens: list[int], sizes: list[int]) -> list[list[int]]:
    chunks = []
    start = 0
    for size in sizes:
        chunks.append(tokens[start : start + size])
        start += size
    return [*chunks, *([token] for token in tokens[start:])]


@PATIENT
@given(st.lists(st.integers(0, 10_000), max_size=60), st.lists(st.integers(0, 5), max_size=9))
def test_a_stream_is_the_whole_text_in_parts(
    ours: Tokenizer, theirs: Any, numbers: list[int], sizes: list[int]
) -> None:
    tokens = [number % len(theirs) for number in numbers]
    stream = TextStream(ours)
    parts = [stream.push(chunk) for chunk in chunks_of(tokens, sizes)]
    whole = ours.decode(tokens)
    assert "".join([*parts, stream.finish()]) == whole
    assert whole == theirs.decode(tokens, skip_special_tokens=True)


@PATIENT
@given(st.text("the quick é", max_size=30), st.text("the quick é日", max_size=30))
def test_a_stream_that_continues_a_prompt_is_what_the_tokens_add(
    ours: Tokenizer, prompt: str, text: str
) -> None:
    whole = ours.encode(prompt + text)
    before = whole[: len(ours.encode(prompt)) // 2]
    begun = ours.decode(before)
    if "\N{REPLACEMENT CHARACTER}" in begun:
        return  # a prompt never ends within a character
    stream = TextStream(ours, prompt=before)
    parts = [stream.push([token]) for token in whole[len(before) :]]
    assert begun + "".join([*parts, stream.finish()]) == ours.decode(whole)


@PATIENT
@given(st.lists(st.sampled_from(LETTERS + "日本語😀é"), max_size=80).map("".join))
def test_a_stream_never_shows_half_a_character(ours: Tokenizer, text: str) -> None:
    if "\N{REPLACEMENT CHARACTER}" in ours.decode(ours.encode(text)):
        return
    stream = TextStream(ours)
    parts = [stream.push([token]) for token in ours.encode(text)]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)


@PATIENT
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_long_run_of_few_tokens_is_streamed_exactly(
    ours: Tokenizer, theirs: Any, first: int, second: int
) -> None:
    tokens = [first % len(theirs)] * 40 + [second % len(theirs)] * 40 + [first % len(theirs)]
    stream = TextStream(ours)
    parts = [stream.push([token]) for token in tokens]
    assert "".join([*parts, stream.finish()]) == ours.decode(tokens)


def test_the_cost_of_a_token_does_not_grow(directories: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(directories["byte-level"])
    half_a_character = tokenizer.encode("é")[:1]
    for unit in (tokenizer.encode("the quick brown fox "), half_a_character, [tokenizer.eos or 0]):

        def seconds(count: int, unit: list[int] = unit) -> float:
            stream = TextStream(tokenizer)
            start = process_time()
            for _ in range(count // len(unit)):
                stream.push(unit)
            return process_time() - start

        short = min(seconds(2_000) for _ in range(3))
        assert seconds(20_000) < 30 * short


def naive(text: str, stops: list[str]) -> str:
    """Letter by letter."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


SHORT = st.text("ab", min_size=1, max_size=4)


@PATIENT
@given(st.lists(SHORT, max_size=9), st.lists(SHORT, min_size=1, max_size=3))
def test_a_text_ends_before_its_first_stop_string(parts: list[str], stop: list[str]) -> None:
    stops = StopStrings(stop)
    shown = ""
    for part in parts:
        shown += stops.push(part)
        assert naive("".join(parts), stop).startswith(shown)
        if stops.found:
            break
    assert shown + stops.held == naive("".join(parts), stop)


@PATIENT
@given(st.text("the quick", max_size=30), st.lists(st.text("the q", min_size=1), max_size=3))
def test_a_stream_stops(ours: Tokenizer, text: str, stop: list[str]) -> None:
    tokens = ours.encode(text)
    stream = TextStream(ours, stop)
    parts = [stream.push([token]) for token in tokens]
    found = stream.stopped
    shown = "".join([*parts, stream.finish()])
    whole = ours.decode(tokens)
    assert shown == naive(whole, stop)
    assert found <= (shown != whole)
    assert stream.push(tokens) == stream.finish() == ""


def test_what_a_tokenizer_tells_of_itself(directories: dict[str, Path]) -> None:
    marian = load_tokenizer(directories["marian"])
    assert isinstance(marian, Marian)
    assert (marian.eos, marian.languages, marian.source_language) == (0, ("de", "fr"), "en")
    gpt = load_tokenizer(directories["byte-level"])
    assert isinstance(gpt, HuggingFace)
    assert (gpt.eos, gpt.languages, gpt.special) == (0, (), frozenset({0}))
    llama = load_tokenizer(directories["byte-fallback"])
    assert (llama.eos, len(llama.unsettled)) == (2, 256)


@pytest.mark.parametrize(
    ("kind", "file", "content", "message"),
    [
        ("marian", "vocab.json", "[]", "vocab.json: expected a JSON object"),
        ("marian", "vocab.json", '{"a": "b"}', "expected a number of 0 or more"),
        ("marian", "vocab.json", '{"a": 1}', "special token '<unk>' is missing"),
        ("marian", "vocab.json", None, "vocab.json: cannot be read"),
        ("marian", "source.spm", "x", "source.spm: unusable sentencepiece model"),
        ("marian", "tokenizer_config.json", '{"separate_vocabs": true}', "separate_vocabs"),
        ("byte-level", "tokenizer.json", "{", "tokenizer.json: unusable tokenizer"),
        ("byte-level", "tokenizer.json", "{}", "tokenizer.json: unusable tokenizer"),
        ("byte-level", "tokenizer.json", '{"decoder": []}', "unusable tokenizer"),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path,
    directories: dict[str, Path],
    kind: str,
    file: str,
    content: str | None,
    message: str,
) -> None:
    for path in directories[kind].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ModelLoadError) as caught:
        load_tokenizer(tmp_path)
    assert message in str(caught.value)


def test_a_decoder_that_takes_text_back_is_refused(
    tmp_path: Path, directories: dict[str, Path]
) -> None:
    document = json.loads((directories["byte-level"] / "tokenizer.json").read_text())
    document["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelLoadError, match="decoder 'WordPiece' is not supported"):
        load_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_missing_package_is_named_with_its_remedy(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "serving.text.marian")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelLoadError, match=r"sentencepiece.*slipway\[text\]"):
        load_tokenizer(directories["marian"])


def test_old_files_name_special_tokens_as_objects(
    tmp_path: Path, directories: dict[str, Path]
) -> None:
    for path in directories["byte-level"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|endoftext|>", "lstrip": False}})
    )
    assert load_tokenizer(tmp_path).eos == 0
