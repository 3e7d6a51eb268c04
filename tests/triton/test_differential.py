"""The same requests to a real Triton and to Slipway get the same answers."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.support import serving
from tests.triton import peer
from tests.triton.cases import CASES, Case
from tests.triton.differences import ALLOWED, STRICT_ALLOWED, Allowed
from tests.triton.http_cases import SHARED_BYTES, SHARED_KEY
from tests.triton.models import MODELS, NOT_LOADED
from tests.triton.wire import Answer, Difference, Server, differences

BY_NAME = {case.name: case for case in CASES}
Ask = Callable[[str], list[Answer]]
"""Of a case's name, the answers to its steps."""


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What both servers are started with; besides, the object of memory that both may share."""
    shared_memory = Path("/dev/shm") / SHARED_KEY.strip("/")
    shared_memory.write_bytes(bytes(range(256)) * (SHARED_BYTES // 256))
    trace_file = tmp_path_factory.mktemp("trace") / "trace.json"
    yield [
        "--model-control-mode=explicit",
        f"--trace-config=triton,file={trace_file}",
        *(f"--load-model={model.name}" for model in MODELS),
    ]
    shared_memory.unlink()


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Iterator[Ask]:
    try:
        home = peer.install()
    except peer.Unobtainable as reason:
        pytest.skip(f"no Triton to compare with: {reason}")
    directory = tmp_path_factory.mktemp("triton")
    repository = directory / "repository"
    for model in (*MODELS, *NOT_LOADED):
        model.write_for_triton(repository)
    with peer.triton(home, repository, directory / "log", *options) as running:
        yield asking(Server("triton", running.http_port, running.grpc_port))


@pytest.fixture(scope="session")
def slipway(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Iterator[Ask]:
    with slipway_serving(tmp_path_factory.mktemp("slipway"), *options) as ask:
        yield ask


@pytest.fixture(scope="session")
def strict_slipway(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Iterator[Ask]:
    with slipway_serving(tmp_path_factory.mktemp("strict"), "--triton-strict", *options) as ask:
        yield ask


@contextmanager
def slipway_serving(repository: Path, *options: str) -> Iterator[Ask]:
    for model in (*MODELS, *NOT_LOADED):
        model.write_for_slipway(repository)
    with serving(repository, "--allow-client-shm=true", *options) as running:
        yield asking(Server("slipway", running.http_port, running.grpc_port))


def asking(server: Server) -> Ask:
    @cache
    def ask(name: str) -> list[Answer]:
        return [step.send(server) for step in BY_NAME[name].steps]

    return ask


def compare(case: Case, triton: Ask, slipway: Ask) -> list[Difference]:
    return [
        difference
        for answers in zip(triton(case.name), slipway(case.name), strict=True)
        for difference in differences(*answers, equal_documents=case.equal_documents)
    ]


def check(case: Case, triton: Ask, slipway: Ask, allowed: Iterable[Allowed]) -> None:
    unexpected = [
        str(difference)
        for difference in compare(case, triton, slipway)
        if not any(each.covers(case.name, difference) for each in allowed)
    ]
    assert not unexpected, "\n".join(unexpected)


def matching(patterns: tuple[str, ...]) -> list[Case]:
    return [
        case for case in CASES if any(fnmatch.fnmatchcase(case.name, each) for each in patterns)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_slipway_answers_as_triton_does(case: Case, triton: Ask, slipway: Ask) -> None:
    check(case, triton, slipway, ALLOWED)


ALWAYS = [allowed for allowed in ALLOWED if not allowed.sometimes]


@pytest.mark.parametrize("allowed", ALWAYS, ids=lambda allowed: allowed.reason)
def test_what_may_differ_does(allowed: Allowed, triton: Ask, slipway: Ask) -> None:
    differing = {
        case.name
        for case in matching(allowed.cases)
        for difference in compare(case, triton, slipway)
        if allowed.covers(case.name, difference)
    }
    agreeing = [pattern for pattern in allowed.cases if not fnmatch.filter(differing, pattern)]
    assert not agreeing, "need not be allowed to differ any more"


STRICT = matching(tuple(pattern for each in ALLOWED if each.strict for pattern in each.cases))


@pytest.mark.parametrize("case", STRICT, ids=lambda case: case.name)
def test_strict_slipway_answers_wrong_requests_as_triton_does(
    case: Case, triton: Ask, strict_slipway: Ask
) -> None:
    by_design = [each for each in ALLOWED if not each.strict]
    check(case, triton, strict_slipway, [*by_design, *STRICT_ALLOWED])


@pytest.mark.parametrize("allowed", STRICT_ALLOWED, ids=lambda allowed: allowed.cases[0])
def test_what_may_differ_when_strict_does(
    allowed: Allowed, triton: Ask, strict_slipway: Ask
) -> None:
    [case] = matching(allowed.cases)
    assert compare(case, triton, strict_slipway), "need not be allowed to differ any more"


def test_there_are_enough_cases() -> None:
    assert len(BY_NAME) == len(CASES) >= 150
