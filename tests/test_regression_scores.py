"""Scores of regressions are the integrals, sums and enumerations that define them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from modes import enable_x64
from scipy import integrate, stats

from jaxdrop import monte_carlo, uncertainty
from jaxdrop.uncertainty import (
    crps_ensemble,
    crps_mixture,
    crps_normal,
    interval_coverage,
    interval_score,
    probability_integral_transform,
)

ESTIMATORS = ["fair", "plain"]
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def crps_by_integral(cdf, target, around):
    """The integral of the definition, split where the integrand jumps or bends."""
    ends = [-np.inf, *sorted({target, *around}), np.inf]
    parts = (
        integrate.quad(
            lambda x: (cdf(x) - (x >= target)) ** 2, a, b, epsabs=1e-14, epsrel=1e-13, limit=200
        )[0]
        for a, b in itertools.pairwise(ends)
    )
    return sum(parts)


def ensemble_by_pairs(target, samples, estimator):
    count = len(samples)
    pairs = np.abs(samples[:, None] - samples[None]).sum((0, 1)) / 2
    weight = count * (count - 1 if estimator == "fair" else count)
    return np.abs(samples - target).mean(0) - pairs / weight


# The continuous ranked probability score.


@pytest.mark.quick
def test_crps_of_normals_is_the_integral_of_its_definition():
    for target, mean, variance in [(0.3, 0.0, 1.0), (-2.0, 1.0, 0.25), (5.0, 4.0, 9.0)]:
        law = stats.norm(mean, np.sqrt(variance))
        exact = crps_by_integral(law.cdf, target, [mean, mean - 3, mean + 3])
        with enable_x64():
            found = crps_normal(jnp.float64(target), mean, variance)
        np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_mean_score_of_targets_from_the_prediction_is_the_least():
    """It is s / sqrt(pi); another mean or spread costs more."""
    x, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    with enable_x64():
        mean_score = lambda m, v: float(weights @ crps_normal(jnp.asarray(2 * x + 1), m, v))  # noqa: E731
        best = mean_score(1.0, 4.0)
        np.testing.assert_allclose(best, 2 / np.sqrt(np.pi), rtol=1e-12)
        for mean, variance in ((0.9, 4.0), (1.1, 4.0), (1.0, 3.5), (1.0, 4.5)):
            assert mean_score(mean, variance) > best + 1e-5


def test_crps_of_mixtures_is_the_integral_of_its_definition():
    means, variances = np.array([-1.0, 0.5, 3.0]), np.array([0.5, 1.0, 0.1])
    spreads = np.sqrt(variances)
    for target in (-2.0, 0.4, 3.5):
        exact = crps_by_integral(
            lambda x: stats.norm.cdf((x - means) / spreads).mean(), target, [*means, -4.0, 5.0]
        )
        with enable_x64():
            found = crps_mixture(jnp.float64(target), jnp.asarray(means), jnp.asarray(variances))
        np.testing.assert_allclose(found, exact, rtol=1e-12)


@pytest.mark.quick
def test_mixture_of_one_is_a_normal_and_without_noise_the_samples():
    rng = np.random.default_rng(0)
    targets, means, variances = rng.normal(size=5), rng.normal(size=(6, 5)), rng.uniform(size=5)
    with enable_x64():
        targets, means, variances = map(jnp.asarray, (targets, means, variances))
        one = crps_mixture(targets, means[:1], variances)
        np.testing.assert_allclose(one, crps_normal(targets, means[0], variances), rtol=1e-13)
        same = crps_mixture(targets, jnp.broadcast_to(means[:1], means.shape), variances)
        np.testing.assert_allclose(same, one, rtol=1e-12)
        sure = crps_mixture(targets, means, 0.0)
        plain = crps_ensemble(targets, means, estimator="plain")
        np.testing.assert_allclose(sure, plain, rtol=1e-12)


@pytest.mark.quick
@each_estimator
@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_crps_of_samples_is_that_of_all_pairs(estimator, count):
    rng = np.random.default_rng(count)
    samples, targets = rng.normal(size=(count, 3, 4)), 2 * rng.normal(size=(3, 4))
    with enable_x64():
        found = crps_ensemble(jnp.asarray(targets), jnp.asarray(samples), estimator=estimator)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, ensemble_by_pairs(targets, samples, estimator), rtol=1e-12)


quarters = st.integers(-8, 8).map(lambda i: i / 4)  # equal ones, and sums that are exact


@settings(max_examples=60)
@given(
    samples=arrays.arrays(np.float64, st.sampled_from([2, 4, 8]), elements=quarters), at=quarters
)
def test_crps_of_samples_with_ties_is_that_of_all_pairs(samples, at):
    for estimator in ESTIMATORS:
        found = crps_ensemble(jnp.asarray(at), jnp.asarray(samples), estimator=estimator)
        expected = ensemble_by_pairs(at, samples, estimator)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        assert found >= 0
        other = crps_ensemble(jnp.asarray(at), jnp.asarray(samples[::-1]), estimator=estimator)
        assert found == other


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fair_estimator_has_no_bias_and_the_plain_one_has_the_bias_it_says(count):
    """By all samples of a distribution on five values."""
    values, chances = np.array([-1.0, 0.0, 0.5, 2.0, 7.0]), np.array([0.1, 0.3, 0.2, 0.3, 0.1])
    spread = chances @ np.abs(values[:, None] - values[None]) @ chances
    picks = np.array(list(itertools.product(range(5), repeat=count))).T
    weights = chances[picks].prod(0)
    with enable_x64():
        samples = jnp.asarray(values[picks])
        for target in (-3.0, 0.0, 0.7, 9.0):
            exact = chances @ np.abs(values - target) - spread / 2
            means = [
                weights @ crps_ensemble(jnp.float64(target), samples, estimator=estimator)
                for estimator in ESTIMATORS
            ]
            np.testing.assert_allclose(means, [exact, exact + spread / (2 * count)], rtol=1e-12)


@pytest.mark.quick
def test_plain_score_of_one_sample_is_its_error():
    found = crps_ensemble(jnp.array([1.0, -3.0]), jnp.array([[2.5, -3.0]]), estimator="plain")
    assert found.tolist() == [1.5, 0]


@each_estimator
def test_crps_of_samples_far_from_zero_does_not_cancel(estimator):
    samples = (1e4 + np.arange(64) / 64).astype(np.float32)
    exact = ensemble_by_pairs(np.float64(1e4 + 0.5), samples.astype(np.float64), estimator)
    found = crps_ensemble(jnp.float32(1e4 + 0.5), jnp.asarray(samples), estimator=estimator)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.quick
@each_estimator
def test_crps_of_samples_scales_with_them_however_small_they_are(estimator):
    rng, unit = np.random.default_rng(0), np.float32(2**-60)
    y, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4,), (3, 4)))
    small = crps_ensemble(y * unit, x * unit, estimator=estimator)
    np.testing.assert_array_equal(small, crps_ensemble(y, x, estimator=estimator) * unit)


@pytest.mark.quick
def test_scores_of_sure_predictions_are_absolute_errors_with_gradients():
    targets, means = jnp.array([1.0, 2.0, -1.0]), jnp.array([1.0, 0.5, 0.5])
    np.testing.assert_array_equal(crps_normal(targets, means, 0.0), [0, 1.5, 1.5])
    np.testing.assert_array_equal(crps_mixture(targets, means[None], 0.0), [0, 1.5, 1.5])
    slopes = jax.grad(lambda m, v: crps_normal(targets, m, v).sum(), (0, 1))(means, jnp.zeros(3))
    np.testing.assert_array_equal(slopes[0], [0, -1, 1])
    np.testing.assert_array_equal(slopes[1], 0)
    shrinking = [float(crps_normal(jnp.float32(1.5), 0.5, v)) for v in (1e-2, 1e-6, 1e-30)]
    np.testing.assert_allclose(shrinking[1:], 1, rtol=1e-3)


def test_gradients_are_finite_differences():
    rng = np.random.default_rng(0)
    with enable_x64():
        targets, means = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(4, 3)))
        variances = jnp.asarray(rng.uniform(0.5, 2, size=(4, 3)))
        for loss, at in (
            (lambda m: crps_normal(targets, m[0], variances[0]).sum(), means),
            (lambda v: crps_normal(targets, means[0], v[0]).sum(), variances),
            (lambda m: crps_mixture(targets, m, variances).sum(), means),
            (lambda v: crps_mixture(targets, means, v).sum(), variances),
            (lambda m: crps_ensemble(targets, m).sum(), means),
            (lambda m: crps_ensemble(targets, m, estimator="plain").sum(), means),
            (lambda m: probability_integral_transform(targets, m, variances).sum(), means),
        ):
            way = jnp.asarray(rng.normal(size=at.shape))
            slope = jnp.vdot(jax.grad(loss)(at), way)
            difference = (loss(at + 1e-6 * way) - loss(at - 1e-6 * way)) / 2e-6
            np.testing.assert_allclose(slope, difference, rtol=1e-6)


# Intervals.


@pytest.mark.quick
def test_coverage_counts_bounds_as_inside():
    targets = jnp.array([[0.0, 0.5, 1.0], [-0.1, 1.1, 0.2]])
    np.testing.assert_allclose(interval_coverage(targets, 0.0, 1.0), 4 / 6, rtol=1e-6)
    upper = jnp.array([1.0, 2.0, 0.1])
    np.testing.assert_allclose(interval_coverage(targets, 0.0, upper), 3 / 6, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_interval_score_is_its_formula_and_least_at_the_quantiles(alpha):
    targets = (np.arange(400) + 0.5) / 400  # uniform on [0, 1]
    grid = np.arange(21) / 20
    scores = {}
    with enable_x64():
        for lower, upper in itertools.combinations_with_replacement(grid, 2):
            found = interval_score(jnp.asarray(targets), lower, upper, alpha=alpha)
            below, above = np.maximum(lower - targets, 0), np.maximum(targets - upper, 0)
            expected = upper - lower + 2 / alpha * below + 2 / alpha * above
            np.testing.assert_allclose(found, expected, rtol=1e-12)
            scores[lower, upper] = found.mean()
    best = min(scores, key=scores.get)
    np.testing.assert_allclose(best, [alpha / 2, 1 - alpha / 2], atol=1e-12)


def test_traced_alpha_is_that_number_and_bad_ones_give_nan():
    targets = jnp.array([0.5, 3.0])
    score = jax.jit(lambda alpha: interval_score(targets, 0.0, 2.0, alpha=alpha))
    np.testing.assert_allclose(score(0.1), [2, 22], rtol=1e-6)
    for bad in (0.0, -0.1, 1.5, np.nan):
        assert jnp.isnan(score(bad)).all()


# The probability integral transform.


@pytest.mark.quick
def test_transform_of_quantiles_is_their_level():
    levels = np.linspace(0.01, 0.99, 15)
    with enable_x64():
        targets = jnp.asarray(stats.norm.ppf(levels, 3, 2))
        pit = probability_integral_transform(targets, jnp.full((1, 15), 3.0), 4.0)
    np.testing.assert_allclose(pit, levels, rtol=1e-12)


def test_transform_is_the_distribution_function_of_the_mixture():
    rng = np.random.default_rng(0)
    targets, means = rng.normal(size=5), rng.normal(size=(4, 5))
    variances = rng.uniform(0.1, 2, size=(4, 5))
    with enable_x64():
        pit = probability_integral_transform(*map(jnp.asarray, (targets, means, variances)))
    exact = stats.norm.cdf(targets, means, np.sqrt(variances)).mean(0)
    np.testing.assert_allclose(pit, exact, rtol=1e-12)


@pytest.mark.quick
def test_transform_of_samples_takes_each_value_equally_often():
    orders = np.array(list(itertools.permutations(range(5))), np.float32).T
    pit = probability_integral_transform(jnp.asarray(orders[0]), jnp.asarray(orders[1:]))
    values, counts = np.unique(pit, return_counts=True)
    assert values.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert counts.tolist() == [24] * 5
    tied = probability_integral_transform(jnp.float32(2), jnp.array([1.0, 2.0, 2.0, 3.0]))
    assert tied == 0.5


def test_transform_tells_the_coverage_of_every_central_interval():
    rng = np.random.default_rng(0)
    with enable_x64():
        targets, mean, spread = jnp.asarray(rng.normal(size=200)), 0.3, 1.7
        pit = probability_integral_transform(targets, jnp.full((1, 200), mean), spread**2)
        for level in (0.1, 0.5, 0.9):
            reach = stats.norm.ppf(0.5 + level / 2) * spread
            covered = interval_coverage(targets, mean - reach, mean + reach)
            inside = np.abs(np.asarray(pit) - 0.5) <= level / 2
            np.testing.assert_allclose(covered, inside.mean(), rtol=1e-12)


# All of them.


def test_samples_of_monte_carlo_are_scored_as_they_come():
    def predict(key, x):
        noise = jax.random.normal(key, (2, *x.shape))
        return x + noise[0], jnp.exp(noise[1])

    x = jnp.linspace(-1, 1, 4)
    means, variances = monte_carlo(predict, 9)(jax.random.key(0), x)
    parts = uncertainty.regression(means, variances)
    for score in (
        crps_mixture(x, means, variances),
        crps_ensemble(x, means),
        crps_normal(x, parts.mean, parts.total),
        probability_integral_transform(x, means, variances),
    ):
        assert score.shape == x.shape
        assert jnp.isfinite(score).all()
    lower, upper = jnp.quantile(means, jnp.array([0.1, 0.9]), axis=0)
    assert 0 <= interval_coverage(x, lower, upper) <= 1


CALLS = {
    "crps_normal": lambda y, x: crps_normal(y, x[0], 1.0),
    "crps_mixture": lambda y, x: crps_mixture(y, x, 1.0),
    "crps_ensemble": crps_ensemble,
    "crps_ensemble, plain": lambda y, x: crps_ensemble(y, x, estimator="plain"),
    "interval_score": lambda y, x: interval_score(y, x.min(0), x.max(0), alpha=0.2),
    "interval_coverage": lambda y, x: interval_coverage(y, x.min(0), x.max(0)),
    "transform": lambda y, x: probability_integral_transform(y, x, 1.0),
    "transform of samples": probability_integral_transform,
}
every_call = pytest.mark.parametrize("name", CALLS)


@every_call
def test_nan_is_not_hidden(name):
    call, y, x = CALLS[name], jnp.array([0.5, 1.0]), jnp.arange(8.0).reshape(4, 2)
    for bad_y, bad_x in ((y.at[0].set(jnp.nan), x), (y, x.at[0, 0].set(jnp.nan))):
        score = call(bad_y, bad_x)
        assert jnp.isnan(score if score.ndim == 0 else score[0])
        assert score.ndim == 0 or jnp.isfinite(score[1])
    assert jnp.isfinite(call(y, x)).all()


def test_examples_may_be_split_over_explicit_axes():
    rng = np.random.default_rng(0)
    y, x = (rng.normal(size=s).astype(np.float32) for s in ((16,), (8, 16)))
    kind, spec = jax.sharding.AxisType.Explicit, jax.sharding.PartitionSpec
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        split = jax.device_put(y, spec("data")), jax.device_put(x, spec(None, "data"))
        for call in CALLS.values():
            np.testing.assert_allclose(jax.jit(call)(*split), call(y, x), rtol=1e-5, atol=1e-7)


@pytest.mark.quick
def test_negative_variances_and_crossed_bounds_give_nan():
    y = jnp.array([0.0, 1.0])
    negative = jnp.array([-1.0, 1.0])
    for score in (
        crps_normal(y, 0.0, negative),
        crps_mixture(y, y[None], negative),
        probability_integral_transform(y, y[None], negative),
        interval_score(y, jnp.array([1.0, 0.0]), 0.5, alpha=0.5),
    ):
        assert jnp.isnan(score).tolist() == [True, False]
    assert jnp.isnan(interval_coverage(y, jnp.array([1.0, 0.0]), 0.5))
