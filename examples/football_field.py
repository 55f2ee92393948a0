"""The field of `football.py`: where balls land, who gets them, and what that looks like."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.axes import Axes

WRONG = 0.05  # the share of labels far from the diagonal
SLOPE = 0.8  # of the diagonal
HALF_WIDTH = 3**0.5  # of the field, so that coordinates have variance 1
AXIS = np.linspace(-HALF_WIDTH, HALF_WIDTH, 121, dtype=np.float32)
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1)


class Points(NamedTuple):
    """Positions of shape (points, 2), and 1 where the blue team got the ball."""

    positions: Array
    labels: Array


def blue_probability(positions: Array) -> Array:
    """How likely the blue team gets a ball: very, above the diagonal."""
    above = positions[..., 1] - SLOPE * positions[..., 0]
    return WRONG + (1 - 2 * WRONG) * jax.nn.sigmoid(10 * above)


def best_accuracy() -> float:
    """What the diagonal itself gets right on average, in %: no rule does better."""
    middles = HALF_WIDTH * np.arange(-399, 400, 2) / 400
    probability = blue_probability(np.stack(np.meshgrid(middles, middles), axis=-1))
    return float(100 * jnp.maximum(probability, 1 - probability).mean())


def draw_points(key: Array, count: int) -> Points:
    """Balls that land anywhere on the field."""
    where, who = jax.random.split(key)
    positions = jax.random.uniform(where, (count, 2), minval=-HALF_WIDTH, maxval=HALF_WIDTH)
    labels = jax.random.bernoulli(who, blue_probability(positions))
    return Points(positions, labels.astype(jnp.float32))


def draw_field(panel: Axes, probability: np.ndarray, points: Points) -> None:
    """Colours the field by a probability of blue on `GRID`, with points and the diagonal."""
    panel.contourf(AXIS, AXIS, probability, np.linspace(0, 1, 6), cmap="RdYlBu", alpha=0.5)
    panel.contour(AXIS, AXIS, probability, [0.5], colors="black", linewidths=1.5)
    panel.plot(AXIS, SLOPE * AXIS, "k:", lw=1)
    for label, color, marker in ((1, "#0072b2", "o"), (0, "#a03000", "x")):
        where = points.positions[points.labels == label].T
        panel.scatter(*where, s=9, c=color, marker=marker, lw=1)
    panel.set(xticks=(), yticks=(), aspect="equal")
