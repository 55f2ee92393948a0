"""Draws any part of a large mask by itself. Attention draws its mask again tile by tile."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int

from jaxdrop.base.platforms import by_platform
from jaxdrop.core.bernoulli import fold_words
from jaxdrop.core.by_rows import are_known, unpack_by_rows
from jaxdrop.core.layout import WORD_BITS, Layout, lanes
from jaxdrop.core.rate import GridRate
from jaxdrop.core.words import ThreefryKey, Words, flat_address


class Span(NamedTuple):
    """A part of an axis: its start, which may be traced, and its length."""

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
    """A tile of the mask that `bernoulli_mask(key, ...)` draws: some rows and columns
    of its last two axes.

    Args:
      key: the Threefry key of the mask.
      rate: the rate of the mask, on the grid.
      layout: the layout of the whole mask.
      leading: indices along the axes before the last two. They broadcast to each other,
        and the first axes of the tile have their shape.
      rows: which part of the second last axis.
      columns: which part of the last axis.
      at_words: whether columns always start at a multiple of 32. Then words are not
        shifted, if the last axis is not merged with another.

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
    # If axes are merged, each row of the tile may start at a different bit.
    aligned = at_words and len(merged) == 1
    first, offset = place_of_bit(merged, layout.shape[layout.leading :])
    # A row that starts within a word needs one more word. The last word may lie beyond
    # the mask: it is drawn like any other, and its bits are not used.
    place = first + _count(ones, 1, -(-columns.length // WORD_BITS) + (not aligned))
    words = fold_words(key, rate, flat_address([*apart, place], layout.words_shape))
    if not aligned:
        words = _from_bit(words, offset)
    by_columns = partial(_unpack, columns=columns.length)
    by_rows = partial(unpack_by_rows, columns=columns.length)
    on_tpu = by_rows if are_known(words.shape) else by_columns
    return by_platform(by_columns, by_columns, words, on_tpu=on_tpu)


def _unpack(words: Words, *, columns: int) -> Bool[Array, "... rows columns"]:
    bits = (words[..., None] >> lanes(words.ndim)) & np.uint32(1)
    return bits.reshape(*words.shape[:-1], -1)[..., :columns] != 0


def _indices(
    layout: Layout, leading: Sequence[Words], rows: Span, columns: Span, ones: tuple[int, ...]
) -> list[Words]:
    """The index, along each axis of the mask, of the first element of each row of the tile."""
    heads = [
        jnp.uint32(0) if size == 1 else index[..., None, None]
        for size, index in zip(layout.shape[:-2], leading, strict=True)
    ]
    row = jnp.asarray(rows.start).astype(jnp.uint32) + _count(ones, rows.length, 1)
    return [*heads, row, jnp.asarray(columns.start).astype(jnp.uint32)]


def _from_bit(words: Words, offset: Words) -> Words:
    """Words that start at bit `offset` of the given words; each is made from two neighbours."""
    # Two shifts to the left, because at offset 0 the second word must vanish, and one
    # shift by 32 is undefined.
    after = words[..., 1:] << np.uint32(1) << (np.uint32(WORD_BITS - 1) - offset)
    return (words[..., :-1] >> offset) | after


def _count(ones: tuple[int, ...], rows: int, columns: int) -> Words:
    """0, 1, 2, ... along the rows, or along the columns if there is one row."""
    axis = len(ones) + (rows == 1)
    return lax.broadcasted_iota(jnp.uint32, (*ones, rows, columns), axis)


def place_of_bit(indices: Sequence[Words], shape: Sequence[int]) -> tuple[Words, Words]:
    """For an element of merged axes: the index of its word, and its bit in the word."""
    # Strides are split into words and bits, because the index of an element may have
    # more than 32 bits. The index of a word has at most 32.
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    bits = words = jnp.uint32(0)
    for index, stride in zip(indices, strides, strict=True):
        words = words + index * np.uint32(stride // WORD_BITS)
        bits = bits + index * np.uint32(stride % WORD_BITS)
    return words + bits // np.uint32(WORD_BITS), bits % np.uint32(WORD_BITS)
