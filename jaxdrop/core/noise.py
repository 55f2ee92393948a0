"""Noise that has addresses, like words, so any part of it can be drawn again by itself."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding

from jaxdrop.base.sharding import explicit_sharding
from jaxdrop.base.types import Key
from jaxdrop.core.apply import compute_dtype, weighted
from jaxdrop.core.layout import Layout
from jaxdrop.core.words import ThreefryKey, Words, draw_pair, grid_address, threefry_key

Noise: TypeAlias = Callable[
    [ThreefryKey, tuple[int, ...], jnp.dtype, NamedSharding | None],
    Array,
]

FARTHEST_LOGIT = 80.0  # larger ones count as this one: in float32, exp(89) is infinite

# Taylor's series of sin(pi / 2 t) / t in t^2, to 4e-14 for |t| <= 1.
_SINE = [(-1) ** n * (math.pi / 2) ** (2 * n + 1) / math.factorial(2 * n + 1) for n in range(9)]


def unit_uniform(words: Words, dtype: jnp.dtype) -> Array:
    """Uniform numbers in [0, 1]: the midpoints of 2^32 steps, so none is 0 and the mean is 1/2."""
    return (words.astype(dtype) + 0.5) * 2.0**-32


def signed_uniform(words: Words, dtype: jnp.dtype) -> Array:
    """Uniform numbers in [-1, 1]: the midpoints of 2^32 steps, symmetric around 0."""
    return (lax.bitcast_convert_type(words, jnp.int32).astype(dtype) + 0.5) * 2.0**-31


def standard_normal(
    key: ThreefryKey, shape: tuple[int, ...], dtype: jnp.dtype, sharding: NamedSharding | None
) -> Array:
    """Independent normal numbers, each from the two words of one block.

    The method is that of Box and Muller: the square root of -2 log u times the sine of
    an angle. Angles in [-pi / 2, pi / 2] are enough, because the sine has the same
    distribution there. So each number is an odd function of t in (-1, 1), and the mean
    is exactly 0. The largest number is 6.7 standard deviations. Except for rounding,
    all dtypes give the same numbers.

    References:
      Box and Muller, "A note on the generation of random normal deviates",
      Annals of Mathematical Statistics 29 (1958).
    """
    first, second = draw_pair(key, grid_address(shape, sharding), jnp.uint32(0))
    u, t = unit_uniform(first, dtype), signed_uniform(second, dtype)
    # A polynomial, because XLA's cosine would take longer than everything else on a CPU.
    sine = jnp.zeros_like(t)
    for coefficient in reversed(_SINE):
        sine = sine * jnp.square(t) + coefficient
    return jnp.broadcast_to(jnp.sqrt(-2 * jnp.log(u)) * t * sine, shape)


def standard_logistic(
    key: ThreefryKey, shape: tuple[int, ...], dtype: jnp.dtype, sharding: NamedSharding | None
) -> Array:
    """Independent logistic numbers, ln u - ln(1 - u) with u of 32 bits.

    Both tails reach 33 ln 2 = 22.9. The number exceeds -a with the probability whose
    logarithmic odds are a. Except for rounding, all dtypes give the same numbers.
    """
    word, _ = draw_pair(key, grid_address(shape, sharding), jnp.uint32(0))
    below, above = (half.astype(dtype) + 0.5 for half in (word, ~word))  # u and 1 - u, by 2^32
    return jnp.broadcast_to(jnp.log(below / above), shape)


def multiply_by_noise(
    key: Key,
    x: Array,
    layout: Layout,
    noise: Noise,
    factor: Callable[..., Array],
    *parameters: Any,
    learned: bool = False,
) -> Array:
    """`x` times `factor(noise, *parameters)`. The backward pass draws the noise again.
    For use in `jit`.

    Consumes the key. The factor is computed in float32 or wider. Where it is 0 the
    product is 0, even if `x` is infinite or NaN. If the parameters are learned, XLA
    may keep the noise.
    """
    words_key = threefry_key(key)
    sharding = layout.sharding(explicit_sharding(x))

    # Under `checkpoint` only the key is kept. With `prevent_cse=False`, as for masks,
    # XLA would keep the noise and not draw it again. But the gradient of a learned
    # parameter is a sum; if the noise is drawn again for this sum, a CPU needs more
    # memory than to keep the noise.
    @partial(jax.checkpoint, prevent_cse=not learned)
    def multiply(words_key: ThreefryKey, x: Array, *parameters: Any) -> Array:
        drawn = noise(words_key, layout.shape, compute_dtype(x), sharding)
        by = factor(drawn, *parameters)
        return weighted(x, by).astype(x.dtype)

    return multiply(words_key, x, *parameters)
