"""The picture of what steps are worth: agreement and Fréchet distance over their number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training import durable
from training.tasks.image_generation.evaluate import Frechet


def plot_quality(
    path: Path,
    steps: Sequence[int],
    agreement: Sequence[float],
    classifier_accuracy: float,
    frechet: Sequence[Frechet | None],
) -> None:
    """Write a PNG of 800×320 pixels."""
    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(steps, agreement, marker="o", label="drawn")
    left.axhline(classifier_accuracy, color="grey", linestyle="--", label="held-out pictures")
    left.set(title="classifier agrees", ylabel="share of pictures", ylim=(None, 1.005))
    known = [each for each in frechet if each is not None]
    if known:
        right.plot(steps, [each.drawn for each in known], marker="o", label="drawn, held-out")
        right.axhline(known[0].real, color="grey", linestyle="--", label="two halves of held-out")
        right.margins(y=0.1)
    right.set(title="Fréchet distance", ylim=(0.0, None))
    for axes in (left, right):
        axes.set(xlabel="steps", xscale="log")
        axes.set_xticks(steps, [str(each) for each in steps])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    png = io.BytesIO()
    # Without the program's name the same figures make the same bytes.
    figure.savefig(png, format="png", metadata={"Software": None})
    durable.write(path, png.getvalue())
