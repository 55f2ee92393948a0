"""Masks of any key, shape and rate against NumPy, bit for bit; cheap, so there are many."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from fuzzing.calls import IMPLEMENTATIONS, RATES, Drawing, shapes
from fuzzing.options import subset
from hypothesis import given, settings, strategies as st
from modes import enable_x64
from reference import masks as reference
from reference.methods import Key, only

import jaxdrop

EXAMPLES = max(1, settings.default.max_examples // 2)
near_grid = st.builds(
    lambda units, bits, steps, up: min(abs(up - abs(units / 2**bits + steps * 2**-40)), 1.0),
    units=st.integers(0, 70),
    bits=st.sampled_from([16, 17, 32, 33]),
    steps=st.integers(-2, 2),
    up=st.sampled_from([0, 1]),
)
rates = st.sampled_from(RATES) | near_grid | st.floats(0, 1)


@st.composite
def keys(draw):
    """A key of some kind and any data, for JAX and for NumPy."""
    implementation = draw(st.sampled_from(list(IMPLEMENTATIONS)))
    word = st.sampled_from([0, 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
    data = tuple(draw(word) for _ in range(IMPLEMENTATIONS[implementation]))
    array = jnp.array(data, jnp.uint32)
    raw = implementation == "raw"
    key = array if raw else jax.random.wrap_key_data(array, impl=implementation)
    return key, Key(implementation, data)


@st.composite
def margins_of(draw, ndim):
    """How far a larger array reaches on both sides of each axis: far along one axis alone."""
    far = draw(st.integers(0, ndim))
    sides = [st.integers(0, 40 if axis == far else 1) for axis in range(ndim)]
    return [(draw(side), draw(side)) for side in sides]


@settings(max_examples=EXAMPLES)
@given(data=st.data(), key=keys(), shape=shapes(0, 4), rate=rates)
def test_mask_equals_the_reference(count, data, key, shape, rate):
    shared, wide = subset(Drawing(data.draw), len(shape)), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([None, "float32", "bfloat16", *["float64"] * wide]))
    margins = data.draw(st.just([(0, 0)] * len(shape)) | margins_of(len(shape)))
    larger = tuple(n + sum(each) for n, each in zip(shape, margins, strict=True))
    part = jaxdrop.Part(tuple(before for before, _ in margins), larger)
    with enable_x64(wide):
        given_rate = rate if dtype is None else jnp.asarray(rate, dtype)
        mask = jaxdrop.draw_mask(key[0], shape, given_rate, broadcast_dims=shared, part=part)
        kept, keep_prob = np.asarray(mask.unpack()), float(mask.keep_prob)
    expected = reference.mask(key[1].words, only(larger, shared), float(given_rate))
    spans = zip(expected.shape, part.start, only(shape, shared), strict=True)
    spans = (slice(start, start + n) if size != n else slice(None) for size, start, n in spans)
    np.testing.assert_array_equal(kept, expected[tuple(spans)])
    q = reference.keep_prob(float(given_rate))
    assert keep_prob == (q if wide else np.float32(q))
    count()


@settings(max_examples=max(1, EXAMPLES // 2))
@given(data=st.data(), key=keys(), shape=shapes(1, 4), pair=st.tuples(rates, rates))
def test_mask_of_an_array_of_rates_equals_the_reference(count, data, key, shape, pair):
    shared = subset(Drawing(data.draw), len(shape))
    sizes = only(shape, shared)
    along = data.draw(st.sets(st.sampled_from(range(len(shape)))))  # the others share a rate
    pattern = [n if axis in along else 1 for axis, n in enumerate(sizes)]
    first = np.random.default_rng(data.draw(st.integers(0, 9))).random(pattern) < 0.5
    low, high = map(np.float32, pair)
    given_rates = jnp.where(first, low, high)
    mask = jaxdrop.draw_mask(key[0], shape, given_rates, broadcast_dims=shared)
    expected, keep_prob = (
        np.where(first, *(function(float(rate)) for rate in (low, high)))
        for function in (partial(reference.mask, key[1].words, sizes), reference.keep_prob)
    )
    np.testing.assert_array_equal(mask.unpack(), expected)
    np.testing.assert_array_equal(mask.keep_prob, keep_prob.astype(np.float32))
    count()


@settings(max_examples=EXAMPLES)
@given(data=st.data(), key=keys(), shape=shapes(0, 4), traced=st.booleans())
def test_fixed_count_mask_equals_the_reference(count, data, key, shape, traced):
    shared = subset(Drawing(data.draw), len(shape))
    axis = data.draw(st.none() | st.just(...)) and subset(Drawing(data.draw), len(shape))
    ones = only(shape, shared)
    over = tuple(range(len(shape))) if axis is None else tuple(i % len(shape) for i in axis)
    left = data.draw(st.integers(0, math.prod(ones[i] for i in over)))
    mask = jaxdrop.draw_fixed_count_mask(
        key[0], shape, jnp.int32(left) if traced else left, axis=axis, broadcast_dims=shared
    )
    expected = reference.fixed_count_mask(key[1].words, ones, left, over)
    np.testing.assert_array_equal(mask.unpack(), expected)
    count()
