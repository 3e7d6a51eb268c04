from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import (
    EXTRA_HEADERS,
    ONNX_TYPES,
    WAYS,
    RunningServer,
    serving,
    write_config,
    write_fake,
    write_model,
)

SHIPPED = Path(__file__).parent.parent / "model_repo"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server with small models of every kind, shared by the tests that only ask it things."""
    repository = tmp_path_factory.mktemp("repository")
    batching = "dynamic_batching { max_queue_delay_microseconds: 2000 }"
    write_model(repository, "double", operation="Add", extra=batching)
    write_model(
        repository,
        "single",
        operation="Add",
        shape=(2, 3),
        dims="[2, 3]",
        max_batch_size=0,
        extra="",
    )
    for datatype in ONNX_TYPES:
        write_model(
            repository,
            f"identity-{datatype}",
            datatype=datatype,
            shape=("batch", "length"),
            dims="[-1]",
        )
    write_fake(repository, "slow", delay_ms=300)
    write_fake(repository, "failing", fail_every=1)
    (repository / "digits").symlink_to(SHIPPED / "digits")
    _write_patient_digits(repository)
    with serving(repository) as running:
        yield running


@pytest.fixture(params=WAYS)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is answered by the connection itself, and by the application behind it."""
    if expected := WAYS[request.param]:
        monkeypatch.setitem(EXTRA_HEADERS, "Expect", expected)


def _write_patient_digits(repository: Path) -> None:
    """The shipped model, as one that waits for others whether that pays or not."""
    text = (SHIPPED / "digits/config.pbtxt").read_text()
    text = text.replace('"digits"', '"digits-patient"', 1)
    wait = "preferred_batch_size: 64 max_queue_delay_microseconds: 10000"
    text = text.replace("max_queue_delay_microseconds: 2000", wait, 1)
    shutil.copytree(SHIPPED / "digits", repository / "digits-patient")
    write_config(repository, "digits-patient", text)
