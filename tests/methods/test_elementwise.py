"""Exact laws of the methods that decide element by element."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import moments, outputs_by_mask
from modes import enable_x64, make_key
from reference.methods import Key

from jaxdrop import (
    Mask,
    apply_mask,
    draw_fixed_count_mask,
    dropout,
    fixed_count_dropout,
    gaussian_dropout,
)

pytestmark = pytest.mark.quick

RATES = [0.25, 0.5, 0.875]


def noise(rate, size=2**16, **options):
    y = gaussian_dropout(make_key("raw"), jnp.ones(size), rate, **options)
    return (np.asarray(y, np.float64) - 1) / np.sqrt(rate / (1 - rate))


def test_gaussian_dropout_has_normal_noise():
    # A distance from the normal law above `limit` has a false-alarm rate of
    # 1e-9 (Dvoretzky, Kiefer, Wolfowitz); uniform or too wide noise is caught.
    e, limit = np.sort(noise(0.5)), np.sqrt(np.log(2e9) / 2 / 2**16)
    law = np.asarray(jax.scipy.stats.norm.cdf(jnp.asarray(e, jnp.float32)))
    steps = np.arange(1, e.size + 1) / e.size
    assert np.abs(steps - law).max() < limit
    wide = np.asarray(jax.scipy.stats.norm.cdf(jnp.asarray(1.1 * e, jnp.float32)))
    assert np.abs(steps - wide).max() > limit


@pytest.mark.parametrize("rate", [1e-6, 0.1, 0.5, 0.9])
def test_gaussian_dropout_scales_one_noise_by_the_spread_of_dropout(rate):
    np.testing.assert_allclose(noise(rate, 100), noise(0.75, 100), rtol=2e-3, atol=2e-4)


def test_gaussian_noise_is_symmetric_and_independent_of_dtype():
    plain = noise(0.5, 64)
    with enable_x64():
        y = gaussian_dropout(make_key("raw"), jnp.ones(64, jnp.float64), 0.5)
    np.testing.assert_allclose(np.asarray(y) - 1, plain, atol=1e-5)


def test_gaussian_dropout_is_the_formula_of_box_and_muller():
    first, second = Key("raw", (0, 0)).pair((64,))
    u, t = (first + 0.5) / 2**32, (second.view(np.int32) + 0.5) / 2**31
    e = np.sqrt(-2 * np.log(u)) * np.sin(np.pi / 2 * t)
    with enable_x64():
        y = np.asarray(gaussian_dropout(make_key("raw"), jnp.full(64, 3.0), 0.75))
    np.testing.assert_allclose(y, 3 * (1 + np.sqrt(3) * e), rtol=1e-12, atol=1e-12)


def test_gaussian_dropout_shares_noise_along_broadcast_dims():
    y = gaussian_dropout(make_key("raw"), jnp.ones((3, 4, 5)), 0.5, broadcast_dims=(1,))
    assert jnp.all(y == y[:, :1])
    np.testing.assert_array_equal(y[:, 0], gaussian_dropout(make_key("raw"), jnp.ones((3, 5)), 0.5))


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
def test_fixed_count_dropout_has_its_mean_and_covariance(rate):
    n, k = 5, round(5 * (1 - rate))
    with enable_x64():
        x = jnp.array([1.0, -2.0, 3.0, 0.5, 4.0])
        number = math.comb(n, k)
        masks, outputs = outputs_by_mask(
            lambda key, x: fixed_count_dropout(key, x, rate), x, number
        )
    assert (masks.sum(1) == k).all()
    mean, covariance = moments(np.full(number, 1 / number), outputs)
    np.testing.assert_allclose(mean, x, rtol=1e-12)
    spread = n / k - 1
    expected = -np.outer(x, x) * spread / (n - 1)
    np.fill_diagonal(expected, np.asarray(x) ** 2 * spread)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_fixed_count_is_the_same_for_known_and_traced_rates():
    drop = jax.jit(fixed_count_dropout)
    for size in (5, 10, 37):
        x = jnp.ones(size)
        for rate in np.linspace(0, 1, 21):
            known = fixed_count_dropout(make_key("raw"), x, float(rate))
            traced = drop(make_key("raw"), x, jnp.float32(rate))
            np.testing.assert_allclose(known, traced, rtol=1e-6)
            assert abs(np.sum(np.asarray(known) != 0) - size * (1 - rate)) <= 0.5 + 1e-6


def test_fixed_count_dropout_is_the_fixed_count_mask_applied():
    x = jnp.arange(1.0, 25.0).reshape(4, 6)
    y = fixed_count_dropout(make_key("raw"), x, 0.5, axis=1)
    mask = draw_fixed_count_mask(make_key("raw"), x.shape, 3, axis=1)
    np.testing.assert_allclose(y, apply_mask(mask, x), rtol=1e-6)
    shared = fixed_count_dropout(make_key("raw"), x, 0.5, broadcast_dims=0)
    assert jnp.all((shared != 0).sum(1) == 3)


def test_gaussian_dropout_has_the_moments_of_dropout_under_a_linear_layer():
    # Var[w . y] = (p / q) sum w^2 x^2 for both; each estimate from 2^14 draws
    # is within 20 % but for a chance below 1e-9 (the fourth moment is bounded).
    x, w = jnp.array([1.0, -2.0, 3.0]), jnp.array([2.0, 1.0, 0.5])
    keys = jax.random.split(jax.random.PRNGKey(3), 2**14)
    exact = float(jnp.sum(w**2 * x**2))
    for method in (dropout, gaussian_dropout):
        sums = jax.vmap(lambda key, drop=method: drop(key, x, 0.5) @ w)(keys)
        assert abs(float(jnp.var(sums)) / exact - 1) < 0.2


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2, 1), (1, 1)])
def test_mask_fits_where_sizes_are_equal_or_shared(shape):
    mask = Mask.pack(jnp.ones(shape, bool), 0.5)
    np.testing.assert_array_equal(apply_mask(mask, jnp.ones((2, 3))), 2)
