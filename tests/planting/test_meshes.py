"""Planting and devices: shard_map, Auto sharding, Explicit sharding."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import COLLECTIVE, mesh
from programs import RULES, block, drop, loss, new_key

from jaxdrop import Rule, plant, site, site_key, sites

ROWS = P("a")


def on_devices(fn, in_specs=ROWS, out_specs=ROWS, **options):
    return jax.shard_map(fn, mesh=mesh(), in_specs=in_specs, out_specs=out_specs, **options)


def mark(x):
    return site(x, "s")


ONES = jnp.ones((8, 64))


def test_the_table_has_the_shape_of_a_shard_and_one_run():
    (row,) = sites(on_devices(jax.vmap(mark)), ONES)
    assert (row.where, row.shape, row.runs) == ("shard_map/vmap[2]", (64,), 1)
    (row,) = sites(on_devices(mark), ONES)
    assert (row.where, row.shape, row.runs) == ("shard_map", (2, 64), 1)


def test_shards_are_independent_along_varying_axes_and_alike_along_others():
    y = plant(on_devices(mark, P("a"), P("a")), RULES)(new_key(), ONES)
    for device in range(4):
        key = jax.random.fold_in(site_key(new_key(), "s"), device)
        chex.assert_trees_all_equal(y[2 * device : 2 * device + 2], drop(key, jnp.ones((2, 64))))
    whole = plant(on_devices(mark, P(), P()), RULES)(new_key(), ONES)
    chex.assert_trees_all_equal(whole, drop(site_key(new_key(), "s"), ONES))


def test_two_axes_are_folded_in_by_name():
    y = plant(on_devices(mark, P("b", "a"), P("b", "a")), RULES)(new_key(), ONES)
    key = site_key(new_key(), "s")
    for a in range(4):
        for b in range(2):
            shard = y[4 * b : 4 * b + 4, 16 * a : 16 * a + 16]
            folded = jax.random.fold_in(jax.random.fold_in(key, a), b)
            chex.assert_trees_all_equal(shard, drop(folded, jnp.ones((4, 16))))


def test_numbers_are_folded_in_in_the_documented_order():
    """Iterations of the outer and the inner loop, the device, and the example."""

    def repeat(body, x):
        return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, body(s[1])), (0, x))[1]

    def by_hand(device, example, x):
        for numbers in itertools.product(range(2), range(2)):
            key = site_key(new_key(), "s")
            for number in (*numbers, device, example):
                key = jax.random.fold_in(key, number)
            x = block(x, lambda x, key=key: drop(key, x))
        return x

    x = jnp.arange(48.0).reshape(8, 6) % 5
    local = on_devices(lambda x: repeat(lambda x: repeat(jax.vmap(block), x), x))
    rows = jax.vmap(jax.vmap(by_hand, (None, 0, 0)), (0, None, 0))
    expected = jax.jit(rows)(jnp.arange(4), jnp.arange(2), x.reshape(4, 2, 6))
    chex.assert_trees_all_equal(plant(local, RULES)(new_key(), x).reshape(4, 2, 6), expected)


def test_devices_and_examples_have_masks_of_their_own_if_runs_share_one():
    rules = {"s": Rule(drop, share_runs=True)}
    y = plant(on_devices(jax.vmap(lambda x: mark(mark(x)))), rules)(new_key(), ONES)
    for row, (device, example) in enumerate(itertools.product(range(4), range(2))):
        key = jax.random.fold_in(jax.random.fold_in(site_key(new_key(), "s"), device), example)
        chex.assert_trees_all_equal(y[row], 2 * drop(key, jnp.ones(64)))


@pytest.mark.parametrize("spec", [P("a"), P("a", "b")])
def test_mesh_axes_may_be_in_any_order_and_more_than_a_value_varies_over(spec):
    model = on_devices(mark, spec, spec)
    rules = {"s": Rule(drop, mesh_axes=("b", "a"))}
    expected = plant(model, RULES)(new_key(), ONES)
    chex.assert_trees_all_equal(plant(model, rules)(new_key(), ONES), expected)


def test_masks_are_shared_over_mesh_axes_on_request():
    rules = {"s": Rule(drop, mesh_axes=("b",))}
    y = plant(on_devices(mark, P("a", "b"), P("a", "b")), rules)(new_key(), ONES)
    whole = plant(mark, RULES)(new_key(), ONES)  # outside of a mesh nothing is shared
    chex.assert_trees_all_equal(plant(mark, rules)(new_key(), ONES), whole)
    shards = y.reshape(4, 2, 64)
    chex.assert_trees_all_equal(shards, jnp.stack([shards[0]] * 4))
    assert bool(jnp.any(y[:, :32] != y[:, 32:]))


def test_unchecked_shard_map_needs_its_mesh_axes():
    model = on_devices(mark, check_vma=False)
    with pytest.raises(
        ValueError, match=r"site 's' at .*test_meshes.py.*check_vma=False.*\['a', 'b'\]"
    ):
        plant(model, RULES)(new_key(), ONES)
    checked = plant(on_devices(mark), RULES)(new_key(), ONES)
    for axes in (("a",), ["a"]):
        told = plant(model, {"s": Rule(drop, mesh_axes=axes)})(new_key(), ONES)
        chex.assert_trees_all_equal(told, checked)
    alike = plant(model, {"s": Rule(drop, mesh_axes=())})(new_key(), ONES)
    chex.assert_trees_all_equal(alike[:2], alike[2:4])


def test_planted_inside_of_an_unchecked_shard_map():
    def local(rule):
        planted = plant(mark, {"s": rule})
        return jax.jit(on_devices(lambda x: planted(new_key(), x), check_vma=False))

    told = local(Rule(drop, mesh_axes=("a",)))(ONES)
    chex.assert_trees_all_equal(told, plant(on_devices(mark), RULES)(new_key(), ONES))
    with pytest.raises(ValueError, match="check_vma=False"):
        local(drop)(ONES)


def test_gradient_of_a_checkpoint_whose_operands_vary_over_different_axes():
    def local(w, x):
        return jax.checkpoint(lambda w, x: site(x * w[None], "s"))(w, x)

    def model(w, x):
        return loss(on_devices(local, (P(), P("a")), P("a"))(w, x))

    w = jnp.arange(64.0)
    outside = jax.jit(jax.grad(plant(model, RULES), argnums=1))(new_key(), w, ONES)
    inside = jax.jit(plant(jax.grad(model), RULES))(new_key(), w, ONES)
    chex.assert_trees_all_equal(inside, outside)


def test_inner_jit_keeps_its_shardings():
    sharding = NamedSharding(mesh(), P("a"))
    for options in ({"out_shardings": sharding}, {"in_shardings": sharding}):
        y = plant(jax.jit(mark, **options), RULES)(new_key(), ONES)
        chex.assert_trees_all_equal(np.asarray(y), np.asarray(plant(mark, RULES)(new_key(), ONES)))
        assert y.sharding.is_equivalent_to(sharding, 2)
    both = jax.jit(lambda x: (mark(x), x + 1), out_shardings=(sharding, None))
    y, _ = plant(both, RULES)(new_key(), ONES)
    assert y.sharding.is_equivalent_to(sharding, 2)


def test_unknown_mesh_axes_are_refused():
    with pytest.raises(ValueError, match=r"mesh_axes must be among \['a', 'b'\]; got 'x'"):
        plant(on_devices(mark), {"s": Rule(drop, mesh_axes=("x",))})(new_key(), ONES)


@pytest.mark.parametrize("kind", ["plain", "scan", "checkpoint", "vmap", "custom_jvp", "psum"])
def test_gradients_agree_inside_shard_map(kind):
    def local(x):
        if kind == "scan":
            return lax.scan(lambda c, _: (mark(c * 2), None), x, length=2)[0]
        if kind == "checkpoint":
            return jax.checkpoint(lambda x: mark(mark(x) * 2))(x)
        if kind == "vmap":
            return jax.vmap(mark)(x)
        if kind == "custom_jvp":
            marked = jax.custom_jvp(mark)
            marked.defjvp(lambda primals, tangents: jax.jvp(mark, primals, tangents))
            return marked(x)
        if kind == "psum":
            return mark(x) * mark(lax.psum(x, "a"))
        return mark(mark(x) * 2)

    def model(x):
        return loss(on_devices(local)(x))

    outside = jax.jit(jax.value_and_grad(plant(model, RULES), argnums=1))(new_key(), ONES)
    inside = jax.jit(plant(jax.value_and_grad(model), RULES))(new_key(), ONES)
    chex.assert_trees_all_equal(inside, outside)


def two_layers(x):
    return mark(mark(x * 2) + 1)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("a", "b")])
def test_sharded_values_have_the_masks_of_unsharded_ones(kind, spec):
    x = jax.device_put(jnp.ones((64, 1024)), NamedSharding(mesh(kind), spec))
    planted = jax.jit(plant(two_layers, RULES))
    chex.assert_trees_all_equal(
        np.asarray(planted(new_key(), x)), np.asarray(planted(new_key(), jnp.ones((64, 1024))))
    )
    compiled = planted.lower(new_key(), x).compile()
    assert not COLLECTIVE.findall(compiled.as_text())
    alone = planted.lower(new_key(), jnp.ones((64, 1024))).compile()
    parts = x.size // x.addressable_shards[0].data.size
    assert compiled.cost_analysis()["flops"] < 1.2 * alone.cost_analysis()["flops"] / parts


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shared", [False, True])
def test_inner_vmap_over_a_sharded_batch(kind, shared):
    rules = {"s": Rule(drop, share_vmap=shared)}
    planted = jax.jit(plant(jax.vmap(two_layers), rules))
    x = jax.device_put(jnp.ones((8, 64)), NamedSharding(mesh(kind), P("a")))
    expected = planted(new_key(), jnp.ones((8, 64)))
    chex.assert_trees_all_equal(np.asarray(planted(new_key(), x)), np.asarray(expected))


@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("a", "b")])
def test_nested_vmaps_over_explicit_axes(spec):
    planted = jax.jit(plant(jax.vmap(jax.vmap(two_layers)), RULES))
    x = jax.device_put(jnp.ones((8, 4, 64)), NamedSharding(mesh(AxisType.Explicit), spec))
    expected = planted(new_key(), jnp.ones((8, 4, 64)))
    chex.assert_trees_all_equal(np.asarray(planted(new_key(), x)), np.asarray(expected))


@pytest.mark.parametrize("batched", [False, True])
def test_gradients_agree_on_explicit_axes(batched):
    x = jax.device_put(jnp.ones((8, 192)), NamedSharding(mesh(AxisType.Explicit), P("a", "b")))

    def local(x):
        return lax.scan(lambda c, _: (mark(c * 2), None), x, length=2)[0]

    def model(x):
        return loss(jax.vmap(local)(x) if batched else local(x))

    outside = jax.jit(jax.grad(plant(model, RULES), argnums=1))(new_key(), x)
    inside = jax.jit(plant(jax.grad(model), RULES))(new_key(), x)
    chex.assert_trees_all_equal(np.asarray(inside), np.asarray(outside))


@pytest.mark.parametrize("axis_name", [None, "devices"])
def test_each_device_of_a_pmap_has_the_masks_of_its_key(axis_name):
    planted = plant(lambda x: site(x, "h"), {"h": drop})
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 40))
    options = {} if axis_name is None else {"axis_name": axis_name}
    found = jax.pmap(planted, devices=jax.devices()[:4], **options)(keys, x)
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(found, [planted(keys[i], x[i]) for i in range(4)])
