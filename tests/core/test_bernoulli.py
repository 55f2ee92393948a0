import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from modes import KEY_IMPLEMENTATIONS, make_key
from reference import masks as reference

import jaxdrop
from jaxdrop.checks import assert_keep_rate
from jaxdrop.core.words import threefry_key

RATES = [0, 1, 0.5, 0.25, 0.1, 0.9, 1 / 3, 1e-5, 1 - 1e-5, 2**-17]


def drawn(seed, shape, rate, **options):
    key = jax.random.key(seed)
    return np.asarray(jaxdrop.draw_mask(key, shape, rate, **options).unpack())


@pytest.mark.quick
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 40), (2, 3, 33), (5, 64), (2, 3, 5, 2)])
def test_whole_masks_equal_the_numpy_reference(rate, shape):
    np.testing.assert_array_equal(drawn(0, shape, rate), reference.mask((0, 0), shape, rate))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    last=st.integers(1, 100),
    rate=st.floats(0, 1, width=32),
    traced=st.booleans(),
)
def test_masks_of_any_key_and_rate_equal_the_reference(seed, last, rate, traced):
    given_rate = jnp.float32(rate) if traced else rate
    np.testing.assert_array_equal(
        drawn(seed, (3, last), given_rate), reference.mask((0, seed), (3, last), rate)
    )


@pytest.mark.parametrize("last", [*range(1, 36), *range(61, 68), *range(93, 101)])
def test_last_axes_of_all_lengths_around_whole_words(last):
    np.testing.assert_array_equal(drawn(0, (2, last), 0.3), reference.mask((0, 0), (2, last), 0.3))


@pytest.mark.quick
@pytest.mark.parametrize("implementation", KEY_IMPLEMENTATIONS)
def test_masks_of_every_key_are_those_of_its_threefry_key(implementation):
    data = tuple(int(word) for word in threefry_key(make_key(implementation, 5)))
    mask = jaxdrop.draw_mask(make_key(implementation, 5), (3, 40), 0.3)
    np.testing.assert_array_equal(mask.unpack(), reference.mask(data, (3, 40), 0.3))


@pytest.mark.quick
@given(axes=st.sets(st.integers(0, 2)), rate=st.sampled_from([0.3, 0.5]))
def test_shared_axes_have_size_one_and_the_mask_of_the_others(axes, rate):
    shape, shared = (4, 5, 6), tuple(axes)
    mask = drawn(0, shape, rate, broadcast_dims=shared)
    others = tuple(n for i, n in enumerate(shape) if i not in axes)
    assert mask.shape == tuple(1 if i in axes else n for i, n in enumerate(shape))
    np.testing.assert_array_equal(mask.reshape(others), reference.mask((0, 0), others, rate))


def test_negative_axes_are_shared_too():
    np.testing.assert_array_equal(
        drawn(0, (4, 5), 0.5, broadcast_dims=(-1,)), drawn(0, (4, 5), 0.5, broadcast_dims=1)
    )


@pytest.mark.quick
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.97, 0.005])
def test_every_element_is_kept_at_the_rate_asked_for(rate):
    def drop(key, x):
        return jaxdrop.draw_mask(key, x.shape, rate).unpack().astype(float)

    assert_keep_rate(drop, jax.random.key(11), jnp.ones((3, 40)), rate)


def test_an_integer_is_a_shape_of_one_axis():
    np.testing.assert_array_equal(drawn(0, 5, 0.5), drawn(0, (5,), 0.5))


def test_options_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        jaxdrop.draw_mask(jax.random.key(0), 3, 0.5, 0)


def test_a_mask_of_few_digits_is_drawn_in_a_loop_too():
    compiled = jax.jit(lambda key: jaxdrop.draw_mask(key, (64, 64), 0.5)).lower(make_key("raw"))
    assert compiled.compile().as_text().count(" while(") == 1


def test_terabit_masks_have_a_shape():
    for shape in [(2**40,), (2**20, 2**20), (2**10,) * 4, (3, 2**38 + 1)]:
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        y = jax.eval_shape(lambda x: jaxdrop.dropout(jax.random.key(0), x, 0.1), x)
        assert (y.shape, y.dtype) == (shape, jnp.bfloat16)


def test_concrete_array_rates_are_not_baked_in():
    drop = jax.jit(jaxdrop.dropout)
    for rate in (0.1, 0.2):
        np.testing.assert_array_equal(
            drop(jax.random.key(0), jnp.ones(100), jnp.float32(rate)) != 0,
            drawn(0, (100,), rate),
        )


@pytest.mark.quick
def test_a_key_is_needed_unless_the_rate_is_known_to_be_zero_or_one():
    for rate in (0, 1, np.float32(0), 1.0):
        drawn_without = jaxdrop.draw_mask(None, (2, 3), rate).unpack()
        np.testing.assert_array_equal(drawn_without, np.full((2, 3), rate == 0))
    for rate in (0.5, jnp.float32(0), np.zeros((2, 1))):
        with pytest.raises(TypeError, match=r"^draw_mask: key must be one key; got None\."):
            jaxdrop.draw_mask(None, (2, 3), rate)
