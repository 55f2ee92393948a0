"""Masks of independent decisions, made from random words digit by digit."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Float, UInt32

from jaxdrop.base.arguments import key_unless, refuse_swapped
from jaxdrop.base.describe import describe
from jaxdrop.base.platforms import by_platform
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.by_rows import can_draw_by_rows, draw_by_rows
from jaxdrop.core.fold_at_once import fold_at_once, idle_pairs
from jaxdrop.core.fold_each import fold_each
from jaxdrop.core.fold_step import fold_pair, zeros_to_fold
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.part import Part, Within, checked_part, part_words
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.threshold import ALL_PAIRS
from jaxdrop.core.words import (
    Address,
    ThreefryKey,
    Words,
    at_most,
    grid_address,
    threefry_key,
)

_PAIRS_A_TRIP = 2  # measured: half the memory traffic of one pair, and it compiles as fast


def draw_mask(
    key: Key | None,
    shape: int | Sequence[int],
    rate: Rate | Float[ArrayLike, "..."],
    *,
    broadcast_dims: int | Sequence[int] = (),
    out_sharding: NamedSharding | PartitionSpec | None = None,
    part: Part | None = None,
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
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      shape: sizes of the array to drop from.
      rate: probability of dropping, in [0, 1]; may be traced. A traced rate that is out
        of range by more than rounding (2^-17) gives a mask that turns every array into
        NaN. Under `checkify` it is an error. An array that broadcasts to the mask gives
        each element, sample or unit a rate of its own, as in Standout or targeted
        dropout; `apply_mask` then scales each element by its own keep probability. Such
        masks take longer to draw.
      broadcast_dims: axes along which the mask is shared; it has size 1 there.
      out_sharding: on a mesh with Explicit axes, the sharding of the array that the
        mask is for.
      part: where an array of this shape lies in a larger one. The mask is then that
        part of the mask of the larger array, bit for bit, as `Part` shows.

    Returns:
      A `Mask`.

    Raises:
      TypeError: `key` is not one key, `shape` or `rate` are not numbers, or
        `out_sharding` names no Explicit axes, or `part` is not a `Part`.
      ValueError: a known `rate` lies outside [0, 1], a size is negative,
        `broadcast_dims` are out of range or repeated, an array of rates does not
        broadcast to the mask or comes with a `part`, `part` does not fit the shape, or
        `out_sharding` has more entries than it has axes.

    Example:
      >>> mask = draw_mask(jax.random.key(0), (2, 8), 0.25, broadcast_dims=(0,))
      >>> mask.shape, float(mask.keep_prob)
      ((1, 8), 0.75)

      A rate for each unit:

      >>> rates = jnp.linspace(0, 1, 5)
      >>> mask = draw_mask(jax.random.key(0), (3, 5), rates)
      >>> mask.keep_prob.tolist(), mask.unpack()[:, 0].tolist()
      ([[1.0, 0.75, 0.5, 0.25, 0.0]], [True, True, True])

    References:
      Srivastava et al., "Dropout", JMLR 15 (2014).
    """
    check = Check("draw_mask")
    refuse_swapped(check, key, shape, "shape")
    sizes = check.shape(shape)
    shared = check.axes("broadcast_dims", broadcast_dims, len(sizes))
    layout = mask_layout(sizes, shared)
    rate = check.probabilities("rate", rate, layout.shape, "the mask")
    key = key_unless(check, key, idle=not isinstance(rate, Array) and rate in (0, 1))
    sharding = check.sharding(out_sharding, len(sizes))
    within = checked_part(check, part, sizes, shared)
    if within is not None and np.ndim(rate):
        raise ValueError(f"{check}: rate must be a scalar for a part; got {describe(rate)}.")
    return _draw_mask(key, grid_rate(rate), layout, sharding, within)


@partial(jax.jit, static_argnames=("layout", "sharding"))
def _draw_mask(
    key: Key,
    rate: GridRate,
    layout: Layout,
    sharding: NamedSharding | None,
    within: Within | None,
) -> Mask:
    return bernoulli_mask(key, rate, layout, sharding, within)


def bernoulli_mask(
    key: Key,
    rate: GridRate,
    layout: Layout,
    sharding: NamedSharding | None = None,
    within: Within | None = None,
) -> Mask:
    """Draws a mask for an array that is sharded as given; for use under `jit`."""
    rate, threefry = rate.settle(), threefry_key(key)
    words_sharding = layout.words_sharding(layout.sharding(sharding))
    threshold = rate.threshold
    if within is None:
        address = grid_address(layout.words_shape, words_sharding)
        if np.ndim(threshold.digits):
            words = fold_each(threefry, threshold, layout, address, words_sharding)
        else:
            in_order = words_sharding is None and at_most(math.prod(layout.words_shape), 2**32)
            words = fold_words(threefry, rate, address, in_order=in_order)
    else:
        words = part_words(partial(fold_words, threefry, rate), within, layout)
        if words_sharding is not None:
            words = jax.sharding.reshard(words, words_sharding)
    keep_prob = jnp.asarray(threshold.keep_prob, jnp.result_type(float))
    return Mask(words, keep_prob, layout, layout.unsplit(sharding))


def fold_words(
    key: ThreefryKey, rate: GridRate, address: Address, *, in_order: bool = False
) -> Words:
    """Compares the 32 uniform numbers of each word with the threshold, lowest digit first.

    Higher digits decide first; a lower digit counts only where all higher digits are
    equal. So the result m is updated from the lowest digit r to the highest:
    `m = m | ~r` where the digit of the threshold is 1, and `m = m & ~r` where it is 0.
    Both are the majority of `m`, `~r` and the digit of the threshold.

    Each word must be computed once and stored. On a CPU this takes a loop: without one,
    XLA would fuse the pairs into the selection and compute them again for each element.
    On a GPU a loop would start about ten kernels per trip, and they would pass all
    words and addresses through memory. There all pairs are one kernel that reads almost
    nothing.

    If `in_order`, the addresses count 0, 1, 2, ... and have no sharding in their type.
    """
    threshold = rate.threshold
    start, digits = jnp.asarray(threshold.start), jnp.asarray(threshold.digits)
    # The lowest digits of most traced rates are 0, and how many is not known before.
    form: Any = {"pairs": rate.pairs, "skips": rate.is_traced}
    return by_platform(
        partial(fold_at_once, in_order=in_order, **form),
        partial(_fold_in_a_loop, **form),
        start,
        digits,
        key,
        address,
        on_tpu=partial(_fold_on_tpu, in_order=in_order, **form),
    )


def _fold_on_tpu(
    start: UInt32[Array, ""],
    digits: UInt32[Array, ""],
    key: ThreefryKey,
    address: Address,
    *,
    pairs: int,
    skips: bool,
    in_order: bool,
) -> Words:
    def draw(address: Address) -> Words:
        if pairs == ALL_PAIRS:
            return _fold_in_a_loop(start, digits, key, address, pairs=pairs, skips=skips)
        # Written out, since the loop would be a kernel for each trip.
        kept: Words = start
        for pair in reversed(range(pairs)):
            kept = fold_pair(kept, digits, key, address, np.uint32(pair))
        return lax.optimization_barrier(kept)  # so that the words are computed once

    if in_order and can_draw_by_rows(address.low.shape):
        return draw_by_rows(draw, address.low.shape)
    return draw(address)


def _fold_in_a_loop(
    start: UInt32[Array, ""],
    digits: UInt32[Array, ""],
    key: ThreefryKey,
    address: Address,
    *,
    pairs: int,
    skips: bool,
) -> Words:
    a_trip = min(_PAIRS_A_TRIP, pairs // 2)  # XLA inlines a loop of one trip

    def trip(i: UInt32[Array, ""], kept: Words) -> Words:
        for j in range(a_trip):
            pair = np.uint32(pairs - 1 - j) - i * np.uint32(a_trip)
            kept = fold_pair(kept, digits, key, address, pair)
        return kept

    zeros = zeros_to_fold(key, address)
    idle = idle_pairs(digits).astype(jnp.uint32) if skips else np.uint32(0)
    first = idle // np.uint32(a_trip)
    return lax.fori_loop(first, np.uint32(pairs // a_trip), trip, zeros | start)
