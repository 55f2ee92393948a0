"""The table of rescale rules, cell by cell, over all masks: no sampling."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64

import jaxdrop
from jaxdrop import Mask, rescale
from jaxdrop.base.validate import Check

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
RATES = [0.1, 0.25, 0.5, 0.8]
SIZES = [2, 5, 10]


class Enumeration:
    """Outputs of one rule for all 2^n masks, with their probabilities."""

    def __init__(self, rule, n, rate):
        self.x = np.random.default_rng(n).normal(1, 1, n)
        self.n, self.p, self.q = n, rate, 1 - rate
        self.keep = np.array(list(itertools.product([False, True], repeat=n)))
        self.kept = self.keep.sum(axis=1)
        self.weight = self.q**self.kept * self.p ** (n - self.kept)
        with enable_x64():
            self.y = np.asarray(outputs(rule, self.keep, self.q, self.x))

    @property
    def R(self):  # noqa: N802 (the table's name)
        chance = np.array([math.comb(self.n, s) for s in range(1, self.n + 1)], float)
        s = np.arange(1, self.n + 1)
        chance *= self.q**s * self.p ** (self.n - s)
        return np.sum(chance * self.n / s) / np.sum(chance)

    def mean(self, values, given_some_kept=False):
        weight = self.weight * (self.kept > 0) if given_some_kept else self.weight
        return np.tensordot(weight, values, axes=1) / weight.sum()

    def covariance(self, given_some_kept=False):
        centred = self.y - self.mean(self.y, given_some_kept)
        return self.mean(centred[:, :, None] * centred[:, None, :], given_some_kept)

    def sum_variance(self, given_some_kept=False):
        return np.sum(self.covariance(given_some_kept))

    def squared_norm(self, given_some_kept=False):
        return self.mean(np.sum(self.y**2, axis=1), given_some_kept)


def outputs(rule, keep, keep_prob, x):
    def one(keep):
        return jaxdrop.apply_mask(Mask.pack(keep, keep_prob), jnp.asarray(x), rescale=rule)

    return jax.vmap(one)(jnp.asarray(keep))


def assert_covariance(actual, diagonal, off_diagonal, x):
    expected = np.outer(x, x) * off_diagonal
    np.fill_diagonal(expected, x**2 * diagonal)
    np.testing.assert_allclose(actual, expected, **TOLERANCE)


cases = pytest.mark.parametrize(("n", "rate"), list(itertools.product(SIZES, RATES)))


@pytest.mark.quick
@cases
def test_expected_rule(n, rate):
    e = Enumeration(rescale.expected, n, rate)
    np.testing.assert_allclose(e.mean(e.y), e.x, **TOLERANCE)
    assert_covariance(e.covariance(), e.p / e.q, 0, e.x)
    np.testing.assert_allclose(e.sum_variance(), e.p / e.q * np.sum(e.x**2), **TOLERANCE)
    np.testing.assert_allclose(e.squared_norm(), np.sum(e.x**2) / e.q, **TOLERANCE)


@pytest.mark.quick
@cases
def test_none_rule(n, rate):
    e = Enumeration(rescale.none, n, rate)
    np.testing.assert_allclose(e.mean(e.y), e.q * e.x, **TOLERANCE)
    assert_covariance(e.covariance(), e.p * e.q, 0, e.x)
    np.testing.assert_allclose(e.sum_variance(), e.p * e.q * np.sum(e.x**2), **TOLERANCE)
    np.testing.assert_allclose(e.squared_norm(), e.q * np.sum(e.x**2), **TOLERANCE)


@pytest.mark.quick
@cases
def test_realized_rule(n, rate):
    e = Enumeration(rescale.realized(), n, rate)
    np.testing.assert_allclose(e.mean(e.y), (1 - e.p**n) * e.x, **TOLERANCE)
    np.testing.assert_allclose(e.mean(e.y, given_some_kept=True), e.x, **TOLERANCE)
    assert_covariance(e.covariance(given_some_kept=True), e.R - 1, -(e.R - 1) / (n - 1), e.x)
    spread = (e.R - 1) * n * np.var(e.x, ddof=1)
    np.testing.assert_allclose(e.sum_variance(given_some_kept=True), spread, **TOLERANCE)
    norm = e.R * np.sum(e.x**2)
    np.testing.assert_allclose(e.squared_norm(given_some_kept=True), norm, **TOLERANCE)


@pytest.mark.parametrize("n", SIZES)
def test_fixed_count(n):
    for k in range(1, n + 1):
        x = np.random.default_rng(n).normal(1, 1, n)
        sets = list(itertools.combinations(range(n), k))
        keep = np.zeros((len(sets), n), bool)
        for row, chosen in zip(keep, sets, strict=True):
            row[list(chosen)] = True
        with enable_x64():
            y = np.asarray(outputs(rescale.expected, keep, k / n, x))
        np.testing.assert_allclose(y.mean(axis=0), x, **TOLERANCE)
        covariance = np.cov(y, rowvar=False, bias=True).reshape(n, n)
        assert_covariance(covariance, n / k - 1, -(n / k - 1) / (n - 1), x)
        spread = (n / k - 1) * n * np.var(x, ddof=1)
        np.testing.assert_allclose(np.sum(covariance), spread, **TOLERANCE)
        np.testing.assert_allclose(np.mean(np.sum(y**2, axis=1)), n / k * np.sum(x**2), **TOLERANCE)


@pytest.mark.quick
@cases
def test_preserve_sum_rule(n, rate):
    e = Enumeration(rescale.preserve_sum(), n, rate)
    kept = np.where(e.keep, e.x, 0)
    cancels = np.abs(kept.sum(axis=1)) <= 1e-3 * np.abs(kept).sum(axis=1)
    np.testing.assert_allclose(e.y[~cancels].sum(axis=1), e.x.sum(), **TOLERANCE)
    np.testing.assert_allclose(e.y[cancels], kept[cancels] / e.q, **TOLERANCE)
    biased = np.max(np.abs(e.mean(e.y) - e.x))
    assert biased > 1e-3


@pytest.mark.quick
@cases
def test_preserve_norm_rule(n, rate):
    e = Enumeration(rescale.preserve_norm(), n, rate)
    some = e.kept > 0
    np.testing.assert_allclose(np.sum(e.y[some] ** 2, axis=1), np.sum(e.x**2), **TOLERANCE)
    np.testing.assert_array_equal(e.y[~some], 0)
    biased = np.max(np.abs(e.mean(e.y) - e.x))
    assert biased > 1e-3


@pytest.mark.quick
def test_preserve_sum_falls_back_where_the_kept_elements_cancel():
    x, keep = jnp.array([1.0, -1.0, 5.0, 2.0]), jnp.array([True, True, False, False])
    y = jaxdrop.apply_mask(Mask.pack(keep, 0.5), x, rescale=rescale.preserve_sum())
    assert y.tolist() == [2, -2, 0, 0]
    nearly = x.at[0].set(1 + 1e-2)
    for tolerance, falls_back in [(1e-3, False), (1e-1, True)]:
        rule = rescale.preserve_sum(tolerance=tolerance)
        y = jaxdrop.apply_mask(Mask.pack(keep, 0.5), nearly, rescale=rule)
        assert (abs(float(y[1]) + 2) < 1e-6) == falls_back


def test_gradient_is_finite_where_preserve_rules_fall_back():
    keep = jnp.array([True, True, False])
    for rule in (rescale.preserve_sum(), rescale.preserve_norm()):
        for x in (jnp.array([1.0, -1.0, 5.0]), jnp.zeros(3)):

            def total(x, rule=rule):
                return jnp.sum(jaxdrop.apply_mask(Mask.pack(keep, 0.5), x, rescale=rule) ** 2)

            assert jnp.isfinite(jax.grad(total)(x)).all()


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), (1, 2), None])
def test_rules_count_over_the_given_axes(axis, key):
    x = jnp.abs(jax.random.normal(jax.random.key(1), (16, 17, 18))) + 0.1
    mask = jaxdrop.draw_mask(key, x.shape, 0.4)
    keep = np.asarray(mask.unpack())
    axes = tuple(range(3)) if axis is None else axis
    kept = np.where(keep, x, 0)
    factors = {
        rescale.realized(axis): 1 / keep.mean(axes, keepdims=True),
        rescale.preserve_sum(axis): np.sum(x, axes, keepdims=True) / kept.sum(axes, keepdims=True),
        rescale.preserve_norm(axis): np.sqrt(
            np.sum(np.square(x), axes, keepdims=True) / (kept**2).sum(axes, keepdims=True)
        ),
    }
    for rule, factor in factors.items():
        y = jaxdrop.apply_mask(mask, x, rescale=rule)
        np.testing.assert_allclose(y, kept * factor, rtol=1e-5)


def test_realized_counts_each_shared_decision_once(key):
    x = jnp.ones((3, 4, 5))
    y = jaxdrop.dropout(key, x, 0.5, broadcast_dims=(0, 2), rescale=rescale.realized())
    np.testing.assert_allclose(y.sum(), x.sum(), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("axis", [3, (0, 0), -4])
@pytest.mark.parametrize("rule", [rescale.realized, rescale.preserve_sum, rescale.preserve_norm])
def test_rules_reject_bad_axes(rule, axis, key):
    with pytest.raises(ValueError, match=r"axis must (lie in|name each axis once)"):
        jaxdrop.dropout(key, jnp.ones((2, 2)), 0.5, rescale=rule(axis))


def test_realized_refuses_to_count_beyond_32_bits(key):
    x = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    with pytest.raises(ValueError, match=r"realized: axis must span fewer than 2\^32 elements"):
        jax.eval_shape(lambda x: jaxdrop.dropout(key, x, 0.5, rescale=rescale.realized()), x)
    jax.eval_shape(lambda x: jaxdrop.dropout(key, x, 0.5, rescale=rescale.realized(-1)), x)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9, 1e-4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_scale_is_computed_in_float32_and_rounded_once(rate, dtype, key):
    x = jax.random.normal(jax.random.key(1), (1000,), dtype)
    y = jaxdrop.dropout(key, x, rate)
    keep_prob = np.float32(jaxdrop.draw_mask(jax.random.key(0), (), rate).keep_prob)
    scaled = jnp.asarray(np.asarray(x).astype(np.float32) * (np.float32(1) / keep_prob)).astype(
        dtype
    )
    kept = np.asarray(y) != 0
    np.testing.assert_array_equal(np.asarray(y)[kept], np.asarray(scaled)[kept])


def test_users_rule_sees_mask_and_input(key):
    def rule(mask, x):
        assert mask.shape == (1, 3)
        return jnp.arange(3.0) + mask.unpack().sum().astype(float)

    y = jaxdrop.dropout(key, jnp.ones((2, 3)), 0.5, broadcast_dims=(0,), rescale=rule)
    mask = jaxdrop.draw_mask(jax.random.key(0), (2, 3), 0.5, broadcast_dims=(0,))
    keep = np.asarray(mask.unpack())
    expected = np.where(keep, np.arange(3.0)[None] + keep.sum(), 0) * np.ones((2, 1))
    np.testing.assert_array_equal(y, expected)


def test_rule_with_a_factor_of_another_shape_is_refused(key):
    with pytest.raises(ValueError, match=r"factor must broadcast to \(2, 3\); got shape \(2,\)"):
        jaxdrop.dropout(key, jnp.ones((2, 3)), 0.5, rescale=lambda mask, x: jnp.ones(2))


class Gain:
    """A rule with state that changes between calls."""

    def __init__(self, gain):
        self.gain = gain

    def rule(self, mask, x):
        return self.gain * rescale.expected(mask, x)


def test_users_rule_is_called_each_time_and_may_change(key):
    gain, x = Gain(jnp.float32(1)), jnp.ones(50)
    mask = jaxdrop.draw_mask(key, 50, 0.5)
    for value in (1.0, 10.0):
        gain.gain = jnp.float32(value)
        for y in (
            jaxdrop.apply_mask(mask, x, rescale=gain.rule),
            jaxdrop.dropout(jax.random.key(0), x, 0.5, rescale=gain.rule),
        ):
            np.testing.assert_array_equal(y, np.where(mask.unpack(), 2 * value, 0))


def test_gradient_reaches_what_a_users_rule_closes_over():
    gain, x = Gain(jnp.float32(1)), jnp.ones(50)

    def total(value):
        gain.gain = value
        return jaxdrop.dropout(jax.random.key(0), x, 0.5, rescale=gain.rule).sum()

    kept = jaxdrop.draw_mask(jax.random.key(0), 50, 0.5).unpack().sum()
    for grad in (jax.jit(jax.grad(total)), jax.grad(total)):
        np.testing.assert_allclose(grad(3.0), 2 * kept)


@pytest.mark.parametrize("size", [1e-37, 1e-25, 1.0, 1e20, 1e37])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_preserve_norm_at_every_magnitude(size, dtype, key):
    x = jnp.asarray(np.full(40, size, np.float32)).astype(dtype)
    y = jaxdrop.dropout(key, x, 0.5, rescale=rescale.preserve_norm())
    kept = int((y != 0).sum())
    np.testing.assert_allclose(np.abs(y).max() / size, (40 / kept) ** 0.5, rtol=1e-4)


def test_preserve_norm_of_small_survivors_among_large_elements():
    x = jnp.array([1e25, 1.0, 2.0])
    mask = Mask.pack(jnp.array([False, True, True]), 0.5)
    y = jaxdrop.apply_mask(mask, x, rescale=rescale.preserve_norm())
    np.testing.assert_allclose(y / 1e25, np.array([0, 1, 2]) / 5**0.5, rtol=1e-6)


@pytest.mark.quick
def test_equal_settings_make_equal_rules():
    assert rescale.realized(0) == rescale.realized(0) != rescale.realized(1)
    assert hash(rescale.preserve_sum((0, 1))) == hash(rescale.preserve_sum((0, 1)))


def test_axes_may_be_given_as_a_list(key):
    x = jnp.ones((2, 3))
    y = jaxdrop.dropout(key, x, 0.5, rescale=rescale.realized([0, 1]))
    np.testing.assert_array_equal(
        y, jaxdrop.dropout(jax.random.key(0), x, 0.5, rescale=rescale.realized())
    )


class TestInferenceScale:
    def test_multiplies_by_the_keep_probability_drawn(self):
        tree = {"w": jnp.ones(3), "v": [jnp.full(2, 2, jnp.bfloat16)]}
        scaled = rescale.inference_scale(tree, 0.1)
        keep_prob = jaxdrop.draw_mask(jax.random.key(0), (), 0.1).keep_prob
        np.testing.assert_array_equal(scaled["w"], keep_prob)
        assert scaled["v"][0].dtype == jnp.bfloat16

    def test_makes_the_next_layer_see_its_expected_input(self):
        n, rate = 8, 0.25
        e = Enumeration(rescale.none, n, rate)
        w = np.random.default_rng(0).normal(size=n)
        with enable_x64():
            scaled = np.asarray(rescale.inference_scale(jnp.asarray(w), rate))
        np.testing.assert_allclose(e.mean(e.y @ w), e.x @ scaled, **TOLERANCE)

    def test_takes_a_traced_rate(self):
        scaled = jax.jit(rescale.inference_scale)(jnp.ones(2), jnp.float32(0.25))
        assert scaled.tolist() == [0.75, 0.75]

    def test_names_the_leaf_that_cannot_be_scaled(self):
        with pytest.raises(
            TypeError, match=r"tree\['ids'\] must be floating or complex; got int32"
        ):
            rescale.inference_scale({"ids": jnp.arange(2)}, 0.1)

    def test_rejects_a_bad_rate(self):
        with pytest.raises(ValueError, match=r"inference_scale: rate must lie in \[0, 1\]; got 2"):
            rescale.inference_scale(jnp.ones(2), 2)


@pytest.mark.quick
def test_rule_is_a_function_of_two():
    for rule in (max, lambda mask, x: 1, lambda *a: 1, dict.get):
        assert rescale.checked_rule(Check("f"), rule) is rule
    for rule in (None, 1, lambda mask: 1, lambda mask, x, y: 1):
        with pytest.raises(TypeError, match=r"^f: rescale must be a function of \(mask, x\)"):
            rescale.checked_rule(Check("f"), rule)
