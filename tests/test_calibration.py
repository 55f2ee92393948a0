"""Calibration errors of classifiers are those of loops over bins and classes in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrop.uncertainty import (
    brier_score,
    classwise_brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    top_label_calibration_error,
    variation_ratio,
)

ERRORS = [expected_calibration_error, classwise_calibration_error, top_label_calibration_error]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
each_kind_of_bins = pytest.mark.parametrize("adaptive", [False, True])


def predictions(count=203, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    return p, rng.integers(0, classes, count)


def groups(confidence, bins, adaptive):
    """The examples of each bin: no two of the predictions above are equal."""
    if adaptive:
        return np.array_split(np.argsort(confidence), bins)
    edges = (np.arange(bins + 1) / bins).astype(np.float32)
    return [
        np.flatnonzero((confidence > below) & (confidence <= upto))
        for below, upto in itertools.pairwise(edges)
    ]


def by_loop(confidence, right, bins, adaptive):
    """The sum over bins of what `error` is the mean of, and the three columns of the bins."""
    total, columns = 0.0, []
    confidence, right = confidence.astype(np.float64), right.astype(np.float64)
    for inside in groups(confidence, bins, adaptive):
        count = len(inside)
        at, hit = (x[inside].sum() / count if count else np.nan for x in (confidence, right))
        total += count * abs(hit - at) if count else 0
        columns.append((at, hit, count))
    return total, np.array(columns).T


def assert_bins(found, columns):
    for name, column in zip(("confidence", "accuracy", "count"), columns, strict=True):
        np.testing.assert_allclose(getattr(found, name), column, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
@each_kind_of_bins
@pytest.mark.parametrize("bins", [1, 7, 15])
def test_errors_are_those_of_loops(bins, adaptive):
    p, labels = predictions()
    confidence, predicted = p.max(-1), p.argmax(-1)
    options = {"bins": bins, "adaptive": adaptive}

    total, columns = by_loop(confidence, predicted == labels, bins, adaptive)
    found = expected_calibration_error(jnp.asarray(p), labels, **options)
    np.testing.assert_allclose(found.error, total / 203, rtol=1e-5)
    assert_bins(found, columns)

    each = [by_loop(p[:, k], labels == k, bins, adaptive) for k in range(4)]
    found = classwise_calibration_error(jnp.asarray(p), labels, **options)
    np.testing.assert_allclose(found.error, sum(total for total, _ in each) / 203 / 4, rtol=1e-5)
    assert_bins(found, np.stack([columns for _, columns in each], 1))

    each = [
        by_loop(confidence[predicted == k], (labels == k)[predicted == k], bins, adaptive)
        for k in range(4)
    ]
    found = top_label_calibration_error(jnp.asarray(p), labels, **options)
    np.testing.assert_allclose(found.error, sum(total for total, _ in each) / 203, rtol=1e-5)
    assert_bins(found, np.stack([columns for _, columns in each], 1))


@pytest.mark.parametrize(("count", "bins"), [(10, 3), (3, 10), (1, 2), (100, 7)])
def test_adaptive_bins_hold_equally_many(count, bins):
    p, labels = predictions(count)
    found = expected_calibration_error(jnp.asarray(p), labels, bins=bins, adaptive=True)
    sizes = [count // bins + (i < count % bins) for i in range(bins)]
    assert found.count.tolist() == sizes


@each_error
def test_order_of_examples_does_not_matter_even_if_some_are_equal(error):
    rng = np.random.default_rng(0)
    p = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.75, 0.25, 0]])[rng.integers(0, 3, 50)]
    labels, order = rng.integers(0, 3, 50), rng.permutation(50)
    for adaptive in (False, True):
        found = error(jnp.asarray(p), labels, bins=4, adaptive=adaptive)
        other = error(jnp.asarray(p[order]), labels[order], bins=4, adaptive=adaptive)
        for a, b in zip(*map(jax.tree.leaves, (found, other)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.quick
def test_equal_confidences_are_in_one_bin():
    p, labels = jnp.array([[0.75, 0.25]] * 6 + [[0.5, 0.5]] * 2), jnp.zeros(8, int)
    found = expected_calibration_error(p, labels, bins=4, adaptive=True)
    assert found.count.tolist() == [2, 6, 0, 0]
    np.testing.assert_allclose(found.error, (2 * 0.5 + 6 * 0.25) / 8, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_error_by_predicted_class_is_at_least_that_of_all(seed):
    p, labels = map(jnp.asarray, predictions(100, seed=seed))
    all_together = expected_calibration_error(p, labels).error
    assert top_label_calibration_error(p, labels).error > all_together * (1 - 1e-6)


def test_errors_of_two_classes_that_look_at_both_agree():
    """With two classes the second column is 1 - p: the same gaps, in bins mirrored."""
    p = np.random.default_rng(0).uniform(size=(50,))
    both, labels = jnp.asarray(np.stack([p, 1 - p], -1)), np.arange(50) % 2
    found = classwise_calibration_error(both, labels, bins=10)
    total, _ = by_loop(p.astype(np.float32), labels == 0, 10, False)
    np.testing.assert_allclose(found.error, total / 50, rtol=1e-4)


@each_error
@each_kind_of_bins
def test_calibrated_predictions_have_no_error(error, adaptive):
    p = jnp.repeat(jnp.array([[0.75, 0.25], [0.25, 0.75]]), 4, axis=0)
    labels = jnp.array([0, 0, 0, 1, 1, 1, 1, 0])
    assert error(p, labels, adaptive=adaptive).error == 0
    assert error(jnp.eye(2), jnp.array([1, 0]), adaptive=adaptive).error == 1


def test_class_that_is_never_predicted_has_no_weight():
    p, labels = jnp.array([[0.75, 0.25, 0.0]] * 4), jnp.array([0, 0, 1, 1])
    for adaptive in (False, True):
        found = top_label_calibration_error(p, labels, adaptive=adaptive)
        assert found.error == 0.25
        assert found.count.sum(-1).tolist() == [4, 0, 0]


@pytest.mark.quick
@each_error
@each_kind_of_bins
def test_nan_and_labels_that_are_no_class_are_not_hidden(error, adaptive):
    p, labels = map(jnp.asarray, predictions(20))
    for bad_p, bad_labels in (
        (p.at[3, 1].set(jnp.nan), labels),
        (p, labels.at[3].set(4)),
        (p, labels.at[3].set(-1)),
    ):
        assert jnp.isnan(error(bad_p, bad_labels, adaptive=adaptive).error)


@each_error
@each_kind_of_bins
def test_axes_of_the_batch_are_one_batch(error, adaptive):
    p, labels = predictions(24)
    flat = error(jnp.asarray(p), labels, bins=3, adaptive=adaptive)
    folded = error(
        jnp.asarray(p.reshape(2, 12, 4)), labels.reshape(2, 12), bins=3, adaptive=adaptive
    )
    jitted = jax.jit(lambda p: error(p, labels, bins=3, adaptive=adaptive))(p)
    for other in (folded, jitted):
        for a, b in zip(*map(jax.tree.leaves, (flat, other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    one = error(jnp.array([0.75, 0.25]), jnp.array(0), adaptive=adaptive)
    np.testing.assert_allclose(one.error, 0.25, rtol=1e-6)


@each_error
@each_kind_of_bins
def test_examples_may_be_split_over_explicit_axes(error, adaptive):
    p, labels = predictions(16)
    kind, spec = jax.sharding.AxisType.Explicit, jax.sharding.PartitionSpec("data")
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        split = jax.device_put(jnp.asarray(p), spec), jax.device_put(jnp.asarray(labels), spec)
        run = jax.jit(lambda p, labels: error(p, labels, bins=3, adaptive=adaptive))
        for a, b in zip(*map(jax.tree.leaves, (run(*split), run(p, labels))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


# The other scores by class.


@pytest.mark.quick
def test_brier_score_is_the_sum_over_classes():
    p, labels = predictions()
    each = classwise_brier_score(jnp.asarray(p), labels)
    expected = ((p.astype(np.float64) - np.eye(4)[labels]) ** 2).mean(0)
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    np.testing.assert_allclose(each.sum(), brier_score(jnp.asarray(p), labels), rtol=1e-6)
    folded = classwise_brier_score(
        jnp.asarray(p[:200].reshape(2, 100, 4)), labels[:200].reshape(2, 100)
    )
    np.testing.assert_allclose(folded, classwise_brier_score(p[:200], labels[:200]), rtol=1e-6)
    assert jnp.isnan(classwise_brier_score(p[:2], jnp.array([0, 4]))).all()


@pytest.mark.quick
def test_variation_ratio_of_mean_probabilities_is_what_they_leave_to_others():
    p = np.random.default_rng(0).dirichlet(np.ones(4), (7, 3))
    found = variation_ratio(jnp.asarray(p), probabilistic=True)
    np.testing.assert_allclose(found, 1 - p.mean(0).max(-1), rtol=1e-5)
    nearly_sure = jnp.array([[[1 - 1e-9, 1e-9]]])
    np.testing.assert_allclose(variation_ratio(nearly_sure, probabilistic=True), 1e-9, rtol=1e-6)
    # Votes agree where mean probabilities are unsure, and the other way round.
    agreed = jnp.array([[0.6, 0.4], [0.6, 0.4]])
    assert variation_ratio(agreed) == 0
    np.testing.assert_allclose(variation_ratio(agreed, probabilistic=True), 0.4, rtol=1e-6)
    slope = jax.grad(lambda p: variation_ratio(p, probabilistic=True))(agreed)
    np.testing.assert_array_equal(slope, [[0, 0.5]] * 2)
