"""Masks of independent decisions, made from random words digit by digit."""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import UInt32

from jaxdrop.base.platforms import by_platform
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.words import (
    Address,
    ThreefryKey,
    Words,
    draw_pair,
    grid_address,
    threefry_key,
)

_PAIRS_A_TRIP = 2  # measured: half the memory traffic of one pair, and it compiles as fast
_PAIRS_A_KERNEL = 8  # on a GPU; the time to compile a kernel grows with their square


def draw_mask(
    key: Key,
    shape: int | Sequence[int],
    rate: Rate,
    *,
    broadcast_dims: int | Sequence[int] = (),
    out_sharding: NamedSharding | PartitionSpec | None = None,
) -> Mask:
    """Draws a mask that drops each element independently with probability `rate`.

    An element is kept where a uniform number is below the keep probability. The keep
    probability is `1 - rate`, rounded to a multiple of 2^-16. If the rate is so near to
    0 or 1 that this would miss it by more than 1 %, it is rounded to a multiple of
    2^-32. The rounded probability is `mask.keep_prob`. Rates within 2^-33 of 0 or 1
    round to 0 or 1. With one key, a higher rate drops all elements that a lower rate
    drops, and more.

    The mask depends only on the key's data, the shape and the rate. It is the same in
    eager mode and under any transform, on any device, with any sharding, and for a
    known or a traced rate. This holds for every key implementation. It holds even for
    `rbg` and `unsafe_rbg` keys, although what JAX draws from them under `vmap` depends
    only on the first key and, on some backends, on the sharding. But if
    `jax.random.split` makes keys from such a key, they are only as independent as JAX
    makes them.

    Args:
      key: one random key, consumed here.
      shape: sizes of the array to drop from.
      rate: probability of dropping, in [0, 1]; may be traced. A traced rate that is out
        of range by more than rounding (2^-17) gives a mask that turns every array into
        NaN. Under `checkify` it is an error.
      broadcast_dims: axes along which the mask is shared; it has size 1 there.
      out_sharding: on a mesh with Explicit axes, the sharding of the array that the
        mask is for.

    Returns:
      A `Mask`.

    Raises:
      TypeError: `key` is not one key, `shape` or `rate` are not numbers, or
        `out_sharding` names no Explicit axes.
      ValueError: a known `rate` lies outside [0, 1], a size is negative, or
        `broadcast_dims` are out of range or repeated.

    Example:
      >>> mask = draw_mask(jax.random.key(0), (2, 8), 0.25, broadcast_dims=(0,))
      >>> mask.shape, float(mask.keep_prob)
      ((1, 8), 0.75)

    References:
      Srivastava et al., "Dropout", JMLR 15 (2014).
    """
    check = Check("draw_mask")
    key = check.one_key(key)
    sizes = check.shape(shape)
    rate = check.probability("rate", rate)
    shared = check.axes("broadcast_dims", broadcast_dims, len(sizes))
    layout = mask_layout(sizes, shared)
    sharding = check.sharding(out_sharding, len(sizes))
    return _draw_mask(key, grid_rate(rate), layout, sharding)


@partial(jax.jit, static_argnames=("layout", "sharding"))
def _draw_mask(key: Key, rate: GridRate, layout: Layout, sharding: NamedSharding | None) -> Mask:
    return bernoulli_mask(key, rate, layout, sharding)


def bernoulli_mask(
    key: Key,
    rate: GridRate,
    layout: Layout,
    sharding: NamedSharding | None = None,
) -> Mask:
    """Draws a mask for an array that is sharded as given; for use under `jit`."""
    rate = rate.settle()
    words_sharding = layout.words_sharding(layout.sharding(sharding))
    address = grid_address(layout.words_shape, words_sharding)
    words = fold_words(threefry_key(key), rate, address)
    return Mask(words, jnp.asarray(rate.threshold.keep_prob, jnp.result_type(float)), layout)


def fold_words(key: ThreefryKey, rate: GridRate, address: Address) -> Words:
    """Compares the 32 uniform numbers of each word with the threshold, lowest digit first.

    Higher digits decide first; a lower digit counts only where all higher digits are
    equal. So the result m is updated from the lowest digit r to the highest:
    `m = m | ~r` where the digit of the threshold is 1, and `m = m & ~r` where it is 0.
    Both are the majority of `m`, `~r` and the digit of the threshold.

    Each word must be computed once and stored. On a CPU this takes a loop: without one,
    XLA would fuse the pairs into the selection and compute them again for each element.
    A GPU is faster without a loop: then all pairs are one large kernel that reads
    almost nothing. A loop would start about ten kernels per trip, and they would pass
    all words and addresses through memory.
    """
    threshold = rate.threshold
    start, digits = jnp.asarray(threshold.start), jnp.asarray(threshold.digits)
    return by_platform(
        partial(_fold_written_out, pairs=rate.pairs),
        partial(_fold_in_a_loop, pairs=rate.pairs),
        start,
        (key, digits, address),
    )


Source: TypeAlias = tuple[ThreefryKey, UInt32[Array, ""], Address]
"""What a fold draws from: the key, the digits of the threshold, the words' addresses."""


def _fold_written_out(start: Words, source: Source, *, pairs: int) -> Words:
    kept = start
    for pair in reversed(range(pairs)):
        kept = _fold_pair(kept, source, np.uint32(pair))
        # XLA does not fuse across a barrier, so no kernel has more pairs than this.
        if pair and pair % _PAIRS_A_KERNEL == 0:
            kept = lax.optimization_barrier(kept)
    return kept


def _fold_in_a_loop(start: Words, source: Source, *, pairs: int) -> Words:
    a_trip = min(_PAIRS_A_TRIP, pairs // 2)  # XLA inlines a loop of one trip

    def trip(i: UInt32[Array, ""], kept: Words) -> Words:
        for j in range(a_trip):
            kept = _fold_pair(kept, source, np.uint32(pairs - 1 - j) - i * np.uint32(a_trip))
        return kept

    # The zeros give the state of the loop the sharding and mesh axes of its result.
    # `zeros_like` does not do so on JAX 0.12. XLA removes the zeros.
    key, _, address = source
    zeros = (address.low ^ address.low) | (key[0] ^ key[0]) | (key[1] ^ key[1])
    return lax.fori_loop(np.uint32(0), np.uint32(pairs // a_trip), trip, zeros | start)


@jax.jit  # so that all pairs share one jaxpr
def _fold_pair(kept: Words, source: Source, pair: UInt32[Array, ""]) -> Words:
    key, digits, address = source
    upper, lower = draw_pair(key, address, pair)
    kept = _majority(kept, ~lower, _digit(digits, 2 * pair + np.uint32(1)))
    return _majority(kept, ~upper, _digit(digits, 2 * pair))


def _majority(a: Words, b: Words, c: Words) -> Words:
    # Four operations; the usual form, the union of three intersections, has five.
    return (a & c) | (b & (a | c))


def _digit(digits: UInt32[Array, ""], place: UInt32[Array, ""]) -> UInt32[Array, ""]:
    """One of the digits (0 is the highest), spread over a word."""
    bit = (digits >> (np.uint32(31) - place)) & np.uint32(1)
    return np.uint32(0) - bit  # 0 - 1 is a word of ones
