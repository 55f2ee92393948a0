"""Attention under vmap, scan and checkpoint, and its second derivatives in every order."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from directions import ORDERS, backwards, direction
from jax import lax
from modes import enable_x64, make_key, make_keys, quick_jit

from jaxdrop import dot_product_attention

tiled = partial(dot_product_attention, query_block_size=2, key_block_size=3)
whole = partial(dot_product_attention, implementation="whole")
close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def output_and_pull(attend, arrays, rate, lengths, mask, rng):
    """The output, its tangent along the arrays and their cotangents from it."""

    def run(arrays):
        return attend(
            rng, rate=rate, key_value_seq_lengths=lengths, mask=mask, is_causal=True, **arrays
        )

    out, along = jax.linearize(run, arrays)
    return out, along(arrays), jax.linear_transpose(along, arrays)(out)[0]


def arrays(batch=()):
    return {
        "query": normal(*batch, 5, 2, 3, seed=1),
        "key": normal(*batch, 4, 1, 3, seed=2),
        "value": normal(*batch, 4, 1, 3, seed=3),
        "bias": normal(*batch, 2, 1, 4, seed=4),
        "scale": normal(*batch, seed=5),
    }


def assert_equals_a_loop(axes, *operands):
    """Attention under vmap, of operands each batched along its axis or shared."""
    batched = quick_jit(jax.vmap(partial(output_and_pull, tiled), in_axes=axes))(*operands)
    single = quick_jit(partial(output_and_pull, tiled))

    def sample(axis, x, i):
        return x if axis is None else jnp.take(x, i, axis)

    def slices(i):
        flat, treedef = jax.tree.flatten(operands)
        flat_axes = jax.tree.leaves(axes, is_leaf=lambda axis: axis is None)
        return treedef.unflatten(
            [sample(axis, x, i) for axis, x in zip(flat_axes, flat, strict=True)]
        )

    loop = [single(*slices(i)) for i in range(3)]
    close(batched, jax.tree.map(lambda *rows: jnp.stack(rows), *loop))


def test_derivatives_by_each_array_alone_are_those_by_all_together():
    every, rng = arrays(), make_key("raw")

    def by(*names):
        fixed = {name: x for name, x in every.items() if name not in names}
        attend = partial(tiled, return_residual=True, **fixed)
        return output_and_pull(attend, {name: every[name] for name in names}, 0.5, None, None, rng)

    _, tangent, cotangents = quick_jit(partial(by, *every))()
    each = {name: quick_jit(partial(by, name))() for name in every}
    close(
        jax.tree.map(lambda *parts: sum(parts), *(along for _, along, _ in each.values())), tangent
    )
    close({name: pulled[name] for name, (_, _, pulled) in each.items()}, cotangents)


def test_vmap_over_everything_equals_a_loop():
    axes = {"query": 2, "key": 0, "value": -1, "bias": 1, "scale": 0}
    together = {
        name: x if axes[name] == 0 else jnp.moveaxis(x, 0, axes[name])
        for name, x in arrays((3,)).items()
    }
    rates, lengths = jnp.array([0.2, 0.5, 0.8]), jnp.array([4, 2, 3])
    masks = normal(5, 4, 3) > -1
    assert_equals_a_loop((axes, 0, 0, 2, 0), together, rates, lengths, masks, make_keys("raw", 3))


def test_vmap_with_shared_keys_values_and_mask_equals_a_loop():
    axes = {"query": 0, "key": None, "value": None, "bias": None, "scale": None}
    shared = arrays() | {"query": normal(3, 5, 2, 3)}
    operands = (shared, jnp.float32(0.5), jnp.array(3), jnp.ones((5, 4), bool), make_key("raw"))
    assert_equals_a_loop((axes, None, None, None, None), *operands)


def test_vmap_over_heads_is_one_call_for_each_head():
    query, key, value = normal(6, 4, 2, seed=1), normal(5, 4, 2, seed=2), normal(5, 4, 2, seed=3)
    keys = make_keys("threefry2x32", 4)

    def head(rng, query, key, value):
        return tiled(rng, query[:, None], key[:, None], value[:, None], 0.5)[:, 0]

    found = quick_jit(jax.vmap(head, in_axes=(0, 1, 1, 1), out_axes=1))(keys, query, key, value)
    one = quick_jit(head)
    for n in range(4):
        alone = one(make_key("threefry2x32", n), query[:, n], key[:, n], value[:, n])
        close(found[:, n], alone)


def test_scan_over_layers_with_checkpoint_has_the_gradient_of_a_loop():
    x = normal(5, 2, 3)
    saved = jax.checkpoint_policies.dots_saveable

    def model(attend, wrap, x, rngs):
        def layer(x, rng):
            return x + jnp.sin(attend(rng, x, x, x, 0.5, is_causal=True)), None

        return jnp.sum(lax.scan(wrap(layer), x, rngs)[0] ** 2)

    def gradient(attend, wrap):
        run = quick_jit(jax.value_and_grad(partial(model, attend, wrap)))
        return run(x, make_keys("threefry2x32", 3))

    own = gradient(tiled, partial(jax.checkpoint, policy=saved))
    close(own, gradient(whole, lambda layer: layer))


def loss(attend, arrays):
    out = attend(make_key("raw"), rate=0.5, local_window_size=(2, 1), **arrays)
    return jnp.sum(jnp.sin(out + 1))


def small(dtype):
    shapes = {"query": (3, 2, 2), "key": (4, 1, 2), "value": (4, 1, 2), "bias": (2, 1, 4)}
    moving = {name: normal(*shape, seed=len(name)).astype(dtype) for name, shape in shapes.items()}
    return moving | {"scale": jnp.asarray(0.8, dtype)}


@pytest.mark.parametrize("order", ORDERS)
def test_second_derivatives_are_those_of_the_whole(order):
    with enable_x64():
        found, expected = (
            quick_jit(ORDERS[order](partial(loss, attend)))(small("float64"))
            for attend in (tiled, whole)
        )
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)


def test_derivatives_are_those_of_finite_differences():
    run, step = partial(loss, tiled), 1e-5

    @quick_jit
    def derivatives(at):
        def value_and_slopes(steps):
            moved = jax.tree.map(lambda x, d: x + steps * d, at, direction(at))
            return jax.value_and_grad(run)(moved)

        ends = jax.vmap(value_and_slopes)(jnp.array([-step, step]))
        differences = jax.tree.map(lambda y: (y[1] - y[0]) / (2 * step), ends)
        return differences, jax.jvp(value_and_slopes, (0.0,), (1.0,))[1], backwards(run)(at)

    with enable_x64():
        differences, exact, slope = derivatives(small("float64"))
    chex.assert_trees_all_close(exact, differences, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(slope, differences[0], rtol=1e-7)
