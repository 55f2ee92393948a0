"""Rates that change from run to run: the rate and the mask of each run, against dropout by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P
from meshes import mesh

import jaxdrop
from jaxdrop import Rule, drop_path, dropout, match, plant, site, site_key

pytestmark = pytest.mark.quick

LAYERS = 5
X = jnp.arange(1.0, 13.0).reshape(4, 3)
KEY = 7


def new_key():
    return jax.random.key(KEY)


def noting(rates):
    """A drop that adds its rate, so that the result says which run had which."""

    def drop(key, x, rate):
        del key
        rates.append(rate)
        return x + rate

    return drop


def unrolled(x, layers=LAYERS):
    for _ in range(layers):
        x = x + site(jnp.tanh(x), "s")
    return x


def scanned(x, layers=LAYERS):
    return lax.scan(lambda x, _: (x + site(jnp.tanh(x), "s"), None), x, length=layers)[0]


def by_hand(x, drop, rates, name="s"):
    for run, rate in enumerate(rates):
        x = x + drop(site_key(new_key(), name, run), jnp.tanh(x), rate)
    return x


RISING = [0.2 * i / (LAYERS - 1) for i in range(LAYERS)]


@pytest.mark.parametrize("model", [unrolled, scanned])
@pytest.mark.parametrize("drop", [dropout, drop_path])
@pytest.mark.parametrize("run", [lambda f: f, jax.jit])
def test_rates_rise_linearly_as_dropout_by_hand(model, drop, run):
    planted = run(plant(model, {"s": Rule(drop, rate=(0.0, 0.2))}))
    expected = jax.jit(lambda x, rates: by_hand(x, drop, rates))(X, jnp.array(RISING))
    np.testing.assert_allclose(planted(new_key(), X), expected, rtol=1e-6)


@pytest.mark.parametrize("model", [unrolled, scanned])
def test_the_gradient_has_the_masks_of_the_values(model):
    planted = plant(model, {"s": Rule(dropout, rate=(0.0, 0.6))})
    gradient = jax.grad(lambda x: planted(new_key(), x).sum())(X)
    rates = jnp.array([0.6 * i / (LAYERS - 1) for i in range(LAYERS)])
    expected = jax.grad(lambda x: by_hand(x, dropout, rates).sum())(X)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_outside_of_loops_the_rates_are_known():
    rates = []
    plant(unrolled, {"s": Rule(noting(rates), rate=(0.0, 0.2))})(new_key(), X)
    assert all(isinstance(rate, float) for rate in rates)
    np.testing.assert_allclose(rates, RISING, rtol=1e-15)


def test_a_single_run_has_the_last_rate():
    rates = []
    plant(partial(unrolled, layers=1), {"s": Rule(noting(rates), rate=(0.0, 0.2))})(new_key(), X)
    assert rates == [0.2]


def test_a_number_is_the_rate_of_all_runs():
    planted = plant(scanned, {"s": Rule(dropout, rate=0.3)})
    bound = plant(scanned, {"s": partial(dropout, rate=0.3)})
    np.testing.assert_array_equal(planted(new_key(), X), bound(new_key(), X))


def test_a_traced_rate_may_be_learned():
    def loss(rate):
        return plant(unrolled, {"s": Rule(jaxdrop.concrete_dropout, rate=rate)})(new_key(), X).sum()

    assert jnp.isfinite(jax.grad(loss)(jnp.float32(0.3)))
    assert jax.grad(loss)(jnp.float32(0.3)) != 0


def test_a_function_of_the_run_and_the_number_of_runs():
    seen = []

    def schedule(run, runs):
        seen.append(runs)
        return jnp.where(run % 2 == 0, 0.0, 1.0)

    y = plant(scanned, {"s": Rule(dropout, rate=schedule)})(new_key(), X)
    expected = by_hand(X, dropout, [0.0, 1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert set(seen) == {LAYERS}


def test_the_number_of_a_run_is_signed_so_that_a_schedule_may_count_down():
    left = Rule(lambda key, x, left: x + left.astype(x.dtype), rate=lambda run, runs: run - runs)
    _, ys = plant(lambda x: lax.scan(lambda c, _: (c, site(c, "s")), x, length=3), {"s": left})(
        new_key(), jnp.zeros(())
    )
    np.testing.assert_array_equal(ys, [-3, -2, -1])


def numbers_of(model, pattern="s", x=X, **options):
    """What each run adds: its number and the number of all runs."""

    def number(run, runs):
        return jnp.asarray(run + 100 * runs, jnp.float32)

    drop = Rule(lambda key, x, rate: x + rate, rate=number, **options)
    return plant(model, {pattern: drop})(new_key(), x)


def test_runs_are_counted_over_all_sites_of_a_rule():
    def model(x):
        return [site(x, "a"), site(x, "b"), site(x, "a"), site(x, "other")]

    runs = numbers_of(model, "[ab]", jnp.zeros(()))
    assert [float(run) for run in runs] == [300, 301, 302, 0]


def test_arrays_of_a_pytree_are_counted_separately():
    def model(x):
        return [site({"u": x, "v": x}, "s") for _ in range(2)]

    assert jax.tree.map(float, numbers_of(model, x=jnp.zeros(()))) == [
        {"u": 200.0, "v": 200.0},
        {"u": 201.0, "v": 201.0},
    ]


def test_runs_are_counted_through_calls_loops_and_branches():
    def mark(x):
        return x, site(jnp.zeros(()), "s")

    def model(x):
        _, first = jax.jit(mark)(x)
        _, rows = lax.scan(lambda x, _: mark(x), x, length=3, reverse=True)
        _, branch = lax.cond(x > 0, mark, lambda x: mark(mark(x)[0]), x)
        _, held = jax.checkpoint(mark)(x)
        return first, rows, branch, held

    first, rows, branch, held = numbers_of(model, x=jnp.zeros(()))
    total = 100 * 7  # 1 + 3 + the longer branch + 1
    assert float(first) == total
    np.testing.assert_array_equal(rows, [total + 3, total + 2, total + 1])
    assert float(branch) == total + 5
    assert float(held) == total + 6


def test_steps_that_share_a_mask_are_one_run():
    def loop(x, length=3):
        return lax.scan(lambda c, _: (c, site(jnp.zeros(()), "s")), x, length=length)[1]

    def model(x):
        return site(x, "s"), loop(x), jax.jit(loop)(x), site(x, "s")

    runs = jax.tree.map(np.asarray, numbers_of(model, x=jnp.zeros(()), share_loop=True))
    assert [run.tolist() for run in runs] == [400, [401] * 3, [402] * 3, 403]


def test_of_nested_loops_the_innermost_is_one_run():
    def inner(x, _):
        return x, lax.scan(lambda c, _: (c, site(jnp.zeros(()), "s")), x, length=3)[1]

    runs = numbers_of(lambda x: lax.scan(inner, x, length=2)[1], x=jnp.zeros(()), share_loop=True)
    np.testing.assert_array_equal(runs, [[200] * 3, [201] * 3])


def test_layers_of_a_recurrent_network_have_one_mask_and_one_rate_each():
    def layer(x):
        return lax.scan(lambda h, row: (site(h + row, "h"), h), jnp.zeros(3), x)[1]

    rule = Rule(dropout, rate=(0.0, 0.6), share_loop=True)
    y = plant(lambda x: layer(layer(x)), {"h": rule})(new_key(), X)

    def by_hand(x, run, rate):
        h, ys = jnp.zeros(3), []
        for row in x:
            ys.append(h)
            h = dropout(site_key(new_key(), "h", run * len(x)), h + row, rate)
        return jnp.stack(ys)

    expected = by_hand(by_hand(X, 0, jnp.float32(0.0)), 1, jnp.float32(0.6))
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_examples_of_a_vmap_and_devices_have_one_rate():
    def model(x):
        return jax.vmap(lambda row: row + site(row * 0, "s"))(x)

    np.testing.assert_array_equal(numbers_of(model), X + 100)
    spread = jax.shard_map(
        lambda x: x + site(x * 0, "s"), mesh=mesh(AxisType.Auto), in_specs=P("a"), out_specs=P("a")
    )
    np.testing.assert_array_equal(numbers_of(spread), X + 100)


def test_values_that_a_matcher_finds_have_rates_too():
    def model(x):
        for i in range(3):
            with jax.named_scope(f"layer_{i}"):
                with jax.named_scope("branch"):
                    y = jnp.tanh(x)
                x = x + y
        return x

    pattern = match.named_scope("layer_*/branch")
    y = plant(model, {pattern: Rule(dropout, rate=(0.0, 0.5))})(new_key(), X)
    expected = X
    for i, rate in enumerate([0.0, 0.25, 0.5]):
        key = site_key(new_key(), f"named_scope:layer_{i}/branch")
        expected = expected + dropout(key, jnp.tanh(expected), rate)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_a_custom_derivative_keeps_the_rates_of_its_function():
    @jax.custom_vjp
    def layer(x):
        return site(jnp.sin(x), "s")

    layer.defvjp(lambda x: (layer(x), x), lambda x, g: (site(g * jnp.cos(x), "s"),))
    rule = Rule(dropout, rate=(0.2, 0.6))
    gradient = jax.grad(lambda x: plant(lambda x: layer(layer(x)), {"s": rule})(new_key(), x).sum())

    def hand(x):
        once = dropout(site_key(new_key(), "s", 0), jnp.sin(x), 0.2)
        return dropout(site_key(new_key(), "s", 1), jnp.sin(once), 0.6).sum()

    np.testing.assert_allclose(gradient(X), jax.grad(hand)(X), rtol=1e-5)


def test_a_differentiated_function_is_refused_since_the_run_is_lost():
    step = jax.grad(lambda x: unrolled(x).sum())
    with pytest.raises(NotImplementedError, match=r"rate must be one number .* grad\(plant"):
        plant(step, {"s": Rule(dropout, rate=(0.0, 0.2))})(new_key(), X)


def test_one_number_is_a_rate_inside_of_a_derivative_too():
    step = jax.grad(lambda x: unrolled(x).sum())
    planted = plant(step, {"s": Rule(dropout, rate=0.3)})
    bound = plant(step, {"s": partial(dropout, rate=0.3)})
    np.testing.assert_array_equal(planted(new_key(), X), bound(new_key(), X))


def test_a_while_loop_has_no_last_run():
    def model(x):
        return lax.while_loop(lambda x: x.sum() < 0, lambda x: site(x, "s"), x)

    with pytest.raises(NotImplementedError, match="number of its runs is not known"):
        plant(model, {"s": Rule(dropout, rate=(0.0, 0.2))})(new_key(), X)
    plant(model, {"s": Rule(dropout, rate=0.2)})(new_key(), X)


@pytest.mark.parametrize("rate", [1, np.float32(0.5), np.array(0.5), jnp.float32(0.5)])
def test_numbers_of_any_kind_are_rates_also_in_a_pair(rate):
    rates = []
    for given in (rate, (np.array(0.0), rate)):
        plant(partial(unrolled, layers=1), {"s": Rule(noting(rates), rate=given)})(new_key(), X)
    assert rates == [rate, rate]


@pytest.mark.parametrize("rate", ["high", (0.1,), (0.1, 0.2, 0.3), ("a", "b"), [0.1, 0.2], True])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(TypeError, match="rate must be a number, a pair"):
        Rule(dropout, rate=rate)


@pytest.mark.parametrize("rate", [(0.0, 0.1), lambda run, runs: 0.1])
def test_runs_that_share_a_mask_have_one_rate(rate):
    with pytest.raises(ValueError, match="rate must be one number if share_runs"):
        Rule(dropout, rate=rate, share_runs=True)
    Rule(dropout, rate=0.1, share_runs=True)


def test_the_drop_refuses_a_bad_rate_with_the_name_of_its_site():
    with pytest.raises(ValueError, match="rate must lie") as error:
        plant(unrolled, {"s": Rule(dropout, rate=(0.0, 1.2))})(new_key(), X)
    assert "at site 's'" in error.value.__notes__[0]
