from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.experimental import checkify
from lowering import lowered
from modes import assert_check_failed, enable_x64
from reference import masks as reference

import jaxdrop
from jaxdrop.base.validate import Check
from jaxdrop.checks import assert_keep_rate
from jaxdrop.core.fixed_count import (
    _checked_count,
    _find_digits,
    _smallest,
    count_axes,
    nearest_count,
)
from jaxdrop.core.layout import Layout

pytestmark = pytest.mark.quick

F = Check("f")


def drawn(seed, shape, count, **options):
    mask = jaxdrop.draw_fixed_count_mask(jax.random.key(seed), shape, count, **options)
    return np.asarray(mask.unpack())


@settings(max_examples=12)
@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_masks_equal_the_numpy_reference(data, shape):
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    size = int(np.prod([shape[axis] for axis in axes]))
    count = data.draw(st.integers(0, size))
    seed = data.draw(st.integers(0, 1000))
    mask = drawn(seed, tuple(shape), count, axis=axes)
    np.testing.assert_array_equal(mask.sum(axes), count)
    np.testing.assert_array_equal(
        mask, reference.fixed_count_mask((0, seed), tuple(shape), count, axes)
    )


def test_count_is_exact_in_every_draw():
    keys = jax.random.split(jax.random.key(0), 500)
    masks = jax.vmap(lambda key: jaxdrop.draw_fixed_count_mask(key, (7, 33), 5, axis=1))(keys)
    np.testing.assert_array_equal(masks.unpack().sum(-1), 5)


def test_equal_words_are_taken_in_order_of_position():
    words = jnp.array([[3, 1, 3, 3, 0, 3]], jnp.uint32)
    for count, expected in enumerate(
        ["000000", "000010", "010010", "110010", "111010", "111110", "111111"]
    ):
        keep = _smallest(words, jnp.int32(count), (1,))
        assert "".join(str(int(k)) for k in keep[0]) == expected


def test_none_survives_of_a_count_of_zero_even_the_smallest_word():
    assert _smallest(jnp.array([0, 5], jnp.uint32), jnp.int32(0), (0,)).tolist() == [False, False]


def test_extreme_words_are_ordered():
    words = jnp.array([0xFFFFFFFF, 0, 0x80000000, 0x7FFFFFFF], jnp.uint32)
    assert _smallest(words, jnp.int32(2), (0,)).tolist() == [False, True, False, True]
    assert _smallest(words, jnp.int32(3), (0,)).tolist() == [False, True, True, True]


def test_every_element_survives_equally_often():
    def drop(key, x):
        return jaxdrop.draw_fixed_count_mask(key, x.shape, 3).unpack().astype(float)

    assert_keep_rate(drop, jax.random.key(1), jnp.ones((2, 5)), 0.7)


def test_keep_prob_is_the_share_and_apply_mask_uses_it():
    mask = jaxdrop.draw_fixed_count_mask(jax.random.key(0), (4, 8), 2, axis=1)
    assert mask.keep_prob == 0.25
    np.testing.assert_array_equal(jaxdrop.apply_mask(mask, jnp.ones((4, 8))).sum(1), 8)
    assert jaxdrop.draw_fixed_count_mask(jax.random.key(0), (4, 1), 1, axis=1).keep_prob == 1


def test_shared_axes_count_once():
    mask = drawn(0, (4, 6, 5), 3, broadcast_dims=(0, 2))
    assert mask.shape == (1, 6, 1)
    assert mask.sum() == 3


@pytest.mark.parametrize("count", [0, 6])
def test_none_and_all_may_survive(count):
    assert drawn(0, (2, 3), count).sum() == count


def test_no_key_is_needed_where_none_or_all_survive():
    for count in (0, 3):
        mask = jaxdrop.draw_fixed_count_mask(None, (2, 3), count, axis=1)
        assert mask.unpack().sum() == 2 * count
    with pytest.raises(TypeError, match=r"^draw_fixed_count_mask: key must be one key; got None"):
        jaxdrop.draw_fixed_count_mask(None, (2, 3), 3)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_masks(shape):
    mask = jaxdrop.draw_fixed_count_mask(jax.random.key(0), shape, 0, axis=None)
    assert mask.shape == shape
    assert mask.keep_prob == 0


def test_count_may_be_traced():
    draw = jax.jit(lambda key, count: jaxdrop.draw_fixed_count_mask(key, (3, 9), count, axis=1))
    for count in (0, 4, 9):
        mask = draw(jax.random.key(0), jnp.int32(count))
        np.testing.assert_array_equal(mask.unpack(), drawn(0, (3, 9), count, axis=1))


@pytest.mark.parametrize("count", [-1, 10])
def test_bad_traced_count_poisons_the_output_and_fails_under_checkify(count):
    def drop(key, count):
        mask = jaxdrop.draw_fixed_count_mask(key, (3, 9), count, axis=1)
        return jaxdrop.apply_mask(mask, jnp.ones((3, 9)))

    y = drop(jax.random.key(0), jnp.int32(count))
    assert jnp.isnan(y).all()
    error, _ = checkify.checkify(drop)(jax.random.key(0), jnp.int32(count))
    assert_check_failed(error, rf"count must lie in \[0, 9\]; got {count}")


def test_traced_counts_are_judged_before_they_are_narrowed():
    with enable_x64():
        mask = jaxdrop.draw_fixed_count_mask(jax.random.key(0), (9,), jnp.int64(2**32 + 3))
        assert jnp.isnan(mask.keep_prob)


def test_counts_beyond_31_bits_are_refused():
    with pytest.raises(
        ValueError, match=r"axis must span fewer than 2\^31 elements; got 2147483648"
    ):
        jaxdrop.draw_fixed_count_mask(jax.random.key(0), (2**16, 2**15), 1)
    assert count_axes(F, None, Layout((1, 2**31 - 1))) == ((0, 1), 2**31 - 1)


@pytest.mark.parametrize(
    ("expected", "count"),
    [
        (0.5, 0),
        (1.5, 2),
        (2.5, 2),
        (2.5 + 2**-12, 2),
        (1.5 - 2**-12, 2),
        (2.5 + 2**-10, 3),
        (1.5 - 2**-10, 1),
        (5 * (1 - 0.7), 2),
        (12345.25, 12345),
    ],
)
def test_nearest_count_takes_what_is_nearly_a_half_for_one(expected, count):
    known = nearest_count(expected)
    assert isinstance(known, int)
    assert known == jax.jit(nearest_count)(jnp.float32(expected)) == count


def test_options_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        jaxdrop.draw_fixed_count_mask(jax.random.key(0), 3, 1, 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"count": 7}, r"ValueError: .*count must lie in \[0, 6\]; got 7"),
        ({"count": -1}, r"ValueError: .*count must lie in \[0, 6\]; got -1"),
        ({"count": 1.5}, r"TypeError: .*count must be integers; got 1\.5"),
        ({"count": jnp.arange(2)}, r"ValueError: .*count must be a scalar; got shape \(2,\)"),
        ({"count": 1, "axis": 2}, r"ValueError: .*axis must lie in \[-2, 2\) for 2 axes; got 2"),
        ({"count": 1, "axis": (0, -2)}, r"ValueError: .*axis must name each axis once"),
        ({"count": 4, "axis": 1}, r"ValueError: .*count must lie in \[0, 3\]; got 4"),
    ],
)
def test_bad_arguments_are_refused(options, error):
    with pytest.raises((TypeError, ValueError)) as raised:
        jaxdrop.draw_fixed_count_mask(jax.random.key(0), (2, 3), **options)
    assert raised.match(error.split(": ", 1)[1])
    assert type(raised.value).__name__ == error.split(":")[0]
    assert str(raised.value).startswith("draw_fixed_count_mask: ")


def test_count_is_known_and_in_range_or_a_scalar_of_integers():
    for count in (0, 4, np.int8(4)):
        assert _checked_count(F, count, 4) == count
    traced = _checked_count(F, jnp.int32(9), 4)
    assert isinstance(traced, jax.Array)
    assert traced.dtype == jnp.int32
    assert traced == 9


def test_counts_that_are_refused():
    for count in (-1, 5):
        with pytest.raises(ValueError, match=r"^f: count must lie in \[0, 4\]"):
            _checked_count(F, count, 4)
    with pytest.raises(ValueError, match=r"^f: count must be a scalar"):
        _checked_count(F, jnp.ones(1, int), 4)
    for count in (2.0, jnp.float32(2), "2"):
        with pytest.raises(TypeError, match=r"^f: count must be integers"):
            _checked_count(F, count, 4)


@settings(max_examples=4)
@given(data=st.data(), shape=st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_masks_of_gpus_are_the_same(data, shape):
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    count = data.draw(st.integers(0, int(np.prod([shape[axis] for axis in axes]))))

    def words(key_data, count):
        key = jax.random.wrap_key_data(key_data)
        return jaxdrop.draw_fixed_count_mask(key, tuple(shape), count, axis=axes).words

    operands = np.array([0, data.draw(st.integers(0, 1000))], np.uint32), jnp.int32(count)
    drawn = lowered("cuda", words, *operands).compile()(*operands)
    np.testing.assert_array_equal(drawn, words(*operands))


@pytest.mark.parametrize(("axes", "words"), [((0,), 0), ((1,), 2**16 - 1), ((0, 1), 0)])
def test_gpus_take_equal_words_in_order_of_position(axes, words):
    values = jnp.full((7, 40), words, jnp.uint32)
    smallest = partial(_smallest, values, axes=axes)
    on_gpu = lowered("cuda", smallest, jnp.int32(0)).compile()
    for count in (0, 5, values.size if len(axes) == 2 else values.shape[axes[0]]):
        keep = on_gpu(jnp.int32(count))
        np.testing.assert_array_equal(keep, smallest(jnp.int32(count)))
        assert (keep.sum(axes) == count).all()


@pytest.mark.parametrize(("shape", "passes"), [((2**31 - 1, 1), 6), ((1, 2**31 - 1), 2)])
def test_gpus_find_as_many_bits_in_a_pass_as_its_counts_allow(shape, passes):
    # Two counts of 31 bits share a word: one word of them finds one bit, four find three.
    def find(words, among, rank, zeros):
        return _find_digits(lambda: words, 6, axes, among, rank, zeros)

    axes = (shape.index(2**31 - 1),)
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    operands = jax.ShapeDtypeStruct(shape, jnp.uint32), jax.ShapeDtypeStruct(shape, bool), one
    program = jax.make_jaxpr(find)(*operands, one.update(dtype=jnp.uint32))
    assert program.out_avals[0].shape == (1, 1)
    assert [eqn.primitive.name for eqn in program.eqns].count("reduce") == passes
