"""Normal noise with an address, as words have: any part can be drawn again alone."""

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding

from jaxdrop.core.words import ThreefryKey, draw_pair, grid_address

# Taylor's series of sin(pi / 2 t) / t in t^2, to 4e-14 for |t| <= 1.
_SINE = [(-1) ** n * (math.pi / 2) ** (2 * n + 1) / math.factorial(2 * n + 1) for n in range(9)]


def standard_normal(
    key: ThreefryKey, shape: tuple[int, ...], dtype: jnp.dtype, sharding: NamedSharding | None
) -> Array:
    """Independent normal numbers, one from the two words of a block each.

    By Box and Muller: the square root of -2 log u times the sine of an angle,
    which has the law of the sine of an angle in [-pi / 2, pi / 2]. So it is an
    odd function of t in (-1, 1), and the mean is exactly 0; the largest is 6.7
    standard deviations. Up to rounding, numbers are the same for each dtype.

    References:
      Box and Muller, "A note on the generation of random normal deviates",
      Annals of Mathematical Statistics 29 (1958).
    """
    first, second = draw_pair(key, grid_address(shape, sharding), jnp.uint32(0))
    u = (first.astype(dtype) + 0.5) * 2.0**-32
    t = (lax.bitcast_convert_type(second, jnp.int32).astype(dtype) + 0.5) * 2.0**-31
    # A polynomial: XLA's cosine would take longer than all the rest on a CPU.
    sine = jnp.zeros_like(t)
    for coefficient in reversed(_SINE):
        sine = sine * jnp.square(t) + coefficient
    return jnp.broadcast_to(jnp.sqrt(-2 * jnp.log(u)) * t * sine, shape)
