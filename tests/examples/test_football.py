"""The football assignment: layers and masks against NumPy, counts against enumeration."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import keep_prob_of, probabilities, subsets
from jax.errors import KeyReuseError
from modes import enable_x64
from scripts import EXAMPLES, run


@pytest.fixture
def football(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import football

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # for Optax
        yield football


@pytest.fixture
def football_field(football):
    import football_field

    return football_field


def numpy_network(params, x, masks, factors):
    """The course's forward pass: A = relu(Z) * D * factor in both hidden layers."""
    for i, layer in enumerate(params):
        if i > 0:
            x = np.maximum(x, 0) * masks[i - 1] * factors[i - 1]
        x = x @ np.asarray(layer["w"], float) + np.asarray(layer["b"], float)
    return x[:, 0]


def drawn_masks(football, treatment, key):
    """The masks of both layers, as the layer of ones shows them."""
    drop = football.make_drop(treatment, key)
    shapes = [(football.POINTS, units) for units in football.HIDDEN]
    return [np.asarray(drop(site, jnp.ones(shape))) > 0 for site, shape in enumerate(shapes, 1)]


def test_network_and_points_have_the_size_of_the_course(football, football_field, key):
    init_key, point_key = jax.random.split(key)
    params, _ = football.init(init_key)
    assert [layer["w"].shape for layer in params] == [(2, 20), (20, 3), (3, 1)]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 127
    points = football_field.draw_points(point_key, football.POINTS)
    assert points.positions.shape == (211, 2)
    assert set(np.asarray(points.labels)) == {0, 1}


def test_labels_follow_the_diagonal(football, football_field, key):
    x = np.array([[0.0, 0.0], [1.0, 0.8], [-1.7, 1.7], [1.7, -1.7]], np.float32)
    found = football_field.blue_probability(x)
    np.testing.assert_allclose(found, [0.5, 0.5, 0.95, 0.05], atol=1e-6)
    points = football_field.draw_points(key, 100_000)
    right = (points.labels > 0) == (points.positions @ np.array([-0.8, 1], np.float32) > 0)
    error = (0.914 * 0.086 / 100_000) ** 0.5
    # A deviation of 6.1 standard errors has probability 1e-9.
    assert abs(np.mean(right) - football_field.best_accuracy() / 100) < 6.1 * error
    np.testing.assert_allclose(np.var(points.positions, axis=0), 1, atol=0.02)


@pytest.mark.parametrize("name", ["1 / keep_prob", "A.size / sum(D)"])
def test_factor_is_the_one_it_is_named_after(football, key, name):
    treatment = football.TREATMENTS[name]
    with enable_x64():
        params, _ = football.init(key)
        params = jax.tree.map(lambda leaf: leaf.astype(float), params)
        x = np.random.default_rng(0).uniform(-1, 1, (football.POINTS, 2))
        drop = football.make_drop(treatment, jax.random.key(1))
        found = football.network(params, jnp.asarray(x), drop)
        masks = drawn_masks(football, treatment, jax.random.key(1))
    factors = {
        "1 / keep_prob": [1 / keep_prob_of(0.14)] * 2,
        "A.size / sum(D)": [mask.size / mask.sum() for mask in masks],
    }[name]
    np.testing.assert_allclose(found, numpy_network(params, x, masks, factors), rtol=1e-12)


def test_realised_factor_keeps_the_sum_of_a_constant_layer(football, key):
    treatment = football.TREATMENTS["A.size / sum(D)"]
    _, factors = football.see_masks(treatment, key, 50)
    for step in (0, 49):
        masks = drawn_masks(football, treatment, football.step_key(treatment, key, step))
        kept = [mask.sum() for mask in masks]
        np.testing.assert_allclose(factors[step] * kept, [211 * 20, 211 * 3], rtol=1e-6)


def test_new_keys_give_new_masks_and_one_key_the_same(football, key):
    counts = {}
    for name, treatment in football.TREATMENTS.items():
        kept, _ = football.see_masks(treatment, key, 20)
        assert kept.shape == (20, 23)
        counts[name] = len(np.unique(kept, axis=0))
    assert counts["no dropout"] == 1
    assert counts["1 / keep_prob"] == counts["A.size / sum(D)"] > 10
    assert counts["same key each step"] == counts["one thinned network"] == 1


def test_one_mask_for_all_points_is_one_thinned_network(football, key):
    thinned = {}
    for name in ("same key each step", "one thinned network"):
        masks = drawn_masks(football, football.TREATMENTS[name], jax.random.clone(key))
        thinned[name] = len(np.unique(np.concatenate(masks, axis=1), axis=0))
    assert thinned["one thinned network"] == 1
    assert thinned["same key each step"] > 150  # of 211 points


@pytest.mark.parametrize("name", ["same key each step", "one thinned network"])
def test_key_reuse_checker_refuses_the_same_key_each_step(
    football, football_field, key, monkeypatch, name
):
    point_key, init_key, key = jax.random.split(key, 3)
    points, state = football_field.draw_points(point_key, football.POINTS), football.init(init_key)
    run = partial(football.train_chunk, football.TREATMENTS[name])
    run(key, points, state, np.arange(2))
    monkeypatch.setattr(jax.random, "clone", lambda key: key)
    with pytest.raises(KeyReuseError):
        run(key, points, state, np.arange(2))


@pytest.mark.parametrize("draws", [1, 7, 40])
def test_expected_number_of_masks_is_the_sum_over_all_masks(football, draws):
    weights = probabilities(subsets(5), 0.86)
    np.testing.assert_allclose(football.expected_distinct(5, 0.86, 1), 1, rtol=1e-12)
    expected = np.sum(1 - (1 - weights) ** draws)
    np.testing.assert_allclose(football.expected_distinct(5, 0.86, draws), expected, rtol=1e-12)


def test_small_run(football, tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import json, football\n"
        f"options = '--seeds 2 --steps 30 --out'.split() + [{str(tmp_path)!r}]\n"
        "results = football.main(options)\n"
        "found = [[runs[of].tolist() for of in football.MEASURES] for runs in results.values()]\n"
        "print(json.dumps(found))"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    found = np.array(json.loads(printed.splitlines()[-1]))  # treatments, measures, seeds
    assert found.shape == (5, 4, 2)
    for measure, points in enumerate((211, 200, 20_000)):
        right = found[:, measure] * points / 100
        np.testing.assert_allclose(right, np.round(right), atol=0.01)
    for name in football.TREATMENTS:
        assert f"\n{name:<21}" in printed
    assert (tmp_path / "football.png").stat().st_size > 10_000
