"""Text tasks in the schemas of Hugging Face Inference, of models that echo and of real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    GPT2LMHeadModel,
    MarianMTModel,
    MarianTokenizer,
    PreTrainedTokenizerFast,
)

from serving.errors import InvalidRequest
from serving.tasks import Question, load_task
from serving.tasks.text_generation import TextGeneration
from serving.tasks.translation import Translation
from tests.serving.text_models import write_byte_level, write_marian
from tests.stepped import write_language_model, write_translator
from tests.support import RunningServer, call, serving, write_config

CONFIG = """
backend: "fake"
max_batch_size: 4
input { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }
parameters { key: "task" value { string_value: "TASK" } }
"""

TO_GERMAN = Translation.Parameters(tgt_lang="de")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    for name, write, task in (
        ("translator", write_marian, "translation"),
        ("writer", write_byte_level, "text_generation"),
    ):
        directory = write_config(repository, name, CONFIG.replace("TASK", task))
        write(directory / "1")
    with serving(repository) as running:
        yield running


def ask(server: RunningServer, name: str, document: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    status, answer = call(server.http_port, "POST", f"/models/{name}", body, headers)
    return status, json.loads(answer)


@pytest.mark.usefixtures("both_ways")
def texts(question: Question) -> list[str]:
    return [text.decode() for text in question.tensors["text_input"].ravel()]


@pytest.mark.usefixtures("both_ways")
def test_translation_over_http(echo: RunningServer) -> None:
    parameters = {"src_lang": "en", "tgt_lang": "fr"}
    answer = ask(echo, "translator", {"inputs": "good day", "parameters": parameters})
    assert answer == (200, [{"translation_text": ">>fr<< good day"}])
    answer = ask(echo, "translator", {"inputs": ["a", ">>b", ""], "parameters": parameters})
    assert answer == (
        200,
        [
            {"translation_text": ">>fr<< a"},
            {"translation_text": ">>fr<< >>b"},
            {"translation_text": ">>fr<< "},
        ],
    )


@pytest.mark.usefixtures("both_ways")
def test_a_text_may_name_its_language_itself(echo: RunningServer) -> None:
    answer = ask(echo, "translator", {"inputs": ">>de<< été"})
    assert answer == (200, [{"translation_text": ">>de<< été"}])
    raw = call(echo.http_port, "POST", "/models/translator", ">>de<< été".encode())
    assert (raw[0], json.loads(raw[1])) == answer


def test_generation_over_http(echo: RunningServer) -> None:
    answer = ask(echo, "writer", {"inputs": "once", "parameters": {"return_full_text": True}})
    assert answer == (200, [{"generated_text": "onceonce"}])
    assert ask(echo, "writer", {"inputs": ["a", "b"], "parameters": None}) == (
        200,
        [{"generated_text": "a"}, {"generated_text": "b"}],
    )


def test_huggingface_hub_clients(echo: RunningServer) -> None:
    translator = InferenceClient(model=f"http://{echo.http}/models/translator")
    answer = translator.translation(
        "good day", src_lang="en", tgt_lang="de", generate_parameters={"num_beams": 4}
    )
    assert answer.translation_text == ">>de<< good day"
    with pytest.raises(HfHubHTTPError, match="expected one of de, fr, got 'es'"):
        translator.translation("good day", src_lang="en", tgt_lang="es")
    writer = InferenceClient(model=f"http://{echo.http}/models/writer")
    assert writer.text_generation("once", max_new_tokens=3, stop=["\n"], seed=1) == "once"
    assert writer.text_generation("once", return_full_text=True) == "onceonce"


@pytest.mark.usefixtures("both_ways")
@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("translator", {"inputs": "a"}, "tgt_lang: expected one of de, fr, got none"),
        ("translator", {"inputs": ">>es<< a"}, "tgt_lang: expected one of de, fr, got none"),
        (
            "translator",
            {"inputs": "a", "parameters": {"tgt_lang": "es"}},
            "tgt_lang: expected one of de, fr, got 'es'",
        ),
        (
            "translator",
            {"inputs": "a", "parameters": {"src_lang": "fr", "tgt_lang": "de"}},
            "parameters.src_lang: expected 'en'",
        ),
        ("translator", {"inputs": []}, "inputs: expected a text or an array of them"),
        ("translator", {"inputs": ["a", 1]}, "inputs: expected a text or an array of them, got 1"),
        ("translator", {"inputs": {"a": 1}}, "got an object"),
        ("translator", {"text": "a"}, "expected a JSON object with 'inputs'"),
        ("translator", [], "expected a JSON object with 'inputs'"),
        ("translator", b"{", "the body is not JSON"),
        (
            "translator",
            {"inputs": "a", "parameters": {"truncation": "longest_first"}},
            "parameters.truncation: Input should be 'do_not_truncate'",
        ),
        ("writer", {"inputs": ["a"] * 5}, "batch-size must be <= 4"),
        ("writer", {"inputs": "a", "parameters": {"details": True}}, "parameters.details"),
        ("writer", {"inputs": "a", "parameters": {"stop": [1]}}, "parameters.stop: expected"),
        ("writer", {"inputs": "a", "parameters": {"grammar": {}}}, "parameters.grammar: expected"),
        ("writer", {"inputs": "a", "parameters": []}, None),
        ("writer", {"inputs": "a", "parameters": [1]}, "parameters"),
    ],
)
def test_mistakes_are_named(
    echo: RunningServer, name: str, document: Any, message: str | None
) -> None:
    status, answer = ask(echo, name, document)
    assert status == (200 if message is None else 400)
    assert message is None or message in answer["error"]


@pytest.mark.usefixtures("both_ways")
def test_what_is_no_text_is_refused(echo: RunningServer) -> None:
    status, answer = call(echo.http_port, "POST", "/models/writer", b"\xff")
    assert status == 400
    assert b"not text in UTF-8" in answer


def test_a_stream_is_refused_with_the_way_to_one(echo: RunningServer) -> None:
    status, answer = ask(echo, "writer", {"inputs": "a", "stream": True})
    assert status == 501
    assert "generate_stream" in answer["error"]


def test_settings_become_parameters_of_the_request() -> None:
    settings = TextGeneration.Parameters.model_validate(
        {
            "max_new_tokens": 3,
            "top_p": 0.5,
            "stop": ["a", "b"],
            "seed": None,
            "details": False,
        }
    )
    question = TextGeneration().preprocess("once", settings)
    assert question.parameters == {"max_new_tokens": 3, "top_p": 0.5, "stop": '["a","b"]'}
    settings_too = Translation.Parameters.model_validate(
        {"tgt_lang": "de", "generate_parameters": {"num_beams": 4}, "max_new_tokens": 9}
    )
    asked = Translation(["de"]).preprocess("a", settings_too)
    assert asked.parameters == {"num_beams": 4, "max_new_tokens": 9}


def test_answers_keep_the_order_of_the_questions() -> None:
    outputs = {"text_output": np.array([["été".encode()], [b""]], np.object_)}
    answer = Translation([]).postprocess(outputs, Question(None, {}))
    assert answer == [{"translation_text": "été"}, {"translation_text": ""}]


def test_a_model_of_one_language_has_no_choice() -> None:
    task = Translation([])
    assert texts(task.preprocess("a", Translation.Parameters())) == ["a"]
    with pytest.raises(InvalidRequest, match="one target language only"):
        task.preprocess("a", TO_GERMAN)


def test_a_text_cannot_ask_for_another_language_than_its_caller() -> None:
    question = Translation(["de", "fr"]).preprocess(">>fr<< a", TO_GERMAN)
    assert texts(question) == [">>de<< >>fr<< a"]


def test_tasks_are_loaded_by_name(tmp_path: Path) -> None:
    assert isinstance(load_task("text_generation", tmp_path), TextGeneration)
    assert isinstance(load_task("translation", write_marian(tmp_path)), Translation)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning")
def test_clients_get_the_texts_of_transformers(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    checkpoint = write_translator(repository, "translator")
    translator: Any = MarianMTModel.from_pretrained(checkpoint)
    words: Any = MarianTokenizer.from_pretrained(checkpoint)
    checkpoint = write_language_model(repository, "writer")
    writer: Any = GPT2LMHeadModel.from_pretrained(checkpoint)
    pieces: Any = PreTrainedTokenizerFast.from_pretrained(checkpoint)

    def expected(model: Any, tokenizer: Any, text: str, **parameters: Any) -> str:
        output = model.generate(**tokenizer(text, return_tensors="pt"), **parameters)
        decoded: str = tokenizer.decode(output[0], skip_special_tokens=True)
        return decoded

    variants: list[dict[str, Any]] = [
        {"max_new_tokens": 20, "num_beams": 4},
        {"max_new_tokens": 20, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    ]
    with serving(repository) as server:
        client = InferenceClient(model=f"http://{server.http}/models/translator")
        for variant in variants:
            answer = client.translation(
                "the lazy dog", src_lang="en", tgt_lang="fr", generate_parameters=variant
            )
            text = ">>fr<< the lazy dog"
            assert answer.translation_text == expected(translator, words, text, **variant)
        client = InferenceClient(model=f"http://{server.http}/models/writer")
        variant = {"max_new_tokens": 20, "repetition_penalty": 1.4}
        text = client.text_generation("the quick", return_full_text=True, **variant)
        assert text == expected(writer, pieces, "the quick", **variant)
        status, answer = ask(server, "writer", {"inputs": "a", "parameters": {"top": 1}})
        assert status == 400
        assert "parameter 'top' is not known" in answer["error"]
