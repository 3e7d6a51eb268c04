"""`slipway train --metrics-port`, scraped while a real training runs."""

from __future__ import annotations

import csv
import socket
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.support import await_true, free_port
from tests.training.conftest import Slipway
from tests.training.endless import endless_training
from training.checkpoint import EpochRecord
from training.metrics import RunMetrics
from training.recipes.digits import digits
from training.runs import RunDirectory
from training.workload import Totals

Samples = dict[tuple[str, ...], float]
"""Name of the metric, and the values of its labels in order of their names, but `run`."""


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("slipway_"):
                assert sample.labels.pop("run") == "endless"
                values = [value for _, value in sorted(sample.labels.items())]
                found[sample.name, *values] = sample.value
    return found


def test_a_training_is_scraped_while_it_runs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "endless")
    port = free_port()
    scrapes: list[Samples] = []

    def has_validated() -> bool:
        try:
            scrapes.append(scrape(port))
        except urllib.error.URLError:
            return False
        return scrapes[-1]["slipway_training_epoch",] >= 2

    with endless_training(run.path, port):
        await_true(has_validated, within_s=180)
    last = scrapes[-1]
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    epoch = int(last["slipway_training_epoch",])
    for measure in ("loss", "accuracy"):
        scraped = last["slipway_training_measure", measure, "validation"]
        assert scraped == float(rows[epoch - 2][f"validation_{measure}"])
        assert last["slipway_training_measure", measure, "train"] > 0
    batch_size = digits(tiny=True).batch_size
    steps = last["slipway_training_steps_total",]
    assert steps >= epoch - 1
    assert 0 < last["slipway_training_examples_total",] <= steps * batch_size
    assert last["slipway_training_epochs",] == 100000
    assert 0 < last["slipway_training_learning_rate",] <= digits().optimizer.learning_rate


def test_measures_are_of_this_epoch_or_the_last_one() -> None:
    metrics = RunMetrics("endless", epochs=5)
    registry = CollectorRegistry()
    registry.register(metrics)

    def loss(part: str) -> float | None:
        labels = {"run": "endless", "measure": "loss", "part": part}
        return registry.get_sample_value("slipway_training_measure", labels)

    totals: Totals = {}
    metrics.begin(1, totals)
    assert (loss("train"), loss("validation")) == (None, None)
    totals["loss"] = torch.tensor([6.0, 3.0])
    assert (loss("train"), loss("validation")) == (2.0, None)
    metrics.validated(EpochRecord(1, 0.1, {"loss": 1.5}, {"loss": 1.0}))
    totals = {}
    metrics.begin(2, totals)
    assert (loss("train"), loss("validation")) == (1.5, 1.0)
    totals["loss"] = torch.tensor([1.0, 2.0])
    assert (loss("train"), loss("validation")) == (0.5, 1.0)


def test_a_port_that_is_taken(slipway: Slipway, tmp_path: Path) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        result = slipway(
            *("train", "digits", "--tiny", "--run-dir", tmp_path / "run", "--metrics-port", port)
        )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: --metrics-port {port} of 127.0.0.1: Address already in use"
    )
