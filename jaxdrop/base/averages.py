"""Averages that are exact for equal values, and infinite for infinite values."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array


def _mean(x: Array) -> Array:
    return jnp.mean(x, 0)


def centred_mean(x: Array, average: Callable[[Array], Array] = _mean) -> Array:
    """The mean along the first axis. If all values are equal, it is exactly that value.

    Args:
      x: values along the first axis.
      average: a function that takes the average, if it is not over all values.
    """
    # A sum of equal values may round. The mean of the differences from the first mean
    # corrects it. An infinite mean gets no correction, since infinity minus infinity is
    # NaN.
    mean = average(x)
    centred = jnp.where(jnp.isfinite(mean)[None], x - mean[None], 0)
    return mean + average(centred)
