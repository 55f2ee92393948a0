"""Samples are those of a loop over keys, and moments are those of the samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import KeyReuseError
from modes import enable_x64, make_key, quick_jit

from jaxdrop import Moments, dropout, monte_carlo, monte_carlo_moments, site, sites

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
    ("count", "batch_size"), [(1, None), (10, None), (10, 1), (10, 4), (10, 7), (10, 50)]
)
def test_sample_i_has_key_i_whatever_the_number_and_the_batch_size(count, batch_size):
    run = quick_jit(monte_carlo(network, count, batch_size=batch_size))
    assert_equal(run(make_key("raw"), X), stacked(count))


@pytest.mark.quick
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
    assert (moments.count.dtype, moments.count.shape) == (jnp.uint32, ())
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), samples)
    for name, x in wide.items():
        np.testing.assert_allclose(moments.mean[name], x.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.variance[name], x.var(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "batch_size"), [(1, None), (10, None), (10, 1), (10, 4), (10, 7), (10, 50)]
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


@pytest.mark.parametrize("batch_size", [1, 4, None])
@pytest.mark.parametrize("compiled", [True, False])
def test_rate_zero_has_exactly_no_variance_in_a_network_that_rounds(batch_size, compiled):
    weights = jax.random.normal(make_key("raw"), (2, 64, 64))

    def mlp(key, x):
        for w in weights:
            x = jax.nn.gelu(dropout(key, x, 0.0) @ w)
        return jax.nn.log_softmax(x)

    run = monte_carlo_moments(mlp, 6, batch_size=batch_size)
    moments = (quick_jit(run) if compiled else run)(make_key("raw"), jnp.ones((3, 64)))
    np.testing.assert_array_equal(moments.variance, 0)


def test_network_that_rounds_has_the_same_samples_up_to_rounding():
    weights = jax.random.normal(make_key("raw"), (64, 10))

    def layer(key, x):
        return dropout(key, x, 0.5) @ weights

    runs = [monte_carlo(layer, 10, batch_size=size) for size in (None, 1, 3)]
    first, *others = (quick_jit(run)(make_key("raw"), jnp.ones(64)) for run in runs)
    for other in others:
        np.testing.assert_allclose(first, other, rtol=1e-5, atol=1e-5)


def test_long_run_does_not_lose_small_terms():
    def one_by_one(total, x):
        return total.merge(Moments(jnp.uint32(1), 1000 + x, jnp.float32(0))), None

    def fn(key):
        x = jax.random.uniform(key)
        return {"far": 1000 + x, "near": x}

    count = 200_000
    moments = jax.jit(monte_carlo_moments(fn, count))(make_key("raw"))
    samples = jax.jit(monte_carlo(jax.random.uniform, count))(make_key("raw", 0))
    far, near = (np.asarray(start + samples, np.float64) for start in (1000, 0))
    assert abs(float(moments.mean["far"]) - far.mean()) < 1e-4
    np.testing.assert_allclose(moments.variance["far"], far.var(), rtol=1e-4)
    # The sum of what rounding takes from a variance would be some 3e-6 of it.
    np.testing.assert_allclose(moments.variance["near"], near.var(), rtol=3e-7)
    # Merges do not carry what they lose, so their mean stops after some 1e4 samples.
    none = Moments(jnp.uint32(0), jnp.float32(0), jnp.float32(0))
    merged = jax.lax.scan(one_by_one, none, samples)[0]
    assert abs(float(merged.mean) - far.mean()) > 1e-3


def test_moments_of_doubles_are_doubles():
    with enable_x64():
        x = jnp.linspace(0, 1, 50, dtype=jnp.float64)
        drop = partial(dropout, rate=0.5)
        moments = quick_jit(monte_carlo_moments(drop, 21, batch_size=3))(make_key("raw"), x)
        samples = np.asarray(quick_jit(monte_carlo(drop, 21))(make_key("raw"), x))
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, samples.var(0), rtol=1e-13)


def test_count_passes_the_whole_numbers_of_float32():
    many, one = (Moments(jnp.uint32(n), jnp.float32(1), jnp.float32(0)) for n in (2**24, 1))
    assert many.merge(one).count == 2**24 + 1


def test_numbers_of_samples_are_exact_up_to_the_last_of_32_bits():
    for start in (2**24 + 1, 2**31, 2**32 - 3):
        found = quick_jit(monte_carlo(jax.random.key_data, 3, start=start))(make_key("raw"))
        numbers = np.arange(start, start + 3).astype(np.uint32)
        keys = [jax.random.fold_in(make_key("raw"), number) for number in numbers]
        np.testing.assert_array_equal(found, keys)
    for transform in (monte_carlo, monte_carlo_moments):
        with pytest.raises(
            ValueError, match=r": start \+ num_samples must be at most 2\^32; got 4"
        ):
            transform(network, 3, start=2**32 - 2)


def test_infinite_samples_have_an_infinite_mean():
    def fn(key):
        return jnp.log(jnp.array([0.0, 1.0]))

    for batch_size in (1, 4):
        moments = monte_carlo_moments(fn, 4, batch_size=batch_size)(make_key("raw"))
        np.testing.assert_array_equal(moments.mean, [-np.inf, 0])


def test_infinite_samples_join_others_in_any_order():
    inf, nan = np.inf, np.nan
    one, other = (
        Moments(jnp.uint32(1), jnp.array(mean), jnp.zeros(6))
        for mean in ([inf, 1, -inf, inf, inf, nan], [1, inf, -inf, -inf, nan, inf])
    )
    for merged in (one.merge(other), other.merge(one)):
        np.testing.assert_array_equal(merged.mean, [inf, inf, -inf, nan, nan, nan])


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_drops_of_other_keys_do_not_depend_on_the_batch(implementation, batch_size):
    run = quick_jit(monte_carlo(partial(dropout, rate=0.5), 5, batch_size=batch_size))
    keys = [jax.random.fold_in(make_key(implementation), i) for i in range(5)]
    expected = jnp.stack([dropout(key, X, 0.5) for key in keys])
    np.testing.assert_array_equal(run(make_key(implementation), X), expected)


def test_run_of_a_typed_key_is_extended_with_its_clone():
    key = jax.random.key(0)
    whole = monte_carlo(network, 3)(jax.random.clone(key), X)
    monte_carlo(network, 2)(key, X)
    rest = monte_carlo(network, 1, start=2)(jax.random.clone(key), X)
    assert_equal(jax.tree.map(lambda x: x[2:], whole), rest)


def test_samples_may_be_split_over_explicit_axes():
    kind = jax.sharding.AxisType.Explicit
    heard = []
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        x = jax.device_put(jnp.ones((16, 4)), jax.sharding.PartitionSpec("data"))
        run = monte_carlo_moments(
            partial(dropout, rate=0.5), 5, batch_size=2, progress=heard.append
        )
        split, whole = jax.jit(run)(make_key("raw"), x), jax.jit(run)(make_key("raw"), np.array(x))
        assert_equal(split, whole)
        samples = jax.jit(monte_carlo(partial(dropout, rate=0.5), 5, progress=heard.append))
        assert_equal(samples(make_key("raw"), x), samples(make_key("raw"), np.array(x)))
    jax.effects_barrier()
    assert sorted(heard) == [1, 1, 2, 2, 2, 2, 5, 5]


def test_runs_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    run = monte_carlo_moments(partial(dropout, rate=0.5), 4, batch_size=2)

    def shard(x):
        moments = run(make_key("raw"), x)
        return moments.mean, moments.variance

    x = jnp.ones((8, 4))
    split = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    one = run(make_key("raw"), x[:1])
    for found, expected in zip(split, (one.mean, one.variance), strict=True):
        np.testing.assert_array_equal(found, jnp.broadcast_to(expected, found.shape))


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


@pytest.mark.quick
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
    assert temporaries(monte_carlo_moments(mlp, 1024)) <= 1.01 * streamed


@pytest.mark.quick
@pytest.mark.parametrize("transform", [monte_carlo, monte_carlo_moments])
@pytest.mark.parametrize(("count", "told"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3])])
def test_progress_is_told_after_the_batch(transform, count, told):
    heard = []

    def work(x):
        heard.append("work")
        return np.asarray(x)

    def fn(key, x):
        y = dropout(key, x, 0.5)  # not the same in each batch
        return jax.pure_callback(work, y, y, vmap_method="expand_dims")

    run = jax.jit(transform(fn, count, batch_size=4, progress=heard.append))
    jax.block_until_ready(run(make_key("raw"), X))
    jax.effects_barrier()
    assert heard == [event for number in told for event in ("work", number)]


@pytest.mark.parametrize("transform", [monte_carlo, monte_carlo_moments])
def test_progress_of_booleans_waits_and_batches_are_equal(transform):
    heard = []

    def work(x):
        heard.append("work")
        return np.asarray(x)

    def fn(key, x):
        y = dropout(key, x, 0.5) > 0
        return jax.pure_callback(work, y, y, vmap_method="expand_dims")

    run = jax.jit(transform(fn, 10, batch_size=7, progress=heard.append))
    jax.block_until_ready(run(make_key("raw"), X))
    jax.effects_barrier()
    assert heard == ["work", 5, "work", 5]


@pytest.mark.quick
def test_moments_run_a_function_as_often_as_samples_do():
    ran = []

    def fn(key, x):
        jax.debug.callback(lambda _: ran.append(1), x[0, 0])
        return dropout(key, x, 0.5)

    for run in (monte_carlo(fn, 6, batch_size=3), monte_carlo_moments(fn, 6, batch_size=3)):
        jax.block_until_ready(run(make_key("raw"), X))
    jax.effects_barrier()
    assert len(ran) == 2 * 2

    def model(x):
        return monte_carlo_moments(lambda key: site(x, "h").sum(), 4)(make_key("raw")).mean

    (row,) = sites(model, X)
    assert row.runs == 4


def test_moments_of_the_last_numbers_count_what_was_asked():
    run = monte_carlo_moments(lambda key: 1.0, 3, start=2**32 - 3, batch_size=2)
    assert run(make_key("raw")).count == 3


def test_large_samples_that_agree_have_no_variance():
    moments = monte_carlo_moments(lambda key: jnp.float32(1e20), 3)(make_key("raw"))
    assert (moments.mean, moments.variance) == (1e20, 0)


def test_progress_is_told_once_for_each_element_of_a_vmap():
    heard = []

    def fn(key):
        return {"key": key, "words": jax.random.key_data(key)}

    run = monte_carlo(fn, 3, batch_size=1, progress=heard.append)
    samples = jax.vmap(run)(jax.random.split(jax.random.key(0)))
    jax.effects_barrier()
    assert samples["key"].shape == (2, 3)
    assert heard == [1] * 6


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
        return dropout(key, x, 0.5).astype(jnp.complex64) * (2 + 1j)

    moments = monte_carlo_moments(turn, 50, batch_size=8)(make_key("raw"), X)
    samples = monte_carlo(turn, 50)(make_key("raw", 0), X)
    assert moments.variance.dtype == jnp.float32
    np.testing.assert_allclose(moments.variance, np.var(samples, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("transform", [monte_carlo, monte_carlo_moments])
def test_key_is_consumed(transform):
    key = jax.random.key(0)
    transform(network, 2)(key, X)
    with pytest.raises(KeyReuseError):
        transform(network, 2)(key, X)


@pytest.mark.quick
def test_moments_merge_exactly():
    pairs = ((2, 1, 1), (2, 3, 1))
    one, other, none = (
        Moments(jnp.uint32(count), jnp.float32(mean), jnp.float32(variance))
        for count, mean, variance in (*pairs, (0, 0, 0))
    )
    for merged in (one.merge(none), none.merge(one)):
        assert list(map(float, jax.tree.leaves(merged))) == [2, 1, 1]
    assert list(map(float, jax.tree.leaves(none.merge(none)))) == [0, 0, 0]
    assert list(map(float, jax.tree.leaves(one.merge(other)))) == [4, 2, 2]
    rows = jax.tree.map(lambda *parts: jnp.stack(parts), one, none)
    others = jax.tree.map(lambda *parts: jnp.stack(parts), other, one)
    each = jax.vmap(Moments.merge)(rows, others)
    assert [leaf.tolist() for leaf in jax.tree.leaves(each)] == [[4, 2], [2, 1], [2, 1]]
