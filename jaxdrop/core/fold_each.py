"""The fold of masks whose elements have a keep probability each.

A lane has the digits of its own element, so the digits of a word differ by lanes. Except
for that, it is the fold of `bernoulli`: elements of equal rates have the bits that they
have in a mask of this one rate.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding
from jaxtyping import UInt32

from jaxdrop.base.sharding import with_spec
from jaxdrop.core.fold_step import fold_digits, zeros_to_fold
from jaxdrop.core.layout import Layout, join_lanes
from jaxdrop.core.threshold import ALL_PAIRS, Threshold
from jaxdrop.core.words import Address, ThreefryKey, Words


def fold_each(
    key: ThreefryKey,
    threshold: Threshold,
    layout: Layout,
    address: Address,
    sharding: NamedSharding | None,
) -> Words:
    """Compares the 32 uniform numbers of each word with 32 thresholds.

    Args:
      key: the key of the words.
      threshold: arrays that broadcast to the shape of the mask.
      layout: the layout of the mask.
      address: the addresses of the words.
      sharding: how the words are split over Explicit mesh axes.

    Returns:
      The words of the mask.
    """

    def by_lanes(x: Array) -> Array:
        lanes = layout.by_lanes(jnp.broadcast_to(x, layout.shape))
        if sharding is None:
            return lanes
        return jax.sharding.reshard(lanes, with_spec(sharding, (*sharding.spec, None)))

    digits = by_lanes(jnp.asarray(threshold.digits))
    start = join_lanes(by_lanes(jnp.asarray(threshold.start)) & np.uint32(1))

    def digit(place: UInt32[Array, ""]) -> Words:
        return join_lanes((digits >> (np.uint32(31) - place)) & np.uint32(1))

    def step(i: UInt32[Array, ""], kept: Words) -> Words:
        return fold_digits(kept, digit, key, address, np.uint32(ALL_PAIRS - 1) - i)

    return lax.fori_loop(
        np.uint32(0), np.uint32(ALL_PAIRS), step, zeros_to_fold(key, address) | start
    )
