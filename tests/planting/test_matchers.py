"""Which values the matchers of `jaxdrop.match` find, on functions of small whole numbers.

All that is computed is exact, so what is expected is written down without regard
to how it is compiled.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxdrop
from jaxdrop import dropout, match, plant, site, site_key
from jaxdrop.match import function, named_scope, primitive

pytestmark = pytest.mark.quick

SIZE = 8
half = partial(dropout, rate=0.5)
X = np.arange(1, SIZE + 1, dtype=np.float32)


def run(model, rules, x=X):
    return plant(model, rules)(jax.random.key(0), jnp.asarray(x))


def every(value):
    """For `output=`."""
    return isinstance(value, jax.ShapeDtypeStruct)


def drop(name, x, occurrence=0):
    """What happens at a site."""
    return half(site_key(jax.random.key(0), name, occurrence), jnp.asarray(x))


def scoped(name, x):
    """One operation in a scope of its own."""
    with jax.named_scope(name):
        return x * 2


def assert_equal(y, expected):
    jax.tree.map(np.testing.assert_array_equal, y, expected)


def found(model, pattern):
    """Names and runs of what a pattern matches."""
    table = jaxdrop.sites(model, X, rules={pattern: half})
    return [(row.site, row.runs) for row in table if row.rule]


class TestNamedScope:
    def test_drops_what_leaves_the_scope_and_nothing_before(self):
        def model(x):
            with jax.named_scope("hidden"):
                h = x * 2
                y = h + 1
            return y * 3

        y = run(model, {named_scope("hidden"): half})
        assert_equal(y, drop("named_scope:hidden", 2 * X + 1) * 3)

    def test_each_value_that_leaves_is_a_run_in_the_order_of_the_program(self):
        def model(x):
            with jax.named_scope("hidden"):
                return x * 2, x + 1, jnp.argmax(x)

        first, second, index = run(model, {named_scope("hidden", output=every): half})
        assert_equal(first, drop("named_scope:hidden", 2 * X))
        assert_equal(second, drop("named_scope:hidden", X + 1, 1))
        assert (index, index.dtype) == (SIZE - 1, jnp.int32)

    @pytest.mark.parametrize(
        ("pattern", "name"), [("*", "net"), ("net*", "net"), ("net/*", "net/layer")]
    )
    def test_of_nested_scopes_the_outermost_that_matches_counts(self, pattern, name):
        def model(x):
            with jax.named_scope("net"):
                return scoped("layer", x) + 1

        expected = {"net": drop("named_scope:net", 2 * X + 1)}
        expected["net/layer"] = drop("named_scope:net/layer", 2 * X) + 1
        assert_equal(run(model, {named_scope(pattern): half}), expected[name])

    def test_a_value_that_leaves_several_scopes_at_once_is_dropped_once(self):
        def model(x):
            with jax.named_scope("net"):
                return scoped("layer", x)

        y = run(model, {named_scope("*"): half})
        assert_equal(y, drop("named_scope:net", 2 * X))

    def test_runs_of_a_scope_are_counted_through_inner_jit_checkpoint_and_scan(self):
        inner = jax.jit(partial(scoped, "s"))

        def model(x):
            x = scoped("s", x) + 1
            x = inner(inner(x) - 3) + 1
            x = lax.scan(lambda x, _: (scoped("s", x) - 1, None), x, length=2)[0]
            return jax.checkpoint(partial(scoped, "s"))(x) + 1

        x = X
        for occurrence, more in enumerate([1, -3, 1, -1, -1, 1]):
            x = drop("named_scope:s", 2 * x, occurrence) + more
        assert_equal(run(model, {named_scope("s"): half}), x)
        assert_equal(jax.jit(plant(model, {named_scope("s"): half}))(jax.random.key(0), X), x)

    @pytest.mark.parametrize("branch", [0, 1, 2])
    def test_branches_start_at_the_same_run_and_what_follows_at_the_greatest(self, branch):
        branches = [
            lambda x: scoped("s", x) + 3,
            lambda x: scoped("s", scoped("s", x) + 1) + 3,
            lambda x: x + 3,
        ]

        def model(index, x):
            return scoped("s", lax.switch(index, branches, x)) + 1

        x = X
        for occurrence, more in enumerate([[3], [1, 3], []][branch]):
            x = drop("named_scope:s", 2 * x, occurrence) + more
        x = x if branch < 2 else x + 3
        y = plant(model, {named_scope("s"): half})(jax.random.key(0), jnp.array(branch), X)
        assert_equal(y, drop("named_scope:s", 2 * x, 2) + 1)

    def test_one_mask_covers_the_batch_of_an_inner_vmap(self):
        xs = np.stack([X, -X])

        def model(xs):
            with jax.named_scope("net"):
                return jax.vmap(lambda x: scoped("layer", x) + 1)(xs)

        y = run(model, {named_scope("net/layer"): half}, xs)
        assert_equal(y, drop("named_scope:net/layer", 2 * xs) + 1)

    def test_scope_that_is_open_around_a_call_ends_after_it(self):
        def layer(x):
            return scoped("inside", x + 1) - 3

        def model(x):
            with jax.named_scope("around"):
                y = jax.jit(layer)(x)
            return y + 1

        around = drop("named_scope:around", 2 * X - 1) + 1
        assert_equal(run(model, {named_scope("around"): half}), around)
        assert_equal(run(model, {named_scope("*"): half}), around)
        inside = drop("named_scope:around/inside", 2 * X + 2) - 2
        assert_equal(run(model, {named_scope("around/*"): half}), inside)

    def test_scope_that_is_open_around_a_loop_ends_after_it(self):
        def model(x):
            with jax.named_scope("around"):
                x = lax.scan(lambda x, _: (scoped("inside", x) - 3, None), x, length=2)[0]
            return x + 1

        around = drop("named_scope:around", 4 * X - 9) + 1
        assert_equal(run(model, {named_scope("around"): half}), around)
        x = X
        for step in range(2):
            x = drop("named_scope:around/inside", 2 * x, step) - 3
        assert_equal(run(model, {named_scope("*/inside"): half}), x + 1)

    def test_paths_tell_apart_the_calls_of_one_jitted_function(self):
        inner = jax.jit(lambda x: scoped("layer", x) + 1)

        def model(x):
            with jax.named_scope("encoder"):
                x = inner(x)
            with jax.named_scope("decoder"):
                return inner(x) - 1

        y = run(model, {named_scope("decoder/layer"): half})
        assert_equal(y, drop("named_scope:decoder/layer", 4 * X + 2))

    def test_each_entry_of_a_scope_is_a_run_also_if_nothing_is_in_between(self):
        y = run(lambda x: scoped("s", scoped("s", x)), {named_scope("s"): half})
        assert_equal(y, drop("named_scope:s", 2 * drop("named_scope:s", 2 * X), 1))

    def test_custom_derivative_inside_keeps_its_rule(self):
        def model(x):
            with jax.named_scope("s"):
                return jax.nn.relu(x)

        x = jnp.arange(-4.0, 4.0)
        slope = jax.grad(lambda x: run(model, {named_scope("s"): half}, x).sum())(x)
        assert_equal(slope, drop("named_scope:s", jnp.where(x > 0, 1.0, 0.0)))

    def test_what_leaves_the_scope_is_dropped_at_its_border(self):
        def model(x):
            with jax.named_scope("s"):
                h = x * 2
                return h, h + 1

        h, y = run(model, {named_scope("s", output=every): half})
        assert_equal(h, drop("named_scope:s", 2 * X))
        assert_equal(y, drop("named_scope:s", 2 * X + 1, 1))  # of what was not dropped yet

    def test_loop_inside_of_a_scope_belongs_to_it(self):
        def model(x):
            with jax.named_scope("s"):
                for _ in range(3):
                    x = x * 2
            return x

        assert found(model, named_scope("s")) == [("named_scope:s", 1)]

    def test_complex_values_are_dropped_like_real_ones(self):
        z = X * np.complex64(1 + 2j)
        y = run(lambda x: scoped("s", x) + 1, {named_scope("s"): half}, z)
        assert_equal(y, drop("named_scope:s", 2 * z) + 1)

    def test_name_may_have_any_characters(self):
        assert found(partial(scoped, "layer(1)"), named_scope("layer(1)"))


class TestPattern:
    def model(self, x):
        with jax.named_scope("net"):
            x = scoped("Dense_0", x) + 1
            with jax.named_scope("block"):
                return scoped("Dense_1", x) + 1

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("net/Dense_0", ["net/Dense_0"]),
            ("net/Dense_?", ["net/Dense_0"]),
            ("*Dense_*", ["net/Dense_0", "net/block/Dense_1"]),  # a star spans slashes
            ("net/*_1", ["net/block/Dense_1"]),
            ("*/Dense_[1-9]", ["net/block/Dense_1"]),
            ("*/Dense_[!1]", ["net/Dense_0"]),
            ("*block", ["net/block"]),
        ],
    )
    def test_is_a_glob_over_whole_paths(self, pattern, names):
        assert found(self.model, named_scope(pattern)) == [(f"named_scope:{n}", 1) for n in names]

    @pytest.mark.parametrize("pattern", ["Dense_0", "net/dense_0", "Dense*", "net/"])
    def test_that_matches_a_part_or_another_case_matches_nothing(self, pattern):
        with pytest.raises(KeyError, match=r"no named_scope matches .*; there are") as error:
            found(self.model, named_scope(pattern))
        assert repr(pattern) in error.value.args[0]

    def test_over_marks_is_the_same(self):
        def model(x):
            return site(site(x, "enc/0/hidden") + 1, "dec/0/hidden")

        assert found(model, "enc/*") == found(model, match.site("enc/*")) == [("enc/0/hidden", 1)]
        assert found(model, "*/hidden") == [("enc/0/hidden", 1), ("dec/0/hidden", 1)]

    @pytest.mark.parametrize("kind", sorted({*match.__all__} - {"value", "within"}))
    def test_must_be_a_string_and_is_shown_as_it_was_written(self, kind):
        matcher = getattr(match, kind)
        assert repr(matcher("a/*")) == f"match.{kind}('a/*')"
        with pytest.raises(TypeError, match=f"match.{kind}: pattern must be a string; got 3"):
            matcher(3)


class TestFunction:
    def test_drops_what_a_function_computed_with_all_its_helpers(self):
        def helper(x):
            return x * 2

        def layer(x):
            return helper(x + 1) - 3

        def model(x):
            return layer(layer(x) + 1) + 1

        first = drop("function:layer", 2 * X - 1) + 1
        second = drop("function:layer", 2 * first - 1, 1) + 1
        assert_equal(run(model, {function("layer"): half}), second)
        first = drop("function:helper", 2 * X + 2) - 2
        second = drop("function:helper", 2 * first + 2, 1) - 2
        assert_equal(run(model, {function("help*"): half}), second)

    def test_of_nested_functions_the_outermost_that_matches_counts(self):
        def layer_inside(x):
            return x * 2

        def layer(x):
            return layer_inside(x) + 1

        y = run(lambda x: layer(x) - 3, {function("layer*"): half})
        assert_equal(y, drop("function:layer", 2 * X + 1) - 3)

    def test_calls_are_told_apart_by_where_they_are(self):
        def layer(x):
            return x * 2

        y = run(lambda x: layer(layer(x)), {function("layer"): half})
        assert_equal(y, drop("function:layer", 2 * drop("function:layer", 2 * X), 1))
        ys = run(lambda x: [layer(x + i) for i in range(3)], {function("layer"): half})
        for index, y in enumerate(ys):
            assert_equal(y, drop("function:layer", 2 * (X + index), index))

    def test_calls_in_a_loop_of_python_are_refused_where_scopes_can_tell_them_apart(self):
        def layer(x):
            return scoped("s", x)

        def model(x):
            for _ in range(2):
                x = layer(x)
            return x

        with pytest.raises(NotImplementedError, match=r"again on its own result.*named_scope"):
            run(model, {function("layer"): half})
        y = run(model, {named_scope("s"): half})
        assert_equal(y, drop("named_scope:s", 2 * drop("named_scope:s", 2 * X), 1))

    def test_one_call_may_run_several_functions_from_one_line(self):
        def long(x):
            x = x + 1
            x = x * 3
            return x - 2

        def layer(x):
            for step in (long, lambda x: x * 2):
                x = step(x)
            return x

        y = run(lambda x: layer(x) + 1, {function("layer"): half})
        assert_equal(y, drop("function:layer", 6 * X + 2) + 1)

    def test_goes_by_the_last_name_of_a_method(self):
        class Layer:
            def forward(self, x):
                return x * 2

        y = run(lambda x: Layer().forward(x) + 1, {function("forward"): half})
        assert_equal(y, drop("function:forward", 2 * X) + 1)

    def test_finds_functions_inside_of_jit_scan_and_vmap(self):
        def layer(x):
            return x * 2

        def model(x):
            x = jax.jit(layer)(x) + 1
            x = lax.scan(lambda x, _: (layer(x) - 1, None), x, length=2)[0]
            return jax.vmap(layer)(x) + 1

        x = X
        for occurrence, more in enumerate([1, -1, -1, 1]):
            x = drop("function:layer", 2 * x, occurrence) + more
        assert_equal(run(model, {function("layer"): half}), x)

    @pytest.mark.parametrize(
        "wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["", "jit", "remat"]
    )
    def test_finds_softmax_wherever_it_is_called(self, wrap):
        def attend(x):
            return jax.nn.softmax(x) * 2

        y = run(wrap(attend), {function("softmax"): half}, jnp.zeros(SIZE))
        assert_equal(y, drop("function:softmax", jnp.full(SIZE, 1 / SIZE)) * 2)

    @pytest.mark.parametrize("name", ["flat", "rebuild", "bind"])
    def test_is_one_of_the_user_if_the_interpreter_has_one_of_that_name(self, name):
        code = {}
        exec(f"def {name}(x): return x * 2", code)
        y = run(lambda x: code[name](x) + 1, {function(name): half})
        assert_equal(y, drop(f"function:{name}", 2 * X) + 1)

    def test_of_functions_in_each_other_through_jit_the_outermost_counts(self):
        def log_softmax(x):
            return jax.nn.log_softmax(x)

        assert found(log_softmax, function("log_softmax")) == [("function:log_softmax", 1)]


class TestJit:
    def test_of_calls_in_each_other_the_outermost_counts(self):
        def outer(x):
            return jax.jit(lambda x: x * 2)(x)

        assert found(jax.jit(outer), match.jit("*")) == [("jit:outer", 1)]
        assert found(jax.jit(jax.nn.relu), match.jit("relu")) == [("jit:relu", 1)]

    def test_source_line_is_one_of_the_user(self):
        (row,) = jaxdrop.sites(jax.jit(lambda x: x * 2), X, rules={match.jit("*"): half})
        assert "tracing.py" not in row.source

    def test_drops_floating_results_of_inner_jitted_functions(self):
        @jax.jit
        def split(x):
            return x * 2, jnp.argmax(x), x + 1

        def model(x):
            first, index, second = split(x)
            return first + 1, index, split(second)[0]

        first, index, second = run(model, {match.jit("split", output=every): half})
        assert_equal(first, drop("jit:split", 2 * X) + 1)
        assert_equal(index, SIZE - 1)
        inner = drop("jit:split", X + 1, 1)
        assert_equal(second, drop("jit:split", 2 * inner, 2))

    def test_relu_is_dropped_as_a_whole_and_keeps_its_derivative_at_zero(self):
        x = jnp.arange(-4.0, 4.0)

        def loss(x):
            y = run(lambda x: jax.nn.relu(x) + 1, {match.jit("relu"): half}, x)
            return y.sum(), y

        slope, y = jax.grad(loss, has_aux=True)(x)
        assert_equal(y, drop("jit:relu", jnp.maximum(x, 0.0)) + 1)
        assert_equal(slope, drop("jit:relu", jnp.array([0, 0, 0, 0, 0, 1.0, 1, 1])))

    def test_custom_vjp_is_dropped_as_a_whole_and_keeps_its_rule(self):
        @jax.custom_vjp
        def rounded(x):
            return jnp.round(x)

        rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (3 * g,))  # not its derivative

        def loss(x):
            y = run(lambda x: rounded(x) + 1, {match.jit("rounded"): half}, x)
            return y.sum(), y

        slope, y = jax.grad(loss, has_aux=True)(X + 0.25)
        assert_equal(y, drop("jit:rounded", X) + 1)
        assert_equal(slope, 3 * drop("jit:rounded", jnp.ones(SIZE)))


class TestPrimitive:
    def test_drops_each_floating_result_at_any_depth(self):
        def model(x):
            x = jnp.maximum(x, 2.0) + 1
            x = jax.jit(lambda x: jnp.maximum(x, 3.0) + 1)(x)
            x = lax.scan(lambda x, _: (jnp.maximum(x, 4.0) + 1, None), x, length=2)[0]
            return x, jnp.maximum(jnp.arange(3), 1)  # whole numbers are left alone

        x = X
        for occurrence, low in enumerate([2, 3, 4, 4]):
            x = drop("primitive:max", np.maximum(x, np.float32(low)), occurrence) + 1
        y, whole = run(model, {primitive("max"): half})
        assert_equal(y, x)
        assert_equal(whole, np.array([1, 1, 2]))


class TestCheckpointName:
    def test_drops_each_tagged_floating_array(self):
        def model(x):
            first, whole, second = checkpoint_name((x * 2, jnp.arange(3), x + 1), "tag")
            return first + 1, whole, checkpoint_name(second + 1, "tag")

        first, whole, second = run(model, {match.checkpoint_name("tag"): half})
        assert_equal(first, drop("checkpoint_name:tag", 2 * X) + 1)
        assert_equal(whole, np.arange(3))
        inner = drop("checkpoint_name:tag", X + 1, 1) + 1
        assert_equal(second, drop("checkpoint_name:tag", inner, 2))

    @pytest.mark.parametrize("saved", [True, False])
    def test_policies_save_what_they_saved_without_a_plant(self, saved):
        policies = jax.checkpoint_policies
        policy = policies.save_only_these_names("tag") if saved else policies.nothing_saveable

        @partial(jax.checkpoint, policy=policy)
        def layer(x):
            h = checkpoint_name(jnp.sinh(x), "tag")
            return h**2

        def computed(function, *args):
            """How often the forward and the backward pass compute what is tagged."""
            gradient = jax.grad(lambda x: function(*args, x).sum())
            return str(jax.make_jaxpr(gradient)(X)).count("= sinh ")

        planted = plant(layer, {match.checkpoint_name("tag"): half})
        assert computed(planted, jax.random.key(0)) == computed(layer) == (1 if saved else 2)

    def test_masks_are_the_same_when_the_backward_pass_computes_again(self):
        def layer(x):
            return checkpoint_name(x * 2, "tag") ** 2

        for policy in (None, jax.checkpoint_policies.save_only_these_names("tag")):
            model = jax.checkpoint(layer, policy=policy)
            rules = {match.checkpoint_name("tag"): half}
            slope = jax.grad(lambda x, m=model, r=rules: run(m, r, x).sum())(jnp.asarray(X))
            dropped = drop("checkpoint_name:tag", 2 * X)
            assert_equal(slope, 2 * dropped * drop("checkpoint_name:tag", jnp.full(SIZE, 2.0)))


class TestSeveralRules:
    def model(self, x):
        with jax.named_scope("net"):
            h = checkpoint_name(x * 2, "tag")
        return jnp.maximum(h + 1, 0.0)

    def test_of_a_dict_must_not_match_the_same_value(self):
        rules = {match.checkpoint_name("tag"): half, named_scope("net"): half}
        with pytest.raises(ValueError, match=r"disjoint.*_name\('tag'\).*named_scope\('net'\)"):
            run(self.model, rules)
        with pytest.raises(ValueError, match="patterns must be disjoint"):
            run(self.model, {named_scope("net"): half, named_scope("n*"): half})

    def test_of_a_dict_may_match_values_one_after_the_other(self):
        y = run(self.model, {match.checkpoint_name("tag"): half, primitive("max"): half})
        h = drop("checkpoint_name:tag", 2 * X)
        assert_equal(y, drop("primitive:max", h + 1))

    @pytest.mark.parametrize("first", ["checkpoint_name:tag", "named_scope:net"])
    def test_of_a_list_are_tried_in_order(self, first):
        def model(x):
            # Each of the two rules has a value of its own too.
            return scoped("net", self.model(x)) + checkpoint_name(x, "tag")

        rules = [(match.checkpoint_name("tag"), half), (named_scope("net"), half)]
        rules = rules if first == "checkpoint_name:tag" else rules[::-1]
        h = drop(first, 2 * X)
        second = int(first == "named_scope:net"), int(first == "checkpoint_name:tag")
        y = drop("named_scope:net", 2 * (h + 1), second[0])
        assert_equal(run(model, rules), y + drop("checkpoint_name:tag", X, second[1]))

    def test_that_an_earlier_one_leaves_nothing_are_refused(self):
        rules = [(named_scope("*"), half), (match.checkpoint_name("tag"), half)]
        with pytest.raises(KeyError, match=r"checkpoint_name\(.*is never used: .*an earlier rule"):
            run(self.model, rules)

    def test_with_drops_of_their_own(self):
        zero = partial(dropout, rate=1.0)
        rules = [(named_scope("net/b"), zero), (named_scope("net/*"), half)]

        def model(x):
            with jax.named_scope("net"):
                return scoped("a", x), scoped("b", x)

        kept, gone = run(model, rules)
        assert_equal(kept, drop("named_scope:net/a", 2 * X))
        assert_equal(gone, np.zeros(SIZE))


@pytest.mark.parametrize(
    "matcher",
    [named_scope("*layer*"), function("layer"), match.jit("layer"), primitive("mul")],
    ids=repr,
)
def test_values_inside_of_a_derivative_are_refused(matcher):
    @jax.jit
    def layer(x):
        return scoped("layer", x) ** 2

    with pytest.raises(NotImplementedError, match=r"inside of a derivative.*grad\(plant\(f"):
        run(jax.grad(lambda x: layer(x).sum()), {matcher: half})


def test_a_drop_of_a_matched_value_may_shift_it():
    y = run(jnp.tanh, {primitive("tanh"): lambda key, x: 2 * x + 1})
    np.testing.assert_array_equal(y, 2 * run(jnp.tanh, {}) + 1)


def norm(x, mean):
    """Returns its output and a running mean."""
    mean = mean / 2 + x / 2
    return x - mean, mean


def in_scope(x, mean):
    with jax.named_scope("norm"):
        return norm(x, mean)


def in_jit(x, mean):
    return jax.jit(norm)(x, mean)


WITH_STATE = pytest.mark.parametrize(
    ("kind", "model"), [("named_scope", in_scope), ("function", norm), ("jit", in_jit)]
)


class TestState:
    @WITH_STATE
    def test_what_is_only_returned_is_state_and_stays(self, kind, model):
        def step(x):
            y, mean = model(x, x * 3)
            return y * 4, mean

        y, mean = run(step, {getattr(match, kind)("norm"): half})
        assert_equal(mean, 2 * X)
        assert_equal(y, drop(f"{kind}:norm", -X) * 4)

    def test_cached_keys_stay_through_the_steps_of_a_scan(self):
        def step(cache, x):
            with jax.named_scope("attend"):
                cache = cache + x
                y = cache * 2
            return cache, y * 3

        cache, ys = run(
            lambda x: lax.scan(step, x, jnp.ones((3, SIZE))), {named_scope("attend"): half}
        )
        assert_equal(cache, X + 3)
        for step_number, y in enumerate(ys):
            h = 2 * (X + 1 + step_number)
            assert_equal(y, drop("named_scope:attend", h, step_number) * 3)

    @WITH_STATE
    def test_values_that_may_all_be_meant_are_an_error_that_lists_them(self, kind, model):
        message = (
            rf"^plant: output must say which of these leaves '{kind}:norm' to be dropped; got None:"
            r"\n  0: float32\[8\], only returned, .*test_matchers.py:\d+.*"
            r"\n  1: float32\[8\], only returned, .*"
            rf"\nPass match.{kind}\(..., output=\) an index or a function of shape and dtype, or"
        )
        with pytest.raises(ValueError, match=message):
            run(lambda x: model(x, x * 3), {getattr(match, kind)("norm"): half})

    @WITH_STATE
    def test_output_chooses_by_index_or_by_type(self, kind, model):
        def widened(x):
            y, mean = model(x, x * 3)
            return y, mean

        matcher = getattr(match, kind)
        # The program computes the mean first.
        mean, y = (0, 1) if kind != "jit" else (1, 0)
        for output, dropped in ((y, [True, False]), (mean, [False, True]), (every, [True, True])):
            found = run(widened, {matcher("norm", output=output): half})
            assert [bool((one == 0).any()) for one in found] == dropped

    def test_output_that_fits_nothing_is_an_error(self):
        for output in (2, lambda value: value.ndim > 1):
            with pytest.raises(ValueError, match="output must say which of these leaves"):
                run(lambda x: in_scope(x, x), {named_scope("norm", output=output): half})

    @pytest.mark.parametrize("output", ["y", 0.5, True])
    @pytest.mark.parametrize("matcher", [named_scope, function, match.jit])
    def test_output_must_be_an_index_or_a_function(self, matcher, output):
        message = rf"^match\.{matcher.__name__}: output must be an index or a function of shape and"
        with pytest.raises(TypeError, match=message):
            matcher("norm", output=output)


class TestBranches:
    @pytest.mark.parametrize("jit", [False, True])
    def test_calls_in_a_loop_that_take_other_branches_are_refused(self, jit):
        def layer(x, i):
            return x * 2 if i % 2 else x + 1

        def model(x):
            for i in range(2):
                x = layer(x, i)
            return x * 3

        message = "'function:layer' runs the line .* again on its own result, so it loops or"
        with pytest.raises(NotImplementedError, match=message):
            run(jax.jit(model) if jit else model, {function("layer"): half})

    def test_a_call_that_returned_nothing_has_ended(self):
        def layer(values, i):
            if i:
                values.append(values[-1] * 2)
                return
            values.append(values[-1] + 1)

        def model(x):
            values = [x]
            for i in (1, 0):
                layer(values, i)
            return values[-1] * 3

        with pytest.raises(NotImplementedError, match="again on its own result"):
            run(model, {function("layer"): half})

    def test_one_call_may_take_a_branch_and_go_on(self):
        def layer(x, i):
            y = x * 2 if i % 2 else x + 1
            for _ in range(1):
                y = y - 3
            return y * 2

        y = run(lambda x: layer(x, 1) + 1, {function("layer"): half})
        assert_equal(y, drop("function:layer", (2 * X - 3) * 2) + 1)

    def test_calls_that_do_not_depend_on_each_other_may_take_other_branches(self):
        def layer(x, i):
            return x * 2 if i % 2 else x + 1

        y = run(
            lambda x: sum([layer(x, i) for i in range(2)]), {function("layer", output=every): half}
        )
        first, second = drop("function:layer", X + 1), drop("function:layer", 2 * X, 1)
        assert_equal(y, first + second)
