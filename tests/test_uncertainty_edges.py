"""Uncertainty at the ends of what it takes: bins, labels, tiny probabilities, 64 bits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, quick_jit

from jaxdrop import uncertainty

pytestmark = pytest.mark.quick

OF_LABELS = [
    uncertainty.negative_log_likelihood,
    uncertainty.brier_score,
    uncertainty.classwise_brier_score,
    uncertainty.expected_calibration_error,
    uncertainty.classwise_calibration_error,
    uncertainty.top_label_calibration_error,
]
ERRORS = OF_LABELS[3:]
P = jnp.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
of_labels = pytest.mark.parametrize("score", OF_LABELS, ids=lambda score: score.__name__)


def value(score, p, labels):
    """The number, or numbers, that a score gives."""
    found = score(p, labels)
    return np.asarray(getattr(found, "error", found))


# Labels.


@of_labels
def test_labels_that_are_no_class_give_nan_in_every_dtype(score):
    for labels in (
        np.array([0, -1], np.int8),
        np.array([0, 3], np.uint8),
        np.array([0, 2**32]),  # 0, if cut off
        np.array([0, 2**32 + 1], np.uint64),
        jnp.array([0, 2**31 - 1]),
    ):
        assert np.isnan(value(score, P, labels)).all()


def test_labels_of_64_bits_are_not_cut_off():
    with enable_x64():
        labels = jnp.array([0, 2**32 + 1])
        for score in (uncertainty.negative_log_likelihood, uncertainty.brier_score):
            assert jnp.isnan(score(P, labels))
        assert jnp.isnan(uncertainty.expected_calibration_error(P, labels).error)


@pytest.mark.parametrize("score", OF_LABELS[:3], ids=lambda score: score.__name__)
def test_axes_of_the_batch_are_one_batch_and_one_example_needs_none(score):
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.ones(3), 6).astype(np.float32), rng.integers(0, 3, 6)
    found = quick_jit(score)(p.reshape(3, 2, 3), labels.reshape(3, 2))
    of_each = quick_jit(jax.vmap(score))(p, labels)
    np.testing.assert_allclose(found, of_each.mean(0), rtol=1e-6)


# Bins.


def test_probabilities_of_0_and_1_and_just_outside_are_in_the_first_and_last_bin():
    p = np.array([[0, 1], [1, 0], [1 + 2**-20, -(2**-20)], [0.5, 0.5]], np.float32)
    labels = np.array([1, 0, 0, 0])
    found = uncertainty.classwise_calibration_error(p, labels, bins=4)
    assert found.count.tolist() == [[1, 1, 0, 2], [2, 1, 0, 1]]
    found = uncertainty.top_label_calibration_error(p, labels, bins=4)
    assert found.count.tolist() == [[0, 1, 0, 2], [0, 0, 0, 1]]
    found = uncertainty.expected_calibration_error(p, labels, bins=4)
    assert found.count.tolist() == [0, 1, 0, 3]


def test_bins_are_15_of_equal_width_unless_asked_otherwise():
    p = np.linspace(1 / 30, 29 / 30, 15, dtype=np.float32)[np.minimum(np.arange(16), 14)]
    p, labels = np.stack([p, np.zeros(16, np.float32)], -1), np.zeros(16, int)
    expected = [1] * 14 + [2]  # of equal mass, the first bin would have two
    found = uncertainty.expected_calibration_error(p, labels)
    assert found.count.tolist() == expected
    for error in ERRORS[1:]:
        count = error(p, labels).count
        assert count.shape == (2, 15)
        assert count[0].tolist() == expected


# Tiny probabilities, and samples that nearly agree.


def test_tiny_probabilities_are_not_cut_off():
    tiny = np.float32(1e-30)
    p, log = jnp.array([[tiny, 1.0]]), np.log(np.float64(tiny))
    loss = uncertainty.negative_log_likelihood(p, np.array([0]))
    np.testing.assert_allclose(loss, -log, rtol=1e-6)
    entropy, slope = jax.value_and_grad(lambda p: uncertainty.predictive_entropy(p))(p[0])
    np.testing.assert_allclose(entropy, -tiny * log, rtol=1e-6)
    np.testing.assert_allclose(slope, [-log - 1, -1], rtol=1e-6)
    slope = jax.grad(lambda p: uncertainty.negative_log_likelihood(p, np.array([0])))(p)
    np.testing.assert_allclose(slope, [[-1 / tiny, 0]], rtol=1e-6)
    far = uncertainty.predictive_log_likelihood(jnp.float32(1e4), jnp.zeros(3), 1.0)
    np.testing.assert_allclose(far, -0.5e8, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 5])
def test_information_of_samples_is_too_low_by_a_share_of_their_number(count):
    """By all sets of so many samples, of which each is one of two equally often."""
    picks = np.array(list(itertools.product((-1, 1), repeat=count))).T
    spread = 1e-4
    with enable_x64():
        run = quick_jit(uncertainty.mutual_information)
        samples = 0.5 + spread * np.stack([picks, -picks], -1)
        both = run(0.5 + spread * np.array([[1, -1], [-1, 1]]))
        np.testing.assert_allclose(run(samples).mean() / both, 1 - 1 / count, rtol=1e-6)
        np.testing.assert_allclose(run(np.eye(9)[:count]), np.log(count), rtol=1e-12)


def test_moments_of_probabilities_and_entropies_are_the_parts():
    samples = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(4), (5, 3)), jnp.float32)
    parts = uncertainty.classification(samples)
    entropies = uncertainty.predictive_entropy(samples)
    np.testing.assert_allclose(entropies.mean(0), parts.aleatoric, rtol=1e-6)
    total = uncertainty.predictive_entropy(samples.mean(0))
    np.testing.assert_allclose(total, parts.total, rtol=1e-6)


def test_votes_of_logits_are_those_of_probabilities_and_ties_go_to_the_first_class():
    logits = jnp.array([[-3.0, -1.0, -2.0], [-9.0, -8.0, 5.0], [0.0, 2.0, 2.0]])
    np.testing.assert_allclose(uncertainty.variation_ratio(logits), 1 / 3, rtol=1e-6)


def test_votes_are_counted_in_integers():
    program = jax.make_jaxpr(uncertainty.variation_ratio)(jnp.zeros((5, 2, 3)))
    assert "i32[2,3] = reduce_sum" in str(program)


def test_information_has_a_curvature_where_samples_agree():
    """Of each class it is (1 / p - 1 / T p) / T by one of T samples, and -1 / T p / T by two."""
    bend = quick_jit(jax.hessian(uncertainty.mutual_information))(jnp.full((2, 2), 0.5))
    np.testing.assert_allclose(bend, np.einsum("tu,kl->tkul", np.eye(2) - 0.5, np.eye(2)), 1e-6)


# Widths, and settings that are not named.


def double_cases():
    rng = np.random.default_rng(0)
    samples = rng.dirichlet(np.ones(4), (5, 6))
    p, labels = samples[0], rng.integers(0, 4, 6)
    y, means, variances = rng.normal(size=6), rng.normal(size=(5, 6)), rng.uniform(1, 2, (5, 6))
    truth, log = np.eye(4)[labels], np.log
    entropy = lambda p: -(p * log(p)).sum(-1)  # noqa: E731
    densities = np.exp(-((y - means) ** 2) / 2 / variances) / np.sqrt(2 * np.pi * variances)
    right = p.argmax(-1) == labels
    mean = samples.mean(0)
    epistemic = entropy(mean) - entropy(samples).mean(0)
    votes = 1 - np.eye(4)[samples.argmax(-1)].sum(0).max(-1) / 5
    yield "predictive_entropy", (p,), entropy(p)
    yield "mutual_information", (samples,), epistemic
    parts = mean, entropy(mean), entropy(samples).mean(0), epistemic, votes
    yield "classification", (samples,), parts
    yield "variation_ratio", (samples,), votes
    parts = means.mean(0), means.var(0), variances.mean(0), means.var(0) + variances.mean(0)
    yield "regression", (means, variances), parts
    yield "predictive_log_likelihood", (y, means, variances), log(densities.mean(0))
    yield "negative_log_likelihood", (p, labels), -log((p * truth).sum(-1)).mean()
    yield "brier_score", (p, labels), ((p - truth) ** 2).sum(-1).mean()
    yield "classwise_brier_score", (p, labels), ((p - truth) ** 2).mean(0)
    one_bin = lambda p, right: (p.mean(0), right.mean(0), np.full(p.shape[1:], 6))  # noqa: E731
    gap = lambda p, right: abs(right.mean(0) - p.mean(0)).mean()  # noqa: E731
    top, each = (p.max(-1)[:, None], right[:, None]), (p[..., None], truth[..., None])
    yield "expected_calibration_error", (*(p, labels), 1), (gap(*top), *one_bin(*top))
    yield "classwise_calibration_error", (*(p, labels), 1), (gap(*each), *one_bin(*each))


def test_results_of_64_bits_are_those_of_numpy():
    with enable_x64():
        for name, args, expected in double_cases():
            function, bins = getattr(uncertainty, name), {}
            if name.endswith("calibration_error"):
                *args, bins["bins"] = args
            found = jax.tree.leaves(quick_jit(lambda f=function, a=args, b=bins: f(*a, **b))())
            expected = expected if isinstance(expected, tuple) else (expected,)
            for a, b in zip(found, expected, strict=True):
                assert a.dtype in ("float64", "int32"), name
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14, err_msg=name)
        p, labels = np.array([[0.75, 0.25]]), np.array([0])
        found = uncertainty.top_label_calibration_error(p, labels)
        assert found.error.dtype == found.accuracy.dtype == found.confidence.dtype == "float64"


def test_fair_is_the_estimator_that_is_not_named_and_no_variance_is_none():
    y, samples = jnp.array([0.3, 1.0]), jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
    crps = uncertainty.crps_ensemble
    np.testing.assert_array_equal(crps(y, samples), crps(y, samples, estimator="fair"))
    assert (crps(y, samples) < crps(y, samples, estimator="plain")).all()
    pit = uncertainty.probability_integral_transform
    np.testing.assert_array_equal(pit(y, samples), pit(y, samples, 0.0))
    np.testing.assert_allclose(pit(y, samples), [1 / 3, (1 / 2 + 1 / 2) / 3], rtol=1e-6)
    mixed = pit(jnp.float32(1), jnp.array([1.0, 1.0, 3.0]), jnp.array([0.0, 4.0, 0.0]))
    np.testing.assert_allclose(mixed, (0.5 + 0.5 + 0) / 3, rtol=1e-6)


def test_no_array_holds_all_pairs_of_samples():
    y, samples = jnp.zeros(3), jnp.zeros((7, 3))
    mixture = jax.make_jaxpr(lambda y, x: uncertainty.crps_mixture(y, x, 1.0))(y, samples)
    ensemble = jax.make_jaxpr(uncertainty.crps_ensemble)(y, samples)
    for program in (mixture, ensemble):
        assert "7,7" not in str(program)
        assert "[7,3]" in str(program)
