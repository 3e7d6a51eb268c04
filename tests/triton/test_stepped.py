"""A model that answers in steps, served by a real Triton from the very directory that is ours."""

from __future__ import annotations

import queue
import random
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from tests.stepped import write_language_model
from tests.support import serving
from tests.triton.peer import Peer, Unobtainable, install, triton

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("stepped")
    write_language_model(repository, "writer")
    return repository


@pytest.fixture(scope="module")
def peer(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    try:
        home = install()
    except Unobtainable as problem:
        pytest.skip(str(problem))
    # Triton's Python looks into its working directory first: what `pip install --target` would do.
    packages = tmp_path_factory.mktemp("packages")
    for folder in (home, Path(sysconfig.get_path("platlib")), ROOT):
        for entry in folder.iterdir():
            link = packages / entry.name
            if not link.exists() and (folder is not ROOT or entry.name == "serving"):
                link.symlink_to(entry)
    with triton(packages, repository, packages / "triton.log") as peer:
        yield peer


def test_the_same_directory_answers_the_same_in_both(peer: Peer, repository: Path) -> None:
    chance = random.Random(0)
    questions = [
        (f"question {number} {'and so on ' * chance.randrange(4)}", {"max_new_tokens": 12})
        for number in range(24)
    ]
    questions += [("a sampled one", {"do_sample": True, "seed": 7, "max_new_tokens": 12})]
    with serving(repository) as server, ThreadPoolExecutor(8) as threads:
        theirs = list(
            threads.map(lambda case: ask(f"127.0.0.1:{peer.grpc_port}", *case), questions)
        )
        ours = list(threads.map(lambda case: ask(server.grpc, *case), questions))
    assert [b"".join(parts) for parts in theirs] == [b"".join(parts) for parts in ours]
    assert max(len(parts) for parts in theirs) > 5


def test_a_bad_request_is_refused_with_the_same_words(peer: Peer, repository: Path) -> None:
    messages = []
    with serving(repository) as server:
        for address in (f"127.0.0.1:{peer.grpc_port}", server.grpc):
            with pytest.raises(Exception, match="'max_new_tokens'") as refusal:
                ask(address, "text", {"max_new_tokens": 0})
            messages.append(str(refusal.value))
    assert messages[0].endswith(messages[1][-40:])


def ask(address: str, text: str, parameters: dict[str, Any]) -> list[bytes]:
    """The parts of an answer, as they were streamed."""
    answers: queue.Queue[Any] = queue.Queue()
    tensor = grpcclient.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], np.object_))
    with grpcclient.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            "writer", [tensor], parameters=parameters, enable_empty_final_response=True
        )
        parts = []
        while True:
            answer = answers.get(timeout=60)
            if isinstance(answer, Exception):
                raise answer
            response = answer.get_response()
            if response.outputs:
                parts.append(answer.as_numpy("text_output")[0, 0])
            if response.parameters["triton_final_response"].bool_param:
                return parts
