"""Exact laws of the methods for recurrent networks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import keep_prob_of, one_of_each, probabilities
from modes import enable_x64, make_key

from jaxdrop import apply_mask, draw_mask, dropout, locked_dropout, zoneout

pytestmark = pytest.mark.quick

KEY = make_key("raw")


@pytest.mark.parametrize("time_axis", [0, 1, -1])
def test_locked_dropout_shares_its_mask_over_time(time_axis):
    x = jnp.linspace(1, 2, 7 * 5 * 6).reshape(7, 5, 6)
    y = locked_dropout(KEY, x, 0.4, time_axis=time_axis)
    np.testing.assert_array_equal(y, dropout(KEY, x, 0.4, broadcast_dims=(time_axis,)))


def test_a_mask_drawn_outside_a_scan_is_locked_inside():
    xs = jnp.linspace(1, 2, 7 * 5 * 6).reshape(7, 5, 6)
    mask = draw_mask(KEY, (5, 6), 0.4)
    _, ys = jax.lax.scan(lambda carry, x: (carry, apply_mask(mask, x)), 0, xs)
    np.testing.assert_array_equal(ys, locked_dropout(KEY, xs, 0.4, time_axis=0))


def test_a_recurrent_mask_is_the_same_unrolled_and_in_the_gradient():
    weights = jnp.linspace(-1, 1, 36).reshape(6, 6)
    xs, start = jnp.linspace(-1, 1, 4 * 6).reshape(4, 6), jnp.zeros(6)

    def step(mask, state, x):
        return jnp.tanh(x + apply_mask(mask, state) @ weights)

    def scanned(key, xs):
        mask = draw_mask(key, (6,), 0.5)
        state, _ = jax.lax.scan(lambda state, x: (step(mask, state, x), None), start, xs)
        return state.sum()

    def unrolled(key, xs):
        mask, state = draw_mask(key, (6,), 0.5), start
        for x in xs:
            state = step(mask, state, x)
        return state.sum()

    np.testing.assert_allclose(
        jax.grad(scanned, argnums=1)(KEY, xs), jax.grad(unrolled, argnums=1)(KEY, xs), rtol=1e-4
    )


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.9])
def test_zoneout_without_a_key_is_its_mean_over_all_masks(rate):
    q = keep_prob_of(rate)
    with enable_x64():
        new, old = jnp.array([1.0, -2.0, 4.0]), jnp.array([0.5, 3.0, -1.0])
        keys = jax.random.split(make_key("raw"), 16384)
        outputs = np.asarray(jax.vmap(lambda key: zoneout(key, new, rate, old=old))(keys))
        mean = zoneout(None, new, rate, old=old)
    masks = outputs == np.asarray(new)
    np.testing.assert_array_equal(outputs, np.where(masks, new, old))
    masks, outputs = one_of_each(masks, outputs, 8)
    np.testing.assert_allclose(probabilities(masks, q) @ outputs, mean, rtol=1e-12)


def test_mean_of_zoneout_is_rounded_once():
    new, old = (jnp.linspace(low, 3, 64).astype(jnp.bfloat16) for low in (-2, 1))
    mean = zoneout(None, new, 0.3, old=old)
    wide = zoneout(None, new.astype(jnp.float32), 0.3, old=old.astype(jnp.float32))
    np.testing.assert_array_equal(mean, wide.astype(jnp.bfloat16))


def test_zoneout_leaves_the_old_state_where_the_mask_drops():
    new, old = jnp.arange(1.0, 41.0), -jnp.arange(1.0, 41.0)
    kept = draw_mask(KEY, 40, 0.1).unpack()
    np.testing.assert_array_equal(zoneout(KEY, new, 0.1, old=old), jnp.where(kept, new, old))


@pytest.mark.parametrize("key", [None, "key"])
def test_zoneout_at_the_ends_of_the_rate(key):
    key = None if key is None else KEY
    new, old = jnp.array([1.0, jnp.nan]), jnp.array([jnp.inf, 2.0])
    for one in (1, jnp.float32(1)):
        np.testing.assert_array_equal(zoneout(key, new, one, old=old), old)
    for zero in (0, jnp.float32(0)):
        np.testing.assert_array_equal(zoneout(key, new, zero, old=old), new)


def test_old_state_broadcasts_and_may_be_of_integers():
    new = jnp.full((40, 3), 0.5)
    y = zoneout(KEY, new, 0.4, old=jnp.arange(3))
    np.testing.assert_array_equal(y, zoneout(KEY, new, 0.4, old=jnp.tile(jnp.arange(3.0), (40, 1))))
    assert y.dtype == jnp.float32


def test_zoneout_sends_gradients_to_the_state_that_was_taken():
    new, old = jnp.ones(64), jnp.zeros(64)
    to_new, to_old = jax.grad(
        lambda new, old: zoneout(KEY, new, 0.3, old=old).sum(), argnums=(0, 1)
    )(new, old)
    np.testing.assert_array_equal(to_new + to_old, 1)
    np.testing.assert_array_equal(to_new, zoneout(KEY, new, 0.3, old=old))


def test_zoneout_rejects_bad_rates_and_states():
    with pytest.raises(ValueError, match=r"^zoneout: rate must lie in \[0, 1\]; got 2\.0\.$"):
        zoneout(None, jnp.ones(3), 2.0, old=jnp.ones(3))
    with pytest.raises(TypeError, match=r"^zoneout: old must be of the kind of new; got complex64"):
        zoneout(KEY, jnp.ones(3), 0.5, old=jnp.ones(3, jnp.complex64))
    message = re.escape("zoneout: old must broadcast to new; got (2,) for (3,).")
    with pytest.raises(ValueError, match=f"^{message}$"):
        zoneout(KEY, jnp.ones(3), 0.5, old=jnp.ones(2))
    y = jax.jit(lambda rate: zoneout(None, jnp.ones(3), rate, old=jnp.ones(3)))(jnp.nan)
    assert jnp.isnan(y).all()
