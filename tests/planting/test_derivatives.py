"""Planting before or after differentiating is the same; the mask is that of the forward pass."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import pytest
from jax import lax
from jax.experimental.ode import odeint
from modes import enable_x64
from programs import (
    NAMES,
    PROGRAMS,
    ROWS,
    RULES,
    WEIGHTS,
    ByHand,
    X,
    block,
    cell,
    drop,
    loss,
    nested,
    new_key,
)

from jaxdrop import Rule, dropout, plant, rescale, site, site_key


def loss_of(name):
    return lambda x: loss(PROGRAMS[name].planted(x))


def loss_by_hand(name):
    return lambda x: loss(PROGRAMS[name].straight(x, ByHand(new_key())))


@pytest.mark.parametrize("name", NAMES)
def test_value_and_grad_of_planted_is_planted_value_and_grad(name):
    outside = jax.value_and_grad(plant(loss_of(name), RULES), argnums=1)
    inside = plant(jax.value_and_grad(loss_of(name)), RULES)
    by_hand = jax.value_and_grad(loss_by_hand(name))
    expected = jax.jit(by_hand)(X)
    chex.assert_trees_all_equal(jax.jit(outside)(new_key(), X), expected)
    chex.assert_trees_all_equal(jax.jit(inside)(new_key(), X), expected)


SECOND = ["plain", "scan", "scan of checkpoint", "custom_jvp", "cond", "checkpoint, dots saved"]


@pytest.mark.parametrize("name", SECOND)
def test_jacobians_and_hessians_agree(name):
    def derivatives(f):
        return lambda x: (jax.jacfwd(f)(x), jax.jacrev(f)(x), jax.hessian(f)(x))

    def outside(key, x):
        planted = plant(loss_of(name), RULES)
        return derivatives(lambda x: planted(jax.random.clone(key), x))(x)

    inside = jax.jit(plant(derivatives(loss_of(name)), RULES))
    by_hand = jax.jit(derivatives(loss_by_hand(name)))(X)
    chex.assert_trees_all_equal(jax.jit(outside)(new_key(), X), by_hand)
    # The three derivatives evaluate the function one after the other.
    jacobian, *_ = inside(new_key(), X)
    chex.assert_trees_all_equal(jacobian, by_hand[0])


@pytest.mark.parametrize("derivative", [jax.jacrev, jax.hessian])
@pytest.mark.parametrize("name", SECOND)
def test_planted_jacobians_and_hessians_agree(name, derivative):
    inside = jax.jit(plant(derivative(loss_of(name)), RULES))(new_key(), X)
    chex.assert_trees_all_equal(inside, jax.jit(derivative(loss_by_hand(name)))(X))


def test_backward_pass_of_a_backward_pass_has_the_mask():
    def second(mark):
        return jax.jacrev(jax.grad(lambda x: (mark(x * x) ** 2).sum()))

    planted = plant(second(lambda y: site(y, "s")), {"s": drop})
    by_hand = second(partial(drop, site_key(new_key(), "s")))
    chex.assert_trees_all_equal(jax.jit(planted)(new_key(), X), jax.jit(by_hand)(X))


def test_gradients_agree_through_while_loops_forwards():
    def model(x):
        return loss(
            lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, block(s[1])), (0, x))[1]
        )

    outside = jax.jacfwd(plant(model, RULES), argnums=1)(new_key(), X)
    chex.assert_trees_all_equal(plant(jax.jacfwd(model), RULES)(new_key(), X), outside)


def test_gradients_agree_through_a_checkpoint_of_nested_scans():
    def model(x):
        return loss(jax.checkpoint(nested)(x))

    # The checker of JAX takes a key for used that goes into such a scan unused.
    with jax.debug_key_reuse(False):
        outside = jax.grad(plant(model, RULES), argnums=1)(new_key(), X)
        chex.assert_trees_all_equal(plant(jax.grad(model), RULES)(new_key(), X), outside)
    expected = jax.grad(lambda x: loss(PROGRAMS["scan in scan"].straight(x, ByHand(new_key()))))(X)
    chex.assert_trees_all_equal(outside, expected)


def test_value_that_no_step_changes_has_one_mask_if_differentiated_first():
    """A trap that the docstring of `plant` names: JAX moves the site out of the scan."""

    def model(w):
        return lax.scan(lambda c, _: (c + site(w, "s"), None), jnp.zeros(6), length=3)[0].sum()

    drops = [drop(site_key(new_key(), "s", run), jnp.ones(6)) for run in range(3)]
    outside = jax.grad(plant(model, RULES), argnums=1)(new_key(), X)
    chex.assert_trees_all_equal(outside, sum(drops))
    inside = plant(jax.grad(model), RULES)(new_key(), X)
    chex.assert_trees_all_equal(inside, 3 * drops[0])


@pytest.mark.parametrize("shared", [False, True])
def test_per_example_gradients_are_those_of_the_sum(shared):
    rules = {"s": Rule(drop, share_vmap=shared)}
    each = plant(jax.vmap(jax.grad(loss_of("scan"))), rules)(new_key(), ROWS)
    total = jax.grad(plant(lambda rows: jax.vmap(loss_of("scan"))(rows).sum(), rules), argnums=1)
    chex.assert_trees_all_equal(each, total(new_key(), ROWS))


@pytest.mark.parametrize("name", ["scan", "checkpoint", "custom_vjp", "cond"])
def test_gradients_agree_inside_vmap(name):
    def batched(rows):
        return jax.vmap(loss_of(name))(rows).sum()

    outside = jax.jit(jax.grad(plant(batched, RULES), argnums=1))(new_key(), ROWS)
    inside = jax.jit(plant(jax.grad(batched), RULES))(new_key(), ROWS)
    chex.assert_trees_all_equal(inside, outside)


def test_derivatives_agree_with_finite_differences():
    def model(x):
        def step(carry, row):
            carry = site(jnp.sin(carry * row), "s") + carry
            return carry, jnp.cos(carry)

        carry, ys = lax.scan(jax.checkpoint(step), x, ROWS.astype(x.dtype) / 4)
        return carry.mean() * ys.mean()

    with enable_x64():
        x = X.astype(jnp.float64) / 3
        for planted in (
            lambda x: plant(model, RULES)(new_key(), x),
            lambda x: plant(jax.value_and_grad(model), RULES)(new_key(), x)[0],
        ):
            jax.test_util.check_grads(jax.jit(planted), (x,), order=2, rtol=1e-5, atol=1e-5)
        inside = plant(jax.grad(model), RULES)
        gradient = jax.jit(lambda x: inside(new_key(), x))
        jax.test_util.check_grads(gradient, (x,), order=1, rtol=1e-5, atol=1e-5)


def test_derivative_of_relu_at_zero_stays_zero():
    def model(x):
        return site(jax.nn.relu(site(x, "s")), "s").sum()

    for gradient in (jax.grad(plant(model, RULES), argnums=1), plant(jax.grad(model), RULES)):
        assert float(jnp.abs(gradient(new_key(), jnp.zeros(6))).sum()) == 0


@jax.custom_jvp
def odd_jvp(x):
    return block(x)


@odd_jvp.defjvp
def _(primals, tangents):
    """Threefold on purpose, and the block runs twice: for the value and for the derivative."""
    (x,), (t,) = primals, tangents
    return block(x), 3 * jax.jvp(block, (x,), (t,))[1]


@jax.custom_vjp
def odd_vjp(x):
    return block(x)


# Fivefold on purpose; the backward pass runs the block again.
odd_vjp.defvjp(lambda x: (block(x), x), lambda x, y_bar: (5 * jax.vjp(block, x)[1](y_bar)[0],))


@pytest.mark.quick
@pytest.mark.parametrize(("odd", "factor"), [(odd_jvp, 3), (odd_vjp, 5)])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_odd_rules_survive_and_see_the_forward_mask(odd, factor, wrap):
    def model(x):
        return loss(site(wrap(odd)(x), "s"))

    def by_hand(x):
        mark = ByHand(new_key())
        return loss(mark(block(x, mark)))

    value, gradient = jax.value_and_grad(plant(model, RULES), argnums=1)(new_key(), X)
    chex.assert_trees_all_equal((value, gradient), (by_hand(X), factor * jax.grad(by_hand)(X)))


def test_rule_that_runs_the_layers_again_in_another_order_is_refused():
    """As reversible networks do; with a name for each layer it works."""

    def net_of(name):
        def layer(i, x):
            return x + site(x * WEIGHTS * (i + 1), name(i))

        def run(x):
            inputs = []
            for i in range(3):
                inputs.append(x)
                x = layer(i, x)
            return x, inputs

        @jax.custom_vjp
        def net(x):
            return run(x)[0]

        def backwards(inputs, y_bar):
            for i, x in reversed(list(enumerate(inputs))):
                y_bar = jax.vjp(partial(layer, i), x)[1](y_bar)[0]
            return (y_bar,)

        net.defvjp(run, backwards)
        return (lambda x: loss(net(x))), lambda x: loss(run(x)[0])

    reversible, plain = net_of("layer{}".format)
    gradients = [
        jax.grad(plant(f, {"layer*": drop}), argnums=1)(new_key(), X) for f in (reversible, plain)
    ]
    chex.assert_trees_all_equal(*gradients)
    reversible, _ = net_of(lambda i: "s")
    with pytest.raises(NotImplementedError, match="its runs cannot be told apart"):
        jax.grad(plant(reversible, RULES), argnums=1)(new_key(), X)


@pytest.mark.quick
@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint])
def test_site_that_runs_once_has_one_mask_wherever_its_rule_runs_it(around):
    @jax.custom_jvp
    def odd(x):
        return block(x)

    @odd.defjvp
    def _(primals, tangents):
        both = around(lambda x, t: (block(x), jax.jvp(block, (x,), (t,))[1]))
        return both(*primals, *tangents)

    expected = jax.value_and_grad(lambda x: loss(block(x, ByHand(new_key()))))(X)
    planted = plant(lambda x: loss(odd(x)), RULES)
    chex.assert_trees_all_equal(jax.value_and_grad(planted, argnums=1)(new_key(), X), expected)


def test_rule_that_runs_a_site_twice_has_a_mask_for_each_if_differentiated_first():
    """As the docstring of `plant` says: here nothing tells the two runs apart."""

    def model(x):
        return odd_jvp(x).sum()

    masks = [drop(site_key(new_key(), "s", run), jnp.ones(6)) for run in range(2)]
    outside = jax.grad(plant(model, RULES), argnums=1)(new_key(), X)
    chex.assert_trees_all_equal(outside, 3 * WEIGHTS * masks[0])
    inside = plant(jax.grad(model), RULES)(new_key(), X)
    chex.assert_trees_all_equal(inside, 3 * WEIGHTS * masks[1])


def test_site_that_a_rule_runs_but_not_the_function_is_left_alone():
    """As the docstring of `plant` says: nobody knows of it until the rule is used."""

    @jax.custom_jvp
    def odd(x):
        return x * 2

    odd.defjvp(lambda primals, tangents: jax.jvp(lambda x: site(x * 2, "r"), primals, tangents))

    def model(x):
        return odd(site(x, "s")).sum()

    outside = jax.grad(plant(model, {"*": drop}), argnums=1)(new_key(), X)
    expected = 2 * drop(site_key(new_key(), "s"), jnp.ones(6))
    chex.assert_trees_all_equal(outside, expected)
    # JAX has put the rule into what is planted, if it was differentiated first.
    inside = plant(jax.grad(model), {"*": drop})(new_key(), X)
    chex.assert_trees_all_equal(inside, drop(site_key(new_key(), "r"), expected))


@jax.custom_jvp
def jvp_scan(x):
    return lax.scan(cell, x, ROWS)


@jax.custom_vjp
def vjp_scan(x):
    return lax.scan(cell, x, ROWS)


jvp_scan.defjvp(lambda primals, tangents: jax.jvp(PROGRAMS["scan"].planted, primals, tangents))
vjp_scan.defvjp(partial(jax.vjp, PROGRAMS["scan"].planted), lambda pull, bars: pull(bars))


@pytest.mark.quick
@pytest.mark.parametrize("loop", [jvp_scan, vjp_scan])
@pytest.mark.parametrize("locked", [False, True])
def test_steps_of_a_loop_in_a_function_and_in_its_rule_have_the_same_masks(loop, locked):
    def planted(x):
        return loss(plant(loop, {"s": Rule(drop, share_loop=locked)})(new_key(), x))

    def by_hand(x):
        mark = ByHand(new_key())
        steps = (lambda x: drop(site_key(new_key(), "s"), x)) if locked else mark
        return loss(PROGRAMS["scan"].straight(x, steps))

    chex.assert_trees_all_equal(jax.value_and_grad(planted)(X), jax.value_and_grad(by_hand)(X))


def in_scan(body, x):
    return lax.scan(lambda x, _: (body(x), None), x, length=1)[0]


def in_while(body, x):
    return lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, body(s[1])), (0, x))[1]


@pytest.mark.quick
@pytest.mark.parametrize("loop", [in_scan, in_while])
def test_site_that_runs_once_has_its_mask_in_a_loop_of_the_rule(loop):
    odd = jax.custom_vjp(lambda x: block(x))
    odd.defvjp(
        lambda x: (loop(block, x), None),
        lambda _, y_bar: (loop(lambda y_bar: site(y_bar * WEIGHTS, "s"), y_bar),),
    )
    expected = jax.value_and_grad(lambda x: loss(block(x, ByHand(new_key()))))(X)
    planted = plant(lambda x: loss(odd(x)), RULES)
    chex.assert_trees_all_equal(jax.value_and_grad(planted, argnums=1)(new_key(), X), expected)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("forwards", "backwards"),
    [(block, lambda y_bar: y_bar), (partial(in_while, block), partial(site, name="s"))],
)
def test_site_in_a_while_loop_of_the_function_must_be_in_one_in_the_rule(forwards, backwards):
    """The masks of its iterations are those of no run outside of the loop."""
    odd = jax.custom_vjp(partial(in_while, block))
    odd.defvjp(lambda x: (forwards(x), None), lambda _, y_bar: (backwards(y_bar),))
    with pytest.raises(NotImplementedError, match="its runs cannot be told apart"):
        jax.grad(plant(lambda x: loss(odd(x)), RULES), argnums=1)(new_key(), X)


@pytest.mark.quick
def test_rule_sees_only_what_is_differentiated():
    @jax.custom_jvp
    def product(x, y):
        return site(x * y, "s")

    def rule(primals, tangents):
        (x, y), (x_dot, y_dot) = primals, tangents
        assert isinstance(y_dot, jax.custom_derivatives.SymbolicZero)
        return jax.jvp(lambda x: site(x * y, "s"), (x,), (x_dot,))

    product.defjvp(rule, symbolic_zeros=True)
    gradient = jax.grad(plant(lambda x: product(x, WEIGHTS).sum(), RULES), argnums=1)(new_key(), X)
    chex.assert_trees_all_equal(gradient, drop(site_key(new_key(), "s"), WEIGHTS))


def test_odd_rules_survive_between_sites():
    @jax.custom_jvp
    def odd(x):
        return x * 2

    odd.defjvp(lambda primals, tangents: (odd(*primals), tangents[0] * 7))

    def gradient(mark):
        return jax.grad(lambda x: mark(odd(mark(x, "s")), "s").sum())

    expected = gradient(ByHand(new_key()))(X)
    model = partial(lambda x: site(odd(site(x, "s")), "s").sum())
    chex.assert_trees_all_equal(jax.grad(plant(model, RULES), argnums=1)(new_key(), X), expected)
    chex.assert_trees_all_equal(plant(jax.grad(model), RULES)(new_key(), X), expected)


def test_custom_rules_with_integers_and_several_results():
    @jax.custom_vjp
    def pick(table, index, x):
        return site(table[index] * x, "s"), index + 1

    def forwards(table, index, x):
        y, pull = jax.vjp(lambda t, x: site(t[index] * x, "s"), table, x)
        return (y, index + 1), pull

    pick.defvjp(forwards, lambda pull, bars: (lambda t, x: (t, None, x))(*pull(bars[0])))

    def model(table, index, x):
        y, following = pick(table, index, x)
        return loss(y) + loss(table[following])

    def by_hand(table, x):
        return loss(drop(site_key(new_key(), "s"), table[1] * x)) + loss(table[2])

    planted = jax.grad(plant(model, RULES), argnums=(1, 3))(new_key(), ROWS, jnp.int32(1), X)
    chex.assert_trees_all_equal(planted, jax.grad(by_hand, argnums=(0, 1))(ROWS, X))


def test_custom_rule_refuses_derivatives_of_what_it_closes_over():
    def model(w, x):
        @jax.custom_jvp
        def inner(x):
            return site(w * x, "s")

        inner.defjvp(
            lambda primals, tangents: jax.jvp(lambda x: site(x * 2, "s"), primals, tangents)
        )
        return inner(x).sum()

    planted = plant(model, RULES)
    assert planted(new_key(), WEIGHTS, X).shape == ()
    jax.grad(planted, argnums=2)(new_key(), WEIGHTS, X)
    with pytest.raises(ValueError, match="with respect to a value that it closes over"):
        jax.grad(planted, argnums=1)(new_key(), WEIGHTS, X)


def test_affine_drops_go_into_derivatives_others_are_refused():
    def affine(key, x):
        return jnp.where(jax.random.bernoulli(key, shape=x.shape), x * 2 + 1, -x)

    def reversing(key, x):  # linear, but its matrix is not symmetric
        return jnp.roll(dropout(key, x, 0.5), 1)

    for rule in (affine, reversing):
        outside = jax.grad(plant(loss_of("scan"), {"s": rule}), argnums=1)(new_key(), X)
        chex.assert_trees_all_equal(
            plant(jax.grad(loss_of("scan")), {"s": rule})(new_key(), X), outside
        )
        tangents = jax.jacfwd(plant(loss_of("scan"), {"s": rule}), argnums=1)(new_key(), X)
        chex.assert_trees_all_equal(
            plant(jax.jacfwd(loss_of("scan")), {"s": rule})(new_key(), X), tangents
        )

    keeps_sum = partial(dropout, rate=0.5, rescale=rescale.preserve_sum())
    with pytest.raises(NotImplementedError, match="must be affine in x"):
        plant(jax.grad(loss_of("scan")), {"s": keeps_sum})(new_key(), jnp.ones(6))
    jax.grad(plant(loss_of("scan"), {"s": keeps_sum}), argnums=1)(new_key(), jnp.ones(6))


def test_integer_sites_have_no_derivative():
    def flip(key, x):
        return x ^ jax.random.bits(key, x.shape, jnp.uint32)

    def model(x):
        return (site(jnp.arange(6, dtype=jnp.uint32), "s") % 2).astype(x.dtype) @ x

    outside = jax.grad(plant(model, {"s": flip}), argnums=1)(new_key(), X)
    chex.assert_trees_all_equal(plant(jax.grad(model), {"s": flip})(new_key(), X), outside)


def test_tangent_that_a_rule_marks_may_be_in_a_checkpoint():
    triple = jax.custom_jvp(lambda x: 3 * x)
    triple.defjvp(lambda primals, tangents: (triple(*primals), site(3 * tangents[0], "t")))

    def tangent(x):
        return jax.linearize(jax.checkpoint(triple), x)[1](x)

    chex.assert_trees_all_equal(
        plant(tangent, {"t": drop})(new_key(), X), drop(site_key(new_key(), "t"), 3 * X)
    )


def test_complex_sites():
    def model(x):
        z = site(x * (1 + 2j), "s")
        return (z * z.conj()).real.sum()

    x = X.astype(jnp.complex64)
    outside = jax.grad(plant(model, RULES), argnums=1)(new_key(), x)
    chex.assert_trees_all_equal(plant(jax.grad(model), RULES)(new_key(), x), outside)


def solution(rate, start):
    """The solution at time 1 of y' = -rate y, by a solver whose gradient is a solver too."""

    def field(y, t, rate):
        return -site(rate * y, "field")

    return odeint(field, start, jnp.array([0.0, 1.0]), rate, rtol=1e-10, atol=1e-10)[-1]


def test_adaptive_solver_with_one_mask_has_the_gradient_of_the_exact_solution():
    rules = {"field": Rule(drop, share_runs=True)}
    with enable_x64():
        rate, start = jnp.linspace(0.3, 1.0, 6), jnp.ones(6)
        factor = drop(site_key(new_key(), "field"), start)
        exact = jnp.exp(-factor * rate)
        assert 0 < (factor == 0).sum() < 6

        @jax.jit
        @jax.value_and_grad
        def planted(rate):
            return plant(lambda rate: solution(rate, start), rules)(new_key(), rate).sum()

        value, slope = planted(rate)
        chex.assert_trees_all_close(value, exact.sum(), rtol=1e-7)
        chex.assert_trees_all_close(slope, -factor * exact, rtol=1e-7)


@jax.custom_vjp
def twice(x):
    return site(site(x, "h"), "h")


twice.defvjp(lambda x: (twice(x), x), lambda x, ct: (jax.vjp(lambda x: site(x, "h"), x)[1](ct)[0],))


def nested_runs(x):
    """Five runs in two loops, and more in a custom derivative."""

    def outer(x, _):
        x = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, site(c[1], "h")), (0, x))[1]
        return x, None

    return twice(lax.scan(outer, site(x, "h"), length=2)[0])


def test_one_mask_for_all_runs_reaches_nested_loops_and_rules():
    rules = {"h": Rule(drop, share_runs=True)}
    planted = plant(nested_runs, rules)
    factor = drop(site_key(new_key(), "h"), jnp.ones_like(X))
    chex.assert_trees_all_close(planted(new_key(), X), X * factor**7)
    value, pull = jax.vjp(
        lambda x: plant(twice, {"h": Rule(drop, share_runs=True)})(new_key(), x), X
    )
    chex.assert_trees_all_close((value, pull(X)[0]), (X * factor**2, X * factor))


def test_several_runs_in_a_rule_name_the_way_out():
    planted = plant(twice, {"h": drop})
    with pytest.raises(
        NotImplementedError, match=r"or all of them one mask, by Rule\(drop, share_"
    ):
        jax.grad(lambda x: planted(new_key(), x).sum())(X)
