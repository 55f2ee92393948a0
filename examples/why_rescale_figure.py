"""The figure of `why_rescale.py`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from train_digits import standard_error

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
RULE_COLORS = {"expected": BLUE, "realized": ORANGE, "fixed count": GREEN}
RECIPE_STYLES = {
    "SGD, same lr": (BLUE, "--"),
    "Adam, lr/q²": (GREEN, "--"),
    "decay, lr/q²": (ORANGE, "--"),
    "decay q², lr/q²": (ORANGE, "-"),
    "Adam, lr/q, epsilon q": (GREEN, "-"),
    "SGD, lr/q²": (BLUE, ":"),
}
NETWORK_COLORS = {"inverted": BLUE, "original, q W": GREEN, "original, W": ORANGE}


def plot(results: Any, exact: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws the `Results`; `exact` has the exact spread of each layer, by rule."""
    figure = Figure(figsize=(11, 6.6), layout="constrained", facecolor="white")
    (sums, layers, masks), (gaps, tests, batches) = figure.subplots(2, 3)
    plot_sums(sums, results.counted[0.5])
    plot_layers(layers, results.layers, exact)
    plot_masks(masks, results.masks)
    plot_gaps(gaps, results.recipes)
    plot_tests(tests, results.recipes)
    plot_batches(batches, results.batches)
    for panel in (sums, layers, masks, gaps, tests, batches):
        panel.title.set_fontsize(10)
    for panel in (sums, layers, masks, gaps, tests):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    with Image.open(path) as drawn:  # a third of the size
        drawn.convert("RGB").quantize(64).save(path, optimize=True)


def plot_sums(panel: Axes, counted: Any) -> None:
    """The sums that each rule gives, and their mean."""
    for place, y in enumerate(counted.outputs.values()):
        sums, counts = np.unique(y.sum(axis=-1).round(6), return_counts=True)
        panel.scatter(np.full(len(sums), place), sums, 15 * counts, color=BLUE, alpha=0.7, lw=0)
        mean = counted.mean(y.sum(axis=-1))
        panel.plot([place - 0.35, place + 0.35], [mean, mean], color=ORANGE, lw=2)
    panel.plot([], [], "o", color=BLUE, alpha=0.7, label="a mask (area: how many)")
    panel.plot([], [], color=ORANGE, lw=2, label="mean of all 16 masks")
    panel.axhline(12, color="grey", ls=":", lw=1, label="nothing dropped")
    places = range(len(counted.outputs))
    panel.set_xticks(places, counted.outputs, rotation=25, ha="right", fontsize=8)
    panel.set(title="sum of [2, 4, 4, 2], keep_prob 0.5", ylabel="sum", ylim=(-1.5, 36))


def plot_layers(panel: Axes, layers: Any, exact: Mapping[str, np.ndarray]) -> None:
    """The spread of the sum against the size of the layer."""
    for name, found in layers.items():
        deviations = [100 * of[:, 1] for of in found.values()]
        errors = [standard_error(of) for of in deviations]
        means = [of.mean() for of in deviations]
        color, sizes = RULE_COLORS[name], list(found)
        panel.errorbar(sizes, means, errors, fmt="o", ms=4, capsize=2, color=color)
        panel.plot(sizes, 100 * exact[name], color=color, label=name)
    panel.set(title="sum of n ones, keep_prob 0.5", xlabel="n", xscale="log")
    panel.set_ylabel("sd of the sum (% of n); lines: exact")
    panel.set_xticks(sizes, sizes, rotation=40)
    panel.minorticks_off()


def plot_masks(panel: Axes, masks: np.ndarray) -> None:
    """The share that each mask keeps, and the mean so far."""
    kept, number = 100 * masks.mean(axis=(1, 2)), np.arange(1, len(masks) + 1)
    sd = 100 * (0.85 * 0.15 / masks[0].size / number) ** 0.5
    panel.plot(number, kept, "o", ms=4, color=BLUE, label="one mask")
    panel.plot(number, np.cumsum(kept) / number, color=ORANGE, label="mean so far")
    panel.fill_between(
        number, 85 - sd, 85 + sd, color="grey", alpha=0.25, lw=0, label="its exact mean ± sd"
    )
    panel.set(title="20 masks of 10 x 10, keep_prob 0.85", xlabel="mask", ylabel="kept (%)")
    panel.set(xticks=range(2, 21, 2), ylim=(73, 99))


def plot_gaps(panel: Axes, recipes: Any) -> None:
    """How far the weights of the two routes part."""
    for name, (color, style) in RECIPE_STYLES.items():
        gap = recipes[name]["gap"][-1]
        steps, mean, error = np.arange(1, gap.shape[1] + 1), gap.mean(axis=0), standard_error(gap)
        panel.plot(steps, mean, style, color=color, lw=2 if style == ":" else 1.5, label=name)
        panel.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, lw=0)
    panel.set(title="q W of the original from inverted W", xlabel="step", yscale="log")
    panel.set_ylabel("relative distance, keep_prob 0.8")


def plot_tests(panel: Axes, recipes: Any) -> None:
    """The loss of the three networks at test time."""
    for shift, (network, color) in enumerate(NETWORK_COLORS.items()):
        losses = [of[network]["loss"][0] for of in recipes.values()]
        panel.errorbar(
            [of.mean() for of in losses],
            np.arange(len(losses)) + 0.2 * (shift - 1),
            xerr=[standard_error(of) for of in losses],
            fmt="o",
            ms=4,
            capsize=2,
            color=color,
            label=network,
        )
    panel.set_yticks(range(len(recipes)), recipes, fontsize=8)
    panel.set(title="test time, keep_prob 0.5", xlabel="cross-entropy (nats)", xlim=(0, None))
    panel.set_ylim(len(recipes) + 1.7, -0.6)  # room for the legend


def plot_batches(panel: Axes, batches: Mapping[str, np.ndarray]) -> None:
    """Which units of which examples are dropped."""
    panel.set_title("dropped (black), keep_prob 0.5")
    panel.axis("off")
    for place, (name, y) in enumerate(batches.items()):
        image = panel.inset_axes((0.52 * place, 0, 0.48, 1))
        image.imshow(y == 0, cmap="gray_r", aspect="auto", interpolation="nearest")
        image.set(xticks=(), yticks=())
        image.set_xlabel(name.replace(" for", "\nfor"), fontsize=9)
        if place == 0:
            image.set_ylabel("example (its 24 units: columns)")
