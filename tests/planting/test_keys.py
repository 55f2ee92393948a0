"""Which masks a planted function draws: those of the documented keys, whatever JAX is around."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from nodes import Pair
from programs import NAMES, PROGRAMS, ROWS, RULES, ByHand, X, block, cell, drop, new_key

import jaxdrop
from jaxdrop import Rule, plant, site, site_key

ALL = [(name, jit) for name in NAMES for jit in (False, True)]


@pytest.mark.parametrize(("name", "jit"), ALL)
def test_planted_program_equals_the_straight_line_by_hand(name, jit):
    program = PROGRAMS[name]
    planted = plant(program.planted, RULES)
    planted = jax.jit(planted) if jit else planted
    chex.assert_trees_all_equal(planted(new_key(), X), program.straight(X, ByHand(new_key())))


@pytest.mark.quick
@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_masks_do_not_change_when_jit_or_checkpoint_is_added(wrap):
    def model(wrap, x):
        x = wrap(block)(x)
        x, ys = lax.scan(wrap(cell), x, ROWS)
        return wrap(lambda x: block(block(x)))(x), ys

    plain = plant(partial(model, lambda f: f), RULES)(new_key(), X)
    wrapped = plant(wrap(partial(model, wrap)), RULES)(new_key(), X)
    chex.assert_trees_all_equal(wrapped, plain)


@pytest.mark.quick
def test_adding_a_site_leaves_masks_of_others_alone():
    def model(more, x):
        x = site(more(x), "s")
        return site(more(x) + 1, "s")

    rules = {"s": drop, "t": lambda key, x: x}
    y = plant(partial(model, lambda x: site(x, "t")), rules)(new_key(), X)
    chex.assert_trees_all_equal(y, plant(partial(model, lambda x: x), RULES)(new_key(), X))


@pytest.mark.quick
def test_each_array_of_a_pytree_is_a_site_of_its_own():
    def model(x):
        return site({"a": x, "b": [x, None, "text", 3.0]}, "h")

    out = plant(model, {"h": drop})(new_key(), X)
    chex.assert_trees_all_equal(out["a"], drop(site_key(new_key(), "h['a']"), X))
    chex.assert_trees_all_equal(out["b"][0], drop(site_key(new_key(), "h['b'][0]"), X))
    assert out["b"][1:] == [None, "text", 3.0]


@pytest.mark.quick
def test_parts_of_a_node_of_the_user_are_sites_by_their_numbers():
    out = plant(lambda x: site(Pair(x, "text"), "h"), {"h[0]": drop})(new_key(), X)
    chex.assert_trees_all_equal(out.children[0], drop(site_key(new_key(), "h[0]"), X))
    assert (type(out), out.children[1]) == (Pair, "text")


@pytest.mark.quick
def test_arrays_and_scalars_of_numpy_are_marked_and_numbers_of_python_are_not():
    tree = {"a": np.ones(6, np.float32), "b": np.float32(1), "c": 1.0}
    out = plant(lambda: site(tree, "h"), {"h": lambda key, x: x * 2})(new_key())
    assert jax.tree.map(float, out | {"a": out["a"].sum()}) == {"a": 12, "b": 2, "c": 1}


def test_key_implementations_are_hashed_down_to_threefry():
    for key in (jax.random.key(3, impl="rbg"), jax.random.PRNGKey(3)):
        y = plant(block, RULES)(key, X)
        chex.assert_trees_all_equal(y, block(X, ByHand(key)))
        assert site_key(key, "s").dtype == jax.random.key(0).dtype


def test_keys_of_sites_are_threefry_whatever_the_default():
    key = new_key()
    with jax.default_prng_impl("rbg"):
        y = plant(block, RULES)(key, X)
    chex.assert_trees_all_equal(y, block(X, ByHand(new_key())))


@pytest.mark.quick
def test_occurrence_may_be_traced_and_must_be_a_whole_number():
    key = new_key()  # not consumed
    traced = jax.jit(lambda i: jax.random.key_data(site_key(key, "s", i)))(2)
    for occurrence in (2, np.int64(2), jnp.uint32(2)):
        found = jax.random.key_data(site_key(key, "s", occurrence))
        chex.assert_trees_all_equal(found, traced)
    with pytest.raises(ValueError, match=r"^site_key: occurrence must be at least 0; got -1"):
        site_key(key, "s", -1)
    for wrong, got in ((1.0, "1.0"), (jnp.float32(1), "float32")):
        with pytest.raises(TypeError, match=f"^site_key: occurrence must be integers; got {got}"):
            site_key(key, "s", wrong)


@pytest.mark.quick
def test_while_loop_folds_in_its_iteration():
    def model(x):
        def step(state):
            i, x = state
            return i + 1, block(block(x))

        return block(lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1])

    x = X
    for iteration in range(3):
        for run in range(2):
            key = jax.random.fold_in(site_key(new_key(), "s", run), iteration)
            x = block(x, partial(drop, key))
    expected = block(x, partial(drop, site_key(new_key(), "s", 2)))
    chex.assert_trees_all_equal(plant(model, RULES)(new_key(), X), expected)


@pytest.mark.quick
def test_scan_in_while_and_while_in_scan():
    def while_of(body, x):
        return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, body(s[1])), (0, x))[1]

    def scan_of(body, x):
        return lax.scan(lambda c, _: (body(c), None), x, length=2)[0]

    def by_hand(x, runs, order):
        for i in range(2):
            for j in range(2):
                run, iteration = (j, i) if order == "scan in while" else (i, j)
                key = jax.random.fold_in(site_key(new_key(), "s", run), iteration)
                x = block(x, partial(drop, key))
        return x

    inner = plant(lambda x: while_of(partial(scan_of, block), x), RULES)(new_key(), X)
    chex.assert_trees_all_equal(inner, by_hand(X, 2, "scan in while"))
    outer = plant(lambda x: scan_of(partial(while_of, block), x), RULES)(new_key(), X)
    chex.assert_trees_all_equal(outer, by_hand(X, 2, "while in scan"))


ONES = jnp.ones(64)


def masks(fn, rules, *args):
    """What a planted function returns for ones, as keep decisions."""
    return plant(fn, rules)(new_key(), *args) != 0


@pytest.mark.quick
def test_steps_calls_and_iterations_have_distinct_masks():
    def model(x):
        _, steps = lax.scan(lambda c, _: (c, site(x + c, "s")), jnp.zeros(()), length=3)
        inner = jax.jit(lambda x: site(x, "s"))

        def iterate(state):
            i, rows = state
            return i + 1, rows.at[i].set(site(x, "s"))

        _, rows = lax.while_loop(lambda s: s[0] < 3, iterate, (0, jnp.zeros((3, 64))))
        return jnp.stack([*steps, inner(x), inner(x), *rows])

    drawn = {tuple(mask.tolist()) for mask in masks(model, RULES, ONES)}
    assert len(drawn) == 8


@pytest.mark.parametrize("loop", ["scan", "scan, reversed", "while"])
def test_locked_masks_are_those_of_the_first_step_of_the_innermost_loop(loop):
    def run(body, count):
        if loop == "while":

            def iterate(state):
                i, rows = state
                return i + 1, rows.at[i].set(body())

            like = jax.eval_shape(body)
            start = jnp.zeros((count, *like.shape), like.dtype)
            return lax.while_loop(lambda s: s[0] < count, iterate, (0, start))[1]
        reverse = loop == "scan, reversed"
        return lax.scan(lambda c, _: (c, body()), None, length=count, reverse=reverse)[1]

    def model(x):
        def outer():
            inner = run(lambda: site(x, "s"), 3)
            return jnp.concatenate([inner, site(x, "s")[None]])

        return run(outer, 2)

    locked = masks(model, {"s": Rule(drop, share_loop=True)}, ONES)
    free = masks(model, RULES, ONES)
    first = 1 if loop == "scan, reversed" else 0
    step = 2 if loop == "scan, reversed" else 0
    for i in range(2):
        # The inner site: one mask in a loop, that of its first step, another in the next loop.
        chex.assert_trees_all_equal(locked[i, :3], jnp.stack([free[i, step]] * 3))
        # The outer site: the mask of the outer loop's first step.
        chex.assert_trees_all_equal(locked[i, 3], free[first, 3])
    assert bool(jnp.any(locked[0, 0] != locked[1, 0]))
    assert bool(jnp.any(free[0, 0] != free[0, 1]))


def test_locked_dropout_in_a_scan_equals_locked_dropout_of_the_sequence():
    def rnn(xs):
        return lax.scan(lambda h, x: (h, site(x, "s") + h), jnp.zeros(6), xs)[1]

    planted = plant(rnn, {"s": Rule(drop, share_loop=True)})(new_key(), ROWS)
    by_hand = jaxdrop.locked_dropout(site_key(new_key(), "s"), ROWS, 0.5, time_axis=0)
    chex.assert_trees_all_equal(planted, by_hand)


@pytest.mark.quick
def test_example_of_an_inner_vmap_has_the_mask_of_its_index():
    key = site_key(new_key(), "s")
    for batch in (1, 5):
        y = plant(jax.vmap(block), RULES)(new_key(), jnp.tile(X, (batch, 1)))
        for i in range(batch):
            by_hand = block(X, partial(drop, jax.random.fold_in(key, i)))
            chex.assert_trees_all_equal(y[i], by_hand)


def test_nested_vmaps_with_moved_axes():
    def model(x):
        inner = jax.vmap(lambda x: site(x, "s"), in_axes=1, out_axes=1)
        return jax.vmap(inner, in_axes=2, out_axes=0)(x)

    x = jnp.ones((6, 3, 2))
    y = plant(model, RULES)(new_key(), x)
    for outer in range(2):
        for inner in range(3):
            key = jax.random.fold_in(site_key(new_key(), "s"), outer)
            by_hand = drop(jax.random.fold_in(key, inner), jnp.ones(6))
            chex.assert_trees_all_equal(y[outer, :, inner], by_hand)


@pytest.mark.parametrize("axes", [(0, 0), (1, 1), (1, 0)])
def test_shared_masks_of_a_vmap_are_one(axes):
    in_axis, out_axis = axes
    x = jnp.ones((5, 5))
    model = jax.vmap(lambda x: site(x, "s"), in_axes=in_axis, out_axes=out_axis)
    y = plant(model, {"s": Rule(drop, share_vmap=True)})(new_key(), x)
    one = drop(site_key(new_key(), "s"), jnp.ones(5))
    chex.assert_trees_all_equal(jnp.moveaxis(y, out_axis, 0), jnp.tile(one, (5, 1)))


def test_value_without_the_batch_has_one_mask_in_a_vmap():
    def model(x, shared):
        return jax.vmap(lambda x: x + site(shared, "s"))(x)

    y = plant(model, RULES)(new_key(), jnp.zeros((4, 6)), X)
    chex.assert_trees_all_equal(y, jnp.tile(drop(site_key(new_key(), "s"), X), (4, 1)))


@pytest.mark.parametrize("shared", [False, True])
def test_empty_batches_and_empty_values(shared):
    rules = {"s": Rule(drop, share_vmap=shared)}
    assert plant(jax.vmap(block), rules)(new_key(), jnp.ones((0, 6))).shape == (0, 6)
    assert plant(lambda x: site(x, "s"), rules)(new_key(), jnp.ones((3, 0))).shape == (3, 0)


def test_while_loop_of_a_vmap_whose_examples_end_apart():
    def model(n, x):
        return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, block(s[1])), (0, x))[1]

    counts = jnp.arange(3)
    y = plant(jax.vmap(model), RULES)(new_key(), counts, ROWS)
    for example in range(3):
        x = ROWS[example]
        for iteration in range(example):
            key = jax.random.fold_in(site_key(new_key(), "s"), iteration)
            x = block(x, partial(drop, jax.random.fold_in(key, example)))
        chex.assert_trees_all_equal(y[example], x)


def test_loop_without_a_step():
    def model(x):
        return site(lax.scan(lambda c, _: (block(c), None), x, length=0)[0], "s")

    y = plant(model, RULES)(new_key(), X)
    chex.assert_trees_all_equal(y, drop(site_key(new_key(), "s"), X))


def test_vmap_of_a_planted_function_maps_its_keys():
    keys = jax.random.split(new_key(), 3)
    y = jax.vmap(plant(block, RULES), in_axes=(0, None))(jax.random.clone(keys), X)
    for i in range(3):
        chex.assert_trees_all_equal(y[i], block(X, ByHand(keys[i])))


def test_planted_function_can_be_planted_again():
    def model(x):
        return site(site(x, "a") + 1, "b")

    both = plant(model, {"a": drop, "b": drop})(new_key(), X)
    inner = plant(model, {"a": drop})
    twice = plant(lambda x: inner(new_key(), x), {"b": drop})(new_key(), X)
    chex.assert_trees_all_equal(twice, both)


@pytest.mark.quick
def test_key_is_consumed():
    planted = plant(block, RULES)
    key = new_key()
    planted(key, X)
    with pytest.raises(jax.errors.KeyReuseError):
        planted(key, X)
