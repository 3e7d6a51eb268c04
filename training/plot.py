"""The picture of a run: loss and accuracy over the epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training import durable
from training.checkpoint import EpochRecord


def plot_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write a PNG of 800×320 pixels."""
    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    losses, errors = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    losses.plot(epochs, [record.train_loss for record in history], label="training, augmented")
    losses.plot(epochs, [record.validation_loss for record in history], label="validation")
    losses.set(title="loss", xlabel="epoch", ylabel="nats per picture", yscale="log")
    losses.legend()
    errors.plot(epochs, [record.train_accuracy for record in history], label="training, augmented")
    errors.plot(epochs, [record.validation_accuracy for record in history], label="validation")
    errors.set(title="accuracy", xlabel="epoch", ylim=(None, 1.005))
    errors.legend(loc="lower right")
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
    png = io.BytesIO()
    # Without the program's name the same history makes the same bytes.
    figure.savefig(png, format="png", metadata={"Software": None})
    durable.write(path, png.getvalue())
