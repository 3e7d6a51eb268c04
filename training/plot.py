"""The picture of a run: the loss and the task's own measures over the epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training import durable
from training.checkpoint import EpochRecord


def plot_history(path: Path, history: Sequence[EpochRecord], loss_unit: str) -> None:
    """Write a PNG of 800×320 pixels."""
    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [record.epoch for record in history]
    measures = tuple(history[-1].validation)
    for axes, measure in zip(
        figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True
    ):
        for label, values in (
            ("training", [record.train.get(measure) for record in history]),
            ("validation", [record.validation.get(measure) for record in history]),
        ):
            if None not in values:
                axes.plot(epochs, values, label=label)
        axes.set(title=measure.replace("_", " "), xlabel="epoch")
        if measure == "loss":
            axes.set(ylabel=loss_unit, yscale="log")
        else:
            axes.set(ylim=(None, 1.005))
        axes.legend()
        axes.grid(alpha=0.3)
    png = io.BytesIO()
    # Without the program's name the same history makes the same bytes.
    figure.savefig(png, format="png", metadata={"Software": None})
    durable.write(path, png.getvalue())
