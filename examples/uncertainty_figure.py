"""The figure of `uncertainty.py`."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from train_digits import standard_error

from jaxdrop.uncertainty import Calibration

COLORS = ("black", "#0072b2", "#d55e00", "#009e73")
LINES = ("-", "-", "--", ":")
BOXES = ("white", "#e69f00", "#cc79a7", "#56b4e9")
FEW = 20  # images, all seeds together, below which a bin is not drawn


def draw(panel: Axes, x: np.ndarray, values: np.ndarray, i: int, label: str) -> None:
    """A line of means with a band of one standard error over seeds."""
    mean, band = values.mean(axis=0), standard_error(values)
    panel.plot(x, mean, LINES[i], color=COLORS[i], label=label)
    panel.fill_between(x, mean - band, mean + band, color=COLORS[i], alpha=0.2, lw=0)


def plot_counts(panel: Axes, results: Any) -> None:
    """Error against the number of samples."""
    counts = np.array(list(results.counts))
    for i, name in enumerate(list(results.scores)[:2]):  # no dropout, weight scaling
        level = np.repeat(results.scores[name]["error, %"][:, None], len(counts), axis=1)
        draw(panel, counts, level, i, name)
    errors = np.stack([row["error, %"] for row in results.counts.values()], axis=-1)
    draw(panel, counts, errors, 2, "mean of k samples")
    panel.set(xscale="log", xlabel="samples k", ylabel="test error (%)", ylim=(0, None))
    panel.set_xticks(counts, counts)
    panel.minorticks_off()
    panel.legend()


def plot_rejection(panel: Axes, results: Any) -> None:
    """Error on what is left against the share that is rejected."""
    for i, (name, errors) in enumerate(results.rejection.items()):
        draw(panel, np.arange(errors.shape[1]), errors, i, name)
    at_random = results.scores["MC mean"]["error, %"].mean()
    panel.axhline(at_random, color="gray", lw=1, label="at random, MC mean", zorder=0)
    panel.set(xlabel="rejected (% of test images)", ylabel="error on the rest (%)", ylim=(0, None))
    panel.legend(fontsize=8)


def pool(diagram: Calibration) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence and accuracy of the seeds together, and the latter's standard error."""
    drawn = diagram.count.sum(axis=0) >= FEW
    count = diagram.count[:, drawn]
    # A bin that is empty for one seed is NaN there.
    confident, right = (
        np.nan_to_num(share[:, drawn]) * count for share in (diagram.confidence, diagram.accuracy)
    )
    confidence, accuracy = (x.sum(axis=0) / count.sum(axis=0) for x in (confident, right))
    error = standard_error(right - accuracy * count) / count.mean(axis=0)  # of a ratio of sums
    return confidence, accuracy, error


def plot_reliability(panel: Axes, results: Any) -> None:
    """Accuracy against confidence, of the seeds together."""
    panel.plot((0, 100), (0, 100), color="gray", lw=1, label="calibrated")
    for i, (name, diagram) in enumerate(results.diagrams.items()):
        confidence, accuracy, error = (100 * values for values in pool(diagram))
        style = {"fmt": "o" + LINES[i], "color": COLORS[i], "ms": 3, "capsize": 2}
        panel.errorbar(confidence, accuracy, error, label=name, **style)
    panel.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(20, 101), ylim=(0, 101))
    panel.legend(loc="lower right", fontsize=8)


def plot_doubts(panel: Axes, results: Any) -> None:
    """Boxes of all doubts, of the seeds together, for each kind of image."""
    places = np.arange(len(results.doubts))
    style = {"widths": 0.16, "whis": (5, 95), "showfliers": False, "patch_artist": True}
    handles = []
    for i, color in enumerate(BOXES):
        values = [doubt[:, i].ravel() for doubt in results.doubts.values()]
        props = {"boxprops": {"facecolor": color}, "medianprops": {"color": "black"}}
        drawn = panel.boxplot(values, positions=places + 0.2 * (i - 1.5), **props, **style)
        handles.append(drawn["boxes"][0])
    panel.set_xticks(places, [name.replace(", ", "\n") for name in results.doubts])
    panel.set(ylabel="doubt (nats)")
    panel.legend(handles, next(iter(results.sure.values())))


def plot_areas(panel: Axes, results: Any) -> None:
    """How well each doubt tells images apart."""
    for i, (name, row) in enumerate(results.areas.items()):
        values = np.stack(list(row.values()), axis=-1)
        places = np.arange(values.shape[1]) + 0.15 * (i - 1.5)
        style = {"fmt": "o", "color": COLORS[i], "ms": 4, "capsize": 2}
        panel.errorbar(places, values.mean(axis=0), standard_error(values), label=name, **style)
        panel.set_xticks(range(len(row)), [column.replace(" ", "\n") for column in row])
    panel.axhline(0.5, color="gray", lw=1, label="chance")
    panel.set(ylabel="AUROC", ylim=(0, 1.02))
    panel.legend(loc="lower left", fontsize=8)


def plot(results: Any, path: Path) -> None:
    """Draws five panels; bands and bars are one standard error over seeds."""
    figure = Figure(figsize=(10, 6.6), layout="constrained", facecolor="white")
    top, bottom = figure.subfigures(2, 1)
    bins = next(iter(results.diagrams.values())).count.shape[-1]
    panels = [*top.subplots(1, 3), *bottom.subplots(1, 2, width_ratios=(2, 1))]
    titles = {
        "Samples against weight scaling": plot_counts,
        "Rejecting by greatest doubt": plot_rejection,
        f"Reliability, {bins} bins of equal width": plot_reliability,
        "Doubt of digits and other images (boxes: quartiles; whiskers: 5 to 95 %)": plot_doubts,
        "Signs of errors and of other images": plot_areas,
    }
    for panel, (title, draw_panel) in zip(panels, titles.items(), strict=True):
        draw_panel(panel, results)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
