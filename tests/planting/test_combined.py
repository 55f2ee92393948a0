"""Matchers that are combined, values that a rule leaves alone, and names with a class."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxdrop import Rule, dropout, match, plant, site, sites
from jaxdrop.match import function, jit, named_scope, primitive, value, within

pytestmark = pytest.mark.quick

X = jnp.arange(1.0, 5.0)


def gone(key, x):
    """A drop that leaves a trace of how often it ran: each run multiplies by 10."""
    del key
    return 10 * x


def run(model, rules, x=X):
    return plant(model, rules)(jax.random.key(0), x)


def softmax_like(x):
    return jnp.exp(x) * 0 + 1


def scoped(name, fn, x):
    with jax.named_scope(name):
        return fn(x)


def encoder_and_decoder(x):
    return [scoped("encoder", softmax_like, x), scoped("decoder", softmax_like, x)]


def ones(*factors):
    return [np.full(4, float(factor)) for factor in factors]


def assert_runs(model, rules, *factors):
    """Each result of the model, which is 1, has been dropped as often as its factor has zeros."""
    np.testing.assert_array_equal(run(model, rules), ones(*factors))


class TestWithin:
    def test_a_function_inside_of_a_scope(self):
        rule = function("softmax_like") & within(named_scope("decoder"))
        assert_runs(encoder_and_decoder, {rule: gone}, 1, 10)

    def test_a_function_that_is_not_inside_of_a_scope(self):
        rule = function("softmax_like") & ~within(named_scope("decoder"))
        assert_runs(encoder_and_decoder, {rule: gone}, 10, 1)

    def test_one_side_or_the_other(self):
        rule = named_scope("encoder") | named_scope("decoder")
        assert_runs(encoder_and_decoder, {rule: gone}, 10, 10)

    def test_a_primitive_inside_of_a_function(self):
        def model(x):
            return [softmax_like(x), jnp.exp(x * 0)]

        assert_runs(model, {primitive("mul") & within(function("softmax_like")): gone}, 1, 1)
        rule = primitive("exp") & ~within(function("softmax_like"))
        assert_runs(model, {rule: gone}, 1, 10)

    @pytest.mark.parametrize(
        "outer", [named_scope("outer"), function("body"), jit("body")], ids=["scope", "fn", "jit"]
    )
    def test_what_is_around_may_be_around_a_call_or_a_loop(self, outer):
        @jax.jit
        def body(x):
            return lax.scan(lambda c, _: (jnp.exp(c), None), x, length=2)[0]

        def model(x):
            return scoped("outer", body, x) * 0 + jnp.exp(x * 0)

        def changed(x):
            return 10 * jnp.exp(x)

        rule = primitive("exp") & within(outer)
        y = run(lambda x: [scoped("outer", body, x), jnp.exp(x)], {rule: gone}, jnp.zeros(4))
        np.testing.assert_allclose(y[0], changed(changed(jnp.zeros(4))), rtol=1e-6)
        np.testing.assert_array_equal(y[1], ones(1)[0])

    def test_a_mark_inside_of_a_scope_of_the_model(self):
        def block(x):
            return site(x * 0 + 1, "hidden")

        def model(x):
            return [scoped("first", block, x), scoped("second", block, x)]

        assert_runs(model, {match.site("hidden") & within(named_scope("second")): gone}, 1, 10)

    def test_a_mark_inside_of_a_scope_has_the_mask_in_the_gradient(self):
        def model(x):
            return scoped("second", lambda x: site(x * x, "hidden"), x).sum()

        rule = match.site("hidden") & within(named_scope("second"))
        planted = partial(plant(model, {rule: partial(dropout, rate=0.5)}), jax.random.key(0))
        kept = run(lambda x: site(x, "hidden"), {"hidden": partial(dropout, rate=0.5)}, X * 0 + 1)
        np.testing.assert_array_equal(jax.grad(planted)(X), 2 * X * kept)

    def test_in_a_differentiated_function_the_scope_of_a_mark_is_lost(self):
        def model(x):
            return scoped("second", lambda x: site(x * x, "hidden"), x).sum()

        rule = match.site("hidden") & within(named_scope("second"))
        scan = jax.grad(lambda x: lax.scan(lambda c, x: (c + model(x), None), 0.0, x)[0])
        with pytest.raises(NotImplementedError, match=r"cannot be decided.* grad\(plant"):
            run(scan, {rule: partial(dropout, rate=0.5)}, jnp.ones((3, 2)))

    @pytest.mark.parametrize("outer", [primitive("exp"), match.site("s"), "scope", None])
    def test_only_scopes_functions_and_calls_are_around_something(self, outer):
        with pytest.raises(TypeError, match="outer must be one of"):
            within(outer)


class TestNameOfACombination:
    """The exponential is read inside of the scope, by the sum, and outside."""

    def model(self, x):
        with jax.named_scope("s"):
            h = jnp.exp(x * 0)
            y = h + 0
        return [h * 1, y * 1]

    scope, exp = named_scope("s", output=0), primitive("exp")

    @pytest.mark.parametrize(
        ("rule", "name", "inside"),
        [
            (scope & exp, "named_scope:s", 1),
            (exp & scope, "primitive:exp", 10),
            (scope | exp, "named_scope:s", 1),
            (exp | scope, "primitive:exp", 10),
        ],
        ids=repr,
    )
    def test_the_first_side_gives_the_name_and_decides_who_reads_the_value(
        self, rule, name, inside
    ):
        assert [row.site for row in sites(self.model, X, rules={rule: gone})] == [name]
        assert_runs(self.model, {rule: gone}, 10, inside)


class TestValue:
    def test_values_of_a_shape(self):
        def model(x):
            return [jnp.exp(x * 0), jnp.broadcast_to(jnp.exp(x.sum() * 0), 4)]

        rule = primitive("exp") & value(lambda x: x.ndim == 0)
        assert_runs(model, {rule: gone}, 1, 10)

    def test_values_of_a_dtype(self):
        def model(x):
            return [jnp.exp(x * 0), jnp.exp((x * 0).astype(jnp.bfloat16)).astype(jnp.float32)]

        rule = primitive("exp") & value(lambda x: x.dtype == jnp.bfloat16)
        assert_runs(model, {rule: gone}, 1, 10)

    def test_a_marked_value_has_the_shape_of_one_example(self):
        def model(x):
            return [jax.vmap(lambda one: site(one * 0 + 1, "s"))(x), site(x * 0 + 1, "s")]

        assert_runs(model, {match.site("s") & value(lambda x: x.ndim == 0): gone}, 10, 1)

    def test_the_predicate_gets_a_shape_and_a_dtype(self):
        seen = []
        rule = primitive("exp") & value(lambda x: seen.append(x) or True)
        sites(jnp.exp, X.astype(jnp.bfloat16), rules={rule: gone})
        assert {(type(x), x.shape, x.dtype) for x in seen} == {
            (jax.ShapeDtypeStruct, (4,), jnp.bfloat16.dtype)
        }

    def test_the_predicate_must_be_a_function(self):
        with pytest.raises(TypeError, match="predicate must be a function"):
            value((3, 4))


class TestPaths:
    def test_one_array_of_a_marked_pytree(self):
        def model(x):
            marked = site({"a": x * 0 + 1, "b": x * 0 + 1}, "s")
            return [marked["a"], marked["b"]]

        assert_runs(model, {"s['b']": gone}, 1, 10)
        assert_runs(model, {"s": gone}, 10, 10)
        assert_runs(model, {match.site("s") & ~match.site("s['b']"): gone}, 10, 1)


class TestNone:
    def test_a_rule_of_none_excludes_what_is_inside(self):
        rules = {function("softmax_like"): gone, within(named_scope("decoder")): None}
        assert_runs(encoder_and_decoder, rules, 10, 1)

    def test_in_a_list_the_first_match_wins(self):
        drops = (function("softmax_like"), gone)
        alone = (within(named_scope("decoder")), None)
        assert_runs(encoder_and_decoder, [alone, drops], 10, 1)
        with pytest.raises(KeyError, match="never used"):
            run(encoder_and_decoder, [drops, alone])

    def test_a_site_can_be_left_alone_by_name(self):
        def model(x):
            return [site(x * 0 + 1, "a"), site(x * 0 + 1, "b")]

        assert_runs(model, {"*": gone, "b": None}, 10, 1)

    def test_places_where_no_drop_can_be_put_can_be_excluded(self):
        @jax.custom_jvp
        def inner(x):
            return jnp.exp(x * 0)

        inner.defjvp(lambda primals, tangents: (inner(*primals), tangents[0]))

        def model(x):
            return [jnp.exp(x * 0), inner(x)]

        with pytest.raises(NotImplementedError, match="custom derivative"):
            run(model, {primitive("exp"): gone})
        assert_runs(model, {primitive("exp"): gone, within(function("inner")): None}, 10, 1)
        assert_runs(model, {primitive("exp") & ~within(function("inner")): gone}, 10, 1)

    def test_a_derivative_can_be_excluded(self):
        def inner(x):
            return jnp.exp(x).sum()

        def model(x):
            return [jnp.exp(x * 0), jax.grad(inner)(x * 0)]

        with pytest.raises(NotImplementedError, match="inside of a derivative"):
            run(model, {primitive("exp"): gone})
        assert_runs(model, {primitive("exp"): gone, within(function("inner")): None}, 10, 1)

    def test_undecided_outputs_can_be_excluded(self):
        def two(x):
            return x * 0 + 1, jnp.exp(x * 0)

        def model(x):
            a, b = scoped("two", two, x)
            return [a + b - 1, scoped("one", softmax_like, x)]

        with pytest.raises(ValueError, match="output must say"):
            run(model, {named_scope("*"): gone})
        assert_runs(model, {named_scope("*"): gone, named_scope("two"): None}, 1, 10)

    def test_a_rule_of_none_must_leave_something_alone(self):
        with pytest.raises(KeyError, match="leaves alone what no other rule matches"):
            run(encoder_and_decoder, {named_scope("encoder"): gone, named_scope("decoder"): None})

    def test_the_table_has_no_rule_for_what_is_left_alone(self):
        table = sites(
            lambda x: site(x, "a") + site(x, "b"), X, rules={"*": gone, match.site("b"): None}
        )
        assert [(row.site, row.rule) for row in table] == [("a", "*"), ("b", None)]


class TestNames:
    def test_a_method_is_matched_with_its_class(self):
        class One:
            def __call__(self, x):
                return x * 0 + 1

        class Other(One):
            def __call__(self, x):
                return x * 0 + 1

        one, other = One(), Other()
        assert_runs(lambda x: [one(x), other(x)], {function("Other.__call__"): gone}, 1, 10)
        assert_runs(lambda x: [one(x), other(x)], {function("__call__"): gone}, 10, 10)
        assert_runs(lambda x: [one(x), other(x)], {function("One.*"): gone}, 10, 1)

    @pytest.mark.parametrize(
        "name", ["relu", "relu6", "gelu", "silu", "elu", "softmax", "log_softmax", "softplus"]
    )
    def test_functions_of_jax_nn_are_matched_by_name(self, name):
        layer = getattr(jax.nn, name)
        y = run(lambda x: layer(x) + 0.0, {function(name): gone})
        np.testing.assert_allclose(y, 10 * layer(X), rtol=1e-6)

    def test_functions_with_a_custom_derivative_keep_it(self):
        rule = {function("relu"): gone}
        gradient = jax.grad(lambda x: run(lambda x: jax.nn.relu(jax.nn.relu(x)), rule, x).sum())
        np.testing.assert_array_equal(gradient(jnp.array([-1.0, 0.0, 2.0])), [0, 0, 100])


class TestRefused:
    def test_a_drop_needs_a_name_for_its_keys(self):
        for nameless in (within(function("f")), ~match.site("a"), value(lambda x: True)):
            with pytest.raises(ValueError, match="must match values that have a name"):
                plant(lambda x: x, {nameless: gone})
            with pytest.raises(ValueError, match="must match values that have a name"):
                plant(lambda x: x, {match.site("a") | nameless: gone})

    def test_matchers_are_combined_with_matchers_only(self):
        with pytest.raises(TypeError):
            match.site("a") & "b"
        with pytest.raises(TypeError):
            match.site("a") | None

    def test_a_batch_shares_a_mask_only_at_marks(self):
        rule = (match.site("a") | match.primitive("exp")) & ~within(function("f"))
        with pytest.raises(ValueError, match="share_vmap must be left out"):
            plant(lambda x: x, {rule: Rule(gone, share_vmap=True)})

    def test_what_is_never_fulfilled_says_so(self):
        rule = named_scope("encoder") & within(named_scope("decoder"))
        with pytest.raises(KeyError, match="no floating value fulfils all of it"):
            run(encoder_and_decoder, {rule: gone})

    def test_a_name_that_does_not_exist_is_named(self):
        rule = named_scope("encodr") & ~within(named_scope("decoder"))
        with pytest.raises(KeyError, match=r"no named_scope matches 'encodr'.*'encoder'"):
            run(encoder_and_decoder, {rule: gone})

    def test_two_outputs_of_one_scope_may_have_two_rules(self):
        def model(x):
            a, b = scoped("two", lambda x: (x * 0 + 1, jnp.exp(x * 0)), x)
            return [a * 1, b * 1]

        twice = Rule(lambda key, x: 100 * x)
        rules = {named_scope("two", output=0): gone, named_scope("two", output=1): twice}
        assert_runs(model, rules, 10, 100)


def test_repr_is_what_was_written():
    rule = (function("f") & ~within(named_scope("a/*"))) | primitive("exp")
    text = (
        "((match.function('f') & ~match.within(match.named_scope('a/*'))) | match.primitive('exp'))"
    )
    assert repr(rule) == text
    assert eval(text) == rule


def test_tags_inside_of_a_function():
    def tagged(x):
        return checkpoint_name(x * 0 + 1, "tag")

    rule = match.checkpoint_name("tag") & within(function("tagged"))
    assert_runs(lambda x: [tagged(x), checkpoint_name(x * 0 + 1, "tag")], {rule: gone}, 10, 1)
