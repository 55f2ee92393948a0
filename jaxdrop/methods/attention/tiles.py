"""Any part of a big mask, drawn alone: attention redraws its mask tile by tile."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int

from jaxdrop.core.bernoulli import fold_words
from jaxdrop.core.layout import WORD_BITS, Layout, lanes
from jaxdrop.core.rate import GridRate
from jaxdrop.core.words import ThreefryKey, Words, flat_address


class Span(NamedTuple):
    """A stretch of an axis: where it starts, which may be traced, and its length."""

    start: Int[Array, ""] | int
    length: int


def draw_tile(
    key: ThreefryKey,
    rate: GridRate,
    layout: Layout,
    leading: Sequence[Words],
    rows: Span,
    columns: Span,
    *,
    at_words: bool,
) -> Bool[Array, "... rows columns"]:
    """What `bernoulli_mask(key, ...)` keeps in some rows and columns of its last two axes.

    Args:
      key: the Threefry key of the mask.
      rate: of the mask, on the grid.
      layout: the layout of the whole mask.
      leading: indices along the axes ahead of the last two, which broadcast to
        each other; the tile has their shape in front.
      rows: which part of the second last axis.
      columns: which part of the last axis.
      at_words: whether columns always start at a multiple of 32. Words are then
        taken as they are, if the last axis is merged with no other.

    Returns:
      Booleans; of size 1 along axes where the mask is shared.
    """
    rows, columns = (
        Span(0, 1) if size == 1 else span
        for size, span in zip(layout.shape[-2:], (rows, columns), strict=True)
    )
    ones = (1,) * max((index.ndim for index in leading), default=0)
    indices = _indices(layout, leading, rows, columns, ones)
    apart, merged = indices[: layout.leading], indices[layout.leading :]
    # Where axes are merged, each row of the tile starts at a bit of its own.
    aligned = at_words and len(merged) == 1
    first, offset = _place(merged, layout.shape[layout.leading :])
    # A row that starts within a word ends in one more. The last of these may lie
    # behind the mask: it is drawn like any other, and none of its bits is used.
    place = first + _count(ones, 1, -(-columns.length // WORD_BITS) + (not aligned))
    words = fold_words(key, rate, flat_address([*apart, place], layout.words_shape))
    if not aligned:
        words = _from_bit(words, offset)
    bits = (words[..., None] >> lanes(words.ndim)) & np.uint32(1)
    return bits.reshape(*words.shape[:-1], -1)[..., : columns.length] != 0


def _indices(
    layout: Layout, leading: Sequence[Words], rows: Span, columns: Span, ones: tuple[int, ...]
) -> list[Words]:
    """Where the first element of each row of the tile is, along each axis of the mask."""
    heads = [
        jnp.uint32(0) if size == 1 else index[..., None, None]
        for size, index in zip(layout.shape[:-2], leading, strict=True)
    ]
    row = jnp.asarray(rows.start).astype(jnp.uint32) + _count(ones, rows.length, 1)
    return [*heads, row, jnp.asarray(columns.start).astype(jnp.uint32)]


def _from_bit(words: Words, offset: Words) -> Words:
    """Words that start at a bit of the given ones, each from two that lie side by side."""
    # Two shifts to the left, since one by 32 is undefined: at offset 0 the second
    # word is to vanish.
    after = words[..., 1:] << np.uint32(1) << (np.uint32(WORD_BITS - 1) - offset)
    return (words[..., :-1] >> offset) | after


def _count(ones: tuple[int, ...], rows: int, columns: int) -> Words:
    """0, 1, 2, ... along the rows, or along the columns if there is one row."""
    axis = len(ones) + (rows == 1)
    return lax.broadcasted_iota(jnp.uint32, (*ones, rows, columns), axis)


def _place(indices: Sequence[Words], shape: Sequence[int]) -> tuple[Words, Words]:
    """The word in which an element of merged axes lies, and which bit of it the element is."""
    # Strides are split into words and bits: the index of an element may have more
    # than 32 bits, that of its word has not.
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    bits = words = jnp.uint32(0)
    for index, stride in zip(indices, strides, strict=True):
        words = words + index * np.uint32(stride // WORD_BITS)
        bits = bits + index * np.uint32(stride % WORD_BITS)
    return words + bits // np.uint32(WORD_BITS), bits % np.uint32(WORD_BITS)
