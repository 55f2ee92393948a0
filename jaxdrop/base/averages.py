"""Averages that are exact for equal values, and infinite for infinite ones."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array


def _mean(x: Array) -> Array:
    return jnp.mean(x, 0)


def centred_mean(x: Array, average: Callable[[Array], Array] = _mean) -> Array:
    """The mean along the first axis, which for equal values is exactly that value.

    Args:
      x: values along the first axis.
      average: how to take it, if not over all of them.
    """
    # A sum of equal values may round. The mean of what is left after the first mean is its
    # correction; an infinite mean has none, as infinity less infinity is NaN.
    mean = average(x)
    centred = jnp.where(jnp.isfinite(mean)[None], x - mean[None], 0)
    return mean + average(centred)
