"""Nothing is dropped or left out silently: each refusal names the site, its line, a way out."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from programs import RULES, X, block, drop, new_key

import jaxdrop
from jaxdrop import Rule, match, plant, rescale, site, sites

pytestmark = pytest.mark.quick

HERE = r"at .*test_errors\.py:\d+"
PROGRAMS_FILE = r"at .*programs\.py:\d+"


def refused(fn, rules, *args):
    """What a planted function returns, if it is not refused."""
    return plant(fn, rules)(new_key(), *args)


def test_rule_that_matches_nothing_lists_sites():
    def model(x):
        return site(site(x, "ffn/hidden"), "attn")

    with pytest.raises(
        KeyError, match=r"plant: no site matches 'fnn/\*'; there are .*'ffn/hidden'"
    ):
        refused(model, {"fnn/*": drop}, X)
    with pytest.raises(
        KeyError, match="sites: no site matches 'zzz'; there are 'attn', 'ffn/hidden'"
    ):
        sites(model, X, rules={"zzz": drop})
    with pytest.raises(KeyError, match="no site matches 'h'; there is none"):
        refused(jnp.sin, {"h": drop}, X)


@pytest.mark.parametrize(
    ("matcher", "known"),
    [
        (match.checkpoint_name("tga"), "checkpoint_name matches 'tga'; there are 'tag'"),
        (match.jit("squre"), "jit matches 'squre'; there are .*'square'"),
        (match.primitive("tanhh"), "primitive matches 'tanhh'; there are 'tanh'"),
        (match.named_scope("nett"), "named_scope matches 'nett'; there are .*'net'"),
        (
            match.function("hidden_layr"),
            "function matches 'hidden_layr'; there are .*'hidden_layer'",
        ),
    ],
)
def test_matcher_that_matches_nothing_suggests_names(matcher, known):
    @jax.jit
    def square(x):
        return x * x

    def hidden_layer(x):
        return jnp.tanh(x) + 1

    def model(x):
        with jax.named_scope("net"):
            x = hidden_layer(square(x))
        return checkpoint_name(x, "tag")

    with pytest.raises(KeyError, match=known):
        refused(model, {matcher: drop}, X)


def test_patterns_of_a_dict_must_be_disjoint():
    with pytest.raises(
        ValueError, match=rf"patterns must be disjoint; site 's' {PROGRAMS_FILE}.*'s' and '\*'"
    ):
        refused(block, {"s": drop, "*": drop}, X)


def test_first_match_of_a_list_wins():
    nothing = partial(jaxdrop.dropout, rate=1.0)

    def model(x):
        return site(x, "a"), site(x, "b")

    a, b = plant(model, [("a", nothing), ("*", lambda key, x: x)])(new_key(), X)
    assert float(jnp.abs(a).sum()) == 0
    assert bool(jnp.all(b == X))
    with pytest.raises(KeyError, match=r"the rule 'a' is never used: .* an earlier rule"):
        refused(model, [("*", drop), ("a", nothing)], X)


def test_site_in_a_while_condition_is_refused():
    def model(x):
        return lax.while_loop(lambda x: site(x, "s").sum() < 3, lambda x: x + 1, x)

    with pytest.raises(NotImplementedError, match=rf"site 's' {HERE}.*condition of a while_loop"):
        refused(model, RULES, X)


def solve(x):
    def matvec(v):
        return site(v * 2, "s")

    return lax.custom_linear_solve(matvec, x, lambda matvec, b: b / 2, symmetric=True)


def reduce_window(x):
    return lax.reduce(x, jnp.float32(0), lambda a, b: site(a + b, "s"), (0,))


@pytest.mark.parametrize(
    ("model", "primitive"), [(solve, "custom_linear_solve"), (reduce_window, "reduce")]
)
def test_site_inside_of_another_primitive_is_refused(model, primitive):
    with pytest.raises(NotImplementedError, match=rf"site 's' {HERE}.*inside of '{primitive}'"):
        refused(model, RULES, X)
    # Without a rule for it nothing is in the way.
    other = plant(lambda x: site(model(x), "t"), {"t": drop})
    other(new_key(), X)


def test_foreign_match_inside_of_a_derivative_is_refused():
    def model(x):
        with jax.named_scope("net"):
            x = jnp.tanh(checkpoint_name(x, "tag"))
        return x.sum()

    for matcher in (match.checkpoint_name("tag"), match.primitive("tanh"), match.function("model")):
        with pytest.raises(NotImplementedError, match=rf"{HERE}.* is inside of a derivative"):
            refused(jax.grad(model), {matcher: drop}, X)
        jax.grad(plant(model, {matcher: drop}), argnums=1)(new_key(), X)
    with pytest.raises((NotImplementedError, KeyError), match=r"derivative|no named_scope"):
        refused(jax.grad(model), {match.named_scope("*net"): drop}, X)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f, x: jax.grad(f)(x),
        lambda f, x: jax.value_and_grad(f)(x),
        lambda f, x: jax.vjp(f, x)[0],
        lambda f, x: jax.jvp(f, (x,), (x,)),
        lambda f, x: jax.linearize(f, x)[0],
    ],
    ids=["grad", "value_and_grad", "vjp", "jvp", "linearize"],
)
def test_function_to_plant_instead_of_its_derivative_is_named(derivative):
    def model(x):
        return checkpoint_name(jnp.tanh(x), "tag").sum()

    def step(x):
        return derivative(model, x)

    with pytest.raises(NotImplementedError, match=r"grad\(plant\(model, rules\)\)"):
        refused(step, {match.checkpoint_name("tag"): drop}, X)


def test_backward_rule_that_runs_a_site_again_is_refused_after_differentiation():
    @jax.custom_vjp
    def odd(x):
        return block(x)

    odd.defvjp(lambda x: (block(x), x), lambda x, y_bar: jax.vjp(block, x)[1](y_bar))

    with pytest.raises(NotImplementedError, match=rf"site 's' {HERE}.*in a backward pass"):
        refused(jax.grad(lambda x: odd(x).sum()), RULES, X)


@pytest.mark.parametrize("other", ["t", None])
@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_site_that_a_function_and_its_derivative_rule_do_not_share_is_refused(mode, other):
    def replaced(x):
        return site(x * 2, other) if other else x * 2

    def marked(x):
        return site(x * 2, "s")

    if mode == "jvp":
        odd = jax.custom_jvp(marked)
        odd.defjvp(lambda primals, tangents: jax.jvp(replaced, primals, tangents))
    else:
        odd = jax.custom_vjp(marked)
        odd.defvjp(lambda x: (replaced(x), None), lambda _, y_bar: (2 * y_bar,))
    planted = plant(lambda x: odd(x).sum(), {"*": drop})
    planted(new_key(), X)
    with pytest.raises(NotImplementedError, match="site 's' must run both in a function"):
        jax.grad(planted, argnums=1)(new_key(), X)


def test_foreign_match_in_a_custom_derivative_is_refused():
    @jax.custom_jvp
    def odd(x):
        with jax.named_scope("net"):
            return jnp.tanh(checkpoint_name(x, "tag"))

    odd.defjvp(lambda primals, tangents: (odd(*primals), tangents[0]))
    for matcher in (
        match.checkpoint_name("tag"),
        match.primitive("tanh"),
        match.named_scope("net"),
    ):
        with pytest.raises(NotImplementedError, match=r"custom derivative.*match.jit\('odd'\)"):
            refused(odd, {matcher: drop}, X)
    refused(odd, {match.jit("odd"): drop}, X)


def test_rule_that_matches_integers_only_says_so():
    def model(x):
        with jax.named_scope("net"):
            return jnp.argmax(x)

    with pytest.raises(KeyError, match=r"never used: no floating value leaves what it matches\."):
        refused(model, {match.named_scope("net"): drop}, X)


def test_nonlinear_drop_inside_of_a_derivative_is_refused():
    keeps_sum = partial(jaxdrop.dropout, rate=0.5, rescale=rescale.preserve_sum())
    with pytest.raises(NotImplementedError, match=r"must be affine in x") as caught:
        refused(jax.grad(lambda x: block(x).sum()), {"s": keeps_sum}, X)
    assert re.search(r"at site 's', .*programs\.py", caught.value.__notes__[0])


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (lambda key, x: x[:2], r"float32\[2\]"),
        (lambda key, x: x.astype(jnp.float16), r"float16\[6\]"),
        (lambda key, x: None, "None"),
        (lambda key, x: (x, x), "float32"),
    ],
)
def test_drop_must_keep_shape_and_dtype(bad, got):
    with pytest.raises(
        TypeError, match=rf"keep the shape and dtype, float32\[6\]; got .*{got}"
    ) as caught:
        refused(block, {"s": bad}, X)
    assert "site 's'" in caught.value.__notes__[0]


def test_error_of_a_drop_says_at_which_site():
    with pytest.raises(TypeError, match="dropout: x must be") as caught:
        refused(lambda x: site(jnp.arange(3), "counts"), {"counts": drop}, X)
    assert re.search(r"site 'counts', .*test_errors\.py", caught.value.__notes__[0])


@pytest.mark.parametrize("rules", [None, drop, "s", {"s": 0.5}, {3: drop}, [drop], ["s", drop]])
def test_bad_rules_are_refused_at_once(rules):
    with pytest.raises(TypeError, match=r"plant: (rules|a pattern|the rule)"):
        plant(block, rules)


def test_bad_functions_matchers_and_keys():
    with pytest.raises(TypeError, match="plant: fn must be callable; got 3"):
        plant(3, RULES)
    with pytest.raises(TypeError, match="sites: fn must be callable; got 3"):
        sites(3)
    with pytest.raises(TypeError, match=r"match.jit: pattern must be a string; got 3"):
        match.jit(3)
    with pytest.raises(TypeError, match="Rule: drop must be a function"):
        Rule(0.5)
    with pytest.raises(TypeError, match="plant: key must be one key"):
        plant(block, RULES)(X, X)
    with pytest.raises(TypeError, match=r"plant: key must be one key; got a batch of shape \(2,\)"):
        plant(block, RULES)(jax.random.split(new_key()), X)
    with pytest.raises(TypeError, match="site_key: key must be one key"):
        jaxdrop.site_key(X, "s")


def test_no_rules_plant_nothing():
    assert bool(jnp.all(plant(block, {})(new_key(), X) == block(X)))


@pytest.mark.parametrize(
    "derivative", [lambda f, x: jax.vjp(f, x), lambda f, x: jax.linearize(f, x)]
)
def test_derivatives_are_not_returned_as_functions(derivative):
    with pytest.raises(NotImplementedError, match="fn must not return a derivative function"):
        refused(lambda x: derivative(block, x), RULES, X)
    refused(lambda x: (block(x), derivative(jnp.sin, x)), RULES, X)


def test_transposed_site_is_refused():
    def model(x):
        return jax.linear_transpose(lambda x: site(x * 2, "s"), x)(x)[0]

    with pytest.raises(NotImplementedError, match="site 's' is in a function that is transposed"):
        refused(model, RULES, X)


def test_value_that_is_marked_and_matched_has_one_rule():
    def model(x):
        with jax.named_scope("net"):
            return site(x * 2, "s")

    zero = partial(jaxdrop.dropout, rate=1.0)
    scope = match.named_scope("net")
    with pytest.raises(ValueError, match="patterns must be disjoint"):
        refused(model, {"s": drop, scope: zero}, X)

    def with_both(x):
        with jax.named_scope("net"):
            h = x + 1
        return model(x), h, site(x, "s")

    first, _, _ = refused(with_both, [("s", drop), (scope, zero)], X)
    assert bool(jnp.any(first != 0))
    first, _, last = refused(with_both, [(scope, zero), ("s", drop)], X)
    assert not bool(jnp.any(first != 0))
    assert bool(jnp.any(last != 0))


def test_platform_dependent_branches_are_refused():
    def model(x):
        return lax.platform_dependent(x, cpu=lambda x: site(x, "s"), tpu=lambda x: x)

    with pytest.raises(NotImplementedError, match="platform_dependent"):
        jax.jit(lambda key, x: refused(model, RULES, x))(new_key(), X)


def test_sharing_over_a_vmap_is_for_marks():
    with pytest.raises(ValueError, match=r"share_vmap must be left out for match.jit\('f'\)"):
        plant(block, {match.jit("f"): Rule(drop, share_vmap=True)})
    with pytest.raises(TypeError, match="mesh_axes must be a sequence of names; got 'data'"):
        Rule(drop, mesh_axes="data")


def test_derivative_of_an_integer_is_returned_as_jax_returns_it():
    def model(n, x):
        return jax.vjp(lambda n, x: site(x, "s") * n.astype(x.dtype), n, x)[1](x)

    n_bar, _ = plant(model, RULES)(new_key(), jnp.int32(2), X)
    assert n_bar.dtype == jax.dtypes.float0
    assert not isinstance(n_bar, jax.core.Tracer)


def test_name_with_brackets_matches_itself():
    y = plant(lambda x: site(x, "layer[0]"), {"layer[0]": drop})(new_key(), X)
    assert bool(jnp.all(y == drop(jaxdrop.site_key(new_key(), "layer[0]"), X)))


def loop_in_python(x):
    for _ in range(2):
        x = jnp.sin(x) * 2
    return x


@jax.custom_jvp
def tagged_inside(x):
    return checkpoint_name(x, "tag")


tagged_inside.defjvp(lambda primals, tangents: (tagged_inside(*primals), tangents[0]))


@jax.custom_vjp
def runs_again(x):
    return block(x)


runs_again.defvjp(lambda x: (block(x), x), lambda x, y_bar: jax.vjp(block, x)[1](y_bar))

TAGS = {match.checkpoint_name("*"): drop}
REFUSED = {
    "fn is no function": (3, RULES),
    "rules are no rules": (block, drop),
    "pattern is no pattern": (block, {3: drop}),
    "rule is no rule": (block, {"s": 0.5}),
    "vmap is shared": (block, {match.jit("f"): Rule(drop, share_vmap=True)}),
    "nothing matches": (block, {"zzz": drop}),
    "match is not floating": (lambda x: jnp.argmax(x), {match.primitive("argmax"): drop}),
    "two rules match": (block, {"s": drop, "*": drop}),
    "condition of a loop": (
        lambda x: lax.while_loop(lambda x: site(x, "s").sum() < 3, lambda x: x + 1, x),
        RULES,
    ),
    "platform_dependent": (
        lambda x: lax.platform_dependent(x, cpu=lambda x: site(x, "s"), default=lambda x: x),
        RULES,
    ),
    "unknown primitive": (solve, RULES),
    "match in a custom derivative": (tagged_inside, TAGS),
    "match in a derivative": (jax.grad(lambda x: checkpoint_name(x, "tag").sum()), TAGS),
    "backward pass": (jax.grad(lambda x: runs_again(x).sum()), RULES),
    "loop in Python": (loop_in_python, {match.function("loop_in_python"): drop}),
    "derivative is returned": (lambda x: jax.vjp(block, x), RULES),
    "transposed": (lambda x: jax.linear_transpose(lambda x: site(x * 2, "s"), x)(x)[0], RULES),
}


@pytest.mark.parametrize(("fn", "rules"), REFUSED.values(), ids=REFUSED)
def test_refusal_begins_with_the_function_that_was_called(fn, rules):
    """And says the same else, whether `plant` or `sites` was called."""
    messages = {}
    for caller, call in {
        "plant": lambda: plant(fn, rules)(new_key(), X),
        "sites": lambda: sites(fn, X, rules=rules),
    }.items():
        with pytest.raises((TypeError, ValueError, KeyError, NotImplementedError)) as caught:
            call()
        begin, colon, messages[caller] = caught.value.args[0].partition(":")
        assert (begin, colon) == (caller, ":")
    assert messages["plant"] == messages["sites"]


def test_a_string_that_is_the_name_of_a_scope_says_so():
    def model(x):
        with jax.named_scope("mlp"):
            x = x * 2
        return site(x + 1, "hidden")

    with pytest.raises(KeyError, match=r"no site matches 'mlp'.* match\.named_scope\('mlp'\)"):
        refused(model, {"mlp": drop}, X)


def test_a_forgotten_key_is_told_in_a_few_words():
    parameters = {f"layer_{i}": np.zeros((8, 8)) for i in range(100)}
    with pytest.raises(TypeError, match="The planted function takes a key first") as caught:
        plant(lambda params, x: site(x, "s"), {"s": drop})(parameters, X)
    assert len(str(caught.value)) < 400


def test_a_forgotten_rate_names_the_site():
    with pytest.raises(TypeError, match="rate") as caught:
        plant(lambda x: site(x, "hidden"), {"hidden": jaxdrop.dropout})(new_key(), X)
    assert "at site 'hidden'" in caught.value.__notes__[0]


def test_a_kernel_that_writes_to_a_ref_is_not_called_integers():
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def model(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    with pytest.raises(KeyError, match="no floating value leaves what it matches"):
        refused(model, {match.function("kernel"): drop}, X)


def test_a_step_that_differentiates_inside_is_told_what_to_plant():
    def loss(w):
        return jnp.exp(w).sum()

    def step(w):
        return w - jax.grad(loss)(w)

    with pytest.raises(NotImplementedError, match=r"grad\(plant\(loss, rules\)\) in step"):
        plant(step, {match.primitive("exp"): drop})(new_key(), X)
    with pytest.raises(NotImplementedError, match=r"grad\(plant\(loss, rules\)\),"):
        plant(jax.jit(jax.grad(loss)), {match.primitive("exp"): drop})(new_key(), X)
    lost = jax.grad(lambda w: jnp.exp(w).sum())
    with pytest.raises(NotImplementedError, match=r"grad\(plant\(f, rules\)\),"):
        plant(lost, {match.primitive("exp"): drop})(new_key(), X)
