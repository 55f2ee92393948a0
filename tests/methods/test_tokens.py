"""Exact laws of the methods that leave out or replace tokens."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from modes import assert_check_failed, enable_x64, make_key

from jaxdrop import (
    draw_mask,
    drop_tokens,
    per_sample,
    replace_tokens,
    restore_tokens,
)

pytestmark = pytest.mark.quick

KEY = make_key("raw")


def raises(kind, message):
    return pytest.raises(kind, match=rf"^{re.escape(message)}$")


@pytest.mark.parametrize(("prefix", "rate"), [(0, 0.4), (1, 0.5), (5, 0.5), (2, 1.0), (0, 1.0)])
def test_exactly_k_tokens_are_kept_in_order_behind_the_prefix(prefix, rate):
    x = jnp.arange(4 * 5 * 3.0).reshape(4, 5, 3)
    tokens, positions = drop_tokens(KEY, x, rate, prefix=prefix)
    k = prefix + round((5 - prefix) * (1 - rate))
    assert positions.shape == (4, k)
    assert positions.dtype == jnp.int32
    assert jnp.all(positions[:, 1:] > positions[:, :-1])
    np.testing.assert_array_equal(positions[:, :prefix], np.tile(np.arange(prefix), (4, 1)))
    np.testing.assert_array_equal(tokens, np.take_along_axis(x, positions[..., None], axis=1))


def test_every_set_of_tokens_comes_up_and_rows_differ():
    keys = jax.random.split(make_key("raw"), 256)
    x = jnp.ones((2, 5, 1))
    positions = np.asarray(jax.vmap(lambda key: drop_tokens(key, x, 0.4)[1])(keys))
    sets = {tuple(row) for row in positions.reshape(-1, 3)}
    assert len(sets) == math.comb(5, 3)
    assert (positions[:, 0] != positions[:, 1]).any()


def test_rate_zero_keeps_all_tokens():
    x = jnp.ones((2, 5, 3))
    tokens, positions = drop_tokens(KEY, x, 0)
    assert tokens is x
    np.testing.assert_array_equal(positions, np.tile(np.arange(5), (2, 1)))


def test_token_ids_and_single_sequences():
    ids = jnp.arange(10, 22).reshape(2, 6)
    tokens, positions = drop_tokens(KEY, ids, 0.5, axis=-1)
    np.testing.assert_array_equal(tokens, np.take_along_axis(ids, positions, axis=1))
    one, places = drop_tokens(KEY, ids[0], 0.5, axis=0)
    np.testing.assert_array_equal(one, ids[0][places])


def test_restored_tokens_are_where_they_were_and_the_fill_is_elsewhere():
    x = jnp.arange(1.0, 61.0).reshape(4, 5, 3)
    learned = jnp.array([-1.0, -2.0, -3.0])
    tokens, positions = drop_tokens(KEY, x, 0.4)
    y = restore_tokens(tokens, positions, 5, fill=learned)
    kept = np.zeros((4, 5), bool)
    np.put_along_axis(kept, np.asarray(positions), True, axis=1)
    np.testing.assert_array_equal(y, np.where(kept[..., None], x, learned))


def test_gradients_reach_kept_tokens_and_the_learned_fill():
    x, learned = jnp.ones((4, 5, 3)), jnp.zeros(3)

    def total(x, learned):
        tokens, positions = drop_tokens(KEY, x, 0.4)
        return restore_tokens(tokens, positions, 5, fill=learned).sum()

    to_x, to_fill = jax.grad(total, argnums=(0, 1))(x, learned)
    assert jnp.all(to_x.sum((1, 2)) == 3 * 3)
    np.testing.assert_array_equal(to_fill, [8, 8, 8])


def test_restore_takes_changed_features_and_checks_positions_under_checkify():
    tokens, positions = drop_tokens(KEY, jnp.ones((2, 6, 3)), 0.5)
    assert restore_tokens(tokens[..., 0], positions, 6).shape == (2, 6)
    assert restore_tokens(tokens @ jnp.ones((3, 7)), positions, 8).shape == (2, 8, 7)
    checked = checkify.checkify(lambda positions: restore_tokens(tokens, positions, 6))
    for wrong in (positions + 6, positions.at[0, 0].set(-1)):
        error, _ = checked(wrong)
        assert_check_failed(error, r"positions must lie in \[0, 6\)")


@pytest.mark.parametrize("outside", [-2, -1, 5, 6, 99])
def test_tokens_outside_of_the_sequence_are_lost(outside):
    y = restore_tokens(jnp.array([7.0, 8.0]), jnp.array([3, outside]), 5)
    np.testing.assert_array_equal(y, [0, 0, 0, 7, 0])


def test_positions_of_narrow_types_may_be_of_long_sequences():
    restore = lambda positions: restore_tokens(jnp.ones(2), positions, 300)  # noqa: E731
    error, y = checkify.checkify(restore)(jnp.array([0, 200], jnp.uint8))
    error.throw()
    assert np.flatnonzero(y).tolist() == [0, 200]


def test_positions_are_of_32_bits_with_x64_too():
    with enable_x64():
        for rate in (0, 0.5):
            drop = partial(drop_tokens, KEY, rate=rate, prefix=1)
            assert jax.eval_shape(drop, jnp.ones((2, 6, 1)))[1].dtype == jnp.int32
        wide = restore_tokens(jnp.ones(2), jnp.array([0, 2**32 + 1]), 3)
        np.testing.assert_array_equal(wide, [1, 0, 0])


@pytest.mark.parametrize(("tokens", "kept"), [(5, 2), (7, 4), (3, 2)])
def test_half_a_token_is_rounded_to_the_even_number(tokens, kept):
    drop = partial(drop_tokens, KEY, rate=0.5, axis=0)
    assert jax.eval_shape(drop, jnp.ones(tokens))[0].shape == (kept,)


def test_bad_calls_of_drop_and_restore():
    x = jnp.ones((2, 5, 3))
    with raises(ValueError, "drop_tokens: prefix must be at most the 5 tokens; got 6."):
        drop_tokens(KEY, x, 0.5, prefix=6)
    with raises(ValueError, "drop_tokens: prefix must be at least 0; got -1."):
        drop_tokens(KEY, x, 0.5, prefix=-1)
    with raises(ValueError, "drop_tokens: axis must lie in [-3, 3) for 3 axes; got 3."):
        drop_tokens(KEY, x, 0.5, axis=3)
    with raises(TypeError, "restore_tokens: positions must be integers; got float32."):
        restore_tokens(x, jnp.ones((2, 5)), 6)
    with raises(
        ValueError,
        "restore_tokens: positions must have the first axes of tokens; got (2, 4) for (2, 5, 3).",
    ):
        restore_tokens(x, jnp.ones((2, 4), int), 6)
    with raises(
        ValueError,
        "restore_tokens: positions must have the first axes of tokens; got () for (2, 5, 3).",
    ):
        restore_tokens(x, 0, 6)
    with raises(
        TypeError,
        "restore_tokens: fill must be of the kind of the result; got complex64 for float32.",
    ):
        restore_tokens(x, jnp.ones((2, 5), int), 6, fill=1j)
    with raises(ValueError, "restore_tokens: length must be at least 5; got 4."):
        restore_tokens(x, jnp.ones((2, 5), int), 4)
    with raises(
        ValueError, "restore_tokens: fill must broadcast to the result; got (2,) for (2, 6, 3)."
    ):
        restore_tokens(x, jnp.ones((2, 5), int), 6, fill=jnp.ones(2))


def test_replaced_tokens_are_those_of_the_mask():
    ids = jnp.arange(2, 62).reshape(4, 15)
    kept = draw_mask(KEY, ids.shape, 0.3).unpack()
    np.testing.assert_array_equal(
        replace_tokens(KEY, ids, 0.3, replacement=1), np.where(kept, ids, 1)
    )
    other = jnp.full((15,), 7, jnp.int16)
    np.testing.assert_array_equal(
        replace_tokens(KEY, ids, 0.3, replacement=other), np.where(kept, ids, 7)
    )


def test_tokens_that_must_stay_do():
    ids = jnp.array([[5, 6, 7, 0], [8, 9, 0, 0]])
    for rate in (1.0, jnp.float32(1)):
        y = replace_tokens(KEY, ids, rate, replacement=1, where=ids != 0)
        np.testing.assert_array_equal(y, [[1, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int16"])
def test_bad_traced_rate_gives_the_integer_farthest_from_zero(dtype):
    ids = jnp.arange(1, 5).astype(dtype)
    where = ids > 2  # what must stay is no excuse
    y = jax.jit(lambda rate: replace_tokens(KEY, ids, rate, replacement=0, where=where))(1.5)
    bounds = jnp.iinfo(dtype)
    assert jnp.all(y == (bounds.min if bounds.min else bounds.max))


def test_tokens_are_replaced_for_each_sample_with_its_own_key():
    ids, drop = jnp.arange(1, 41).reshape(2, 20), partial(replace_tokens, rate=0.5, replacement=0)
    y = per_sample(drop)(KEY, ids)
    for key, row, dropped in zip(jax.random.split(KEY, 2), ids, y, strict=True):
        np.testing.assert_array_equal(dropped, drop(key, row))


def test_bad_replacements():
    ids = jnp.arange(4)
    with raises(
        TypeError,
        "replace_tokens: replacement must be of the kind of ids; got float32 for int32.",
    ):
        replace_tokens(KEY, ids, 0.5, replacement=0.5)
    with raises(
        ValueError, "replace_tokens: replacement must broadcast to ids; got (3,) for (4,)."
    ):
        replace_tokens(KEY, ids, 0.5, replacement=jnp.ones(3, int))
    with raises(ValueError, "replace_tokens: replacement must fit into uint8; got 300."):
        replace_tokens(KEY, ids.astype(jnp.uint8), 0.5, replacement=300)
    with raises(ValueError, "replace_tokens: replacement must fit into uint8; got 300."):
        replace_tokens(KEY, ids.astype(jnp.uint8), 0.5, replacement=np.int64(300))
    with raises(ValueError, "replace_tokens: replacement must fit into int32; got 2199023255552."):
        replace_tokens(KEY, ids, 0.5, replacement=2**41)
    with raises(ValueError, "replace_tokens: where must broadcast to ids; got (3,) for (4,)."):
        replace_tokens(KEY, ids, 0.5, replacement=0, where=ids[:3] > 0)
    with raises(TypeError, "replace_tokens: where must be boolean; got int32."):
        replace_tokens(KEY, ids, 0.5, replacement=0, where=ids)
