"""Axes, shapes and indices of arrays."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int


def other_axes(ndim: int, axes: Sequence[int | None]) -> tuple[int, ...]:
    """All axes except the given ones."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def broadcasts(shape: tuple[int, ...], x_shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be broadcast to the shape of `x`."""
    try:
        return jnp.broadcast_shapes(shape, x_shape) == x_shape
    except ValueError:
        return False


def lies_inside(indices: Int[Array, "..."], size: int) -> Bool[Array, "..."]:
    """Which of some integers, of any width, lie in [0, size)."""
    # A type that cannot hold the size would wrap it: 300 is 44 in 8 bits.
    wide = indices.astype(jnp.int32) if indices.dtype.itemsize < 4 else indices
    return (wide >= 0) & (wide < size)
