"""Rules that would do something else than they say, unseen: each is decided, or refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from meshes import mesh

from jaxdrop import Rule, dropout, match, plant, site
from jaxdrop.match import function, jit, named_scope, primitive, value, within

pytestmark = pytest.mark.quick

X = jnp.arange(1.0, 5.0)
HALF = partial(dropout, rate=0.5)


def ten(key, x):
    del key
    return 10 * x


def run(model, rules, x=X):
    return plant(model, rules)(jax.random.key(0), x)


def first(x):
    with jax.named_scope("first"):
        return site(jnp.sin(x), "h")


def second(x):
    return site(jnp.cos(x), "h")


class TestInsideOfADerivative:
    """The token of a mark is drawn in one jaxpr, and its cotangent is dropped in another."""

    @pytest.mark.parametrize(
        "alone", [within(named_scope("first")), named_scope("first"), function("first")]
    )
    def test_a_scope_that_is_left_alone_is_refused(self, alone):
        def loss(x):
            return jax.checkpoint(lambda x: second(first(x)))(x).sum()

        rules = {"h": HALF, alone: None}
        with pytest.raises(NotImplementedError, match=r"cannot be decided.* grad\(plant\(f, rules"):
            run(jax.grad(loss), rules)

    def test_a_shape_that_is_left_alone_is_refused(self):
        def loss(x):
            def step(c, _):
                return second(jax.vmap(second)(c)), None

            return lax.scan(step, x, length=2)[0].sum()

        rules = {"h": HALF, value(lambda x: x.ndim == 1): None}
        with pytest.raises(NotImplementedError, match="cannot be decided"):
            run(jax.grad(loss), rules, X.reshape(2, 2))

    def test_names_of_marks_are_decided(self):
        def model(x):
            return lax.scan(lambda c, _: (site(site(c * c, "h"), "g"), None), x, length=2)[0].sum()

        for rules in ({"*": HALF, "g": None}, {match.site("*") & ~match.site("g"): HALF}):
            inside = run(jax.grad(model), rules)
            outside = jax.grad(lambda x, rules=rules: run(model, rules, x))(X)
            np.testing.assert_allclose(inside, outside, rtol=1e-6)

    def test_a_mark_without_a_rule_needs_no_decision(self):
        def model(x):
            y = jax.checkpoint(lambda x: site(x * x, "other"))(x)
            return site(y * y, "h").sum() + site(x.sum(), "h")

        scalar = value(lambda x: x.ndim == 0)
        rules = {"h": HALF, scalar: None}
        gradient = jax.grad(lambda x: run(model, rules, x))(X)
        np.testing.assert_allclose(run(jax.grad(model), rules), gradient, rtol=1e-6)


class TestOnce:
    @pytest.mark.parametrize(
        "rules",
        [
            {function("f") | jit("f"): ten},
            {function("f"): ten, jit("f"): ten},
            {function("f"): ten, named_scope("around"): ten},
        ],
        ids=["either", "two", "scope"],
    )
    @pytest.mark.parametrize("call", [jax.jit, lambda f: jax.jit(jax.jit(f))])
    def test_a_result_is_not_dropped_inside_of_a_call_and_outside(self, call, rules):
        def f(x):
            return x * 0 + 1

        def model(x):
            with jax.named_scope("around"):
                y = call(f)(x)
            return y * 1

        with pytest.raises(ValueError, match=r"dropped once.*'function:f'"):
            run(model, rules)

    @pytest.mark.parametrize(
        "call",
        [
            jax.checkpoint,
            lambda f: lambda x: lax.cond(x.sum() > 0, f, lambda x: x, x),
            lambda f: lambda x: lax.while_loop(lambda x: x.sum() < 0, f, x),
            lambda f: lambda x: lax.scan(lambda x, _: (f(x), None), x, length=2)[0],
            lambda f: lambda x: lax.scan(lambda x, _: (x, f(x)), x, length=1)[1],
            lambda f: jax.shard_map(f, mesh=mesh(), in_specs=P("a"), out_specs=P("a")),
        ],
        ids=["checkpoint", "cond", "while", "scan", "rows of a scan", "shard_map"],
    )
    def test_a_result_is_not_dropped_inside_and_where_it_leaves_a_scope(self, call):
        def f(x):
            return jnp.exp(x * 0)

        def model(x):
            with jax.named_scope("around"):
                y = call(f)(x)
            return y * 1

        with pytest.raises(ValueError, match=r"dropped once.*'function:f'"):
            run(model, {function("f") | named_scope("around"): ten})

    def test_a_mark_at_the_end_of_a_custom_derivative_is_not_dropped_outside_again(self):
        marked = jax.custom_jvp(lambda x: site(x, "h"))
        marked.defjvp(lambda primals, tangents: (marked(*primals), tangents[0]))

        @jax.jit
        def f(x):
            return marked(x * 2)

        with pytest.raises(ValueError, match=r"dropped once.*'jit:f'.* as 'h'"):
            run(lambda x: f(x) * 1, {"h": ten, jit("f"): ten})

    def test_what_is_computed_further_may_be_dropped_again(self):
        @jax.jit
        def f(x):
            return jnp.exp(x * 0) + 0

        def looped(x):
            with jax.named_scope("loop"):
                return lax.scan(lambda x, _: (f(x), None), x, length=2)[0] + 0

        y = run(lambda x: f(x), {primitive("exp"): ten, jit("f"): ten})
        np.testing.assert_array_equal(y, [100] * 4)
        y = run(looped, {primitive("exp"): ten, named_scope("loop"): ten})
        np.testing.assert_array_equal(y, [100] * 4)


def test_what_leaves_a_call_is_inside_of_it():
    rules = {function("relu*"): ten, within(jit("relu")): None}
    y = run(lambda x: [jax.nn.relu(x), jax.nn.relu6(x)], rules)
    np.testing.assert_array_equal(y, [X, 10 * X])


class Shaped:
    """A predicate, of which all have one text."""

    def __init__(self, ndim):
        self.ndim = ndim

    def __call__(self, x):
        return x.ndim == self.ndim

    def __repr__(self):
        return "shaped"


def test_rules_of_one_text_are_counted_separately():
    rule = Rule(lambda key, x, rate: x * 0 + rate, rate=(1.0, 2.0))
    rules = {match.site("h") & value(Shaped(n)): rule for n in (0, 1)}
    y = run(lambda x: [site(x, "h"), site(x[0], "h"), site(x, "h")], rules)
    assert [float(one.max()) for one in y] == [1.0, 2.0, 2.0]


def test_a_rule_of_a_custom_derivative_must_run_rates_in_the_order_of_the_function():
    @jax.custom_vjp
    def layer(x):
        return site(x, "a") + site(x, "b")

    def forwards(x):
        b = site(x, "b")
        return site(x, "a") + b, None

    layer.defvjp(forwards, lambda _, g: (g,))
    rising = Rule(lambda key, x, rate: x * rate, rate=(1.0, 2.0))
    with pytest.raises(NotImplementedError, match=r"'a', 'b'.* must run in the same order"):
        jax.grad(lambda x: run(layer, {"*": rising}, x).sum())(X)
    each = {"a": rising, "b": rising}
    np.testing.assert_array_equal(jax.grad(lambda x: run(layer, each, x).sum())(X), X * 0 + 1)


def test_rates_of_several_sites_in_a_backward_rule_are_refused_with_what_helps():
    @jax.custom_vjp
    def layer(x):
        return site(x, "a") + site(x, "b")

    layer.defvjp(lambda x: (layer(x), None), lambda _, g: (site(g, "a"),))
    rising = Rule(lambda key, x, rate: x * rate, rate=(1.0, 2.0))
    with pytest.raises(NotImplementedError, match="Give each site a rule of its own"):
        jax.grad(lambda x: run(layer, {"*": rising}, x).sum())(X)


@pytest.mark.parametrize("before", [None, HALF])
def test_a_rule_behind_one_with_an_equal_pattern_is_never_used(before):
    with pytest.raises(KeyError, match="'h' is never used"):
        run(second, [("h", before), ("h", ten)])


@pytest.mark.parametrize("combine", [lambda a, b: a and b, lambda a, b: a or b, lambda a, _: not a])
def test_words_of_python_do_not_combine_matchers(combine):
    with pytest.raises(TypeError, match=r"combined by &, \| and ~"):
        combine(match.site("a"), match.site("b"))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: ~m])
def test_what_is_around_must_exist(wrap):
    rule = match.site("h") & wrap(within(named_scope("frst")))
    with pytest.raises(KeyError, match=r"no named_scope matches 'frst'.*'first'"):
        run(first, {rule: ten})
    with pytest.raises(KeyError, match=r"no named_scope matches 'frst'.*'first'"):
        run(first, {"h": ten, within(named_scope("frst")): None})
