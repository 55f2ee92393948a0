"""Hard concrete gates: closed forms of their law, and means and gradients by integrals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import logit
from modes import enable_x64, make_key, quick_jit
from reference.methods import Key
from scipy import integrate, special

from jaxdrop import (
    concrete_dropout,
    hard_concrete,
    hard_concrete_gate,
    hard_concrete_penalty,
    uncertainty,
)
from jaxdrop.methods.gates import gate_of_noise

CASES = [(0.0, 2 / 3, (-0.1, 1.1)), (1.3, 0.5, (-0.2, 1.05)), (-2.0, 0.9, (-0.1, 1.3))]
each_case = pytest.mark.parametrize(("log_alpha", "temperature", "stretch"), CASES)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)


def above(v, log_alpha, temperature, stretch):
    """P(z > v) by the docstring."""
    low, high = stretch
    return special.expit(log_alpha - temperature * np.log((v - low) / (high - v)))


def gate_at(u, log_alpha, temperature, stretch):
    """The package's gate in float64, of uniform numbers."""
    with enable_x64():
        arguments = map(jnp.float64, (log_alpha, temperature))
        noise = jnp.asarray(special.logit(u), jnp.float64)
        return np.asarray(gate_of_noise(noise, *arguments, stretch))


# The law.


@pytest.mark.quick
@each_case
def test_gates_exceed_each_value_with_the_chance_that_is_stated(log_alpha, temperature, stretch):
    """A gate falls as u grows, so it exceeds v for u below P(z > v), where it is v."""
    v = np.linspace(0.001, 0.999, 41)
    chance = above(v, log_alpha, temperature, stretch)
    found = gate_at(chance, log_alpha, temperature, stretch)
    np.testing.assert_allclose(found, v, rtol=1e-12, atol=1e-14)
    assert (
        np.diff(gate_at(np.linspace(0.001, 0.999, 999), log_alpha, temperature, stretch)) <= 0
    ).all()


@pytest.mark.quick
@each_case
def test_chances_of_exact_zeros_and_ones_are_the_closed_forms(log_alpha, temperature, stretch):
    low, high = stretch
    some = special.expit(log_alpha - temperature * np.log(-low / high))
    whole = special.expit(log_alpha - temperature * np.log((1 - low) / (high - 1)))
    np.testing.assert_allclose(above(0.0, log_alpha, temperature, stretch), some, rtol=1e-13)
    np.testing.assert_allclose(above(1.0, log_alpha, temperature, stretch), whole, rtol=1e-13)
    step = 1e-9
    u = np.array([some - step, some + step, whole - step, whole + step])
    z = gate_at(u, log_alpha, temperature, stretch)
    assert (z > 0).tolist() == [True, False, True, True]
    assert (z == 1).tolist() == [False, False, True, False]
    with enable_x64():
        options = {"temperature": temperature, "stretch": stretch}
        penalty = hard_concrete_penalty(jnp.float64(log_alpha), **options)
    np.testing.assert_allclose(penalty, some, rtol=1e-12)


@pytest.mark.quick
def test_chances_at_the_defaults_are_those_in_the_docstring():
    assert [round(float(above(v, 0, 2 / 3, (-0.1, 1.1))), 3) for v in (0, 1)] == [0.832, 0.168]


def quadrature(function, a, b):
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return (b - a) / 2 * (weights @ function((b + a) / 2 + (b - a) / 2 * nodes))


@each_case
def test_mean_is_the_integral_of_the_chances(log_alpha, temperature, stretch):
    law = partial(above, log_alpha=log_alpha, temperature=temperature, stretch=stretch)
    by_value, _ = integrate.quad(law, 0, 1, epsabs=1e-14, epsrel=1e-13)
    between = law(1.0), law(0.0)  # where the gate is neither 1 nor 0
    soft = quadrature(lambda u: gate_at(u, log_alpha, temperature, stretch), *between)
    np.testing.assert_allclose(between[0] + soft, by_value, rtol=1e-12)
    if log_alpha == 0:
        np.testing.assert_allclose(by_value, 0.5, rtol=1e-12)


@each_case
def test_mean_gradient_is_that_of_the_mean(log_alpha, temperature, stretch):
    """The gradients of the gates, averaged, against the derivative of P(z > v), integrated."""
    law = partial(above, log_alpha=log_alpha, temperature=temperature, stretch=stretch)
    exact, _ = integrate.quad(lambda v: law(v) * (1 - law(v)), 0, 1, epsabs=1e-14, epsrel=1e-13)

    def slope(u):
        with enable_x64():
            noise, t = jnp.asarray(special.logit(u)), jnp.float64(temperature)
            gate = lambda noise, a: gate_of_noise(noise, a, t, stretch)  # noqa: E731
            return np.asarray(jax.vmap(jax.grad(gate, 1), (0, None))(noise, jnp.float64(log_alpha)))

    np.testing.assert_allclose(quadrature(slope, law(1.0), law(0.0)), exact, rtol=1e-11)


@pytest.mark.quick
@each_case
def test_method_is_its_formula_of_uniform_numbers(log_alpha, temperature, stretch):
    low, high = stretch
    u = (Key("raw", (0, 0)).pair((64,))[0] + 0.5) / 2**32
    s = special.expit((log_alpha - special.logit(u)) / temperature)
    z = np.clip(low + (high - low) * s, 0, 1)
    with enable_x64():
        options = {"temperature": temperature, "stretch": stretch}
        y = hard_concrete(make_key("raw"), jnp.full(64, 3.0), jnp.float64(log_alpha), **options)
    np.testing.assert_allclose(y, 3 * z, rtol=1e-11, atol=1e-12)


@pytest.mark.quick
def test_gates_are_those_of_concrete_dropout_stretched():
    ones = jnp.ones(4096)
    for rate in (0.1, 0.5, 0.8):
        soft = concrete_dropout(make_key("raw"), ones, logit(rate), temperature=0.5) * (1 - rate)
        hard = hard_concrete(make_key("raw"), ones, -logit(rate), temperature=0.5)
        np.testing.assert_allclose(hard, jnp.clip(1.2 * soft - 0.1, 0, 1), atol=1e-6)
        assert ((hard == 0) | (hard == 1)).mean() > 0.4


@pytest.mark.quick
def test_gate_for_tests_is_that_without_noise():
    at = jnp.array([-jnp.inf, -9.0, -2.4, -2.39, 0.0, 1.0, 2.39, 2.4, jnp.inf])
    gate = hard_concrete_gate(at)
    np.testing.assert_allclose(
        gate, gate_of_noise(0 * gate, at, jnp.ones(9), (-0.1, 1.1)), rtol=1e-6
    )
    assert (gate == 0).tolist() == [True] * 3 + [False] * 6
    assert (gate == 1).tolist() == [False] * 7 + [True] * 2
    np.testing.assert_allclose(gate[5], 1.2 * special.expit(1) - 0.1, rtol=1e-6)
    wide = hard_concrete_gate(0.5, stretch=(-1, 3))
    np.testing.assert_allclose(wide, min(4 * special.expit(0.5) - 1, 1), rtol=1e-6)


# In use.


@pytest.mark.quick
def test_each_feature_has_a_gate_of_its_own_and_axes_may_share_one():
    at = jnp.array([-jnp.inf, -1.0, 0.0, 1.0, jnp.inf])
    y = hard_concrete(make_key("raw"), X, at)
    for i, a in enumerate(at):
        whole = hard_concrete(make_key("raw"), X, a)
        np.testing.assert_allclose(y[:, i], whole[:, i], rtol=1e-6)
    np.testing.assert_array_equal(y[:, 0], 0)
    np.testing.assert_array_equal(y[:, -1], X[:, -1])
    shared = hard_concrete(make_key("raw"), jnp.ones((4, 50)), 0.0, broadcast_dims=0)
    np.testing.assert_array_equal(shared, jnp.broadcast_to(shared[:1], (4, 50)))


@pytest.mark.parametrize("at", [-jnp.inf, -1e4, -30.0, 30.0, 1e4, jnp.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_extreme_parameters_open_or_close_and_have_no_gradient(dtype, at):
    x = X.astype(dtype)
    y, pull = jax.vjp(
        lambda x, a, t: hard_concrete(make_key("raw"), x, a, temperature=t), x, at, 0.5
    )
    np.testing.assert_array_equal(y, x if at > 0 else jnp.zeros_like(x))
    of_x, of_parameter, of_temperature = pull(jnp.ones_like(y))
    np.testing.assert_array_equal(of_x, float(at > 0))
    assert of_parameter == of_temperature == 0
    assert jax.value_and_grad(hard_concrete_penalty)(at)[0] == pytest.approx(
        float(at > 0), abs=1e-9
    )
    assert jax.grad(hard_concrete_gate)(at) == 0
    assert jnp.isfinite(jax.grad(hard_concrete_penalty)(at))


def test_closed_gates_hide_what_they_close():
    gates = hard_concrete(make_key("raw"), jnp.ones(200), 0.0)
    y, pull = jax.vjp(lambda x: hard_concrete(make_key("raw"), x, 0.0), jnp.full(200, jnp.nan))
    np.testing.assert_array_equal(y == 0, gates == 0)
    np.testing.assert_array_equal(jnp.isnan(y), gates != 0)
    np.testing.assert_allclose(pull(jnp.ones(200))[0], gates)


@pytest.mark.parametrize("at", [-1.0, 0.3])
def test_gradients_are_finite_differences(at):
    with enable_x64():
        x, weights = jnp.asarray(X, jnp.float64), jnp.linspace(-1, 2, X.size).reshape(X.shape)

        def loss(a, t):
            y = hard_concrete(make_key("raw"), x, a, temperature=t)
            return jnp.sum(weights * y**2) + hard_concrete_penalty(a, temperature=t)

        at, t, step = jnp.float64(at), jnp.float64(0.6), 1e-6
        slopes = jax.grad(loss, (0, 1))(at, t)
        of_at = (loss(at + step, t) - loss(at - step, t)) / (2 * step)
        of_t = (loss(at, t + step) - loss(at, t - step)) / (2 * step)
    np.testing.assert_allclose(slopes, (of_at, of_t), rtol=1e-6)


def test_penalty_prunes_what_is_of_no_use_and_keeps_the_rest():
    """Of six features the target depends on two: their gates open, all others close for good."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 6)), jnp.float32)
    y = 2 * x[:, 0] - 3 * x[:, 3]
    params = {"w": jnp.full(6, 0.5), "log_alpha": jnp.full(6, 0.5)}
    optimizer = optax.adam(0.05)

    def loss(params, key):
        error = hard_concrete(key, x, params["log_alpha"]) @ params["w"] - y
        return jnp.mean(error**2) + 0.1 * hard_concrete_penalty(params["log_alpha"]).sum()

    @quick_jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(make_key("raw"), 1000)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # as Adam needs
        trained = train(params)
    gate = hard_concrete_gate(trained["log_alpha"])
    assert gate.tolist() == [1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose((gate * trained["w"])[jnp.array([0, 3])], [2, -3], atol=0.05)


def test_samples_of_gates_are_samples_for_all_of_uncertainty():
    draw = lambda key: hard_concrete(key, X, 0.0)  # noqa: E731
    samples = jax.vmap(draw)(jax.random.split(make_key("raw"), 8))
    parts = uncertainty.regression(samples)
    assert (parts.epistemic > 0).all()


@pytest.mark.quick
@pytest.mark.parametrize("function", [hard_concrete_gate, hard_concrete_penalty])
def test_gates_and_penalties_are_computed_in_float32_and_stay_so(function):
    at = jnp.array([-2.3, 0.31, 1.7], jnp.bfloat16)
    found = function(at)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, function(at.astype(jnp.float32)))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ((), TypeError, "stretch must be two numbers"),
        ((-0.1, 1.0, 1.1), TypeError, "stretch must be two numbers"),
        (("-0.1", "1.1"), TypeError, "stretch must be two numbers"),
        ((-0.1, 1.1j), TypeError, "stretch must be two numbers"),
        ((float("nan"), 1.1), ValueError, "stretch must reach below 0 and above 1"),
        ((-0.1, float("nan")), ValueError, "stretch must reach below 0 and above 1"),
        ((-float("inf"), 1.1), ValueError, "stretch must reach below 0 and above 1"),
    ],
)
def test_bad_stretches_are_named_by_all_that_take_one(bad, error, message):
    for function in (partial(hard_concrete, make_key("raw"), X), hard_concrete_gate,
                     hard_concrete_penalty):  # fmt: skip
        with pytest.raises(error, match=rf"^hard_concrete\w*: {message}; got"):
            function(0.0, stretch=bad)


@pytest.mark.quick
def test_stretch_may_be_of_numpy():
    bounds = np.array([-0.1, 1.1])
    assert hard_concrete_gate(0.3, stretch=bounds) == hard_concrete_gate(0.3)
