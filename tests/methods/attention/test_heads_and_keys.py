"""Exact laws of the methods for attention."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import keep_prob_of, one_of_each, outputs_by_mask, probabilities
from modes import enable_x64, make_key

from jaxdrop import draw_mask, drop_heads, drop_key, dropout, rescale

KEY = make_key("raw")
LOWEST = float(jnp.finfo(jnp.float32).min)


@pytest.mark.quick
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9375])
def test_heads_keep_their_mean_given_that_one_survives(rate):
    q = keep_prob_of(rate)
    with enable_x64():
        x = np.array([[[1.0], [-2.0], [4.0]]])  # one sample, three heads
        keys = jax.random.split(make_key("raw"), 32768)
        outputs = np.asarray(jax.vmap(lambda key: drop_heads(key, x, rate))(keys))[:, 0, :, 0]
    masks, outputs = one_of_each(outputs != 0, outputs, 8)
    np.testing.assert_array_equal(outputs[0], 0)  # no head survives: zeros, not NaN
    weights = probabilities(masks, q)[1:]
    np.testing.assert_allclose(weights @ outputs[1:] / weights.sum(), x[0, :, 0], rtol=1e-12)
    kept = masks.sum(1, keepdims=True)[1:]
    np.testing.assert_allclose(outputs[1:], masks[1:] * x[0, :, 0] * 3 / kept, rtol=1e-12)


@pytest.mark.quick
def test_heads_that_are_alike_keep_their_sum_in_each_sample():
    sums = np.asarray(drop_heads(KEY, jnp.ones((64, 3, 4, 2)), 0.5).sum(2))
    lost = ~sums.any((1, 2))
    assert 0 < lost.sum() < 16
    np.testing.assert_allclose(sums[~lost], 4, rtol=1e-6)


def test_no_surviving_head_gives_zeros_with_zero_gradient():
    x = jnp.ones((256, 2, 3, 4))  # at rate .9 hundreds of samples lose all heads
    y, pull = jax.vjp(lambda x: drop_heads(KEY, x, 0.9), x)
    lost = ~np.asarray(y).any((1, 2, 3))
    assert lost.sum() > 100
    gradient = pull(jnp.full_like(y, jnp.inf))[0]
    assert jnp.isfinite(y).all()
    np.testing.assert_array_equal(gradient[lost], 0)


def test_heads_may_lie_anywhere_and_take_rules():
    x = jnp.linspace(1, 2, 8 * 4 * 5 * 6).reshape(8, 4, 5, 6)  # batch, heads, time, features
    y = drop_heads(KEY, x, 0.5, head_axis=1)
    last = drop_heads(KEY, jnp.moveaxis(x, 1, 2), 0.5)
    np.testing.assert_array_equal(jnp.moveaxis(last, 2, 1), y)
    expected = drop_heads(KEY, x, 0.5, head_axis=1, rescale=rescale.expected)
    np.testing.assert_array_equal(expected, dropout(KEY, x, 0.5, broadcast_dims=(2, 3)))
    one = drop_heads(KEY, x[0], 0.5, head_axis=0, batch_axis=None)
    assert one.shape == (4, 5, 6)


def test_head_axis_and_batch_axis_must_differ():
    message = "drop_heads: head_axis and batch_axis must differ; got -3 and 0 for 3 axes."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        drop_heads(KEY, jnp.ones((2, 3, 4)), 0.5, head_axis=-3)


@pytest.mark.parametrize("rate", [0.99, 1, jnp.float32(1)])
@pytest.mark.parametrize("keys", [1, 2, 63, 64, 65, 200])
def test_a_query_never_loses_all_its_keys(rate, keys):
    y = drop_key(KEY, jnp.zeros((4, 128, keys)), rate)
    left = (y == 0).sum(-1)
    assert left.min() >= 1
    if rate == 1:
        assert left.max() == 1
    weights = jax.nn.softmax(y)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


@pytest.mark.quick
def test_keys_are_lost_as_the_mask_says_unless_all_would_be():
    logits = jnp.zeros((512, 4))
    kept = np.asarray(draw_mask(KEY, logits.shape, 0.5).unpack())
    y = np.asarray(drop_key(KEY, logits, 0.5)) == 0
    some = kept.any(1)
    assert not some.all()
    np.testing.assert_array_equal(y[some], kept[some])
    np.testing.assert_array_equal(y[~some].sum(1), 1)


@pytest.mark.quick
def test_a_key_is_kept_with_the_stated_probability():
    # p = .9, n = 4: q + p^n / n = .264. By Hoeffding the share over 2^16 queries
    # is within .0128 but for a chance of 1e-9; without the key that stays it is .1.
    y = drop_key(KEY, jnp.zeros((2**16, 4)), 0.9)
    share = np.asarray(y == 0).mean(0)
    exact = 0.1 + 0.9**4 / 4
    assert np.all(np.abs(share - exact) < 0.0128)
    assert exact - 0.1 > 0.0128


def test_the_key_that_stays_is_one_of_those_not_masked_each_equally_likely():
    live = np.zeros(150, bool)
    live[[3, 63, 64, 100, 149]] = True
    logits = jnp.broadcast_to(jnp.where(live, 0.0, -jnp.inf), (2**16, 150))
    left = np.asarray(drop_key(KEY, logits, 1.0)) == 0
    np.testing.assert_array_equal(left.sum(1), 1)
    assert not left[:, ~live].any()
    assert np.all(np.abs(left.mean(0)[live] - 0.2) < 0.0128)  # Hoeffding, 1e-9 each


@pytest.mark.parametrize("masked", [-jnp.inf, LOWEST, 0.7 * LOWEST])
def test_masked_keys_are_no_keys_to_be_left_with(masked):
    causal = jnp.where(jnp.tri(9, dtype=bool), 1.0, masked)
    y = drop_key(KEY, jnp.broadcast_to(causal, (64, 9, 9)), 0.95)
    assert jnp.all(jnp.any(y == 1, axis=-1))
    assert jnp.all(y[:, 0, 0] == 1)  # the first query has one key only
    assert not jnp.isnan(jax.nn.softmax(y)).any()


@pytest.mark.parametrize("masked", [-jnp.inf, LOWEST])
def test_a_query_without_keys_is_returned_as_it_came(masked):
    logits = jnp.full((5, 7), masked).at[1].set(0.0)
    y = drop_key(KEY, logits, 0.9)
    np.testing.assert_array_equal(y[0], logits[0])
    np.testing.assert_array_equal(y[2:], logits[2:])


@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logit_below_half_of_the_lowest_is_masked_and_no_other_is(dtype):
    half = jnp.asarray(float(jnp.finfo(dtype).min) / 2, dtype)
    rows = [[jnp.nextafter(half, -jnp.inf), seen, -jnp.inf] for seen in (half, -1e4, jnp.nan)]
    logits = jnp.stack([jnp.stack([jnp.asarray(x, dtype) for x in row]) for row in rows])
    y = drop_key(KEY, logits, 1)
    expected = logits.at[:, 0].set(-jnp.inf)
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(jnp.float32))
    assert y.dtype == dtype


def test_where_says_which_keys_a_query_may_be_left_with_and_masks_none():
    where = jnp.arange(6) < 2  # the others were masked by -1e9, which is a logit like any other
    logits = jnp.broadcast_to(jnp.where(where, 0.0, -1e9), (512, 6))
    y = np.asarray(drop_key(KEY, logits, 0.9, where=where))
    drawn = np.where(draw_mask(KEY, logits.shape, 0.9).unpack(), logits, -np.inf)
    lost = ~(drawn[:, :2] == 0).any(1)
    assert lost.any()
    assert (drawn[lost, 2:] == -1e9).any()
    np.testing.assert_array_equal(y[:, 2:], drawn[:, 2:])
    np.testing.assert_array_equal(y[~lost], drawn[~lost])
    np.testing.assert_array_equal(np.sort(y[lost, :2]), np.array([[-np.inf, 0]] * lost.sum()))
    hidden = logits.at[:, 0].set(-jnp.inf)  # by the logits too
    assert (drop_key(KEY, hidden, 1.0, where=where)[:, 1] == 0).all()
    np.testing.assert_array_equal(drop_key(KEY, logits, 0.9, where=False), logits)
    np.testing.assert_array_equal(drop_key(None, logits, 0, where=where), logits)
    with pytest.raises(TypeError, match=r"^drop_key: where must be boolean; got float32\.$"):
        drop_key(KEY, logits, 0.5, where=logits)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e4m3b11fnuz"])
def test_dtypes_without_an_infinity_are_refused(dtype):
    message = re.escape(f"drop_key: logits must have a dtype with an infinity; got {dtype}.")
    with pytest.raises(TypeError, match=f"^{message}"):
        drop_key(KEY, jnp.zeros((2, 3), dtype), 0.5)


def test_gradient_of_drop_key_is_one_where_a_logit_stays():
    logits = jnp.zeros((16, 9))
    y, pull = jax.vjp(lambda logits: drop_key(KEY, logits, 0.6), logits)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], y == 0)


def test_drop_key_shares_its_mask_over_heads():
    logits = jnp.zeros((2, 8, 16, 40))
    y = drop_key(KEY, logits, 0.97, broadcast_dims=(1,))
    assert jnp.all(y == y[:, :1])
    assert (y == 0).any(-1).all()


@pytest.mark.quick
def test_heads_need_an_axis():
    with pytest.raises(TypeError, match=r"^drop_heads: head_axis must be integers; got None"):
        drop_heads(KEY, jnp.ones((2, 3, 4)), 0.5, head_axis=None)


@pytest.mark.quick
def test_drop_key_needs_a_key_at_rate_one():
    with pytest.raises(TypeError, match=r"^drop_key: key must be one key; got None\."):
        drop_key(None, jnp.ones((2, 3)), 1)


@pytest.mark.quick
def test_drop_key_rejects_what_has_no_keys():
    with pytest.raises(ValueError, match=r"^drop_key: logits must have an axis of keys; got shape"):
        drop_key(KEY, jnp.ones(()), 0.5)
    message = "drop_key: broadcast_dims must not name the keys' axis; got -1."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        drop_key(KEY, jnp.ones((2, 3)), 0.5, broadcast_dims=-1)


def test_enumeration_sees_every_mask():
    masks, _ = outputs_by_mask(lambda key, x: dropout(key, x, 0.5), jnp.ones(3))
    np.testing.assert_allclose(probabilities(masks, 0.5).sum(), 1)
