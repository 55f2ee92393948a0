"""Normal noise with an address, as words have: any part can be drawn again alone."""

import math

import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from jaxdrop.core.words import ThreefryKey, Words, draw_pair, grid_address


def standard_normal(
    key: ThreefryKey, shape: tuple[int, ...], dtype: jnp.dtype, sharding: NamedSharding | None
) -> Array:
    """Independent normal numbers, one from the two words of a block each.

    By Box and Muller, from midpoints of 2^-32: symmetric, so the mean is
    exactly 0, and out to 6.7 standard deviations. Up to rounding, they are the
    same for each dtype.
    """
    first, second = draw_pair(key, grid_address(shape, sharding), jnp.uint32(0))
    radius = jnp.sqrt(-2 * jnp.log(_midpoint(first, dtype)))
    return jnp.broadcast_to(radius * jnp.cos(2 * math.pi * _midpoint(second, dtype)), shape)


def _midpoint(words: Words, dtype: jnp.dtype) -> Array:
    """Uniform numbers in (0, 1], in steps of 2^-32."""
    return (words.astype(dtype) + 0.5) * 2.0**-32
