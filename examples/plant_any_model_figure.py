"""The figure of `plant_any_model.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {
    "no dropout": "black",
    "planted": "#0072b2",
    "every step": "#d55e00",
    "locked": "#009e73",
}
UNITS = 40  # shown of a mask


def plot(
    runs: Mapping[str, Any],
    spread: Mapping[str, Sequence[np.ndarray]],
    zeros: Mapping[str, np.ndarray],
    path: Path,
) -> None:
    """Draws the test accuracy of each run, the spreads of predictions, and two masks."""
    figure = Figure(figsize=(10, 5.5), layout="constrained", facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    conditions = next(iter(runs.values()))
    for panel, condition in zip(left.subplots(1, 2, sharey=True), conditions, strict=True):
        _plot_accuracies(panel, {name: of[condition] for name, of in runs.items()})
        panel.set_title(condition)
    left.legend(handles=_legend(panel), loc="outside lower center", ncols=len(COLORS))
    box, *rest = right.subplots(3, 1, height_ratios=(2, 1, 1))
    box.boxplot([np.concatenate([*rows]) for rows in spread.values()], showfliers=False)
    box.set_xticks(range(1, 1 + len(spread)), spread)
    box.set_title("spread of predictions over masks")
    for panel, treatment in zip(rest, ("every step", "locked"), strict=True):
        panel.imshow(zeros[treatment][0, :, :UNITS], cmap="gray_r", aspect="auto")
        panel.set(title=f"dropped, {treatment}", xlabel="unit", ylabel="step", xticks=(), yticks=())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _plot_accuracies(panel: Axes, runs: Mapping[str, Any]) -> None:
    for place, treatments in enumerate(runs.values()):
        for index, (treatment, run) in enumerate(treatments.items()):
            places = np.full(len(run.test), place + 0.2 * (index - 0.5))
            panel.plot(run.test, places, "o", ms=4, alpha=0.7, color=COLORS[treatment])
    panel.set(xlabel="test accuracy (%)", ylim=(len(runs) - 0.4, -0.4))
    panel.set_yticks(range(len(runs)), runs)
    panel.grid(axis="x", alpha=0.3)


def _legend(panel: Axes) -> list[Any]:
    return [panel.plot([], [], "o", ms=4, color=c, label=name)[0] for name, c in COLORS.items()]
