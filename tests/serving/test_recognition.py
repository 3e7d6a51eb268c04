"""A model of Whisper's architecture, imported and served: by every route, alone and in a storm."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from click.testing import CliRunner
from huggingface_hub import InferenceClient
from openai import OpenAI
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from serving.engines.base import Graph
from serving.errors import InvalidRequest
from serving.scheduling.meter import LateMeter
from serving.scheduling.stepper import News
from serving.scheduling.stepping import StepScheduler
from serving.speech.whisper import MARKED, WhisperSettings
from serving.steppers.recognition import RecognitionStepper
from serving.steppers.settings import GenerationSettings
from serving.steppers.times import TimedText
from serving.text import load_tokenizer
from serving.types import InferRequest, Parameter, Tensors
from tests.serving.recordings import encoded
from tests.support import RunningServer, call, serving
from tests.training import checkpoints
from training.graphs.served import Numbers, open_graph
from training.importing_cli import import_model
from training.recognizers.clips import clips

RATE_HZ = 16_000
WINDOW = 2 * RATE_HZ

Waveform = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "hears"
    checkpoints.whisper(directory)
    return directory


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("repository")
    result = CliRunner().invoke(
        import_model, [str(checkpoint), "--model-repository", str(directory)]
    )
    assert result.exit_code == 0, result.exc_info
    return directory


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with serving(repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://{server.http}/v1", api_key="none", max_retries=0) as connection:
        yield connection


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> WhisperForConditionalGeneration:
    loaded: Any = WhisperForConditionalGeneration.from_pretrained(
        checkpoint, attn_implementation="eager"
    )
    found: WhisperForConditionalGeneration = loaded.eval()
    return found


def recordings(*seconds: float) -> list[Waveform]:
    """Of so many seconds, with samples that 16 bits hold."""
    made = clips([round(length * RATE_HZ) for length in seconds], RATE_HZ)[:-1]
    return [(np.round(clip * 32767) / 32768).astype(np.float32) for clip in made]


def as_file(waveform: Waveform) -> bytes:
    return encoded((waveform * 32768).astype(np.int16))


SHORT = recordings(0.3, 0.9, 1.4, 2.0, 1.99)
LONG = recordings(5.3, 7.7)


def generate(
    model: WhisperForConditionalGeneration, window: Waveform, *, times: bool, **wishes: Any
) -> list[int]:
    """New tokens of a window by transformers, without those that end a text."""
    extractor: Any = WhisperFeatureExtractor
    features = extractor(chunk_length=2)(
        window, sampling_rate=RATE_HZ, return_tensors="pt"
    ).input_features
    write: Any = model.generate
    with torch.no_grad():
        output = write(
            features,
            task=wishes.pop("task", "transcribe"),
            return_timestamps=times,
            return_segments=True,
            force_unique_generate_call=True,
            **wishes,
        )
    sequence = output["segments"][0][0]["result"].tolist()
    prompt = 3 if times else 4
    return [token for token in sequence[prompt:] if token != model.config.eos_token_id]


def by_transformers(
    model: WhisperForConditionalGeneration,
    hearing: WhisperSettings,
    tokenizer: Any,
    waveform: Waveform,
    **wishes: Any,
) -> str:
    """A recording window by window, as the paper describes it."""
    text, start = "", 0
    while start < len(waveform):
        window = waveform[start : start + hearing.window_samples]
        tokens = generate(model, window, times=True, **wishes)
        timed = TimedText(tokenizer, hearing, start, len(window))
        text += timed.push(tokens) + timed.finish()
        start += timed.heard
    return text


@asynccontextmanager
async def scheduler(
    repository: Path, *, slots: int = 64, memory_mb: int = 64
) -> AsyncIterator[tuple[StepScheduler[Any], RecognitionStepper]]:
    """Of a stepper whose texts are the numbers of tokens."""
    directory = repository / "hears" / "1"
    settings = GenerationSettings.load(directory)
    stepper = RecognitionStepper(
        open_graph(directory / "decoder.onnx"),
        open_graph(directory / "encoder.onnx"),
        settings,
        WhisperSettings.load(directory),
        Numbers(settings),
        slots=slots,
        memory_bytes=memory_mb << 20,
        threads=2,
    )
    running = StepScheduler[Any](stepper, None, meter=LateMeter())
    try:
        yield running, stepper
    finally:
        await running.stop()
        stepper.close()


async def ask(running: StepScheduler[Any], waveform: Waveform, **wishes: Parameter) -> str:
    request = InferRequest("", {"waveform": waveform[np.newaxis]}, parameters=wishes)
    answer: bytes = (await running.infer(request, 1))["text_output"][0, 0]
    return answer.decode()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("language", [None, "en", "de"])
async def test_texts_are_those_of_generate(
    repository: Path, model: WhisperForConditionalGeneration, language: str | None, beams: int
) -> None:
    hearing = WhisperSettings.load(repository / "hears" / "1")
    wishes: dict[str, Any] = {"num_beams": beams} | ({"language": language} if language else {})
    async with scheduler(repository) as (running, _):
        for waveform in SHORT:
            tokens = generate(model, waveform, times=False, language=language, num_beams=beams)
            assert await ask(running, waveform, **wishes) == " ".join(map(str, tokens))
        numbers = Numbers(GenerationSettings.load(repository / "hears" / "1"))
        for waveform in SHORT:
            expected = by_transformers(
                model, hearing, numbers, waveform, language=language, num_beams=beams
            )
            text = await ask(running, waveform, return_timestamps=True, **wishes)
            mark, _, text = text.partition("|>")
            assert mark in (["<|de", "<|en"] if language is None else [f"<|{language}"])
            assert text == expected


async def test_a_long_recording_goes_on_where_its_text_breaks_off(
    repository: Path, model: WhisperForConditionalGeneration
) -> None:
    hearing = WhisperSettings.load(repository / "hears" / "1")
    numbers = Numbers(GenerationSettings.load(repository / "hears" / "1"))
    async with scheduler(repository) as (running, _):
        for waveform in LONG:
            expected = by_transformers(model, hearing, numbers, waveform, language="en")
            text = await ask(running, waveform, return_timestamps=True, language="en")
            assert text == "<|en|>" + expected
            starts = [float(found[1]) for found in MARKED.finditer(text)]
            assert starts == sorted(starts)
            assert starts[-1] > len(waveform) / RATE_HZ - 3
            windows = [waveform[at : at + WINDOW] for at in range(0, len(waveform), WINDOW)]
            plain = [generate(model, window, times=False, language="en") for window in windows]
            together = "".join(" ".join(map(str, tokens)) for tokens in plain)
            assert await ask(running, waveform, language="en") == together


async def test_in_a_storm_as_alone(repository: Path) -> None:
    """Few slots and little memory, so that recordings are suspended between and within windows."""
    chance = np.random.default_rng(2)
    kinds: list[dict[str, Parameter]] = [
        {"return_timestamps": True},
        {"language": "de"},
        {"return_timestamps": True, "num_beams": 3, "max_new_tokens": 20},
        {"do_sample": True, "seed": 5},
    ]
    cases = [(waveform, wishes) for waveform in [*SHORT, *LONG] for wishes in kinds]
    async with scheduler(repository, slots=7, memory_mb=1) as (running, _):
        alone = [await ask(running, waveform, **wishes) for waveform, wishes in cases]

        async def at_some_time(waveform: Waveform, wishes: dict[str, Parameter]) -> str | None:
            await asyncio.sleep(chance.random() * 0.2)
            asking = asyncio.create_task(ask(running, waveform, **wishes))
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.2)
                asking.cancel()
            await asyncio.wait([asking])
            return None if asking.cancelled() else asking.result()

        storm = await asyncio.gather(*(at_some_time(*case) for case in cases * 3))
        assert running.running == 0
    answered = [(one, other) for one, other in zip(alone * 3, storm, strict=True) if other]
    assert len(answered) > len(cases)
    assert all(one == other for one, other in answered)


class Held:
    """A graph that computes when it is told to."""

    def __init__(self, graph: Graph):
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.bind = graph.bind
        self._graph = graph
        self.may_go_on = threading.Event()

    def run(self, inputs: Tensors) -> Tensors:
        assert self.may_go_on.wait(60)
        return self._graph.run(inputs)


async def test_nobody_waits_for_the_beginning_of_one_who_makes_room(repository: Path) -> None:
    async with scheduler(repository) as (running, _):
        expected = await ask(running, SHORT[1])
    directory = repository / "hears" / "1"
    settings = GenerationSettings.load(directory)
    encoder = Held(open_graph(directory / "encoder.onnx"))
    stepper = RecognitionStepper(
        open_graph(directory / "decoder.onnx"),
        encoder,
        settings,
        WhisperSettings.load(directory),
        Numbers(settings),
        slots=4,
        memory_bytes=1 << 24,
    )
    request = InferRequest("", {"waveform": SHORT[1][np.newaxis]})
    [gone], [later], [back] = (stepper.plan(request, streams=False) for _ in range(3))
    stepper.begin([gone, later, back])
    assert stepper.suspend([gone, later, back]) == []
    stepper.end(gone)
    assert stepper.resume([back]) == []
    encoder.may_go_on.set()
    news: list[News[Any]] = []
    while not news:
        news += stepper.step([back])
    # Its beginning was done before, and waits for it.
    assert not later.slots
    assert stepper.resume([later]) == []
    assert later.slots
    while len(news) < 2:
        news += stepper.step([later])
    texts = [stepper.render(item.job, item.event, is_last=True) for item in news]
    assert [text and text["text_output"][0, 0].decode() for text in texts] == [expected] * 2
    stepper.close()


async def test_rows_of_different_lengths_end_with_nan(repository: Path) -> None:
    async with scheduler(repository) as (running, _):
        padded = np.full((len(SHORT), WINDOW + 100), np.nan, np.float32)
        for row, waveform in zip(padded, SHORT, strict=True):
            row[: len(waveform)] = waveform
        request = InferRequest("", {"waveform": padded})
        answers = (await running.infer(request, len(SHORT)))["text_output"][:, 0].tolist()
        assert answers == [(await ask(running, waveform)).encode() for waveform in SHORT]


@pytest.mark.parametrize(
    ("waveform", "wishes", "message"),
    [
        (np.zeros(0), {}, "has a row without a sample"),
        (np.full(9, np.nan), {}, "has a row without a sample"),
        (np.full(9, np.inf), {}, "expected samples of -1 to 1"),
        (np.full(9, 1e30), {}, "expected samples of -1 to 1"),
        (np.zeros(9), {"language": "fr"}, "'language': expected one of de, en, got 'fr'"),
        (np.zeros(9), {"task": "sing"}, "'task': expected one of"),
        (np.zeros(9), {"return_timestamps": 3}, "'return_timestamps'"),
        (np.zeros(9), {"max_new_tokens": 45}, "'max_new_tokens': expected at most 44"),
        (np.zeros(9), {"stop": "a"}, "'stop'"),
        (np.zeros(9), {"langage": "en"}, "'langage' is not known"),
        (np.zeros(9), {"num_beams": 8}, "needs 8 slots"),
    ],
)
async def test_mistakes_are_named(
    repository: Path, waveform: npt.NDArray[np.float64], wishes: dict[str, Parameter], message: str
) -> None:
    async with scheduler(repository, slots=7) as (running, _):
        with pytest.raises(InvalidRequest, match=message):
            await ask(running, waveform.astype(np.float32), **wishes)
        # Nobody else is hurt.
        assert await ask(running, SHORT[0])


async def test_keys_and_values_are_known_before_a_recording_begins(repository: Path) -> None:
    async with scheduler(repository) as (_, stepper):
        request = InferRequest("", {"waveform": LONG[0][np.newaxis]})
        [job] = stepper.plan(request, streams=False)
        layers, heads, size = 2, 4, 8
        tokens, positions, last = 48, 100, 1
        assert job.extents == (tokens, positions, last)
        each = 2 * layers * heads * size * 4
        assert stepper.capacity.bytes_apart(job) == each * sum(job.extents)
        stepper.end(job)


def transcribed(server: RunningServer, body: bytes, **parameters: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "audio/wav"}
    path = "/models/hears"
    if parameters:
        document = {"inputs": base64.b64encode(body).decode(), "parameters": parameters}
        body, headers = json.dumps(document).encode(), {"Content-Type": "application/json"}
    status, answer = call(server.http_port, "POST", path, body, headers)
    return status, json.loads(answer)


def expected_chunks(
    repository: Path, model: WhisperForConditionalGeneration, waveform: Waveform, **wishes: Any
) -> list[tuple[str, float, float]]:
    directory = repository / "hears" / "1"
    hearing, tokenizer = WhisperSettings.load(directory), load_tokenizer(directory)
    text = by_transformers(model, hearing, tokenizer, waveform, **wishes)
    return [(found[2], float(found[1]), float(found[3])) for found in MARKED.finditer(text)]


@pytest.mark.parametrize("waveform", [SHORT[2], LONG[0]], ids=["short", "long"])
def test_a_recording_is_written_down_with_times(
    server: RunningServer,
    repository: Path,
    model: WhisperForConditionalGeneration,
    waveform: Waveform,
) -> None:
    chunks = expected_chunks(repository, model, waveform, language="de")
    assert chunks
    status, answer = transcribed(server, as_file(waveform), language="de")
    assert status == 200
    assert answer["text"] == "".join(text for text, _, _ in chunks).strip()
    assert answer["chunks"] == [
        {"text": text.strip(), "timestamp": [start, end]} for text, start, end in chunks
    ]
    assert transcribed(server, as_file(waveform))[0] == 200
    beams = {"num_beams": 2}
    status, answer = transcribed(server, as_file(waveform), generation_parameters=beams)
    assert status == 200
    status, answer = transcribed(server, as_file(waveform), return_timestamps=False)
    assert (status, list(answer)) == (200, ["text"])
    hub = InferenceClient(model=f"http://{server.http}/models/hears")
    heard = hub.automatic_speech_recognition(as_file(waveform), extra_body={"language": "de"})
    assert heard.text == "".join(text for text, _, _ in chunks).strip()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"language": "fr"}, "parameter 'language': expected one of de, en, got 'fr'"),
        ({"return_timestamps": "word"}, "parameters.return_timestamps: Input should be a valid"),
        ({"hot_words": ["one"]}, "parameters.hot_words: Extra inputs are not permitted"),
        ({"generation_parameters": {"num_beams": 99}}, "'num_beams'"),
        ({"generation_parameters": {"task": ["a"], "x": {}}}, "parameters.x: expected a scalar"),
    ],
)
def test_settings_that_make_no_sense(
    server: RunningServer, parameters: dict[str, Any], message: str
) -> None:
    status, answer = transcribed(server, as_file(SHORT[0]), **parameters)
    assert (status, message in answer["error"]) == (400, True), answer


def test_openai_in_every_format(
    client: OpenAI, repository: Path, model: WhisperForConditionalGeneration
) -> None:
    chunks = expected_chunks(repository, model, LONG[1], language="en")
    text = "".join(chunk for chunk, _, _ in chunks).strip()
    wanted: dict[str, Any] = {
        "file": ("recording.wav", as_file(LONG[1])),
        "model": "hears",
        "language": "en-GB",
    }
    create: Any = client.audio.transcriptions.create
    assert create(**wanted).text == text
    assert create(response_format="text", **wanted) == text + "\n"
    verbose = create(response_format="verbose_json", **wanted)
    assert [(part.text, part.start, part.end) for part in verbose.segments] == [
        (chunk.strip(), start, end) for chunk, start, end in chunks
    ]
    assert (verbose.text, verbose.language) == (text, "en-GB")
    assert verbose.duration == pytest.approx(7.7)
    srt = create(response_format="srt", **wanted)
    assert srt.count(" --> ") == len(chunks)
    vtt = create(response_format="vtt", **wanted)
    assert vtt.startswith("WEBVTT\n\n")
    with create(stream=True, **wanted) as stream:
        *deltas, done = stream
    assert "".join(part.delta for part in deltas) == done.text == text
    assert len(deltas) > 1
    detected = create(
        response_format="verbose_json", **{name: wanted[name] for name in ("file", "model")}
    )
    assert detected.language in ("en", "de")


@pytest.mark.parametrize(
    ("wishes", "field", "message"),
    [
        ({"language": "fr"}, "language", "expected 'de', 'en', got 'fr'"),
        ({"prompt": "ships"}, "prompt", "'hears' takes no hints"),
        ({"keywords": ["ships"]}, "keywords", "'hears' takes no hints"),
        (
            {"timestamp_granularities": ["word"], "response_format": "verbose_json"},
            "timestamp_granularities",
            "'hears' tells no times of words",
        ),
    ],
)
def test_what_openais_callers_cannot_have(
    client: OpenAI, wishes: dict[str, Any], field: str, message: str
) -> None:
    create: Any = client.audio.transcriptions.create
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        create(file=("recording.wav", as_file(SHORT[0])), model="hears", **wishes)
    assert caught.value.param == field


def infer(
    server: RunningServer, waveforms: Sequence[Waveform], parameters: dict[str, Any]
) -> list[str]:
    """Over HTTP, all at once."""

    def one(waveform: Waveform) -> str:
        with tritonclient.http.InferenceServerClient(server.http) as connection:
            given = tritonclient.http.InferInput("waveform", [1, len(waveform)], "FP32")
            given.set_data_from_numpy(waveform[np.newaxis])
            result = connection.infer("hears", [given], parameters=parameters)
            answer: bytes = result.as_numpy("text_output")[0, 0]
            return answer.decode()

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(one, waveforms))


def test_a_waveform_over_v2(server: RunningServer) -> None:
    for parameters in ({}, {"return_timestamps": True, "language": "en"}):
        alone = [infer(server, [waveform], parameters)[0] for waveform in [*SHORT, *LONG]]
        assert infer(server, [*SHORT, *LONG], parameters) == alone
    assert all(text.startswith("<|en|>") for text in alone)
    assert any(MARKED.search(text) for text in alone)


def test_a_stream_over_grpc(server: RunningServer) -> None:
    responses: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as connection:
        connection.start_stream(lambda result, error: responses.put((result, error)))
        given = tritonclient.grpc.InferInput("waveform", [1, len(LONG[1])], "FP32")
        given.set_data_from_numpy(LONG[1][np.newaxis])
        connection.async_stream_infer(
            "hears",
            [given],
            enable_empty_final_response=True,
            parameters={"return_timestamps": True, "language": "en"},
        )
        parts = []
        while True:
            result, error = responses.get(timeout=60)
            assert error is None
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
            parts.append(result.as_numpy("text_output")[0, 0].decode())
        connection.stop_stream()
    assert len(parts) > 1
    expected = infer(server, [LONG[1]], {"return_timestamps": True, "language": "en"})
    assert "".join(parts) == expected[0]
