"""What planting costs, counted and not timed: compilations, and operations in the program."""

import gc
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from logs import Compilations
from programs import RULES, drop, new_key

from jaxdrop import Rule, dropout, plant, site
from jaxdrop.base.names import fold_in_name
from jaxdrop.planting.groups import Surroundings
from jaxdrop.planting.plan import Plan
from jaxdrop.planting.planner import Planner
from jaxdrop.planting.rules import Rules
from jaxdrop.planting.tracing import trace

NAMES = ("attention", "hidden", "output")
DROPS = dict.fromkeys(NAMES, drop)
PARAMS = jnp.linspace(-1, 1, 3 * 8 * 8).reshape(3, 8, 8)
X = jnp.linspace(-1, 1, 4 * 8).reshape(4, 8)


def layer(x, w, mark):
    attention = mark(jax.nn.softmax(x @ x.T), "attention")
    hidden = mark(jnp.tanh(attention @ x @ w), "hidden")
    return x + mark(hidden @ w.T, "output")


def unrolled(params, x, mark):
    for i in range(len(params)):
        x = layer(x, params[i], lambda x, name, i=i: mark(x, name, i))
    return (x * x).mean()


def scanned(params, x, mark):
    def step(x, operands):
        w, i = operands
        return layer(x, w, lambda x, name: mark(x, name, i)), None

    steps = jnp.arange(len(params), dtype=jnp.uint32)
    return (lax.scan(step, x, (params, steps))[0] ** 2).mean()


def constant(key, x, run):
    """`drop` at every run."""
    del run
    return drop(key, x)


def rising(key, x, run):
    """`dropout` with a rate that rises from .1 to .4 over the layers."""
    share = run / 2 if isinstance(run, int) else run.astype(jnp.int32) / 2
    return dropout(key, x, 0.1 + (0.4 - 0.1) * share)


def by_hand(model, drop):
    """The model with the documented keys, as one would write it: a key a name, then one a run."""

    def dropped(key, params, x):
        data = jax.random.key_data(key)
        keys = {name: fold_in_name(jax.random.wrap_key_data(data), name) for name in NAMES}

        def mark(x, name, run):
            return drop(jax.random.fold_in(keys[name], run), x, run)

        return model(params, x, mark)

    return dropped


def operations(compiled):
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", compiled.as_text(), re.MULTILINE))


RISING = dict.fromkeys(NAMES, Rule(dropout, rate=(0.1, 0.4)))


@pytest.mark.parametrize(("rules", "drop"), [(DROPS, constant), (RISING, rising)])
@pytest.mark.parametrize("model", [unrolled, scanned])
@pytest.mark.parametrize("transform", [lambda f: f, lambda f: jax.value_and_grad(f, argnums=1)])
def test_planted_program_has_the_operations_of_the_one_by_hand(model, transform, rules, drop):
    def marked(params, x):
        return model(params, x, lambda x, name, _: site(x, name))

    planted = jax.jit(transform(plant(marked, rules)))
    written = jax.jit(transform(by_hand(model, drop)))
    compiled = [f.lower(new_key(), PARAMS, X).compile() for f in (planted, written)]
    assert operations(compiled[0]) == operations(compiled[1])
    chex.assert_trees_all_equal(planted(new_key(), PARAMS, X), written(new_key(), PARAMS, X))


@pytest.mark.parametrize("call", ["jit", "scan", "cond"])
def test_sites_in_a_call_have_their_keys_in_the_order_of_the_program(call):
    """The order of a set of strings would make each process compile a program of its own."""
    names = [f"s{i}" for i in range(12)]

    def marked(x):
        for name in names:
            x = site(x, name)
        return x

    def model(x):
        if call == "jit":
            return jax.jit(marked)(x)
        if call == "scan":
            return lax.scan(lambda x, _: (marked(x), None), x, length=2)[0]
        return lax.cond(x.sum() > 0, marked, lambda x: x, x)

    jaxpr, _, _ = trace("plant", model, X)
    plan = Planner(Rules("plant", {"*": drop})).plan(jaxpr, Surroundings())
    assert list(plan.runs) == names


def test_each_call_traces_the_function_again():
    scale = [1.0]
    planted = plant(lambda x: site(x * scale[0], "s"), {"s": lambda key, x: x})
    for scale[0] in (1.0, 2.0):
        chex.assert_trees_all_equal(planted(new_key(), X), X * scale[0])


def test_inner_jit_compiles_once_over_keys_and_calls():
    inner = jax.jit(lambda x: site(x * 2, "s"))

    def model(x):
        return inner(inner(inner(x)))

    planted = plant(model, RULES)
    with Compilations() as first:
        planted(jax.random.key(0), X)
    assert sum("<lambda>" in name for name in first.names) == 1
    with Compilations() as second:
        for seed in (1, 2):
            planted(jax.random.key(seed), X)
    assert second.names == []


def test_inner_jit_donates_the_operands_that_it_donated():
    inner = jax.jit(lambda x, y: site(x * 2, "s") + y, donate_argnums=0)
    planted = plant(inner, RULES)
    for call in (inner, lambda *xs: planted(new_key(), *xs)):
        x, y = jnp.arange(4.0), jnp.ones(4)
        call(x, y)
        assert (x.is_deleted(), y.is_deleted()) == (True, False)


@pytest.mark.parametrize("loop", ["scan", "while", "cond"])
def test_loops_compile_once_over_keys_outside_of_jit(loop):
    def step(carry, _):
        return site(carry * 2, "s"), None

    def model(x):
        if loop == "scan":
            return lax.scan(step, x, length=3)[0]
        if loop == "cond":
            return lax.cond(True, double, negate, x)
        return lax.while_loop(small, double, x)

    def small(x):
        return jnp.abs(x).max() < 1

    def double(x):
        return site(x * 2, "s")

    def negate(x):
        return -x

    planted = plant(model, RULES)
    planted(jax.random.key(0), X)
    with Compilations() as again:
        planted(jax.random.key(1), X)
    assert again.names == []


def test_plans_do_not_outlive_what_they_plan():
    def model(x):  # a new body at each call, so that JAX traces it anew
        x = lax.scan(lambda c, _: (site(c * 2, "s"), None), x, length=3)[0]
        x = lax.cond(x.sum() > 0, lambda x: site(x, "s"), lambda x: x, x)
        x = lax.while_loop(lambda x: x.sum() < -1e9, lambda x: site(x, "s"), x)
        return jax.checkpoint(lambda x: jax.jit(lambda x: site(x, "s"))(x))(x)

    def plans():
        gc.collect()
        return sum(isinstance(thing, Plan) for thing in gc.get_objects())

    planted = plant(model, RULES)
    counts = []
    for seed in range(2):
        planted(jax.random.key(seed), X)
        jax.clear_caches()
        counts.append(plans())
    assert counts[0] == counts[1]


def test_scan_keeps_its_key_out_of_what_the_backward_pass_saves():
    """Of a site a scan saves the packed words of the mask, and no floats."""
    rows = jnp.ones((5, 64, 64))

    def model(x):
        return lax.scan(lambda c, row: (site(c + row, "s"), None), x, rows)[0].sum()

    _, pull = jax.vjp(lambda x: plant(model, RULES)(new_key(), x), jnp.ones((64, 64)))
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(pull) if hasattr(leaf, "nbytes")]
    words = 5 * 64 * 64 // 8
    assert sum(sizes) < 1.25 * words + 4096
