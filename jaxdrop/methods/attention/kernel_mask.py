"""The mask of one tile, drawn inside a kernel; the same bits as `tiles.draw_tile` gives elsewhere.

A kernel has no gathers and no arrays of sizes that are no powers of two. So words that
do not start at a column of the tile are drawn in pairs, and the 32 bits that start
within a word are put together from its pair.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool

from jaxdrop.core.layout import WORD_BITS, Layout
from jaxdrop.core.words import Address, ThreefryKey, Words, draw_pair, flat_address
from jaxdrop.methods.attention.tiles import Span, place_of_bit


def keep_tile(
    key: ThreefryKey,
    threshold: tuple[Words, Words],
    pairs: int,
    layout: Layout,
    leading: tuple[Words, Words],
    rows: Span,
    columns: Span,
) -> Bool[Array, "#rows #columns"]:
    """Which weights of a tile are kept; of size 1 along axes where the mask is shared.

    `threshold` is where the fold starts, and the digits. `leading` is the position of
    the sample and of the head. Columns start at a multiple of 32, and their number is one.
    """
    spans = zip(layout.shape[-2:], (rows, columns), strict=True)
    row_count, column_count = (1 if size == 1 else span.length for size, span in spans)
    zero = jnp.uint32(0)
    row = _count(0, row_count) + jnp.asarray(rows.start).astype(jnp.uint32)
    column = jnp.asarray(columns.start).astype(jnp.uint32)
    indices = [
        zero if size == 1 else index
        for size, index in zip(layout.shape, (*leading, row, column), strict=True)
    ]
    apart, merged = indices[: layout.leading], indices[layout.leading :]
    first, offset = place_of_bit(merged, layout.shape[layout.leading :])
    first, offset = (jnp.broadcast_to(x, (row_count, 1)) for x in (first, offset))

    def words(place: Words) -> Words:
        address = flat_address([*apart, place], layout.words_shape)
        shape = place.shape
        spread = Address(*(jnp.broadcast_to(half, shape) for half in address))
        return _fold(key, threshold, pairs, spread)

    if column_count == 1:
        return (words(first) >> offset) & np.uint32(1) != 0
    places = first + _count(1, column_count // WORD_BITS)
    if len(merged) == 1:
        return _bits(words(places))
    # Each of a pair gives its part of the word that starts at `offset`. Two shifts for
    # the second, because a shift by 32, at offset 0, is undefined.
    side = lax.broadcasted_iota(jnp.uint32, (*places.shape, 2), 2)
    pair = words(lax.expand_dims(places, [2]) + side)
    offset = lax.expand_dims(offset, [2])
    after = pair << np.uint32(1) << (np.uint32(WORD_BITS - 1) - offset)
    # The parts have no bit in common, so their sum is their union.
    return _bits(jnp.sum(jnp.where(side == 0, pair >> offset, after), 2, jnp.uint32))


def _fold(key: ThreefryKey, threshold: tuple[Words, Words], pairs: int, address: Address) -> Words:
    """As `bernoulli.fold_words`, with a loop that stays in registers."""
    start, digits = threshold

    def step(i: Array, kept: Words) -> Words:
        pair = np.uint32(pairs - 1) - jnp.uint32(i)
        upper, lower = draw_pair(key, address, pair)
        for place, drawn in ((2 * pair + np.uint32(1), lower), (2 * pair, upper)):
            # A word of ones where the digit is 1. Then the majority of it, ~drawn and kept.
            digit = np.uint32(0) - ((digits >> (np.uint32(31) - place)) & np.uint32(1))
            kept = (kept & (digit | ~drawn)) | (digit & ~drawn)
        return kept

    return lax.fori_loop(
        np.int32(0), np.int32(pairs), step, jnp.broadcast_to(start, address.low.shape)
    )


def _bits(words: Words) -> Bool[Array, "rows columns"]:
    lanes = lax.broadcasted_iota(jnp.uint32, (*words.shape, WORD_BITS), 2)
    bits = (lax.expand_dims(words, [2]) >> lanes) & np.uint32(1)
    return bits.reshape(words.shape[0], words.shape[1] * WORD_BITS) != 0


def _count(axis: int, length: int) -> Words:
    """0, 1, 2, ... along one of two axes."""
    shape = (length, 1) if axis == 0 else (1, length)
    return lax.broadcasted_iota(jnp.uint32, shape, axis)
