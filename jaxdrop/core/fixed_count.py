"""Masks with an exact number of survivors: the elements with the smallest random words."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.export import is_symbolic_dim
from jaxtyping import Bool, Float, Int, UInt32

from jaxdrop.base.arguments import key_unless, refuse_swapped
from jaxdrop.base.compat import debug_check, enable_x64
from jaxdrop.base.nan import nan_unless
from jaxdrop.base.platforms import by_platform
from jaxdrop.base.types import Axes, Key
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import count_flags
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.words import Words, draw_words, grid_address


def draw_fixed_count_mask(
    key: Key | None,
    shape: int | Sequence[int],
    count: int | Int[Array, ""],
    *,
    axis: Axes = None,
    broadcast_dims: int | Sequence[int] = (),
) -> Mask:
    """Draws a mask in which exactly `count` elements survive.

    Every set of `count` elements is equally likely, to within 2^-32 per element. The
    elements along `axis` are counted together. Each position along the other axes has
    its own draw.

    Args:
      key: one random key, consumed here; None will do if all or none survive.
      shape: sizes of the array to drop from.
      count: how many survive, from 0 to the number of elements along `axis` (shared
        axes count once). It may be traced. A traced count out of range gives a mask
        that turns every array into NaN. Under `checkify` it is an error.
      axis: axes along which elements are counted together; None for all.
      broadcast_dims: axes along which the mask is shared; it has size 1 there.

    Returns:
      A `Mask` whose `keep_prob` is `count` over the number of elements.

    Raises:
      TypeError: `key` is not one key, or the others are not integers.
      ValueError: `count`, `axis` or `broadcast_dims` are out of range, or
        `axis` spans 2^31 elements or more, or a symbolic size of `jax.export`.

    Example:
      >>> mask = draw_fixed_count_mask(jax.random.key(0), (5, 10), 3, axis=1)
      >>> mask.unpack().sum(axis=1).tolist()
      [3, 3, 3, 3, 3]

    References:
      Fan, Muller and Rezucha, "Development of sampling plans by using
      sequential (item by item) selection techniques", JASA 57 (1962).
    """
    check = Check("draw_fixed_count_mask")
    refuse_swapped(check, key, shape, "shape")
    sizes = check.shape(shape)
    shared = check.axes("broadcast_dims", broadcast_dims, len(sizes))
    layout = mask_layout(sizes, shared)
    over, size = count_axes(check, axis, layout)
    count = _checked_count(check, count, size)
    key = key_unless(check, key, idle=not isinstance(count, Array) and count in (0, size))
    return _fixed_count(key, count, layout, over)


def count_axes(check: Check, axis: Axes, layout: Layout) -> tuple[tuple[int, ...], int]:
    """The axes to count over in canonical form, and how many elements they span."""
    over = tuple(range(len(layout.shape))) if axis is None else axis
    over = check.axes("axis", over, len(layout.shape))
    size = math.prod([layout.shape[i] for i in over])
    if is_symbolic_dim(size):
        raise ValueError(f"{check}: axis must span a known number of elements; got {size}.")
    if size >= 2**31:  # counts are compared as int32
        raise ValueError(f"{check}: axis must span fewer than 2^31 elements; got {size}.")
    return over, size


def _checked_count(check: Check, count: Any, size: int) -> int | Array:
    """Returns a known count as a checked int, any other as a scalar array."""
    if isinstance(count, Array) and jnp.issubdtype(count.dtype, jnp.integer):
        if count.shape != ():
            raise ValueError(
                f"{check}: count must be a scalar; got shape {count.shape}. Use jax.vmap."
            )
        return count
    count = check.whole_number("count", count)
    if not 0 <= count <= size:
        raise ValueError(f"{check}: count must lie in [0, {size}]; got {count}.")
    return count


@overload
def nearest_count(expected: float) -> int: ...
@overload
def nearest_count(expected: Float[Array, ""]) -> Float[Array, ""]: ...
def nearest_count(expected: float | Float[Array, ""]) -> int | Float[Array, ""]:
    """The nearest integer; halves are rounded to the even one.

    A number within 2^-11 of a half counts as that half. `5 * (1 - 0.7)` is a half
    in float32 but not in float64, and both must give the same count.
    """
    # Rounds first to a multiple of 2^-10, which moves numbers near a half onto the half.
    if isinstance(expected, Array):
        return jnp.rint(jnp.rint(expected * 1024) / 1024)
    return round(round(expected * 1024) / 1024)


@partial(jax.jit, static_argnames=("layout", "axes"))
def _fixed_count(
    key: Key, count: int | Int[Array, ""], layout: Layout, axes: tuple[int, ...]
) -> Mask:
    return fixed_count_mask(key, count, layout, axes)


def fixed_count_mask(
    key: Key, count: int | Int[Array, ""], layout: Layout, axes: tuple[int, ...]
) -> Mask:
    """Draws a mask with `count` survivors over the axes together; for use under `jit`."""
    size = math.prod([layout.shape[axis] for axis in axes])
    count = jnp.asarray(count, jnp.result_type(int))
    valid = (count >= 0) & (count <= size)
    debug_check(valid, f"count must lie in [0, {size}]; got {{count}}", count=count)
    # An empty mask has the share 0 / 1.
    share = nan_unless(valid, count.astype(jnp.result_type(float)) / max(size, 1))
    count = jnp.where(valid, count, size).astype(jnp.int32)  # so that NaN reaches every element
    keep = _smallest(draw_words(key, layout.shape), count, axes)
    return Mask(layout.pack(keep), share, layout)


def _smallest(words: Words, count: Int[Array, ""], axes: tuple[int, ...]) -> Bool[Array, "..."]:
    """True at the `count` smallest words over `axes`; of equal words, the first ones."""
    shape = [words.shape[axis] if axis in axes else 1 for axis in range(words.ndim)]

    def position() -> Words:
        numbers = jnp.broadcast_to(grid_address(shape).low, shape)
        return jnp.broadcast_arrays(words, numbers)[1]

    bound = _order_statistic(lambda: words, 32, jnp.ones_like(words, bool), count, axes)
    # Words may be equal, though this is rare. Of the words that equal the bound, only
    # the first ones survive, as many as the count still needs, so the count is exact.
    below, tied = words < bound, words == bound
    left = count - count_flags(below, axes).astype(jnp.int32)
    last = _order_statistic(position, max(math.prod(shape) - 1, 1).bit_length(), tied, left, axes)
    # For a count of 0 the bound is 0, and a word may be equal to it.
    return (count > 0) & (below | (tied & (position() <= last)))


def _order_statistic(
    values: Callable[[], Words],
    bits: int,
    among: Bool[Array, "..."],
    rank: Int[Array, "..."],
    axes: tuple[int, ...],
) -> UInt32[Array, "..."]:
    """The `rank`-th smallest value over `axes`, found bit by bit from the highest.

    It is the largest number with fewer than `rank` values below it. So a bit is 1 if
    fewer than `rank` values lie below the number with that bit set. The usual way is a
    sort, which took many times as long as 32 counts (CPU, rows of 256 to 10^6).
    """
    # The loop needs zeros of the type of its result, with the sharding and the mesh axes
    # over which it varies. A sum of both operands has that type; XLA removes the zeros.
    total = jnp.sum(jnp.where(among, values(), 0), axes, jnp.uint32, keepdims=True)
    total = total + rank.astype(jnp.uint32)
    # A GPU waits for memory, and starts kernels for each pass and each trip of a loop. So
    # it finds a few bits in one pass, and without a loop.
    return by_platform(
        partial(_find_digits, values, bits, axes),
        partial(_find_bits, values, bits, axes),
        among,
        rank,
        total ^ total,
    )


def _find_bits(
    values: Callable[[], Words],
    bits: int,
    axes: tuple[int, ...],
    among: Bool[Array, "..."],
    rank: Int[Array, "..."],
    zeros: Words,
) -> UInt32[Array, "..."]:
    def try_bit(i: UInt32[Array, ""], found: Words) -> Words:
        candidate = found | (np.uint32(1) << (np.uint32(bits - 1) - i))
        below = count_flags(among & (values() < candidate), axes)
        return jnp.where(below.astype(jnp.int32) < rank, candidate, found)

    return lax.fori_loop(np.uint32(0), np.uint32(bits), try_bit, zeros)


def _find_digits(
    values: Callable[[], Words],
    bits: int,
    axes: tuple[int, ...],
    among: Bool[Array, "..."],
    rank: Int[Array, "..."],
    zeros: Words,
) -> UInt32[Array, "..."]:
    size = math.prod(among.shape[axis] for axis in axes)
    fields = 64 // max(size, 1).bit_length()  # counts that share a word of 64 bits
    # XLA keeps partial sums in the memory that the threads of a GPU share, where those of
    # more words do not fit. Of sums along other axes than the last it fuses only one.
    words = 4 if among.ndim - 1 in axes else 1
    digit_bits = (words * fields + 1).bit_length() - 1
    found = zeros
    for place in reversed(range(0, bits, digit_bits)):
        # A value below `found | number << place` is below `found`, or less than the second
        # part above it. So a kernel reads one array, not one for each number.
        low, above = values() < found, values() - found
        flags = [
            among & (low | (above < np.uint32(number << place)))
            for number in range(1, 2 ** min(digit_bits, bits - place))
        ]
        # The more numbers have fewer values below them than asked for, the larger the digit.
        counts = _count_together(flags, axes, fields)
        fewer = [(count < rank).astype(jnp.uint32) for count in counts]
        found = found | (sum(fewer[1:], fewer[0]) << np.uint32(place))
    return found


def _count_together(
    flags: Sequence[Bool[Array, "..."]], axes: tuple[int, ...], fields: int
) -> list[Int[Array, "..."]]:
    """All counts by one reduction, so that one kernel reads the values once."""
    width = 64 // fields

    def add(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
        return [x + y for x, y in zip(a, b, strict=True)]

    with enable_x64():
        placed = [
            flag.astype(jnp.uint64) << np.uint64(width * (i % fields))
            for i, flag in enumerate(flags)
        ]
        words = [sum(placed[i + 1 : i + fields], placed[i]) for i in range(0, len(flags), fields)]
        totals = lax.reduce(words, [np.uint64(0)] * len(words), add, axes)
        mask = np.uint64(2**width - 1)
        counts = [
            ((totals[i // fields] >> np.uint64(width * (i % fields))) & mask).astype(jnp.int32)
            for i in range(len(flags))
        ]
    return [jnp.expand_dims(count, axes) for count in counts]
