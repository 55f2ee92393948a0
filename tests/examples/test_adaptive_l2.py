"""The penalties of dropout, against enumeration and closed forms in NumPy."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import probabilities, subsets
from modes import enable_x64
from scipy.special import expit
from scripts import EXAMPLES, run
from sklearn.linear_model import LogisticRegression

from jaxdrop import checks, dropout

RATES = (0.1, 0.5, 0.9)


@pytest.fixture
def adaptive_l2(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import adaptive_l2

    with enable_x64():
        yield adaptive_l2


@pytest.fixture
def rare_features(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import rare_features

    with jax.numpy_dtype_promotion("standard"):  # for Optax
        yield rare_features


@pytest.fixture
def problem(adaptive_l2):
    random = np.random.default_rng(0)
    x, w = random.normal(size=(7, 5)), random.normal(size=5)
    return adaptive_l2.Problem(jnp.asarray(x), jnp.asarray(random.normal(size=7))), jnp.asarray(w)


def softplus(z):
    return np.logaddexp(0, z)


def enumerate_dropped(x, rate):
    """The probability of each mask of the features, and the rows that it leaves."""
    masks = subsets(x.shape[1])
    return probabilities(masks, 1 - rate), np.asarray(x) * masks[:, None] / (1 - rate)


def test_dropout_keeps_the_inputs_on_average(problem, key):
    (x, _), _ = problem
    checks.assert_expectation_kept(partial(dropout, rate=0.5), key, x)


@pytest.mark.parametrize("rate", RATES)
def test_means_over_masks_are_those_of_numpy(adaptive_l2, problem, rate):
    (x, _), w = problem
    weights, dropped = enumerate_dropped(x, rate)
    found = adaptive_l2.over_masks(lambda x: jnp.sin(x @ w), x, rate)
    np.testing.assert_allclose(found, weights @ np.sin(dropped @ np.asarray(w)), atol=1e-14)


def test_means_over_samples_are_those_of_the_sampled_masks(adaptive_l2, problem, key):
    (x, _), _ = problem
    expected = [dropout(jax.random.fold_in(key, i), x, 0.5) ** 2 for i in range(500)]
    found = adaptive_l2.over_samples(key, lambda x: x**2, x, 0.5)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-12)


@pytest.mark.parametrize("rate", RATES)
def test_dropout_adds_the_ridge_penalty_to_linear_regression(adaptive_l2, problem, rate):
    (x, y), w = jax.tree.map(np.asarray, problem)
    weights, dropped = enumerate_dropped(x, rate)
    added = weights @ np.sum((y - dropped @ w) ** 2, axis=1) / 2 - np.sum((y - x @ w) ** 2) / 2
    penalty = adaptive_l2.linear_penalty(*map(jnp.asarray, (x, w)), rate)
    np.testing.assert_allclose(penalty, added, rtol=1e-12)
    np.testing.assert_allclose(penalty, rate / (1 - rate) / 2 * w @ np.diag(np.diag(x.T @ x)) @ w)


@pytest.mark.parametrize("rate", RATES)
def test_ridge_minimises_the_mean_over_masks(adaptive_l2, problem, rate):
    (x, y), _ = jax.tree.map(np.asarray, problem)
    weights, dropped = enumerate_dropped(x, rate)
    gram = np.einsum("m,mij,mik->jk", weights, dropped, dropped)
    moment = np.einsum("m,mij,i->j", weights, dropped, y)
    found = adaptive_l2.ridge_solution(problem[0], rate)
    np.testing.assert_allclose(found, np.linalg.solve(gram, moment), rtol=1e-10)


def test_both_sides_of_linear_regression_agree_in_the_table(adaptive_l2, problem, key):
    sides = adaptive_l2.linear_sides(*problem, 0.5, jax.random.split(key, 2))
    np.testing.assert_allclose(sides["exact"], sides["penalty"], rtol=1e-12)
    np.testing.assert_allclose(sides["slope"], 0, atol=1e-12)
    assert np.all(sides["distance"] < sides["plain distance"])


@pytest.mark.parametrize("rate", RATES)
def test_exact_penalty_is_the_sum_over_masks(adaptive_l2, problem, rate):
    (x, _), w = jax.tree.map(np.asarray, problem)
    weights, dropped = enumerate_dropped(x, rate)
    expected = weights @ softplus(dropped @ w) - softplus(x @ w)
    found = adaptive_l2.exact_penalty(*map(jnp.asarray, (x, w)), rate)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.all(expected > 0)


def test_exact_penalty_is_bounded_and_the_quadratic_one_is_not(adaptive_l2, problem):
    (x, _), w = problem
    bound = np.log(2) + np.sum(np.maximum(x * w[None], 0), axis=1) - softplus(x @ w)
    np.testing.assert_allclose(adaptive_l2.exact_penalty(x, w, 1 - 1e-7), bound, atol=1e-5)
    small, large = (adaptive_l2.quadratic_penalty(x, w, 1 - q) for q in (1e-7, 1e-8))
    np.testing.assert_allclose(large / small, 10, rtol=1e-5)


def test_exact_penalty_starts_with_the_loss_of_each_feature_alone(adaptive_l2, problem):
    (x, _), w = problem
    z, parts = np.asarray(x @ w)[:, None], np.asarray(x * w[None])
    slope = np.sum(softplus(z - parts) - softplus(z) + expit(z) * parts, axis=1)
    found = adaptive_l2.exact_penalty(x, w, 1e-6) / 1e-6
    np.testing.assert_allclose(found, slope, rtol=1e-4)


def test_quadratic_penalty_is_exact_for_small_weights(adaptive_l2, problem):
    (x, _), w = problem
    for rate in RATES:
        exact = adaptive_l2.exact_penalty(x, w / 1000, rate)
        quadratic = adaptive_l2.quadratic_penalty(x, w / 1000, rate)
        np.testing.assert_allclose(quadratic, exact, rtol=0.02)


def test_groups_are_active_in_one_example_of_25(rare_features, key):
    x, y = rare_features.draw_rare(key)
    assert x.shape == (75, 1050)
    assert set(np.asarray(y)) <= {0, 1}
    groups = np.asarray(x[:, :50]).reshape(75, 5, 10)
    np.testing.assert_array_equal(groups, np.repeat(groups[..., :1], 10, axis=2))
    active = groups[..., 0] != 0
    np.testing.assert_array_equal(active, np.arange(75)[:, None] % 25 == np.arange(5))
    assert 0 < np.sum(groups[active][:, 0] > 0) < 15
    # The mean square of an exponential variable is twice its mean squared.
    np.testing.assert_allclose(2 * rare_features.MEAN**2 / 25, 1)
    np.testing.assert_allclose(10 * rare_features.WEIGHT * rare_features.MEAN, 2, rtol=0.01)


def test_accuracy_is_that_of_drawn_examples(rare_features):
    random = np.random.default_rng(0)
    w = np.concatenate([random.normal(0.1, 0.1, 50), random.normal(0, 0.1, 1000)])
    count = 200_000
    values = random.exponential(rare_features.MEAN, count) * random.choice([-1, 1], count)
    weights = w[:50].reshape(5, 10).sum(axis=1)[random.integers(5, size=count)]
    noise = random.normal(size=count) * np.linalg.norm(w[50:])
    ones = random.uniform(size=count) < expit(0.57 * values)
    right = np.mean((weights * values + noise > 0) == ones)
    found = float(rare_features.active_accuracy(jnp.asarray(w, jnp.float32)))
    # 6.1 standard errors: a false alarm has probability 1e-9.
    assert abs(found / 100 - right) < 6.1 * (right * (1 - right) / count) ** 0.5


def test_accuracy_of_extreme_weights(rare_features):
    noise = jnp.zeros(1050).at[50:].set(1)
    np.testing.assert_allclose(rare_features.active_accuracy(noise), 50, rtol=1e-6)
    best = rare_features.active_accuracy(noise / 1e6 + jnp.zeros(1050).at[:50].set(1))
    grid = np.linspace(0, 60, 600_001)[1:]
    mean = np.sum(expit(0.57 * grid * rare_features.MEAN) * np.exp(-grid)) * (grid[1] - grid[0])
    np.testing.assert_allclose(best, 100 * mean, rtol=1e-4)


def test_objectives_are_the_loss_and_one_penalty(rare_features, adaptive_l2, problem, key):
    (x, _), w = problem
    y = jnp.asarray(np.arange(7) % 2, float)
    both = adaptive_l2.Problem(x, y)

    def loss(x):
        return np.mean(softplus(x @ w) - y * (x @ w))

    objective = rare_features.objective
    ridge = loss(x) + 3 / 2 * np.sum(w**2) / 7
    np.testing.assert_allclose(objective("ridge", both, 3.0, w, key), ridge)
    quadratic = loss(x) + np.mean(adaptive_l2.quadratic_penalty(x, w, 0.5))
    np.testing.assert_allclose(objective("quadratic", both, 0.5, w, key), quadratic)
    dropped = loss(dropout(jax.random.clone(key), x, 0.5))
    np.testing.assert_allclose(objective("dropout", both, 0.5, w, key), dropped)


def test_ridge_finds_the_minimiser_of_scikit_learn(rare_features, key):
    draw_key, fit_key = jax.random.split(key)
    problem = rare_features.draw_rare(draw_key)
    found = rare_features.fit("ridge", 1000, jnp.float32(32), fit_key, problem)
    model = LogisticRegression(C=1 / 32, fit_intercept=False, tol=1e-8, max_iter=1000)
    expected = model.fit(*map(np.asarray, problem)).coef_[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_strengths_are_chosen_on_tuning_runs_and_judged_on_others(rare_features):
    runs = rare_features.TUNING_RUNS
    accuracy = np.zeros((5, runs + 3))
    accuracy[2, :runs] = 1
    accuracy[4, runs:] = [7, 8, 9]
    results = {name: {"accuracy": accuracy} for name in rare_features.STRENGTHS}
    best = rare_features.tune(results)
    assert best == {name: of[2] for name, of in rare_features.STRENGTHS.items()}
    judged = rare_features.on_seeds(results, "dropout", rare_features.STRENGTHS["dropout"][4])
    np.testing.assert_array_equal(judged["accuracy"], [7, 8, 9])


def test_small_run(rare_features, tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import json, adaptive_l2\n"
        f"options = '--seeds 2 --steps 5 --out'.split() + [{str(tmp_path)!r}]\n"
        "penalties, results = adaptive_l2.main(options)\n"
        "found = [[of[name].tolist() for name in ('exact', 'quadratic', 'sampled')]\n"
        "    for of in penalties.values()]\n"
        "print(json.dumps([found, [of['accuracy'].tolist() for of in results.values()]]))"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    penalties, accuracies = json.loads(printed.splitlines()[-1])
    for exact, quadratic, sampled in penalties:
        assert np.shape(exact) == np.shape(quadratic) == (21, 200)
        assert np.shape(sampled) == (5, 2)
        means = np.mean(exact, axis=1)
        assert np.all(np.diff(means) > 0)
        np.testing.assert_allclose(np.mean(sampled, axis=1), means[[2, 6, 10, 14, 18]], rtol=0.1)
    assert np.shape(accuracies) == (3, 5, rare_features.TUNING_RUNS + 2)
    assert 21 < np.min(accuracies) < np.max(accuracies) < 79
    for part in ("\n2. Logistic", "\n3. Rare", "dropout 0.9 "):
        assert part in printed
    assert (tmp_path / "adaptive_l2.png").stat().st_size > 10_000
