from __future__ import annotations

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.errors import InvalidRequest, ModelLoadError, TooLarge
from serving.tasks import Question
from serving.tasks.image_classification import ImageClassification, ImagePreprocessing
from tests.conftest import SHIPPED
from tests.support import RunningServer, call

GREY = ImagePreprocessing(8, 8, "L", "box", "dark")
COLOUR = ImagePreprocessing(8, 6, "RGB")
EXAMPLE = SHIPPED / "digits" / "1" / "example.png"


EXIF = Image.Exif()
EXIF[0x0112] = 6  # the camera was held on its side


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stripes(mode: str, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, size[0] // 4 : size[0] // 2] = 255
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_format_gives_the_same_picture(mode: str, kind: str) -> None:
    options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    expected = GREY.fit(stripes("L"))
    got = GREY.decode(encoded(stripes(mode), kind, **options))
    assert got.shape == (1, 8, 8)
    np.testing.assert_allclose(got.astype(int), expected.astype(int), atol=12)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_understood(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(stripes("L")).astype(np.uint16) * 257)
    else:
        image = stripes(mode)
    np.testing.assert_allclose(
        GREY.fit(image).astype(int), GREY.fit(stripes("L")).astype(int), atol=2
    )


def test_colour_keeps_channels_rows_and_columns_apart() -> None:
    image = Image.new("RGB", (60, 80), (10, 20, 30))
    pixels = COLOUR.decode(encoded(image))
    assert pixels.shape == (3, 8, 6)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]


def test_ink_on_paper_and_chalk_on_slate_look_alike() -> None:
    chalk = stripes("L")
    ink = Image.eval(chalk, lambda value: 255 - value)
    assert np.array_equal(GREY.fit(ink), GREY.fit(chalk))


def test_transparent_is_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert COLOUR.fit(clear).min() == 255


def test_a_turned_photo_is_turned_back() -> None:
    upright = stripes("RGB", (48, 64))
    sideways = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=EXIF)
    assert np.array_equal(COLOUR.decode(sideways), COLOUR.fit(upright))


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    dark = Image.fromarray(np.full((32, 32), 200, np.uint16))
    assert GREY.decode(encoded(dark)).max() == 0


def test_a_damaged_note_on_orientation_is_ignored() -> None:
    body = encoded(stripes("L"), "PNG", exif=b"Exif\0\0garbage")
    assert np.array_equal(GREY.decode(body), GREY.fit(stripes("L")))


@pytest.mark.parametrize(
    "settings",
    ['{"height": 8, "width": 8, "mode": "X"}', '{"height": 8}', '{"height": "8"', "[]", "3"],
)
def test_unusable_settings_stop_the_load(tmp_path: Path, settings: str) -> None:
    (tmp_path / "preprocessing.json").write_text(settings)
    with pytest.raises(ModelLoadError, match=r"preprocessing\.json: unusable"):
        ImagePreprocessing.load(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on damaged files
@given(st.binary(max_size=300), st.sampled_from(["", "PNG", "JPEG", "GIF", "WEBP", "BMP"]))
def test_any_bytes_are_a_picture_or_a_clear_refusal(noise: bytes, kind: str) -> None:
    body = noise
    if kind:
        exif = {"exif": EXIF} if kind in ("PNG", "JPEG", "WEBP") else {}
        whole = bytearray(encoded(stripes("RGB"), kind, **exif))
        for at, byte in enumerate(noise):
            whole[(at * 7 + byte) % len(whole)] ^= byte
        body = bytes(whole)
    with contextlib.suppress(InvalidRequest, TooLarge):
        assert GREY.decode(body).shape == (1, 8, 8)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_labels_come_best_first(function: Literal["softmax", "sigmoid", "none"]) -> None:
    task = ImageClassification(GREY, ["a", "b", "c"])
    outputs = {"logits": np.array([[1.0, 1000.0, -1000.0]], np.float32)}
    parameters = task.Parameters(function_to_apply=function, top_k=2)
    answer = task.postprocess(outputs, Question(parameters, {}))
    assert [entry["label"] for entry in answer] == ["b", "a"]
    if function == "softmax":
        assert answer[0]["score"] == 1.0


@pytest.mark.usefixtures("both_ways")
def test_png_and_jpeg_of_a_real_digit_are_read(server: RunningServer) -> None:
    expected = json.loads(EXAMPLE.with_suffix(".json").read_text())["answer"]
    picture = Image.open(EXAMPLE)
    bodies = {
        "image/png": EXAMPLE.read_bytes(),
        "image/jpeg": encoded(picture.convert("RGB"), "JPEG", quality=90),
        "application/octet-stream": encoded(picture.resize((300, 300)), "PNG"),
    }
    for content_type, body in bodies.items():
        headers = {"Content-Type": content_type}
        status, answer = call(server.http_port, "POST", "/models/digits", body, headers)
        labels = json.loads(answer)
        assert status == 200, answer
        assert labels[0]["label"] == expected
        assert len(labels) == 10
        assert sum(entry["score"] for entry in labels) == pytest.approx(1)


def test_base64_with_parameters(server: RunningServer) -> None:
    for prefix in ("", "data:image/png;base64,"):
        inputs = prefix + base64.b64encode(EXAMPLE.read_bytes()).decode()
        body = json.dumps({"inputs": inputs, "parameters": {"top_k": 3}}).encode()
        headers = {"Content-Type": "application/json; charset=utf-8"}
        status, answer = call(server.http_port, "POST", "/models/digits", body, headers)
        assert (status, len(json.loads(answer))) == (200, 3)


def test_huggingface_hub_client(server: RunningServer) -> None:
    client = InferenceClient(model=f"http://{server.http}/models/digits")
    plain = client.image_classification(EXAMPLE)
    few = client.image_classification(EXAMPLE, top_k=2)
    assert [entry.label for entry in plain][:2] == [entry.label for entry in few]
