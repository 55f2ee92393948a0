"""Axes and shapes of arrays."""

from collections.abc import Sequence

import jax.numpy as jnp


def other_axes(ndim: int, axes: Sequence[int | None]) -> tuple[int, ...]:
    """All axes except the given ones."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def broadcasts(shape: tuple[int, ...], x_shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be broadcast to the shape of `x`."""
    try:
        return jnp.broadcast_shapes(shape, x_shape) == x_shape
    except ValueError:
        return False
