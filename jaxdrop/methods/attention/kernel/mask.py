"""The mask of one tile, drawn inside a kernel; the same bits as `tiles.draw_tile` gives elsewhere.

A kernel has no gathers and no arrays of sizes that are no powers of two. So words that
do not start at a column of the tile are drawn in pairs, and the 32 bits that start
within a word are put together from its pair.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool

from jaxdrop.core.fold_step import fold_pair
from jaxdrop.core.layout import WORD_BITS, Layout
from jaxdrop.core.part import place_of_bit
from jaxdrop.core.words import Address, ThreefryKey, Words, flat_address
from jaxdrop.methods.attention.tiles import Span


class Source(NamedTuple):
    """What the words of a mask are made from."""

    key: ThreefryKey
    start: Words  # of the fold
    digits: Words
    pairs: int

    def words(self, apart: Sequence[Words], place: Words, layout: Layout) -> Words:
        """The words at some places of the merged axes, and at indices along the others."""
        address = flat_address([*apart, place], layout.words_shape)
        return self._fold(Address(*(jnp.broadcast_to(half, place.shape) for half in address)))

    def _fold(self, address: Address) -> Words:
        """As `bernoulli.fold_words`, with a loop that stays in registers."""

        def step(i: Array, kept: Words) -> Words:
            pair = np.uint32(self.pairs - 1) - jnp.uint32(i)
            return fold_pair(kept, self.digits, self.key, address, pair)

        kept = jnp.broadcast_to(self.start, address.low.shape)
        return lax.fori_loop(np.int32(0), np.int32(self.pairs), step, kept)


def keep_tile(
    source: Source,
    layout: Layout,
    leading: Sequence[Words],
    rows: Span,
    columns: Span,
    *,
    at_words: bool,
) -> Bool[Array, "#rows #columns"]:
    """Which weights of a tile are kept; of size 1 along axes where the mask is shared.

    `leading` are the indices of the sample and of the head. The number of columns is a
    multiple of 32, and if `at_words` they start at one.
    """
    row_count, column_count = (
        1 if size == 1 else span.length
        for size, span in zip(layout.shape[-2:], (rows, columns), strict=True)
    )
    row = _count(0, row_count) + jnp.asarray(rows.start).astype(jnp.uint32)
    column = jnp.asarray(columns.start).astype(jnp.uint32)
    pairs = zip(layout.shape, (*leading, row, column), strict=True)
    indices = [jnp.uint32(0) if size == 1 else index for size, index in pairs]
    apart, merged = indices[: layout.leading], indices[layout.leading :]
    place = place_of_bit(merged, layout.shape[layout.leading :])
    first, offset = (jnp.broadcast_to(x, (row_count, 1)) for x in place)
    if column_count == 1:
        return (source.words(apart, first, layout) >> offset) & np.uint32(1) != 0
    places = first + _count(1, column_count // WORD_BITS)
    if at_words and len(merged) == 1:
        return _bits(source.words(apart, places, layout))
    return _bits(_from_bit(partial(source.words, layout=layout), apart, places, offset))


def _from_bit(
    words_at: Callable[[Sequence[Words], Words], Words],
    apart: Sequence[Words],
    places: Words,
    offset: Words,
) -> Words:
    """Words that start at bit `offset` of those at the places; each is made from two neighbours."""
    side = lax.broadcasted_iota(jnp.uint32, (*places.shape, 2), 2)
    places, offset = (lax.expand_dims(x, [2]) for x in (places, offset))
    apart = [lax.expand_dims(index, [2]) if index.ndim else index for index in apart]
    pair = words_at(apart, places + side)
    # Two shifts to the left, because a shift by 32, at offset 0, is undefined.
    after = pair << np.uint32(1) << (np.uint32(WORD_BITS - 1) - offset)
    # The two parts have no bit in common, so their sum is their union.
    return jnp.sum(jnp.where(side == 0, pair >> offset, after), 2, jnp.uint32)


def _bits(words: Words) -> Bool[Array, "rows columns"]:
    lanes = lax.broadcasted_iota(jnp.uint32, (*words.shape, WORD_BITS), 2)
    bits = (lax.expand_dims(words, [2]) >> lanes) & np.uint32(1)
    return bits.reshape(words.shape[0], words.shape[1] * WORD_BITS) != 0


def _count(axis: int, length: int) -> Words:
    """0, 1, 2, ... along one of two axes."""
    shape = (length, 1) if axis == 0 else (1, length)
    return lax.broadcasted_iota(jnp.uint32, shape, axis)
