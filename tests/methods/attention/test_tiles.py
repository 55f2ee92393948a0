import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from modes import quick_jit
from numpy.lib.stride_tricks import sliding_window_view
from reference import masks as reference

from jaxdrop.core.layout import mask_layout
from jaxdrop.core.rate import grid_rate
from jaxdrop.methods.attention.tiles import Span, draw_tile

WORDS = (7, 5)  # of the key


def drawer(shape, rate, rows, columns, shared=(), at_words=False):
    """A function of where the tile starts, for all indices ahead of its axes."""
    on_grid = grid_rate(rate)
    ahead = [np.arange(n, dtype=np.uint32) for n in shape[:-2]]
    leading = [jnp.asarray(index) for index in np.ix_(*ahead)]

    def draw(row, column):
        return draw_tile(
            tuple(map(jnp.uint32, WORDS)),
            on_grid,
            mask_layout(shape, shared),
            leading,
            Span(row, rows),
            Span(column, columns),
            at_words=at_words,
        )

    return draw


def whole(shape, rate, shared=()):
    """The whole mask."""
    sizes = tuple(1 if axis in shared else n for axis, n in enumerate(shape))
    return reference.mask(WORDS, sizes, rate)


def starts(size, length, step=1):
    return np.arange(0, size - length + 1, step, dtype=np.int32)


def assert_tiles_are_slices(draw, keep, tile, first_rows, first_columns):
    """Each tile that starts at the given rows and columns is a slice of the mask."""
    over_columns = jax.vmap(draw, in_axes=(None, 0))
    tiles = quick_jit(jax.vmap(over_columns, in_axes=(0, None)))(first_rows, first_columns)
    tile = np.minimum(tile, keep.shape[-2:])  # of size 1 where the mask is shared
    slices = sliding_window_view(keep, tile, axis=(-2, -1))
    row, column = (
        np.minimum(first, count - 1)
        for first, count in zip((first_rows, first_columns), slices.shape[-4:-2], strict=True)
    )
    slices = slices[..., row[:, None], column, :, :]
    np.testing.assert_array_equal(tiles, np.moveaxis(slices, (-4, -3), (0, 1)))


LAST = st.integers(1, 70) | st.sampled_from([32, 64, 96, 100, 128])


@settings(max_examples=10)
@given(
    ahead=st.lists(st.integers(1, 3), max_size=3),
    last=st.tuples(st.integers(1, 9), LAST),
    tile=st.tuples(st.integers(1, 9), LAST),
    rate=st.sampled_from([0.5, 0.3, 1e-5]),
    shared=st.sets(st.integers(0, 4), max_size=2),
)
@example(ahead=[2, 3], last=(9, 40), tile=(4, 40), rate=0.5, shared=set())  # merged rows
@example(ahead=[2], last=(9, 33), tile=(1, 1), rate=0.5, shared=set())
def test_every_tile_is_a_slice_of_the_mask(ahead, last, tile, rate, shared):
    shape = (*ahead, *last)
    shared = tuple(axis for axis in shared if axis < len(shape))
    rows, columns = map(min, tile, last)
    draw = drawer(shape, rate, rows, columns, shared)
    places = starts(last[0], rows), starts(last[1], columns)
    assert_tiles_are_slices(draw, whole(shape, rate, shared), (rows, columns), *places)


@pytest.mark.parametrize(
    ("shape", "shared"),
    [((2, 3, 5, 128), ()), ((3, 8, 96), (0,)), ((4, 32), ()), ((2, 5, 1000), ()), ((2, 64), (1,))],
)
def test_tiles_that_start_at_words_need_no_shifts(shape, shared):
    rows, columns = 2, 32 if shape[-1] % 32 == 0 else shape[-1]
    keep = whole(shape, 0.5, shared)
    draw = drawer(shape, 0.5, rows, columns, shared, at_words=True)
    places = starts(shape[-2], rows), starts(shape[-1], columns, 32)
    assert_tiles_are_slices(draw, keep, (rows, columns), *places)
    if not shared:
        shifting = str(jax.make_jaxpr(drawer(shape, 0.5, rows, columns))(0, 0))
        assert str(jax.make_jaxpr(draw)(0, 0)).count("shift_left") < shifting.count("shift_left")


@pytest.mark.parametrize("shape", [(2, 3, 9, 5), (2, 9, 40), (2, 3, 9, 33), (2, 9, 100)])
def test_whole_rows_of_merged_axes_do_not_start_at_words(shape):
    keep = whole(shape, 0.5)
    draw = drawer(shape, 0.5, 4, shape[-1], at_words=True)
    assert_tiles_are_slices(draw, keep, (4, shape[-1]), starts(9, 4), starts(1, 1))


def kept_at(rate, word, lane):
    """Whether an element is kept, from the definition: the word it lies in, and its bit there."""
    high, low = (word >> 32).astype(np.uint32), (word & 0xFFFFFFFF).astype(np.uint32)
    number = np.zeros(word.shape, np.uint64)
    for digit in range(32):
        counter = np.uint32(2**31) + np.uint32(16) * high + np.uint32(digit // 2)
        drawn = reference.threefry_2x32_wrapping(WORDS, low, counter)[digit % 2]
        number = 2 * number + ((drawn >> lane.astype(np.uint32)) & 1)
    return number < reference.keep_units(rate)


@pytest.mark.parametrize(
    ("shape", "merged"),
    [
        ((8, 16, 65536, 65536), 1),  # 2^34 words
        ((4096, 64, 100_000, 1000), 1),  # 2^39.6 words, the last of a row not full
        ((64, 2**27 - 1, 40), 2),  # 2^33.3 words, in which rows start anywhere
    ],
)
def test_tiles_of_huge_masks_have_the_words_at_their_addresses(shape, merged):
    assert reference.merged_axes(shape) == merged
    rows, columns = 3, 37
    on_grid = grid_rate(0.3)

    def draw(column):
        return draw_tile(
            tuple(map(jnp.uint32, WORDS)),
            on_grid,
            mask_layout(shape, ()),
            [jnp.uint32(n - 1) for n in shape[:-2]],
            Span(shape[-2] - rows, rows),
            Span(column, columns),
            at_words=False,
        )

    first_columns = np.array([0, 1, shape[-1] - columns], np.int32)
    tiles = quick_jit(jax.vmap(draw))(first_columns)
    to_the_end = shape[-1] * np.arange(rows, 0, -1)[:, None] - np.arange(columns)
    element = math.prod(shape) - to_the_end + first_columns[:, None, None]
    whole_rows, within = np.divmod(element, math.prod(shape[-merged:]))
    word = whole_rows * -(-math.prod(shape[-merged:]) // 32) + within // 32
    assert word.min() > 2**32
    np.testing.assert_array_equal(tiles, kept_at(0.3, word, within % 32))
