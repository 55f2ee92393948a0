import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from modes import KEY_IMPLEMENTATIONS, make_key
from reference import masks as reference

from jaxdrop.core.words import (
    below,
    draw_pair,
    flat_address,
    grid_address,
    threefry_2x32,
    threefry_key,
    unconsumed,
)

pytestmark = pytest.mark.quick

WORD = st.integers(0, 2**32 - 1)


def as_ints(words):
    return tuple(int(word) for word in words)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_known_answers_of_random123(key, counter, expected):
    drawn = threefry_2x32(tuple(map(jnp.uint32, key)), *map(jnp.uint32, counter))
    assert as_ints(drawn) == expected
    assert reference.threefry_2x32(key, counter) == expected


@given(key=st.tuples(WORD, WORD), counter=st.tuples(WORD, WORD))
def test_threefry_equals_unbounded_integer_arithmetic(key, counter):
    drawn = threefry_2x32(tuple(map(jnp.uint32, key)), *map(jnp.uint32, counter))
    assert as_ints(drawn) == reference.threefry_2x32(key, counter)


@given(
    shape=st.lists(st.integers(1, 2**20), min_size=1, max_size=4),
    data=st.data(),
)
def test_addresses_are_row_major_positions_in_64_bits(shape, data):
    index = [data.draw(st.integers(0, size - 1)) for size in shape]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    position = sum(i * s for i, s in zip(index, strides, strict=True))
    address = flat_address([jnp.uint32(i) for i in index], shape)
    assert int(address.high) * 2**32 + int(address.low) == position % 2**64


def test_last_address_of_large_arrays_is_exact():
    shapes = [(2**32,), (2**16, 2**16), (2**31, 2**31), (3, 2**31, 5), (2**32 - 1, 2**28)]
    for shape in [*shapes, (2, 3 * 2**30)]:  # the low halves of the last one carry
        address = flat_address([jnp.uint32(size - 1) for size in shape], shape)
        assert int(address.high) * 2**32 + int(address.low) == math.prod(shape) - 1


@pytest.mark.parametrize("shape", [(2**32,), (1, 2**32), (2, 2**31), (2**31, 2)])
def test_positions_in_arrays_of_up_to_32_bits_need_no_high_half(shape):
    address = flat_address([jnp.full(2, size - 1, jnp.uint32) for size in shape], shape)
    assert address.high.shape == ()
    assert int(address.high) == 0
    assert address.low.tolist() == [math.prod(shape) - 1] * 2


def test_grid_addresses_count_rows_then_columns():
    assert grid_address((2, 3)).low.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_counters_of_words_are_all_different_and_unlike_those_of_jax():
    key = (jnp.uint32(0), jnp.uint32(0))
    seen = set()
    for position, pair in itertools.product([0, 1, 2**31, 2**32, 2**32 + 1, 2**40], range(16)):
        address = flat_address(
            [jnp.uint32(position >> 32), jnp.uint32(position & 0xFFFFFFFF)], (2**10, 2**32)
        )
        drawn = as_ints(draw_pair(key, address, jnp.uint32(pair)))
        x1 = 2**31 + 16 * (position >> 32) + pair
        assert drawn == reference.threefry_2x32((0, 0), (position & 0xFFFFFFFF, x1))
        seen.add(drawn)
    assert len(seen) == 6 * 16


def test_two_words_of_key_data_are_taken_as_they_are():
    data = np.array([123, 456], np.uint32)
    assert as_ints(threefry_key(jnp.asarray(data))) == (123, 456)
    assert as_ints(threefry_key(jax.random.wrap_key_data(data, impl="threefry2x32"))) == (123, 456)


def test_longer_key_data_are_hashed_word_by_word():
    data = [1, 2, 3, 4]
    state = reference.threefry_2x32((4, 0), (1, 2))
    state = reference.threefry_2x32(state, (3, 4))
    assert as_ints(threefry_key(jnp.array(data, jnp.uint32))) == state


@pytest.mark.parametrize("data", [(9,), (1, 2, 3)])
def test_odd_key_data_are_hashed_with_a_zero_behind_them(data):
    state = (len(data), 0)
    for first, second in itertools.zip_longest(data[::2], data[1::2], fillvalue=0):
        state = reference.threefry_2x32(state, (first, second))
    assert as_ints(threefry_key(jnp.array(data, jnp.uint32))) == state


@pytest.mark.parametrize("implementation", KEY_IMPLEMENTATIONS)
def test_every_bit_of_key_data_changes_the_threefry_key(implementation):
    key = make_key(implementation, 7)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(key) if typed else key)
    flips = np.zeros((1 + 32 * data.size, data.size), np.uint32)
    for bit in range(32 * data.size):
        flips[1 + bit, bit // 32] = 1 << bit % 32

    def hashed(data):
        impl = jax.random.key_impl(key) if typed else None
        return threefry_key(jax.random.wrap_key_data(data, impl=impl) if typed else data)

    seen = set(zip(*(words.tolist() for words in jax.vmap(hashed)(data ^ flips)), strict=True))
    assert as_ints(threefry_key(key)) in seen
    assert len(seen) == 1 + 32 * data.size


def test_unconsumed_key_leaves_the_key_for_another_use():
    key, raw = make_key("threefry2x32"), make_key("raw")
    assert jax.random.bits(unconsumed(key)) == jax.random.bits(key)
    assert unconsumed(raw) is raw


def test_integers_below_a_bound_are_the_high_half_of_a_product():
    drawn = np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678], np.uint32)
    for bound in (1, 3, 224, 65537, 2**31, 2**32 - 1):
        expected = [int(word) * bound >> 32 for word in drawn]
        np.testing.assert_array_equal(below(jnp.asarray(drawn), np.uint32(bound)), expected)
