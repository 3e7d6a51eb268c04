"""/v1/realtime as the unmodified `openai` client and a plain WebSocket speak to it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.serving.recordings import spoken
from tests.serving.speech_models import write_live, write_recognizer
from tests.support import RunningServer, call, metric, serving

TEXT = "forty two and one"
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    write_live(repository, "live")
    write_live(repository, "worded", words=("and", "fifty", "forty", "one", "two"))
    write_recognizer(repository, "tones")
    config = write_live(repository, "single") / "config.pbtxt"
    config.write_text(config.read_text().replace("sequences: 1024", "sequences: 1"))
    config = write_live(repository, "forgetful") / "config.pbtxt"
    config.write_text(config.read_text().replace("microseconds: 10000000", "microseconds: 300000"))
    with serving(repository) as running:
        yield running


def pcm(text: str, rate_hz: int = 24_000) -> bytes:
    return (spoken(text, rate_hz) * 32767).astype("<i2").tobytes()


def pieces(raw: bytes, rate_hz: int = 24_000) -> list[bytes]:
    """As a microphone gives them, a tenth of a second each."""
    size = rate_hz // 10 * 2
    return [raw[start : start + size] for start in range(0, len(raw), size)]


async def heard(socket: ClientConnection) -> tuple[str, str]:
    """The deltas of a recording together, and its whole text."""
    said = ""
    while True:
        event = json.loads(await socket.recv())
        assert event["type"] != "error", event
        if event["type"] == DELTA:
            said += event["delta"]
        if event["type"] == COMPLETED:
            return said, event["transcript"]


async def tell(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def answer(socket: ClientConnection) -> Any:
    return json.loads(await socket.recv())


def at(server: RunningServer, model: str = "live") -> str:
    return f"ws://{server.http}/v1/realtime?model={model}"


async def test_the_openai_client(live: RunningServer) -> None:
    async with (
        AsyncOpenAI(base_url=f"http://{live.http}/v1", api_key="none") as client,
        client.realtime.connect(model="live") as connection,
    ):
        assert (await connection.recv()).type == "session.created"
        for text in (TEXT, "again"):
            for piece in pieces(pcm(text)):
                await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())
            await connection.input_audio_buffer.commit()
            said = ""
            while True:
                event: Any = await connection.recv()
                if event.type == DELTA:
                    said += event.delta or ""
                elif event.type == COMPLETED:
                    assert said == event.transcript == text
                    break


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 48_000])
async def test_partial_results_come_before_the_end(live: RunningServer, rate_hz: int) -> None:
    audio = {"input": {"format": {"type": "audio/pcm", "rate": rate_hz}}}
    async with connect(at(live)) as socket:
        assert (await answer(socket))["session"]["audio"]["input"]["format"]["rate"] == 24_000
        await tell(socket, "session.update", session={"type": "transcription", "audio": audio})
        assert (await answer(socket))["type"] == "session.updated"
        for piece in pieces(pcm(TEXT, rate_hz), rate_hz):
            await socket.send(piece)
        first = await asyncio.wait_for(answer(socket), 10)
        assert (first["type"], first["delta"]) == (DELTA, "f")
        await tell(socket, "input_audio_buffer.commit")
        said, transcript = await heard(socket)
        assert "f" + said == transcript == TEXT


async def test_a_word_is_told_while_others_are_spoken(live: RunningServer) -> None:
    async with connect(at(live, "worded")) as socket:
        await answer(socket)
        for piece in pieces(pcm("fortyy two ")):
            await socket.send(piece)
        said = ""
        while not said.startswith("forty"):
            event = await asyncio.wait_for(answer(socket), 10)
            assert event["type"] == DELTA
            said += event["delta"]
        for piece in pieces(pcm("an one")):
            await socket.send(piece)
        await tell(socket, "input_audio_buffer.commit")
        rest, transcript = await heard(socket)
        assert said + rest == transcript == TEXT


async def test_a_hint_that_nobody_says_is_not_heard(live: RunningServer) -> None:
    hint = {"model": "worded", "prompt": "announcement"}
    session = {"type": "transcription", "audio": {"input": {"transcription": hint}}}
    async with connect(at(live, "worded")) as socket:
        await answer(socket)
        await tell(socket, "session.update", session=session)
        assert (await answer(socket))["type"] == "session.updated"
        for piece in pieces(pcm(TEXT)):
            await socket.send(piece)
        await tell(socket, "input_audio_buffer.commit")
        assert await heard(socket) == (TEXT, TEXT)


async def test_many_streams_share_steps(live: RunningServer) -> None:
    runs = metric(live, "nv_inference_exec_count", model="live")
    chunks = metric(live, "nv_inference_count", model="live")

    async def speak(number: int) -> None:
        text = TEXT[number % 7 :].strip()
        async with connect(at(live)) as socket:
            for piece in pieces(pcm(text)):
                await socket.send(piece)
            await tell(socket, "input_audio_buffer.commit")
            assert await heard(socket) == (text, text)

    await asyncio.gather(*(speak(number) for number in range(40)))
    steps = metric(live, "nv_inference_exec_count", model="live") - runs
    assert steps < (metric(live, "nv_inference_count", model="live") - chunks) / 2


async def test_mistakes_are_named_and_the_recording_goes_on(live: RunningServer) -> None:
    async with connect(at(live)) as socket:
        await answer(socket)
        raw = pcm(TEXT)
        half = len(raw) // 4 * 2
        await socket.send(raw[:half])
        mistakes: list[tuple[str | bytes, str]] = [
            ("{", "expected an event as JSON"),
            ("[]", "expected an event, which is a JSON object, got an array"),
            ('{"type": "response.create"}', "type: expected one of session.update, input_audio"),
            ('{"type": "input_audio_buffer.append"}', "audio: Field required"),
            (b"\0\0\0", "audio: expected samples of 2 bytes each, got 3 bytes"),
            (
                '{"type": "input_audio_buffer.append", "audio": "é"}',
                "audio: expected a string in base64, got 'é'",
            ),
            (
                '{"type": "session.update", "session":'
                ' {"audio": {"input": {"format": {"rate": 1}}}}}',
                "session.audio.input.format.rate: Input should be greater than or equal to 8000",
            ),
            ('{"type": "session.update", "session": {}}', "a recording is going on"),
        ]
        for mistake, message in mistakes:
            await socket.send(mistake)
            while (event := await answer(socket))["type"] != "error":
                pass
            assert message in event["error"]["message"]
            assert event["error"]["type"] == "invalid_request_error"
        await socket.send(raw[half:])
        await tell(socket, "input_audio_buffer.commit")
        assert (await heard(socket))[1] == TEXT
        await tell(socket, "input_audio_buffer.commit")
        assert "nothing has been appended" in (await answer(socket))["error"]["message"]
        await socket.send(raw[:half])
        await tell(socket, "input_audio_buffer.clear")
        while (await answer(socket))["type"] != "input_audio_buffer.cleared":
            pass
        await socket.send(pcm("anew"))
        await tell(socket, "input_audio_buffer.commit")
        assert await heard(socket) == ("anew", "anew")


async def test_an_error_says_which_event_was_wrong(live: RunningServer) -> None:
    async with connect(at(live)) as socket:
        await answer(socket)
        for mistake in ({"audio": "é"}, {"audio": 7}, {"audio": "", "rate": 1}):
            await tell(socket, "input_audio_buffer.append", event_id="seven", **mistake)
            error = (await answer(socket))["error"]
            assert (error["event_id"], error["code"]) == ("seven", "invalid_argument")
            assert error["param"] == [*mistake][-1]


async def test_an_update_leaves_what_it_does_not_name(live: RunningServer) -> None:
    async with connect(at(live)) as socket:
        created = (await answer(socket))["session"]
        assert created["id"]
        for changes in (
            {"format": {"type": "audio/pcm", "rate": 8000}},
            {"transcription": {"prompt": "forty, two."}},
        ):
            await tell(socket, "session.update", session={"audio": {"input": changes}})
            updated = (await answer(socket))["session"]
        wanted = updated["audio"]["input"]
        assert wanted["format"] == {"type": "audio/pcm", "rate": 8000}
        assert wanted["transcription"]["prompt"] == "forty, two."
        assert (wanted["transcription"]["model"], updated["id"]) == ("live", created["id"])
        many = {"transcription": {"prompt": " ".join(map(str, range(201)))}}
        await tell(socket, "session.update", session={"audio": {"input": many}})
        error = (await answer(socket))["error"]
        assert (error["param"], "at most 200 items" in error["message"]) == ("prompt", True)
        await socket.send(pcm(TEXT, 8000))
        await tell(socket, "input_audio_buffer.commit")
        assert await heard(socket) == (TEXT, TEXT)


@pytest.mark.parametrize("nothing", [b"\0", b""])
async def test_what_is_no_sound_begins_no_recording(live: RunningServer, nothing: bytes) -> None:
    async with connect(at(live)) as socket:
        await answer(socket)
        await socket.send(nothing)
        await tell(socket, "session.update", session={})
        while (event := await answer(socket))["type"] == "error":
            assert "2 bytes each, got 1 bytes" in event["error"]["message"]
        assert event["type"] == "session.updated"
        await tell(socket, "input_audio_buffer.commit")
        assert "nothing has been appended" in (await answer(socket))["error"]["message"]


async def test_a_recording_that_the_model_has_forgotten_is_over(live: RunningServer) -> None:
    async with connect(at(live, "forgetful")) as socket:
        await answer(socket)
        await socket.send(pcm(TEXT))
        item = (await answer(socket))["item_id"]
        await asyncio.sleep(0.8)
        await tell(socket, "input_audio_buffer.commit", event_id="late")
        while (event := await answer(socket))["type"] in (DELTA, "input_audio_buffer.committed"):
            pass
        assert (event["type"], event["item_id"]) == (FAILED, item)
        assert "forgotten the recording" in event["error"]["message"]
        assert "START" not in event["error"]["message"]
        await socket.send(pcm("anew"))
        await tell(socket, "input_audio_buffer.commit")
        assert await heard(socket) == ("anew", "anew")


async def test_who_leaves_gives_the_slot_back(live: RunningServer) -> None:
    for _ in range(2):
        async with connect(at(live, "single")) as socket:
            await answer(socket)
            await socket.send(pcm(TEXT))
            assert (await asyncio.wait_for(answer(socket), 5))["type"] == DELTA


# By itself, uvicorn pings every 20 seconds, and waits 20 for an answer.
IMPATIENT = """
import functools, uvicorn
uvicorn.Config.__init__ = functools.partialmethod(
    uvicorn.Config.__init__, ws_ping_interval=0.2, ws_ping_timeout=0.2
)
"""


async def test_pings_may_be_answered_late(tmp_path: Path) -> None:
    write_live(tmp_path, "live")
    with serving(tmp_path, before=IMPATIENT) as live:
        async with connect(at(live), ping_interval=None) as socket:
            socket.transport.pause_reading()
            await asyncio.sleep(1.5)
            socket.transport.resume_reading()
            await socket.send(pcm(TEXT))
            await tell(socket, "input_audio_buffer.commit")
            assert await heard(socket) == (TEXT, TEXT)


@pytest.mark.parametrize("model", ["tones", "nobody", ""])
async def test_a_model_that_does_not_hear_live_is_refused(live: RunningServer, model: str) -> None:
    async with connect(at(live, model)) as socket:
        event = await answer(socket)
        assert (event["type"], event["error"]["param"]) == ("error", "model")
        await socket.wait_closed()
        assert socket.close_code == 1008


def test_without_a_websocket_the_route_does_not_exist(live: RunningServer) -> None:
    assert call(live.http_port, "GET", "/v1/realtime")[0] == 404


async def test_a_key_is_asked_for(tmp_path: Path) -> None:
    write_live(tmp_path, "live")
    with serving(tmp_path, "--http-restricted-api", "inference:x-key=secret") as server:
        with pytest.raises(InvalidStatus, match="403"):
            async with connect(at(server)):
                pass
        async with connect(at(server), additional_headers={"x-key": "secret"}) as socket:
            assert (await answer(socket))["type"] == "session.created"
