"""Samples are those of a loop over keys, and moments are those of the samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import KeyReuseError
from modes import enable_x64, make_key, quick_jit

from jaxdrop import Moments, dropout, monte_carlo, monte_carlo_moments

X = jnp.asarray(np.random.default_rng(0).integers(-9, 10, size=(3, 8)), jnp.float32)


def network(key, x, scale=1.0):
    """Two layers of whole numbers, so that no program rounds."""
    keys = jax.random.split(key)
    hidden = jax.nn.relu(dropout(keys[0], x, 0.5) * scale)
    return {"y": dropout(keys[1], hidden, 0.5).sum(-1), "kept": (hidden != 0).sum()}


def stacked(count, start=0):
    key = make_key("raw")
    samples = [network(jax.random.fold_in(key, i), X) for i in range(start, start + count)]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *samples)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("count", "batch_size"), [(1, None), (10, None), (10, 1), (10, 4), (10, 50)]
)
def test_sample_i_has_key_i_whatever_the_number_and_the_batch_size(count, batch_size):
    run = quick_jit(monte_carlo(network, count, batch_size=batch_size))
    assert_equal(run(make_key("raw"), X), stacked(count))


def test_samples_of_a_long_run_are_those_of_a_short_one():
    long = quick_jit(monte_carlo(network, 100, batch_size=7))(make_key("raw"), X)
    assert_equal(jax.tree.map(lambda x: x[:10], long), stacked(10))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_run_is_extended_from_where_it_ended(batch_size):
    rest = monte_carlo(network, 5, start=10, batch_size=batch_size)
    assert_equal(quick_jit(rest)(make_key("raw"), X), stacked(5, start=10))
    parts = [
        quick_jit(monte_carlo_moments(network, count, start=start, batch_size=batch_size))
        for start, count in ((0, 10), (10, 5))
    ]
    first, second = (part(make_key("raw"), X) for part in parts)
    assert_moments(first.merge(second), stacked(15))
    assert_moments(second.merge(first), stacked(15))


def assert_moments(moments, samples):
    count = len(jax.tree.leaves(samples)[0])
    assert moments.count == count
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), samples)
    for name, x in wide.items():
        np.testing.assert_allclose(moments.mean[name], x.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.variance[name], x.var(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "batch_size"), [(1, None), (10, None), (10, 1), (10, 4), (10, 50)]
)
def test_moments_are_those_of_the_samples(count, batch_size):
    run = quick_jit(monte_carlo_moments(network, count, batch_size=batch_size))
    assert_moments(run(make_key("raw"), X), stacked(count))


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_variance_of_equal_samples_is_exactly_zero(batch_size):
    values = jnp.asarray(np.random.default_rng(1).normal(size=1000) * 1e3, jnp.float32)
    same = monte_carlo_moments(lambda key, x: dropout(key, x, 0.0), 10, batch_size=batch_size)
    moments = quick_jit(same)(make_key("raw"), values)
    np.testing.assert_array_equal(moments.variance, 0)
    np.testing.assert_array_equal(moments.mean, values)


def test_variance_far_from_zero_does_not_cancel():
    def far(key, x):
        return 1e6 + dropout(key, x, 0.5)  # a sum of squares would be lost in float32

    x = jnp.ones(4)
    moments = quick_jit(monte_carlo_moments(far, 64, batch_size=8))(make_key("raw"), x)
    keep = [dropout(jax.random.fold_in(make_key("raw"), i), x, 0.5) for i in range(64)]
    np.testing.assert_allclose(moments.variance, np.var(keep, axis=0), rtol=0.01)


def variance_is_plausible(moments, expected, largest, count):
    """Whether (y - mean)^2, of which none exceeds `largest`, can have this mean.

    Hoeffding's bound for the squares, and for the mean that they are about, at
    1e-9 together; no assumption of normality.
    """
    slack = np.sqrt(np.log(4e9) / (2 * count))
    return abs(float(moments.variance) - expected) < largest * (slack + (2 * slack) ** 2)


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_variance_of_a_linear_layer_is_that_of_its_dropped_inputs(rate):
    # Var(w . dropout(x)) = (p / q) sum w^2 x^2. A variance too large by a tenth is seen.
    count = 200_000
    w, x, keep_prob = jnp.array([1.0, -2.0]), jnp.array([1.5, 1.0]), 1 - rate
    layer = monte_carlo_moments(lambda key: w @ dropout(key, x, rate), count, batch_size=5000)
    moments = jax.jit(layer)(make_key("raw"))
    expected = rate / keep_prob * float(jnp.sum((w * x) ** 2))
    masks = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    largest = float(np.max((masks @ np.asarray(w * x) / keep_prob - float(w @ x)) ** 2))
    assert variance_is_plausible(moments, expected, largest, count)
    assert not variance_is_plausible(moments, 1.1 * expected, largest, count)


def test_streaming_takes_a_tenth_of_the_memory_of_all_samples_at_once():
    sizes = [jax.ShapeDtypeStruct((512, 512), jnp.float32)] * 3

    def mlp(key, weights, x):
        for layer_key, w in zip(jax.random.split(key, 3), weights, strict=True):
            x = jax.nn.relu(dropout(layer_key, x, 0.5) @ w)
        return x

    def temporaries(run):
        x = jax.ShapeDtypeStruct((256, 512), jnp.float32)
        key = jax.eval_shape(lambda: make_key("raw"))
        compiled = jax.jit(run).lower(key, sizes, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    at_once = temporaries(monte_carlo(mlp, 128))
    streamed = temporaries(monte_carlo_moments(mlp, 128))
    assert streamed <= at_once / 10
    assert temporaries(monte_carlo_moments(mlp, 1024)) <= 1.01 * streamed + 8 * 1024


@pytest.mark.parametrize("transform", [monte_carlo, monte_carlo_moments])
@pytest.mark.parametrize(("count", "told"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3])])
def test_progress_adds_up_to_the_samples(transform, count, told):
    heard = []
    run = jax.jit(transform(network, count, batch_size=4, progress=heard.append))
    jax.block_until_ready(run(make_key("raw"), X))
    jax.effects_barrier()
    assert heard == told


def test_gradient_of_the_mean_is_the_mean_of_gradients():
    def mean(x):
        return monte_carlo_moments(network, 6, batch_size=4)(make_key("raw"), x).mean["y"].sum()

    def one(key, x):
        return jax.grad(lambda x: network(key, x)["y"].sum())(x)

    expected = quick_jit(monte_carlo(one, 6))(make_key("raw"), X).mean(0)
    np.testing.assert_allclose(quick_jit(jax.grad(mean))(X), expected, rtol=1e-5, atol=1e-6)


def test_vmap_over_inputs_and_keys_equals_a_loop():
    run = monte_carlo_moments(network, 5, batch_size=2)
    keys = jax.random.split(make_key("raw", 1), 2)
    together = quick_jit(jax.vmap(run))(keys, jnp.stack([X, 2 * X]))
    for i, x in enumerate((X, 2 * X)):
        alone = quick_jit(run)(keys[i], x)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            together,
            alone,
        )


def test_keywords_and_dtypes_pass():
    samples = monte_carlo(network, 2)(make_key("raw"), X, scale=0.0)
    np.testing.assert_array_equal(samples["y"], 0)
    narrow = monte_carlo_moments(partial(dropout, rate=0.5), 3)(
        make_key("raw", 1), X.astype(jnp.bfloat16)
    )
    assert narrow.mean.dtype == narrow.variance.dtype == jnp.float32
    with enable_x64():
        wide = monte_carlo_moments(partial(dropout, rate=0.5), 3)(
            make_key("raw", 2), X.astype(jnp.float64)
        )
        assert wide.mean.dtype == jnp.float64


def test_complex_samples_have_a_real_variance():
    def turn(key, x):
        return dropout(key, x, 0.5).astype(jnp.complex64) * 1j

    moments = monte_carlo_moments(turn, 50, batch_size=8)(make_key("raw"), X)
    samples = monte_carlo(turn, 50)(make_key("raw", 0), X)
    assert moments.variance.dtype == jnp.float32
    np.testing.assert_allclose(moments.variance, np.var(samples, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", [monte_carlo, monte_carlo_moments])
def test_key_is_consumed(transform):
    key = jax.random.key(0)
    transform(network, 2)(key, X)
    with pytest.raises(KeyReuseError):
        transform(network, 2)(key, X)


@pytest.mark.parametrize("transform", [monte_carlo, monte_carlo_moments])
def test_bad_arguments_are_named(transform):
    name = transform.__name__
    for options, message in (
        ({"num_samples": 0}, "num_samples must be at least 1; got 0"),
        ({"num_samples": 2, "batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"num_samples": 2, "start": -1}, "start must be at least 0; got -1"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: {message}"):
            transform(network, **options)
    with pytest.raises(TypeError, match=rf"^{name}: num_samples must be integers; got 2.5"):
        transform(network, 2.5)
    with pytest.raises(TypeError, match=rf"^{name}: key must be one key; got a batch"):
        transform(network, 2)(jax.random.split(make_key("raw")), X)


def test_moments_merge_exactly():
    pairs = ((2, 1, 1), (2, 3, 1))
    one, other = (Moments(*map(jnp.float32, numbers)) for numbers in pairs)
    assert list(map(float, jax.tree.leaves(one.merge(other)))) == [4, 2, 2]
