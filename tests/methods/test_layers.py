"""Exact laws of `layer_drop`, and what runs."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import keep_prob_of, moments
from modes import enable_x64, make_key, make_keys
from nodes import Pair

from jaxdrop import drop_path, drop_path_rates, layer_drop, rescale

X = jnp.linspace(-1, 2, 12).reshape(3, 4)
RATE = 0.375  # on the grid, and neither outcome is rare
KEYS = [make_key("raw", seed) for seed in range(16)]


def layer(x):
    return x + jnp.sin(2 * x) + 1


def is_kept(key, rate=RATE):
    """What the mask of `drop_path` decides for the whole of an array."""
    return bool(drop_path(key, jnp.ones(1), rate, batch_axis=None)[0])


KEPT = next(key for key in KEYS if is_kept(key))
DROPPED = next(key for key in KEYS if not is_kept(key))


@pytest.fixture
def runs():
    """A layer that adds a number, and how often it has run with which."""
    seen = []

    def counted(x, number=1.0):
        jax.debug.callback(lambda n: seen.append(float(n)), number)
        return x + number * x

    def count(function, *args):
        seen.clear()
        jax.block_until_ready(function(*args))
        jax.effects_barrier()
        return list(seen)

    return counted, count


@pytest.mark.quick
@pytest.mark.parametrize("key", KEYS[:6])
def test_layer_drop_decides_as_drop_path_of_the_residual_branch(key):
    y = layer_drop(key, X, RATE, layer=layer)
    branch = drop_path(key, layer(X) - X, RATE, batch_axis=None)
    np.testing.assert_allclose(y, X + branch, rtol=1e-6, atol=1e-6)
    if not is_kept(key):
        np.testing.assert_array_equal(y, X)


def test_mean_is_the_layer_and_variance_that_of_its_step():
    p, q = 1 - keep_prob_of(RATE), keep_prob_of(RATE)
    with enable_x64():
        x = jnp.asarray(np.asarray(X), float)
        step = np.asarray(layer(x) - x).reshape(-1)
        for rule, factor in ((rescale.expected, 1 / q), (rescale.none, 1)):
            drop = partial(layer_drop, layer=layer, rescale=rule)
            outputs = np.array([drop(KEPT, x, RATE), drop(DROPPED, x, RATE)])
            mean, covariance = moments(np.array([q, p]), outputs)
            expected = np.asarray(x).reshape(-1) + factor * q * step
            np.testing.assert_allclose(mean, expected, rtol=1e-12, atol=1e-12)
            variance = step**2 * p * q * factor**2
            np.testing.assert_allclose(np.diag(covariance), variance, rtol=1e-12, atol=1e-12)


def test_mean_of_a_stack_of_linear_layers_is_the_stack():
    p, q, depth = 1 - keep_prob_of(RATE), keep_prob_of(RATE), 3
    with enable_x64():
        weights = np.random.default_rng(0).normal(size=(depth, 4, 4))
        x = jnp.asarray(np.asarray(X), float)
        linear = [lambda x, w=w: x + x @ w for w in jnp.asarray(weights)]
        mean = np.zeros(x.shape)
        for kept in itertools.product([True, False], repeat=depth):
            y = x
            for one, keeps in zip(linear, kept, strict=True):
                y = layer_drop(KEPT if keeps else DROPPED, y, RATE, layer=one)
            mean += q ** sum(kept) * p ** (depth - sum(kept)) * np.asarray(y)
        full = np.asarray(x)
        for w in weights:
            full = full @ (np.eye(4) + w)
        np.testing.assert_allclose(mean, full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", [KEPT, DROPPED])
@pytest.mark.parametrize("rate", [RATE, jnp.float32(RATE)])
def test_layer_that_is_left_out_does_not_run(runs, key, rate):
    counted, count = runs
    drop = partial(layer_drop, layer=counted)
    assert count(drop, key, X, rate) == [1.0] * is_kept(key)
    assert count(jax.jit(drop), key, X, rate) == [1.0] * is_kept(key)
    gradient = jax.jit(jax.grad(lambda x: drop(key, x, rate).sum()))
    assert count(gradient, X) == [1.0] * is_kept(key)
    remat = jax.jit(jax.grad(lambda x: jax.checkpoint(drop)(key, x, rate).sum()))
    assert set(count(remat, X)) == {1.0} if is_kept(key) else count(remat, X) == []


def test_scan_runs_the_layers_that_a_loop_runs(runs):
    counted, count = runs
    rates, keys = jnp.asarray(drop_path_rates(0.9, 8)), make_keys("raw", 8)
    numbers = jnp.arange(1.0, 9)

    def step(x, operands):
        key, rate, number = operands
        return layer_drop(key, x, rate, layer=partial(counted, number=number)), None

    def scanned(x):
        return jax.lax.scan(step, x, (keys, rates, numbers))[0]

    kept = [is_kept(make_key("raw", i), rates[i]) for i in range(8)]
    wanted = [float(n) for n, keeps in zip(numbers, kept, strict=True) if keeps]
    assert 1 < len(wanted) < 8
    assert count(jax.jit(scanned), X) == wanted
    assert count(jax.jit(jax.grad(lambda x: scanned(x).sum())), X) == wanted
    y = X
    for i in range(8):
        y, _ = step(y, (make_key("raw", i), rates[i], numbers[i]))
    np.testing.assert_allclose(scanned(X), y, rtol=1e-5)
    plain = jax.grad(lambda x: scanned(x).sum())(X)
    step = jax.checkpoint(step)
    np.testing.assert_allclose(jax.grad(lambda x: scanned(x).sum())(X), plain, rtol=1e-5)


def test_vmap_over_keys_runs_what_is_left_out_and_with_one_key_does_not(runs):
    counted, count = runs
    drop = partial(layer_drop, rate=RATE, layer=counted)
    shared, own = jax.jit(jax.vmap(drop, in_axes=(None, 0))), jax.jit(jax.vmap(drop))
    dropped = jnp.stack([key for key in KEYS if not is_kept(key)])
    xs = jnp.stack([X] * len(dropped))
    assert count(shared, DROPPED, xs) == []
    assert count(shared, KEPT, xs) == [1.0]  # the callback does not depend on the sample
    assert count(own, dropped, xs) == [1.0]
    np.testing.assert_array_equal(own(dropped, xs), xs)
    keys = jnp.stack(KEYS[: len(xs)])
    loop = jnp.stack([drop(key, X) for key in KEYS[: len(xs)]])
    np.testing.assert_allclose(own(keys, xs), loop, rtol=1e-6)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_derivatives_reach_weights_that_the_layer_closes_over(mode):
    weights = jnp.linspace(0, 1, 16).reshape(4, 4)

    def output(key, weights):
        return layer_drop(key, X, RATE, layer=lambda x: x + jnp.tanh(x @ weights)).sum()

    derivative = jax.grad if mode == "reverse" else jax.jacfwd
    np.testing.assert_array_equal(derivative(output, argnums=1)(DROPPED, weights), 0)
    plain = jax.grad(lambda weights: jnp.tanh(X @ weights).sum())(weights) / keep_prob_of(RATE)
    np.testing.assert_allclose(derivative(output, argnums=1)(KEPT, weights), plain, rtol=1e-5)


def test_known_rates_of_zero_and_one_have_no_choice():
    def never(x):
        raise AssertionError("the layer must not be traced")

    assert layer_drop(None, X, 1, layer=never) is X
    np.testing.assert_array_equal(layer_drop(None, X, 0, layer=layer), layer(X))
    text = str(jax.make_jaxpr(lambda x: layer_drop(None, x, 0.0, layer=layer))(X))
    assert "cond" not in text


def test_pytrees_of_any_dtype_and_a_rule_of_the_user():
    tree = {"x": X, "steps": jnp.int32(3)}
    grow = lambda tree: {"x": layer(tree["x"]), "steps": tree["steps"] + 1}  # noqa: E731
    y = layer_drop(KEPT, tree, RATE, layer=grow, rescale=rescale.none)
    assert int(y["steps"]) == 4
    np.testing.assert_array_equal(y["x"], layer(X))
    assert int(layer_drop(DROPPED, tree, RATE, layer=grow, rescale=rescale.none)["steps"]) == 3
    pair = layer_drop(KEPT, Pair(X, -X), RATE, layer=lambda pair: Pair(*map(layer, pair.children)))
    for x, y in zip((X, -X), pair.children, strict=True):
        np.testing.assert_array_equal(y, layer_drop(KEPT, x, RATE, layer=layer))
    half = lambda mask, x: jnp.full(mask.shape, 0.5)  # noqa: E731
    y = layer_drop(KEPT, X, RATE, layer=layer, rescale=half)
    np.testing.assert_allclose(y, (X + layer(X)) / 2, rtol=1e-6)
    counted = rescale.realized(-1)  # it asks the mask for an axis of the array
    y = layer_drop(KEPT, X, RATE, layer=layer, rescale=counted)
    np.testing.assert_allclose(y, layer(X), rtol=1e-6)
    low = layer_drop(KEPT, X.astype(jnp.bfloat16), RATE, layer=lambda x: 2 * x)
    assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize("rule", [rescale.expected, rescale.none])
def test_layer_may_return_numbers_of_python_and_numpy(rule):
    for number in (3.0, np.float32(3), np.full((), 3, np.float32)):
        for rate in (0, RATE):
            y = layer_drop(KEPT, jnp.float32(2), rate, layer=lambda x, n=number: n, rescale=rule)
            assert (y.dtype, y.weak_type) == (jnp.float32, False)
            scaled = rate and rule is rescale.expected
            assert y == (2 + jnp.float32(1 / keep_prob_of(RATE)) if scaled else 3)


@pytest.mark.parametrize("x", [jnp.arange(3), {"a": X, "b": jnp.array(True)}])
def test_what_cannot_be_scaled_is_refused(x):
    place = r"\['b'\]" if isinstance(x, dict) else ""
    for rate in (0, RATE, 1):
        with pytest.raises(TypeError, match=rf"^layer_drop: x{place} must be floating or complex"):
            layer_drop(KEPT, x, rate, layer=lambda x: x)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changed", "returned"),
    [
        (lambda x: x[0], r"float32\[4\]"),
        (lambda x: x.astype(jnp.bfloat16), r"bfloat16\[3, 4\]"),
        (lambda x: None, "None"),
    ],
)
@pytest.mark.parametrize("rate", [0, RATE])
def test_layer_must_return_what_it_was_given(changed, returned, rate):
    message = rf"^layer_drop: layer must return what x is, float32\[3, 4\]; got {returned}\.(\n|$)"
    with pytest.raises(TypeError, match=message):
        layer_drop(KEPT, X, rate, layer=changed)


@pytest.mark.quick
@pytest.mark.parametrize("rate", [0, RATE])
def test_layer_must_return_the_structure_that_it_was_given(rate):
    for x, changed in ((X, lambda x: [x]), ([X], lambda x: (x[0],)), ({"a": X}, lambda x: x["a"])):
        with pytest.raises(TypeError, match=r"^layer_drop: layer must return what x is"):
            layer_drop(KEPT, x, rate, layer=changed)
