"""Draws tiles of the mask of all weights. Attention draws its mask again tile by tile."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from jaxdrop.base.platforms import by_platform
from jaxdrop.core.bernoulli import fold_words
from jaxdrop.core.by_rows import are_known, unpack_by_rows
from jaxdrop.core.layout import Layout
from jaxdrop.core.part import bits_of, draw_rows
from jaxdrop.core.rate import GridRate
from jaxdrop.core.words import ThreefryKey, Words


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
    # If axes are merged, each row of the tile may start at a different bit.
    aligned = at_words and layout.leading == len(layout.shape) - 1
    fold = partial(fold_words, key, rate)
    words = draw_rows(fold, layout, indices, columns.length, aligned=aligned)
    by_columns = partial(bits_of, length=columns.length)
    if not are_known(words.shape):
        return by_columns(words)
    by_rows = partial(unpack_by_rows, columns=columns.length)
    return by_platform(None, by_columns, words, on_tpu=by_rows)


def _indices(
    layout: Layout, leading: Sequence[Words], rows: Span, columns: Span, ones: tuple[int, ...]
) -> list[Words]:
    """The index, along each axis of the mask, of the first element of each row of the tile."""
    heads = [
        jnp.uint32(0) if size == 1 else index[..., None, None]
        for size, index in zip(layout.shape[:-2], leading, strict=True)
    ]
    count = lax.broadcasted_iota(jnp.uint32, (*ones, rows.length, 1), len(ones))
    row = jnp.asarray(rows.start).astype(jnp.uint32) + count
    return [*heads, row, jnp.asarray(columns.start).astype(jnp.uint32)]
