"""The benchmark's own machinery, on a model that knows nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.diffusion.settings import NoiseSchedule
from tests.drawing import write_painter
from tests.serving import speech_models
from tests.training import checkpoints
from training.importing import import_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "translator"
    checkpoints.marian(directory, max_position_embeddings=256)
    return directory


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("repository")
    import_checkpoint(checkpoint, directory, "translator", None)
    return directory


def run(*command: str | Path) -> str:
    finished = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_scenario_is_measured(checkpoint: Path, repository: Path, tmp_path: Path) -> None:
    out = run(
        *("loadtests/bench/translation.py", checkpoint, "--model-repository", repository),
        *("--out", tmp_path, "--contenders", "slipway", "slipway-v2", "--rounds", "1"),
        *("--seconds", "0.5", "--warmup-s", "0.2", "--clients", "4", "--max-new-tokens", "8"),
        *("--requests", "200", "--max-queue-size", "10", "--bursts", "1"),
    )
    print(out)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["same"] == {"slipway": 1.0, "slipway-v2": 1.0}
    for found in results["throughput"].values():
        assert found["tokens_per_s"][0] > 0
        assert found["failed"] == 0
    for found in results["short"].values():
        assert found["alone_s"]
        assert found["beside_s"]
    everything, refusing = results["burst"]
    assert everything["statuses"] == [{"200": 200}]
    assert refusing["statuses"][0]["503"] == refusing["counted"][0]["refused"] > 0
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.fixture(scope="module")
def recognisers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recognisers")
    speech_models.write_recognizer(directory, "tones")
    speech_models.write_live(directory, "tones-live")
    return directory


def test_recordings_are_measured_against_the_bare_graph(recognisers: Path, tmp_path: Path) -> None:
    names = ("slipway-v2", "slipway-wav", "slipway-flac")
    out = run(
        *("loadtests/bench/speech.py", "--model-repository", recognisers, "--model", "tones"),
        *("--out", tmp_path, "--contenders", *names, "--clients", "1", "4", "--rounds", "1"),
        *("--seconds", "0.5", "--warmup-s", "0.2", "--search-s", "0.05", "--recordings", "40"),
    )
    print(out)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["same"] == dict.fromkeys(names, 1.0)
    assert results["floor"][0]["audio_s_per_s"] > 0
    for by_clients in results["heard"].values():
        for found in by_clients.values():
            assert found["audio_s_per_s"][0] > 0
            assert found["failed"] == 0


def test_live_recordings_are_measured(recognisers: Path, tmp_path: Path) -> None:
    out = run(
        *("loadtests/bench/live.py", "--model-repository", recognisers, "--model", "tones-live"),
        *("--out", tmp_path, "--streams", "6", "--seconds", "5", "--warmup-s", "1"),
        *("--alone-s", "4", "--recordings", "4"),
    )
    print(out)
    rounds = json.loads((tmp_path / "results.json").read_text())["rounds"]
    assert [(each["wire"], each["errors"]) for each in rounds] == [("realtime", []), ("stream", [])]
    assert all(each["lags_s"] for each in rounds)


def test_a_step_is_taken_apart(repository: Path) -> None:
    out = run(
        *("scripts/profile_steps.py", "--model-repository", repository, "--clients", "8"),
        *("--seconds", "3", "--max-new-tokens", "16"),
    )
    print(out)
    assert "engine" in out
    assert "overhead" in out


def test_drawing_is_measured_against_the_bare_loop(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_painter(repository, "painter", has_classes=True, noise=NoiseSchedule())
    out = run(
        *("loadtests/bench/drawing.py", tmp_path, "--model-repository", repository),
        *("--model", "painter", "--out", tmp_path, "--contenders", "slipway", "slipway-v2"),
        *("--rounds", "1", "--seconds", "0.5", "--warmup-s", "0.2", "--search-s", "0.1"),
        *("--clients", "4", "--short-clients", "2", "--long-clients", "2"),
    )
    print(out)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["same"] == {"slipway": 1.0, "slipway-v2": 1.0}
    assert results["rows_of_a_step"] == 2
    assert results["floor"][0] > 0
    for found in results["mixed"].values():
        assert found["steps_per_s"][0] > 0
        assert found["failed"] == 0
    assert "| bare loop " in out


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk, which makes the load")
def test_the_wire_is_measured_against_the_bare_loop(tmp_path: Path) -> None:
    names = ("slipway-binary", "fastapi")
    out = run(
        *("loadtests/bench/wire_speed.py", "--networks", "small", "--contenders", *names),
        *("--connections", "1", "4", "--rounds", "1", "--seconds", "0.3", "--warmup-s", "0.1"),
        *("--search-s", "0.05", "--out", tmp_path),
    )
    print(out)
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["networks"]["small"]
    assert found["floor"][0]["rows_per_s"] > 0
    assert found["measured"].keys() == set(names)
    for by_connections in found["measured"].values():
        assert by_connections.keys() == {"1", "4"}
        for measured in by_connections.values():
            # Right answers: the run ends at a wrong one, before or after the load.
            assert measured["requests_per_s"][0] > 0
            assert 0 < measured["p50_s"][0] <= measured["p99_s"][0]
            assert measured["server_cores"][0] > 0
            assert measured["failed"] == 0
    assert found["started"]["slipway"]["cold_start_s"][0] > 0
    slow = found["measured"]["fastapi"]["4"]["requests_per_s"][0]
    assert f" {slow:,.0f} | " in out
    assert (tmp_path / "table.md").read_text().strip() in out
    assert (tmp_path / "plot.png").stat().st_size > 0
