"""Rates that learn: the laws of the noise, gradients against finite differences, extremes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import logit
from modes import enable_x64, make_key, quick_jit
from reference.methods import Key
from scipy import special, stats

from jaxdrop import (
    concrete_dropout,
    concrete_dropout_penalty,
    gaussian_dropout,
    plant,
    site,
    variational_dropout,
    variational_dropout_kl,
)

METHODS = [concrete_dropout, variational_dropout]
both = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
REGULARIZERS = {"weight_regularizer": 0.01, "dropout_regularizer": 0.02}


def penalty(logit, weights, features=7, **options):
    return concrete_dropout_penalty(logit, weights, features, **{**REGULARIZERS, **options})


# The law of the noise.


def relaxed_mask(rate, temperature, size=2**16):
    """What multiplies x, times q: the mask itself."""
    y = concrete_dropout(make_key("raw"), jnp.ones(size), logit(rate), temperature=temperature)
    return np.asarray(y, np.float64) * (1 - rate)


@pytest.mark.parametrize(("rate", "temperature"), [(0.1, 0.1), (0.5, 0.6), (0.8, 1.5)])
def test_concrete_mask_has_the_published_law(rate, temperature):
    # P(z <= v) = sigmoid(logit p + t logit v): a distance above `limit` has a
    # false-alarm rate of 1e-9 (Dvoretzky, Kiefer, Wolfowitz).
    z, limit = np.sort(relaxed_mask(rate, temperature)), np.sqrt(np.log(2e9) / 2 / 2**16)
    z = z.clip(1e-12, 1 - 1e-7)  # float32 rounds z to 1

    def distance(rate, temperature):
        law = special.expit(special.logit(rate) + temperature * special.logit(z))
        steps = np.arange(1, z.size + 1) / z.size
        return np.abs(steps - law)[z < 1 - 1e-6].max()

    assert distance(rate, temperature) < limit
    assert distance(rate + 0.03, temperature) > limit
    assert distance(rate, 1.3 * temperature) > limit


@pytest.mark.quick
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_concrete_dropout_is_its_formula_of_uniform_numbers(temperature):
    u = (Key("raw", (0, 0)).pair((64,))[0] + 0.5) / 2**32
    z = special.expit(-(special.logit(0.3) + special.logit(u)) / temperature)
    with enable_x64():
        at, x = jnp.asarray(special.logit(0.3)), jnp.full(64, 3.0)
        y = concrete_dropout(make_key("raw"), x, at, temperature=temperature)
    np.testing.assert_allclose(y, 3 * z / 0.7, rtol=1e-11)


def test_concrete_mask_is_nearly_the_keep_probability_on_average():
    u = (np.arange(10**6) + 0.5) / 10**6
    z = 1 - special.expit((special.logit(0.1) + special.logit(u)) / 0.1)
    assert round(z.mean(), 5) == 0.89882
    assert round(z.mean() / 0.9, 5) == 0.99869
    # z has a standard deviation below .5, so 1e-9 is at most 6.2 of .5 / 256.
    assert abs(relaxed_mask(0.1, 0.1).mean() - 0.89882) < 6.2 * 0.5 / 256


def test_concrete_mask_hardens_into_dropout():
    keep = relaxed_mask(0.3, 1e-3, 4096)
    hard = (keep < 1e-6) | (keep > 1 - 1e-6)
    assert hard.mean() > 0.99
    soft = relaxed_mask(0.3, 0.5, 4096)
    assert np.array_equal(soft[hard] > 0.5, keep[hard] > 0.5)  # at any temperature


@pytest.mark.quick
@pytest.mark.parametrize("rate", [1e-6, 0.1, 0.5, 0.9])
def test_variational_dropout_has_the_noise_of_gaussian_dropout(rate):
    rate = round(rate * 2**16) / 2**16 or rate  # on the grid that `gaussian_dropout` rounds to
    variational = variational_dropout(make_key("raw"), X, logit(rate))
    gaussian = gaussian_dropout(make_key("raw"), X, rate)
    np.testing.assert_allclose(variational, gaussian, rtol=1e-4)


@both
def test_noise_is_shared_along_axes(method):
    y = method(make_key("raw"), jnp.ones((4, 5, 6)), 0.0, broadcast_dims=(0, 2))
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:1, :, :1], y.shape))
    assert len(np.unique(y)) == 5


@both
def test_parameter_of_each_feature_is_that_of_its_column(method):
    parameters = jnp.array([-jnp.inf, -3.0, 0.0, 2.0, jnp.inf])
    y = method(make_key("raw"), X, parameters)
    for i, parameter in enumerate(parameters):
        whole = method(make_key("raw"), X, parameter)
        np.testing.assert_allclose(y[:, i], whole[:, i], rtol=1e-6)
    np.testing.assert_array_equal(y[:, 0], X[:, 0])
    np.testing.assert_array_equal(y[:, -1], 0)
    full = method(make_key("raw"), X, jnp.broadcast_to(parameters, X.shape))
    np.testing.assert_array_equal(full, y)


# Gradients.


def assert_gradient_is_finite_difference(loss, at, step=1e-5):
    slope = quick_jit(jax.grad(loss))(at)
    both = [quick_jit(loss)(at + sign * step) for sign in (1, -1)]
    difference = (both[0] - both[1]) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-7, atol=1e-9)
    assert slope != 0


@both
@pytest.mark.parametrize("at", [-4.0, -0.5, 0.0, 1.5])
def test_gradient_to_the_parameter_is_the_finite_difference(method, at):
    with enable_x64():
        x, weights = jnp.asarray(X, jnp.float64), jnp.linspace(-1, 2, X.size).reshape(X.shape)
        loss = lambda a: jnp.sum(weights * method(make_key("raw"), x, a) ** 2)  # noqa: E731
        assert_gradient_is_finite_difference(loss, jnp.float64(at))


def test_gradient_to_the_temperature_is_the_finite_difference():
    with enable_x64():
        x = jnp.asarray(X, jnp.float64)
        assert_gradient_is_finite_difference(
            lambda t: jnp.sum(concrete_dropout(make_key("raw"), x, -1.0, temperature=t) ** 3),
            jnp.float64(0.7),
        )


@pytest.mark.parametrize("at", [-9.0, -2.0, 0.0, 0.4, 5.0])
def test_gradient_of_the_penalties_is_the_finite_difference(at):
    with enable_x64():
        weights = {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4), "bias": jnp.ones(4)}
        assert_gradient_is_finite_difference(lambda a: penalty(a, weights), jnp.float64(at))
        kl = variational_dropout_kl
        assert_gradient_is_finite_difference(kl, jnp.float64(at))
        if at < 0:
            kingma = partial(kl, approximation="kingma")
            assert_gradient_is_finite_difference(kingma, jnp.float64(at))


@both
def test_gradient_of_shared_parameters_adds_up(method):
    def loss(parameter):
        return jnp.sum(method(make_key("raw"), X, parameter) ** 2)

    each = jax.grad(loss)(jnp.full(X.shape, -1.0))
    np.testing.assert_allclose(jax.grad(loss)(jnp.full(5, -1.0)), each.sum(0), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(-1.0), each.sum(), rtol=1e-5)


# Extremes.


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("at", [-1e4, -200.0, -30.0, 30.0, 200.0, 1e4])
def test_extreme_parameters_give_no_nan(method, dtype, at):
    # float16 and the noise of a large alpha overflow, and say so.
    finite = jnp.isfinite if method is concrete_dropout or at <= 30 else lambda y: ~jnp.isnan(y)
    x, at = X.astype(dtype), jnp.asarray(at, dtype)
    y, slopes = jax.jvp(lambda x, a: method(make_key("raw"), x, a), (x, at), (x, jnp.ones_like(at)))
    if dtype != "float16" or at <= 0:
        assert finite(y).all()
        assert finite(slopes).all()
    if at <= -30:
        np.testing.assert_allclose(np.float32(y), np.float32(x), rtol=1e-5)
    if at >= 30 and method is concrete_dropout:
        np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_penalties_are_exact_at_extreme_parameters(dtype):
    at = jnp.array([-30, -20, -5, -0.125, 0, 0.125, 5, 20, 30], dtype)
    rounded = np.asarray(at, np.float64)
    p, q = special.expit(rounded), special.expit(-rounded)
    negative_entropy = -p * np.log1p(np.exp(-rounded)) - q * np.log1p(np.exp(rounded))
    found = jax.vmap(lambda a: penalty(a, jnp.ones(3, dtype), 7))(at)
    expected = 0.01 * 3 / q + 0.02 * 7 * negative_entropy
    np.testing.assert_allclose(found, expected, rtol=5e-6)
    entropy_alone = jax.vmap(lambda a: penalty(a, (), 1, dropout_regularizer=1.0))(at)
    np.testing.assert_allclose(entropy_alone, negative_entropy, rtol=5e-6)
    slope = jax.vmap(jax.grad(lambda a: penalty(a, jnp.ones(3, dtype), 7)))(at)
    assert slope.dtype == dtype
    exact = 0.03 * np.exp(rounded) + 0.14 * p * q * rounded  # d/da of 1/q and of p ln p + q ln q
    np.testing.assert_allclose(np.float32(slope), exact, rtol=1e-5 if dtype == "float32" else 0.01)


@pytest.mark.quick
def test_squares_of_narrow_weights_are_summed_in_float32():
    """257 is no number of bfloat16, and 300^2 none of float16."""
    for weights in (jnp.ones(257, jnp.bfloat16), jnp.full(2, 300, jnp.float16)):
        found = penalty(-jnp.inf, weights, weight_regularizer=1.0)
        assert found.dtype == jnp.float32
        assert found == (np.asarray(weights, float) ** 2).sum()


@both
def test_infinite_parameters_have_gradients_and_hide_what_is_dropped(method):
    x = jnp.array([1.0, jnp.inf, jnp.nan])
    y, pull = jax.vjp(lambda x, a: method(make_key("raw"), x, a), x, jnp.inf)
    np.testing.assert_array_equal(y, 0)
    for slope in pull(jnp.ones(3)):
        np.testing.assert_array_equal(slope, 0)
    kept = jax.vjp(lambda a: method(make_key("raw"), jnp.ones(3), a), -jnp.inf)
    np.testing.assert_array_equal(kept[0], 1)
    np.testing.assert_array_equal(kept[1](jnp.ones(3))[0], 0)


def test_concrete_dropout_is_soft_and_finite_at_any_logit():
    # At temperature 1, x z / q tends to x (1 - u) / u as q falls to 0.
    u_odds = concrete_dropout(make_key("raw"), jnp.ones(99), 30.0, temperature=1.0)
    for at in (50.0, 70.0, 100.0, 1e6):
        y, slope = jax.jvp(
            lambda a: concrete_dropout(make_key("raw"), jnp.ones(99), a, temperature=1.0),
            (at,),
            (1.0,),
        )
        np.testing.assert_allclose(y, u_odds, rtol=1e-4)
        assert jnp.isfinite(slope).all()
    slope = jax.grad(lambda t: concrete_dropout(make_key("raw"), X, jnp.inf, temperature=t).sum())
    assert slope(0.1) == 0


@pytest.mark.quick
def test_penalty_at_infinite_logits():
    for weights in ((), jnp.zeros(3)):
        assert jax.value_and_grad(lambda a, w=weights: penalty(a, w))(100.0) == (0, 0)
    value, slope = jax.value_and_grad(lambda a: penalty(a, jnp.ones(3)))(-jnp.inf)
    np.testing.assert_allclose(value, 0.03, rtol=1e-6)
    assert slope == 0


@both
def test_gradient_to_the_parameter_takes_no_more_memory_than_the_noise_of_jax_random(method):
    def plain(key, x, a):
        return x * (1 + jnp.exp(a / 2) * jax.random.normal(key, x.shape))

    def temporaries(drop):
        def loss(a, key, x):
            return jnp.sum(drop(key, x, a) ** 2)

        key, x = make_key("raw"), jax.ShapeDtypeStruct((512, 2048), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(jnp.float32(-1), key, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(method) <= temporaries(plain) + 2**20


@both
def test_parameters_may_be_split_over_other_explicit_axes_than_x(method):
    kind = jax.sharding.AxisType.Explicit
    spec = jax.sharding.PartitionSpec
    x, a = jnp.ones((8, 4)), jnp.linspace(-2, 0, 4)
    expected = jax.grad(lambda a: (method(make_key("raw"), x, a) ** 2).sum())(a)
    with jax.set_mesh(jax.make_mesh((4, 2), ("d", "m"), axis_types=(kind, kind))):
        for of_x, of_a in ((("d", None), ("m",)), (("d", None), ("d",)), ((None, "m"), ("d",))):
            split_x = jax.device_put(x, spec(*of_x))
            split_a = jax.device_put(a, spec(*of_a))
            y = method(make_key("raw"), split_x, split_a)
            assert jax.typeof(y).sharding.spec == spec(*of_x)
            slope = jax.jit(jax.grad(lambda a, x: (method(make_key("raw"), x, a) ** 2).sum()))
            np.testing.assert_allclose(slope(split_a, split_x), expected, rtol=1e-5)


@both
def test_gradient_to_a_narrow_parameter_is_summed_in_float32(method):
    """It is a sum over many elements: bfloat16 would stop at 256."""
    a, ones = jnp.bfloat16(-1.5), jnp.ones(2**14, jnp.bfloat16)
    slope = jax.grad(lambda a, x: jnp.sum(method(make_key("raw"), x, a).astype(jnp.float32) ** 2))
    expected = slope(jnp.float32(-1.5), ones.astype(jnp.float32))
    assert slope(a, ones).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(slope(a, ones)), expected, rtol=0.01)


# The divergence.


def divergence(log_alpha):
    """KL of N(1, alpha) from the log-uniform prior: a noncentral chi-squared's mean logarithm."""
    rate = np.exp(-log_alpha) / 2
    j = np.arange(int(rate + 60 * np.sqrt(rate) + 200))
    log_square = (stats.poisson.pmf(j, rate) * special.digamma(0.5 + j)).sum() + np.log(2)
    return (np.euler_gamma + np.log(2) - log_alpha + log_alpha + log_square) / 2


def test_divergences_are_as_near_to_the_integral_as_they_say():
    at = np.linspace(-10, 12, 111)
    exact = np.array([divergence(a) for a in at])
    with enable_x64():
        molchanov = np.asarray(variational_dropout_kl(jnp.asarray(at)))
        kingma = np.asarray(variational_dropout_kl(jnp.asarray(at), approximation="kingma"))
    assert 0.0093 < np.abs(molchanov - exact).max() < 0.0094
    assert 0.040 < np.abs(kingma - exact)[at <= 0].max() < 0.041


@pytest.mark.quick
def test_divergences_have_the_published_coefficients():
    alpha = np.array([0.01, 0.3, 1.0])
    molchanov = 0.63576 * special.expit(1.87320 + 1.48695 * np.log(alpha))
    molchanov += -np.log1p(1 / alpha) / 2 - 0.63576
    found = variational_dropout_kl(jnp.log(alpha))
    np.testing.assert_allclose(found, -molchanov, rtol=1e-5)
    kingma = np.log(alpha) / 2 + 1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3
    found = variational_dropout_kl(jnp.log(alpha), approximation="kingma")
    np.testing.assert_allclose(found + kingma, (np.euler_gamma + np.log(2)) / 2, rtol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("approximation", ["molchanov", "kingma"])
def test_divergences_of_narrow_parameters_are_computed_in_float32(approximation):
    at = jnp.array([-3.3, -0.7, 2.1], jnp.bfloat16)
    kl = partial(variational_dropout_kl, approximation=approximation)
    assert kl(at).dtype == jnp.float32
    np.testing.assert_array_equal(kl(at), kl(at.astype(jnp.float32)))
    np.testing.assert_array_equal(kl(-2), kl(-2.0))


def test_slope_of_the_bounded_divergence_is_whole_up_to_its_bound():
    slope = jax.grad(partial(variational_dropout_kl, approximation="kingma"))
    np.testing.assert_allclose(slope(0.0), slope(-1e-6), rtol=1e-4)
    assert slope(1e-6) == 0


def test_divergences_at_extreme_parameters():
    at = jnp.array([-30.0, 30.0, 1e4])
    low, high, higher = variational_dropout_kl(at)
    np.testing.assert_allclose(low, 0.63576 + 15, rtol=1e-6)
    assert 0 < high < 1e-12
    assert higher == 0
    slopes = jax.vmap(jax.grad(variational_dropout_kl))(at)
    np.testing.assert_allclose(slopes[0], -0.5, rtol=1e-6)
    assert ((slopes <= 0) & jnp.isfinite(slopes)).all()
    kingma = jax.vmap(jax.value_and_grad(partial(variational_dropout_kl, approximation="kingma")))
    values, slopes = kingma(at)
    assert jnp.isfinite(values).all()
    np.testing.assert_array_equal(slopes[1:], 0)
    np.testing.assert_array_equal(values[1:], kingma(jnp.zeros(2))[0])


# In use.


def test_optax_trains_the_rates_as_leaves():
    """With no data the rate goes to 1/2 and alpha to infinity; noise that hurts, to 0."""
    params = {"logit": jnp.float32(-2.0), "log_alpha": jnp.zeros(3)}
    optimizer = optax.adam(0.1)

    def prior(params, key):
        return penalty(params["logit"], (), 5) + variational_dropout_kl(params["log_alpha"]).sum()

    def data(params, key):
        keys = jax.random.split(key)
        y = concrete_dropout(keys[0], jnp.ones(64), params["logit"])
        z = variational_dropout(keys[1], jnp.ones((64, 3)), params["log_alpha"])
        return jnp.mean((y - 1) ** 2) + jnp.mean((z - 1) ** 2)

    @partial(quick_jit, static_argnums=0)
    def train(loss, params):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(make_key("raw"), 300)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # as Adam needs
        free, bound = train(prior, params), train(data, params)
    assert abs(free["logit"]) < 0.05
    assert (free["log_alpha"] > 3).all()
    assert bound["logit"] < -4
    assert (bound["log_alpha"] < -4).all()


def test_planted_rates_have_gradients():
    def model(x):
        return site(x, "input").sum()

    def planted(parameter):
        drop = lambda key, x: concrete_dropout(key, x, parameter)  # noqa: E731
        return plant(model, {"input": drop})(make_key("raw"), X)

    step = 1e-2
    difference = (planted(0.5 + step) - planted(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(planted)(0.5), difference, rtol=0.02)


def test_penalty_of_rates_of_features_is_a_vmap():
    logits, kernel = jnp.array([-2.0, 0.0, 1.0]), jnp.arange(6.0).reshape(3, 2)
    each = [penalty(a, row, 1) for a, row in zip(logits, kernel, strict=True)]
    found = jax.vmap(lambda a, row: penalty(a, row, 1))(logits, kernel).sum()
    np.testing.assert_allclose(found, sum(each), rtol=1e-6)
    same = jax.vmap(lambda row: penalty(-2.0, row, 1))(kernel).sum()
    np.testing.assert_allclose(same, penalty(-2.0, kernel, 3), rtol=1e-6)


@both
def test_parameter_may_be_an_integer_or_wider_than_x(method):
    np.testing.assert_array_equal(method(make_key("raw"), X, 1), method(make_key("raw"), X, 1.0))
    with enable_x64():
        wide = jnp.float64(-1)
        y, pull = jax.vjp(lambda a: method(make_key("raw"), X, a), wide)
        assert (y.dtype, pull(y)[0].dtype) == (jnp.float32, jnp.float64)


@pytest.mark.quick
@both
def test_bad_arguments_are_named(method):
    name = method.__name__
    parameter = {"concrete_dropout": "rate_logit", "variational_dropout": "log_alpha"}[name]
    for bad, kind, message in (
        (jnp.zeros(4), ValueError, r"must broadcast to x; got \(4,\) for \(6, 5\)"),
        (jnp.zeros((1, 6, 5)), ValueError, r"must broadcast to x; got \(1, 6, 5\)"),
        (jnp.zeros(5, jnp.complex64), TypeError, "must be real; got complex64"),
        (jnp.zeros(5, jnp.int32), TypeError, "must be floating or complex; got int32"),
        (None, TypeError, "must be an array; got None"),
        (True, TypeError, "must be an array; got True"),
    ):
        with pytest.raises(kind, match=rf"^{name}: {parameter} {message}"):
            method(make_key("raw"), X, bad)


@pytest.mark.quick
@pytest.mark.parametrize("bad", [0, -0.1, float("inf"), float("nan")])
def test_bad_temperatures_are_named(bad):
    with pytest.raises(ValueError, match=r"^concrete_dropout: temperature must be positive and fi"):
        concrete_dropout(make_key("raw"), X, 0.0, temperature=bad)


@pytest.mark.quick
def test_other_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"^concrete_dropout: temperature must be a real number"):
        concrete_dropout(make_key("raw"), X, 0.0, temperature="cold")
    with pytest.raises(ValueError, match=r"^concrete_dropout: temperature must be a scalar"):
        concrete_dropout(make_key("raw"), X, 0.0, temperature=jnp.ones(2))
    with pytest.raises(
        ValueError, match=r"^concrete_dropout_penalty: weight_regularizer must be a"
    ):
        penalty(0.0, X, weight_regularizer=-1)
    with pytest.raises(ValueError, match=r"^concrete_dropout_penalty: rate_logit must be a scalar"):
        penalty(jnp.zeros(3), X)
    with pytest.raises(ValueError, match=r"^concrete_dropout_penalty: num_features must be at lea"):
        penalty(0.0, X, 0)
    with pytest.raises(TypeError, match=r"^concrete_dropout_penalty: weights must be floating or"):
        penalty(0.0, {"kernel": X, "steps": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"^concrete_dropout_penalty: weights must be real; got co"):
        penalty(0.0, X.astype(jnp.complex64))
    with pytest.raises(ValueError, match=r"\"molchanov\" or \"kingma\"; got 'exact'"):
        variational_dropout_kl(0.0, approximation="exact")
