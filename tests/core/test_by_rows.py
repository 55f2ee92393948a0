"""Masks in the form for TPUs, run here: the same bits, of which 32 rows share a word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered

import jaxdrop
from jaxdrop.core.by_rows import can_draw_by_rows, draw_by_rows, unpack_by_rows
from jaxdrop.core.layout import Layout
from jaxdrop.core.words import grid_address

SHAPES = (
    (64, 96),  # two groups of 32 rows
    (3, 64, 96),  # groups of several samples side by side
    (2, 4096, 32),  # so many groups that samples stay apart
    (3, 70, 64),  # a last group of 6 rows
    (2, 5, 64),  # fewer rows than share a word
    (40, 1000),  # bits to spare in each row
    (5, 33, 33),  # axes that are merged
    (5000,),  # no rows at all
    (64, 1, 128),
    (),
    (0, 64),
)


def test_masks_of_all_shapes_are_unpacked_as_on_other_platforms():
    layouts = [Layout(shape) for shape in SHAPES]
    random = np.random.default_rng(0)
    words = [random.integers(0, 2**32, layout.words_shape, np.uint32) for layout in layouts]

    def unpacked(words):
        return [layout.unpack(each) for layout, each in zip(layouts, words, strict=True)]

    there = lowered("tpu", unpacked, words).compile()(words)
    jax.tree.map(np.testing.assert_array_equal, there, jax.jit(unpacked)(words))


@pytest.mark.parametrize("shape", [(64, 96), (3, 70, 64)])
def test_masks_are_drawn_as_on_other_platforms(shape):
    def drawn(data):
        return jaxdrop.draw_mask(jax.random.wrap_key_data(data), shape, 0.5).unpack()

    data = np.array([0, 42], np.uint32)
    there = lowered("tpu", drawn, data).compile()(data)
    np.testing.assert_array_equal(there, jax.jit(drawn)(data))


@pytest.mark.quick
@pytest.mark.parametrize(("rows", "columns"), [(3, 64), (64, 40)])
def test_bits_of_rows_are_those_of_the_words(rows, columns):
    keep = np.random.default_rng(0).random((2, rows, columns)) < 0.5
    words = np.packbits(keep, axis=-1, bitorder="little")
    words = np.pad(words, [(0, 0), (0, 0), (0, -words.shape[-1] % 4)]).view(np.uint32)
    np.testing.assert_array_equal(unpack_by_rows(jnp.asarray(words), columns), keep)


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(64, 3), (2, 32, 3), (2, 4096, 1)])
def test_words_drawn_to_be_turned_have_the_addresses_of_the_grid(shape):
    words = draw_by_rows(lambda address: address.low, shape)
    np.testing.assert_array_equal(words, grid_address(shape).low)


@pytest.mark.quick
def test_whole_groups_of_rows_are_drawn_by_rows():
    assert all(map(can_draw_by_rows, [(32, 1), (64, 3), (3, 96, 2)]))
    assert not any(map(can_draw_by_rows, [(32,), (33, 3), (40, 3), (0, 2), (64, 0)]))


def test_elements_are_written_with_half_a_byte_and_never_as_words():
    layout = Layout((64, 256))
    words = jax.ShapeDtypeStruct(layout.words_shape, jnp.uint32)
    text = lowered("tpu", layout.unpack, words).as_text()
    assert text.count("stablehlo.optimization_barrier") == 2
    assert "tensor<64x256xui4>" in text
    assert "tensor<64x8x32xui32>" not in text
    assert "tensor<64x8x32xui32>" in lowered("cpu", layout.unpack, words).as_text()
