"""Averages that keep what they are of: equal values, and infinities."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array


def _mean(x: Array) -> Array:
    return jnp.mean(x, 0)


def centred_mean(x: Array, average: Callable[[Array], Array] = _mean) -> Array:
    """The mean along the first axis, taken again around itself: of equal values, that value.

    Args:
      x: values along the first axis.
      average: how to take it, if not over all of them.
    """
    mean = average(x)
    centred = jnp.where(jnp.isfinite(mean)[None], x - mean[None], 0)
    return mean + average(centred)
