"""Parts of uncertainty add up, and scores are those of plain NumPy in double precision."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from modes import quick_jit

from jaxdrop import uncertainty
from jaxdrop.uncertainty.calibration import bin_edges

jitted = {
    name: quick_jit(getattr(uncertainty, name))
    for name in ("classification", "regression", "mutual_information")
}


def probabilities_of(scores):
    """Rows that add up to 1, some of them with zeros."""
    weights = np.maximum(scores, 0) + (np.max(scores, -1, keepdims=True) <= 0)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


samples_of_classes = st.builds(
    probabilities_of,
    arrays.arrays(
        np.float64,
        st.sampled_from([(1, 3, 4), (5, 3, 4), (2, 1, 2), (7, 2, 1)]),
        elements=st.floats(-1, 1) | st.sampled_from([0.0, 1e-7, 1.0]),
    ),
)


def entropy(p):
    p = np.asarray(p, np.float64)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


@settings(max_examples=60)
@given(samples=samples_of_classes)
def test_total_is_aleatoric_and_epistemic_within_their_bounds(samples):
    found = jitted["classification"](samples)
    mean = samples.astype(np.float64).mean(0)
    np.testing.assert_allclose(found.probabilities, mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.total, entropy(mean), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found.aleatoric, entropy(samples).mean(0), rtol=1e-5, atol=2e-6)
    together = found.aleatoric + found.epistemic
    np.testing.assert_allclose(found.total, together, rtol=1e-5, atol=4e-6)
    bound = np.minimum(found.total, np.log(samples.shape[-1]) * (1 + 1e-6))
    assert np.all((found.epistemic >= 0) & (found.epistemic <= bound))
    assert np.all((found.variation_ratio >= 0) & (found.variation_ratio < 1))
    again = jitted["mutual_information"](samples)
    np.testing.assert_allclose(found.epistemic, again, rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(samples=samples_of_classes, count=st.sampled_from([1, 5]))
def test_samples_that_agree_have_no_epistemic_part(samples, count):
    one = samples[:1]
    found = jitted["classification"](np.repeat(one, count, 0))
    np.testing.assert_array_equal(found.epistemic, 0)
    np.testing.assert_array_equal(found.variation_ratio, 0)
    np.testing.assert_array_equal(found.probabilities, one[0])


@given(samples=samples_of_classes, seed=st.integers(0, 9))
def test_order_of_samples_does_not_matter(samples, seed):
    order = np.random.default_rng(seed).permutation(len(samples))
    for a, b in zip(
        jitted["classification"](samples), jitted["classification"](samples[order]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.quick
def test_entropies_by_hand():
    log = np.log
    half, quarter = jnp.full(2, 0.5), jnp.full((3, 4), 0.25)
    np.testing.assert_allclose(uncertainty.predictive_entropy(half), log(2), rtol=1e-6)
    np.testing.assert_allclose(uncertainty.predictive_entropy(quarter), [log(4)] * 3, rtol=1e-6)
    np.testing.assert_array_equal(uncertainty.predictive_entropy(jnp.eye(3)), 0)
    # Two samples, each sure of a class of its own: all that is not known is which sample is right.
    found = uncertainty.classification(jnp.eye(2))
    np.testing.assert_allclose(found[1:], [log(2), 0, log(2), 0.5], rtol=1e-6)


def test_gradient_of_entropy_is_finite_where_a_class_is_impossible():
    slope = jax.grad(lambda p: uncertainty.predictive_entropy(p))(jnp.array([1.0, 0.0]))
    assert np.all(np.isfinite(slope))


@pytest.mark.quick
def test_variation_ratio_counts_votes():
    votes = jnp.eye(3)[jnp.array([0, 1, 1, 2, 1])]
    np.testing.assert_allclose(uncertainty.variation_ratio(votes[:, None]), [0.4], rtol=1e-6)


@pytest.mark.quick
def test_total_variance_is_that_of_the_mixture():
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(6, 4)) + 100, rng.uniform(0.1, 2, size=(6, 4))
    found = jitted["regression"](jnp.asarray(means), jnp.asarray(variances))
    second_moment = (means**2 + variances).mean(0)
    np.testing.assert_allclose(found.mean, means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.total, second_moment - means.mean(0) ** 2, rtol=1e-4)
    np.testing.assert_allclose(found.epistemic, means.var(0), rtol=1e-4)
    alone = uncertainty.regression(jnp.asarray(means))
    np.testing.assert_array_equal(alone.aleatoric, 0)
    np.testing.assert_array_equal(uncertainty.regression(jnp.full((5, 2), 0.1)).epistemic, 0)


@pytest.mark.quick
def test_log_likelihood_is_that_of_the_mixture():
    rng = np.random.default_rng(0)
    targets, means = rng.normal(size=4), rng.normal(size=(6, 4))
    variances = rng.uniform(0.1, 2, size=(6, 4))
    for given_variances in (variances, 0.5):
        densities = np.exp(-((targets - means) ** 2) / (2 * given_variances)) / np.sqrt(
            2 * np.pi * given_variances
        )
        found = uncertainty.predictive_log_likelihood(
            jnp.asarray(targets), jnp.asarray(means), jnp.asarray(given_variances)
        )
        np.testing.assert_allclose(found, np.log(densities.mean(0)), rtol=1e-5)


def predictions(count=200, classes=4):
    rng = np.random.default_rng(0)
    p = probabilities_of(rng.normal(size=(count, classes)))
    return p, rng.integers(0, classes, count)


@pytest.mark.quick
def test_scores_are_those_of_numpy():
    p, labels = predictions()
    p = 0.9 * p + 0.1 / 4
    truth = np.eye(4)[labels]
    np.testing.assert_allclose(
        uncertainty.negative_log_likelihood(jnp.asarray(p), labels),
        -np.log((p * truth).sum(-1)).mean(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        uncertainty.brier_score(jnp.asarray(p), labels),
        ((p - truth) ** 2).sum(-1).mean(),
        rtol=1e-5,
    )


@pytest.mark.quick
@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration_error_is_that_of_a_loop_over_bins(bins):
    p, labels = predictions()
    found = uncertainty.expected_calibration_error(jnp.asarray(p), labels, bins=bins)
    confidence, right = p.max(-1), p.argmax(-1) == labels
    error = 0.0
    for i in range(bins):
        inside = (confidence > np.float32(i / bins)) & (confidence <= np.float32((i + 1) / bins))
        assert int(found.count[i]) == inside.sum()
        if inside.any():
            np.testing.assert_allclose(found.confidence[i], confidence[inside].mean(), rtol=1e-5)
            np.testing.assert_allclose(found.accuracy[i], right[inside].mean(), rtol=1e-5)
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        else:
            assert np.isnan(found.confidence[i])
            assert np.isnan(found.accuracy[i])
    np.testing.assert_allclose(found.error, error, rtol=1e-5)


def test_bins_end_at_their_upper_edges():
    edges = jnp.asarray(np.arange(1, 10, dtype=np.float32) / np.float32(10))
    for confidence, shift in ((edges, 0), (jnp.nextafter(edges, jnp.float32(1)), 1)):
        for i, p in enumerate(confidence):
            row = jnp.array([[p, 0.0]])
            count = uncertainty.expected_calibration_error(row, jnp.array([0]), bins=10).count
            assert count[i + shift] == count.sum() == 1
    ends = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    found = uncertainty.expected_calibration_error(ends, jnp.array([0, 0]), bins=10)
    assert found.count[0] == found.count[9] == 1


def test_confidence_on_an_edge_belongs_to_the_bin_below_it():
    p = jnp.array([[0.8, 0.2], [0.795, 0.205]])  # both lie in (.79, .80]
    found = uncertainty.expected_calibration_error(p, jnp.array([0, 1]), bins=100)
    np.testing.assert_allclose(found.error, 0.2975, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges_of_bins_are_the_numbers_next_to_the_fractions(dtype):
    for bins in range(1, 201):
        for i, edge in list(enumerate(bin_edges(bins, dtype)))[1:-1]:
            near = edge, *np.nextafter(edge, np.array([0, 1], dtype))
            assert edge == min(near, key=lambda x: abs(Fraction(float(x)) - Fraction(i, bins)))


def test_calibration_error_of_many_examples_is_not_lost_in_their_sum():
    count = 2**24 + 2**22
    p = jnp.broadcast_to(jnp.array([0.75, 0.25]), (count, 2))
    labels = (jnp.arange(count) % 4 == 0).astype(jnp.int32)
    found = jax.jit(uncertainty.expected_calibration_error)(p, labels)
    assert found.count.sum() == count
    np.testing.assert_allclose(found.accuracy[11], 0.75, rtol=1e-6)
    np.testing.assert_allclose(found.confidence[11], 0.75, rtol=1e-6)
    assert found.error < 1e-6


def test_calibrated_predictions_have_no_error():
    p = jnp.repeat(jnp.array([[0.75, 0.25]]), 8, axis=0)
    labels = jnp.array([0, 0, 0, 1, 0, 0, 0, 1])
    assert uncertainty.expected_calibration_error(p, labels).error == 0
    sure = uncertainty.expected_calibration_error(jnp.eye(2), jnp.array([1, 0]))
    assert sure.error == 1


@pytest.mark.quick
@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_are_no_class_give_nan(label):
    p = jnp.full((1, 2), 0.5)
    assert jnp.isnan(uncertainty.negative_log_likelihood(p, jnp.array([label])))
    assert jnp.isnan(uncertainty.brier_score(p, jnp.array([label])))
    assert jnp.isnan(uncertainty.expected_calibration_error(p, jnp.array([label])).error)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32"])
def test_labels_may_have_any_integer_dtype(dtype):
    labels = np.array([0, 1, 100], dtype)
    p = jnp.full((3, 256), 1 / 256)
    np.testing.assert_allclose(
        uncertainty.negative_log_likelihood(p, labels), np.log(256), rtol=1e-6
    )
    np.testing.assert_allclose(uncertainty.brier_score(p, labels), 1 - 1 / 256, rtol=1e-6)
    found = uncertainty.expected_calibration_error(p, labels)
    np.testing.assert_allclose(found.error, 1 / 3 - 1 / 256, rtol=1e-6)


def test_score_of_nearly_sure_predictions_does_not_cancel():
    p = jnp.array([[1 - 1e-4, 1e-4]], jnp.float32)
    np.testing.assert_allclose(uncertainty.brier_score(p, jnp.array([0])), 2e-8, rtol=1e-3)


def test_nan_is_not_hidden():
    p = jnp.array([[jnp.nan, 0.5], [0.9, 0.1]])
    assert jnp.isnan(uncertainty.expected_calibration_error(p, jnp.array([0, 0])).error)
    assert jnp.isnan(uncertainty.predictive_entropy(p)[0])
    assert jnp.isnan(uncertainty.mutual_information(p[None])[0])


def test_log_likelihood_far_away_and_without_noise():
    means = jnp.array([0.0, 1.2])
    density = uncertainty.predictive_log_likelihood
    far = -((100 - 1.2) ** 2) / 2 - np.log(2 * np.pi) / 2 - np.log(2)
    np.testing.assert_allclose(density(jnp.float32(100), means, 1.0), far, rtol=1e-5)
    one_sure = density(jnp.float32(1.0), means, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(one_sure, -0.02 - np.log(2 * np.pi) / 2 - np.log(2), rtol=1e-5)
    assert density(jnp.float32(1), means, 0.0) == -jnp.inf
    assert density(jnp.float32(0), means, 0) == jnp.inf
    with pytest.raises(ValueError, match=r"^predictive_log_likelihood: targets must broadcast"):
        density(jnp.ones(3), jnp.ones((5, 2)), 1.0)


def test_infinite_means_stay_infinite():
    assert uncertainty.regression(jnp.full(3, jnp.inf)).mean == jnp.inf
    assert uncertainty.regression(jnp.array([1, -jnp.inf])).mean == -jnp.inf


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_widened_first(dtype):
    p, _ = predictions(20)
    narrow = jnp.asarray(p, dtype).reshape(5, 4, 4)
    found = uncertainty.classification(narrow)
    wide = uncertainty.classification(narrow.astype(jnp.float32))
    for a, b in zip(found, wide, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [55, 61, 97])
def test_votes_are_counted_exactly(count):
    ratio = jax.jit(uncertainty.variation_ratio)
    agreed = jnp.broadcast_to(jnp.array([0.1, 0.9]), (count, 3, 2))
    np.testing.assert_array_equal(ratio(agreed), 0)


def test_gradient_of_agreeing_samples_is_zero():
    slope = jax.grad(lambda p: uncertainty.mutual_information(p))(jnp.array([[1.0, 0], [1, 0]]))
    np.testing.assert_array_equal(slope, 0)


def test_epistemic_part_is_cut_off_where_rounding_leaves_it_outside():
    p = jnp.array([[1.0000001, 0.0], [1.0, 0.0]])
    found = uncertainty.classification(jnp.concatenate([p, p]))
    assert found.epistemic >= 0
    small = jnp.asarray(np.random.default_rng(0).dirichlet(np.full(5, 0.01), size=(2, 2000)))
    found = uncertainty.classification(small.astype(jnp.float32))
    assert ((found.epistemic >= 0) & (found.epistemic <= found.total)).all()


def test_epistemic_part_of_sure_samples_does_not_exceed_the_total():
    votes = np.random.default_rng(0).integers(0, 5, size=(11, 20_000))
    found = uncertainty.classification(jax.nn.one_hot(votes, 5))
    assert (found.epistemic <= found.total).all()


def test_equal_means_that_round_have_no_spread():
    means = jnp.broadcast_to(jax.random.normal(jax.random.PRNGKey(0), (1000,)), (7, 1000))
    found = uncertainty.regression(means)
    np.testing.assert_array_equal(found.epistemic, 0)
    np.testing.assert_array_equal(found.mean, means[0])


def test_batches_may_be_empty_but_not_samples():
    found = uncertainty.classification(jnp.ones((3, 0, 4)))
    assert found.total.shape == (0,)
    with pytest.raises(ValueError, match=r"^negative_log_likelihood: probabilities must not be em"):
        uncertainty.negative_log_likelihood(jnp.ones((0, 4)), jnp.ones(0, int))


def test_examples_may_be_split_over_explicit_axes():
    p, labels = predictions(16)
    kind = jax.sharding.AxisType.Explicit
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        data = jax.sharding.PartitionSpec("data")
        split = jax.device_put(jnp.asarray(p), data), jax.device_put(jnp.asarray(labels), data)
        for name in ("expected_calibration_error", "brier_score", "negative_log_likelihood"):
            score = jax.jit(getattr(uncertainty, name))
            for a, b in zip(*map(jax.tree.leaves, (score(*split), score(p, labels))), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)
        by_class = jax.device_put(jnp.ones((3, 8)) / 8, jax.sharding.PartitionSpec(None, "data"))
        loss = uncertainty.negative_log_likelihood(by_class, np.arange(3))
        np.testing.assert_allclose(loss, np.log(8), rtol=1e-6)
        for whole in (p.reshape(8, 2, 4), p.reshape(16, 1, 4)):  # split over the samples
            samples = jax.device_put(jnp.asarray(whole), data)
            for a, b in zip(
                uncertainty.classification(samples), uncertainty.classification(whole), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_impossible_truth_costs_infinitely_much():
    assert uncertainty.negative_log_likelihood(jnp.eye(2), jnp.array([1, 0])) == jnp.inf
