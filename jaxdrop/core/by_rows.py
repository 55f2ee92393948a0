"""The form of masks for TPUs: the words are turned, so that 32 rows share a word.

A TPU computes with registers of 8 rows by 128 columns, which it calls sublanes and
lanes. Words that 32 columns share would be spread over lanes, for which XLA lays out the
mask, and with it `x`, anew. If rows share them, a column of bits stays in the lane of its
column of elements. 32 rows of words are 32 x 32 bits for each word of a row. They are
transposed, which turns bit b of row s into bit s of row b.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, UInt32

from jaxdrop.core.words import Fold, Words, flat_address

_BITS = 32  # in a word, and rows that share one
_LANES = 128
_BARRIER = lax.optimization_barrier


def unpack_by_rows(
    words: UInt32[Array, "*lead rows width"], columns: int
) -> Bool[Array, "*lead rows columns"]:
    """The bits of each row of words, up to a number of columns."""
    *lead, rows, width = words.shape
    groups, shared = -(-rows // _BITS), min(rows, _BITS)
    if spare := groups * shared - rows:
        words = jnp.pad(words, [(0, 0)] * len(lead) + [(0, spare), (0, 0)])
    merged = (*lead, groups) if rows % _BITS else _merged(lead, groups)
    apart = words.reshape(*merged, shared, width)
    turned = _turn(jnp.moveaxis(apart, (-2, -3), (0, -1)))
    turned = turned.reshape(*merged[:-1], _BITS * width, merged[-1])
    turned = jnp.swapaxes(turned, -1, -2)[..., :columns].reshape(*lead, groups, 1, columns)
    bits = (turned >> _numbers(turned.ndim, -2, shared)) & np.uint32(1)
    flat = (*lead, rows + spare, columns)
    if shared == rows:
        return bits.reshape(flat) != 0
    # XLA fuses the bits into what selects by them, except through the reshape, before which
    # it would write words. So they are written with half a byte each: of fewer, XLA makes
    # whole bytes. Without the second barrier it would compare them first, which is a byte.
    stored = _BARRIER(_BARRIER(bits.astype(jnp.uint4)).reshape(flat))
    return stored[..., :rows, :].astype(jnp.int32) != 0


def draw_by_rows(draw: Fold, shape: tuple[int, ...]) -> Words:
    """The words of addresses that count 0, 1, 2, ... along `shape`, in the order to be turned.

    `unpack_by_rows` then finds the words as it needs them: XLA removes the transpose.
    """
    *lead, rows, width = shape
    *lead, groups = _merged(lead, rows // _BITS)
    sizes = (_BITS, *lead, width, groups)
    row, *before, column, group = (
        lax.broadcasted_iota(jnp.uint32, sizes, axis) for axis in range(len(sizes))
    )
    address = flat_address([*before, group, row, column], (*lead, groups, _BITS, width))
    return jnp.moveaxis(draw(address), (0, -1), (-2, -3)).reshape(shape)


def are_known(sizes: Sequence[int]) -> bool:
    """Whether there are words of sizes that are numbers, as the form for TPUs needs it."""
    return all(isinstance(size, int) for size in sizes) and 0 not in sizes


def can_draw_by_rows(shape: tuple[int, ...]) -> bool:
    """Whether whole groups of rows are to be drawn."""
    return are_known(shape) and len(shape) > 1 and shape[-2] % _BITS == 0


def _merged(lead: Sequence[int], groups: int) -> tuple[int, ...]:
    """Sizes of the axes before the rows of a group, the last one of the groups.

    Groups lie along lanes while the words are turned. If they are too few to fill the
    lanes, all axes are merged. If not, a device can draw its part of each axis.
    """
    if groups >= _LANES:
        return *lead, groups
    return (math.prod(lead) * groups,)


def _turn(words: UInt32[Array, "rows *rest groups"]) -> UInt32[Array, "*rest 32 groups"]:
    """Bit b of row s becomes bit s of row b."""
    # A sum over rows is one kernel and its result is laid out as it is used. Five steps of
    # swaps compute less, but would write the words in each.
    bits = words[..., None, :] >> _numbers(words.ndim + 1, -2, _BITS)
    placed = (bits & np.uint32(1)) << _numbers(words.ndim + 1, 0, words.shape[0])
    return lax.reduce(placed, np.uint32(0), lax.bitwise_or, (0,))


def _numbers(ndim: int, axis: int, size: int) -> UInt32[Array, "..."]:
    """0, 1, 2, ... along one axis."""
    shape = [1] * ndim
    shape[axis] = size
    return lax.broadcasted_iota(jnp.uint32, shape, axis % ndim)
