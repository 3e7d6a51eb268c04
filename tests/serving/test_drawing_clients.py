"""Pictures by every front of a real server, asked for by the clients that people have."""

from __future__ import annotations

import base64
import io
import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from huggingface_hub import InferenceClient
from PIL import Image
from tritonclient.utils import InferenceServerException

from serving.diffusion.settings import NoiseSchedule
from tests.drawing import SIZE, write_painter
from tests.support import RunningServer, await_true, call, metric, run_slipway, serving

SEEDED: dict[str, Any] = {"seed": 3, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("painters")
    write_painter(repository, "painter", has_classes=True, noise=NoiseSchedule())
    write_painter(repository, "free", has_classes=False, noise=NoiseSchedule())
    with serving(repository) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: RunningServer) -> Any:
    """The picture of `SEEDED`, [height, width]."""
    return pixels(post(server, "painter", {"inputs": "one", "parameters": SEEDED})[1])


def post(server: RunningServer, model: str, document: Any) -> tuple[int, bytes]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return call(
        server.http_port, "POST", f"/models/{model}", body, {"Content-Type": "application/json"}
    )


def pixels(file: bytes, form: str = "PNG") -> Any:
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.format == form
        assert picture.size == (SIZE, SIZE)
        return np.asarray(picture.convert("L"))


def tensor(module: Any, *prompts: str) -> Any:
    value = module.InferInput("prompt", [len(prompts), 1], "BYTES")
    value.set_data_from_numpy(np.array([[p.encode()] for p in prompts], np.object_))
    return value


def openai_client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.http_port}/v1", api_key="none", max_retries=0
    )


def test_the_task_answers_with_a_png(server: RunningServer, expected: Any) -> None:
    status, file = post(server, "painter", {"inputs": "a one, please", "parameters": SEEDED})
    assert status == 200
    assert np.array_equal(pixels(file), expected)
    status, file = call(
        server.http_port, "POST", "/models/free", b"", {"Content-Type": "text/plain"}
    )
    assert status == 200
    pixels(file)


def test_hugging_faces_client_is_content(server: RunningServer, expected: Any) -> None:
    client = InferenceClient(model=f"http://127.0.0.1:{server.http_port}/models/painter")
    picture = client.text_to_image("one", seed=3, num_inference_steps=6)
    assert np.array_equal(np.asarray(picture), expected)
    guided = client.text_to_image(
        "one", seed=3, num_inference_steps=6, guidance_scale=5.0, negative_prompt="two"
    )
    assert not np.array_equal(np.asarray(guided), expected)
    sized = client.text_to_image("one", seed=3, num_inference_steps=6, width=SIZE, height=SIZE)
    assert np.array_equal(np.asarray(sized), expected)


def test_openais_client_is_content(server: RunningServer, expected: Any) -> None:
    client = openai_client(server)
    answer = client.images.generate(model="painter", prompt="one", n=3, extra_body=SEEDED)
    assert answer.data is not None
    assert answer.size == f"{SIZE}x{SIZE}"
    files = [base64.b64decode(each.b64_json or "") for each in answer.data]
    assert np.array_equal(pixels(files[0]), expected)
    assert len({pixels(file).tobytes() for file in files}) == 3
    for form in ("jpeg", "webp"):
        answer = client.images.generate(
            model="painter", prompt="one", output_format=form, size="16x16", extra_body=SEEDED
        )
        assert answer.data is not None
        pixels(base64.b64decode(answer.data[0].b64_json or ""), form.upper())


def test_openais_client_sees_pictures_come(server: RunningServer, expected: Any) -> None:
    stream = openai_client(server).images.generate(
        model="painter", prompt="one", stream=True, partial_images=2, extra_body=SEEDED
    )
    events = list(stream)
    assert [each.type for each in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [each.partial_image_index for each in events[:2]] == [0, 1]  # type: ignore[union-attr]
    assert np.array_equal(pixels(base64.b64decode(events[-1].b64_json)), expected)
    assert not np.array_equal(pixels(base64.b64decode(events[0].b64_json)), expected)


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"model": "none"}, "model"),
        ({"prompt": "seven"}, "prompt"),
        ({"n": 11}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "32x32"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"partial_images": 2}, "partial_images"),
        ({"stream": True, "n": 2}, "n"),
        ({"extra_body": {"scheduler": "heun"}}, "scheduler"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps"),
        ({"stream": True, "prompt": "nothing"}, "prompt"),
    ],
)
def test_openais_client_is_told_which_field_is_wrong(
    server: RunningServer, wishes: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        openai_client(server).images.generate(**({"model": "painter", "prompt": "one"} | wishes))
    assert error.value.status_code == (404 if field == "model" else 400)
    assert isinstance(error.value.body, dict)
    assert error.value.body["param"] == field


def test_protocol_v2_gets_pixels(server: RunningServer, expected: Any) -> None:
    for module, port in ((httpclient, server.http_port), (grpcclient, server.grpc_port)):
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            answer = client.infer(
                "painter", [tensor(module, "one", "two")], parameters={**SEEDED}
            ).as_numpy("image")
            assert answer.shape == (2, SIZE, SIZE, 1)
            assert answer.dtype == np.uint8
            assert np.array_equal(answer[0, :, :, 0], expected)
            assert client.get_model_metadata("painter") is not None


def test_a_grpc_stream_gets_what_comes(server: RunningServer, expected: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            "painter",
            [tensor(grpcclient, "one")],
            parameters=SEEDED,
            enable_empty_final_response=True,
        )
        images = []
        while True:
            answer = answers.get(timeout=30)
            assert not isinstance(answer, Exception), answer
            if answer.get_response().parameters["triton_final_response"].bool_param:
                break
            images.append(answer.as_numpy("image")[0, :, :, 0])
        client.stop_stream()
    assert len(images) == 6
    assert np.array_equal(images[-1], expected)


def test_who_leaves_is_drawn_no_more(server: RunningServer) -> None:
    def steps() -> float:
        return metric(server, "slipway_step_duration_seconds_count", model="free")

    before = steps()
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            "free", [tensor(grpcclient, "")], parameters={"num_inference_steps": 900}
        )
        answers.get(timeout=30)
        assert metric(server, "slipway_active_slots", model="free") == 1
        client.stop_stream(cancel_requests=True)
    await_true(lambda: metric(server, "slipway_active_slots", model="free") == 0)
    assert 0 < steps() - before < 900
    assert metric(server, "slipway_requests_total", model="free", outcome="cancelled") == 1


def test_mistakes_are_named(server: RunningServer) -> None:
    for document, problem in (
        ({"inputs": 7}, "inputs: expected a text, got 7"),
        ({"inputs": "one", "parameters": {"steps": 1}}, "parameter 'steps' is not known"),
        ({"inputs": "one", "parameters": {"num_images_per_prompt": 2}}, "num_images_per_prompt"),
        ({"inputs": "nine"}, "prompt: expected the name of a class, such as 0, 1, 2; got 'nine'"),
    ):
        status, body = post(server, "painter", document)
        assert status == 400
        assert problem in json.loads(body)["error"]


def test_no_prompts_are_no_request(server: RunningServer) -> None:
    with httpclient.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
        empty = httpclient.InferInput("prompt", [0, 1], "BYTES")
        empty.set_data_from_numpy(np.empty((0, 1), np.object_))
        with pytest.raises(InferenceServerException) as error:
            client.infer("painter", [empty])
    assert error.value.status() == "400"
    status, body = post(server, "painter", {"inputs": "one " * 10_000})
    assert status == 400
    assert "prompt: expected at most 32768 bytes, got 40000" in json.loads(body)["error"]


def test_the_command_writes_a_file(server: RunningServer, tmp_path: Path, expected: Any) -> None:
    url = f"http://127.0.0.1:{server.http_port}"
    (tmp_path / "prompt.txt").write_text("one")
    asked = ("infer", "painter", str(tmp_path / "prompt.txt"), "--url", url)
    answer = run_slipway(*asked)
    assert answer.returncode == 1
    assert "bytes of image/png; say where with --output FILE" in answer.stderr
    answer = run_slipway(*asked, "--output", str(tmp_path / "one.png"))
    assert answer.returncode == 0, answer.stderr
    pixels((tmp_path / "one.png").read_bytes())
