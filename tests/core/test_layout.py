import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P
from meshes import mesh
from reference import masks as reference

from jaxdrop.core.layout import Layout, mask_layout

pytestmark = pytest.mark.quick

SHAPES = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@settings(max_examples=20)
@given(shape=SHAPES, seed=st.integers(0, 100))
@example(shape=(0, 17, 20), seed=0)  # once divided by the zero
def test_unpack_inverts_pack(shape, seed):
    keep = np.random.default_rng(seed).random(shape) < 0.5
    layout = Layout(shape)
    words = layout.pack(jnp.asarray(keep))
    assert words.shape == layout.words_shape
    np.testing.assert_array_equal(layout.unpack(words), keep)


@given(shape=SHAPES)
def test_padding_wastes_at_most_four_percent_or_one_word(shape):
    bits = 32 * int(np.prod(Layout(shape).words_shape, dtype=np.int64))
    size = int(np.prod(shape, dtype=np.int64))
    assert size <= bits <= max(1.04 * size, size + 31)


@given(shape=SHAPES)
def test_layout_merges_the_axes_that_the_reference_merges(shape):
    assert len(shape) - Layout(shape).leading == reference.merged_axes(shape)


@given(shape=SHAPES.filter(bool), position=st.integers(0, 4))
def test_an_axis_of_size_one_changes_no_word(shape, position):
    position = min(position, len(shape))
    longer = (*shape[:position], 1, *shape[position:])
    count = int(np.prod(Layout(longer).words_shape, dtype=np.int64))
    assert count == int(np.prod(Layout(shape).words_shape, dtype=np.int64))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4096, 4096), (4096, 128)),
        ((4096, 10), (1280,)),
        ((64, 56, 56, 3), (64, 56 * 56 * 3 // 32)),
        ((8, 1000), (8, 32)),
        ((3, 400), (3, 13)),  # 4 % of 400 bits are wasted
        ((3, 123), (12,)),  # 5 of 123 would be, which is more
        ((2, 3), (1,)),
        ((), (1,)),
        ((0,), (0,)),
        ((0, 3), (0,)),
        ((2**40,), (16, 2**31)),
        ((2**20, 2**20), (2**20, 2**15)),
    ],
)
def test_words_shape(shape, words):
    assert Layout(shape).words_shape == words


def test_shared_axes_have_size_one():
    assert mask_layout((2, 3, 4), (0, 2)) == Layout((1, 3, 1))


@pytest.mark.parametrize("apart", [(1,), (1, 2), (0, 3)])
def test_axes_kept_apart_come_first_and_are_never_merged(apart):
    keep = np.random.default_rng(0).random((2, 3, 5, 7)) < 0.5
    layout = Layout(keep.shape, apart=apart)
    words = layout.pack(jnp.asarray(keep))
    assert words.shape[: len(apart)] == tuple(keep.shape[axis] for axis in apart)
    np.testing.assert_array_equal(layout.unpack(words), keep)
    rest = [axis for axis in range(4) if axis not in apart]
    moved = Layout(
        tuple(keep.shape[axis] for axis in (*apart, *rest)), apart=tuple(range(len(apart)))
    )
    np.testing.assert_array_equal(words, moved.pack(jnp.asarray(keep.transpose(*apart, *rest))))


@pytest.mark.parametrize(
    ("shape", "spec", "mask_spec"),
    [
        ((4, 6, 8), P("a", None, "b"), P("a", None, "b")),
        ((4, 6, 8), P("a"), P("a", None, None)),
        ((1, 2, 1), P("a", "b", None), P(None, "b", None)),
        ((4, 0), P("a", "b"), P("a", "b")),
    ],
)
def test_mask_is_split_as_the_array_is_but_along_shared_axes(shape, spec, mask_spec):
    assert Layout(shape).sharding(NamedSharding(mesh(), spec)) == NamedSharding(mesh(), mask_spec)


@pytest.mark.parametrize(
    ("layout", "spec", "words_spec"),
    [
        (Layout((4, 256)), P("a", "b"), P("a", "b")),
        (Layout((4, 32)), P(None, "b"), P(None, None)),  # half a word a part
        (Layout((4, 256)), P(None, ("a", "b")), P(None, ("a", "b"))),
        (Layout((4, 128)), P(None, ("a", "b")), P(None, None)),
        (Layout((16, 40)), P("a", None), P("a")),  # 640 elements a row of words
        (Layout((16, 40)), P("a", "b"), P(None)),  # of which a part is in no one piece
        (Layout((8, 40)), P("a", None), P(None)),
        (Layout((4, 256, 8), apart=(1,)), P("a", "b", None), P("b", None)),
        (Layout((4, 2**40)), P("a", "b"), P("a", None, None)),  # the last axis is folded in two
        (Layout(()), P(), P(None)),
    ],
)
def test_words_are_split_where_each_part_is_a_whole_number_of_them(layout, spec, words_spec):
    given = NamedSharding(mesh(), spec)
    assert layout.words_sharding(given) == NamedSharding(mesh(), words_spec)


def test_layout_of_an_array_that_is_not_split_says_nothing():
    assert Layout((4, 32)).sharding(None) is None
    assert Layout((4, 32)).words_sharding(None) is None
