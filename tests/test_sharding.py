"""One mask, however the array lies on devices, and no communication for it."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import COLLECTIVE, mesh
from modes import KEY_IMPLEMENTATIONS, make_key
from table.methods import METHODS
from table.record import Spread

import jaxdrop
from jaxdrop import alpha_dropout, concrete_dropout, dropout, gaussian_dropout

SPECS = [P("a"), P(None, "a"), P("a", "b"), P(("a", "b")), P(None, ("a", "b")), P()]
ids = [str(spec) for spec in SPECS]


def put(x, spec, kind=AxisType.Auto):
    return jax.device_put(x, NamedSharding(mesh(kind), spec))


def inputs(shape=(256, 2048)):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_sharded_dropout_equals_unsharded_without_collectives(kind, spec):
    drop = jax.jit(partial(dropout, rate=0.1))
    plain = drop(make_key("raw"), inputs())
    x = put(inputs(), spec, kind)
    y = drop(make_key("raw"), x)
    np.testing.assert_array_equal(y, plain)
    assert y.sharding.is_equivalent_to(x.sharding, x.ndim)
    assert not COLLECTIVE.findall(drop.lower(make_key("raw"), x).compile().as_text())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS[:-1], ids=ids[:-1])
def test_work_of_each_device_falls_with_their_number(kind, spec):
    drop = jax.jit(partial(dropout, rate=0.1))
    x = put(inputs(), spec, kind)
    alone = drop.lower(make_key("raw"), inputs()).compile()
    shared = drop.lower(make_key("raw"), x).compile()
    parts = x.size // x.addressable_shards[0].data.size
    assert shared.cost_analysis()["flops"] < 1.05 * alone.cost_analysis()["flops"] / parts
    largest_words = max(
        int(np.prod([int(n) for n in shape.split(",")]))
        for shape in re.findall(r"u32\[(\d+,\d+)\]", shared.as_text())
    )
    assert largest_words == x.size // 32 // parts


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_gradient_is_sharded_like_the_input(kind, spec):
    grad = jax.jit(jax.grad(lambda x: jnp.sum(dropout(make_key("raw"), x, 0.1) ** 2)))
    x = put(inputs(), spec, kind)
    np.testing.assert_array_equal(grad(x), grad(inputs()))
    assert grad(x).sharding.is_equivalent_to(x.sharding, x.ndim)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_works_on_explicit_axes(method):
    """On Auto axes each is tried in several processes (tests/processes)."""
    key, x = make_key("raw"), inputs(method.large)
    y = jax.jit(lambda k, x: method.run(k, x, 0.3))(key, put(x, P("a", "b"), AxisType.Explicit))
    plain = method.run(key, x, 0.3)
    np.testing.assert_array_equal(y != 0, plain != 0)
    atol = method.rounding if method.linear else 1e-6
    np.testing.assert_allclose(y, plain, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    "method", [m for m in METHODS if not m.counts], ids=lambda method: method.name
)
def test_mask_of_every_method_is_drawn_without_collectives(method, kind):
    """In one process; several have the same devices in tests/processes."""
    way = method.spread or Spread(method.run, method.large)
    x = put(inputs(way.shape), P("a"), kind)
    program = jax.jit(partial(way.run, rate=0.3)).lower(make_key("raw"), x).compile()
    assert not COLLECTIVE.findall(program.as_text())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_the_sharding_at_rates_where_nothing_is_drawn(method):
    """Outside a mesh context JAX 0.12 loses the sharding of `zeros_like` under `jit`."""
    way = method.spread or Spread(method.run, method.large)
    key, x = make_key("raw"), put(inputs(way.shape), P("a"), AxisType.Explicit)
    for rate in (0.0, 1.0):
        types = []

        def run(key, x, rate=rate, types=types):
            y = way.run(key, x, rate)
            types.append(jax.typeof(y))
            return x, y  # with `x`, so that JAX knows the devices

        _, y = jax.jit(run)(key, x)
        assert types[0].sharding.spec[0] == "a"
        plain = way.run(key, inputs(way.shape), rate)
        np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_works_eagerly_inside_a_mesh_context(method):
    key, x = make_key("raw"), inputs(method.large)
    plain = method.run(key, x, 0.3)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        y = method.run(key, put(x, P("a"), AxisType.Explicit), 0.3)
    np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_takes_a_key_and_a_rate_of_each_device_in_shard_map(method):
    def local(rate, x):
        index = jax.lax.axis_index("a")
        known = method.run(jax.random.fold_in(make_key("raw"), index), x, 0.3)
        if not method.takes_traced_rate:
            return known, known
        return known, method.run(jax.random.fold_in(make_key("raw", 1), index), x, rate[0])

    x = inputs((4 * method.shape[0], *method.shape[1:]))
    spread = jax.shard_map(
        local, mesh=mesh(), in_specs=(P("a"), P("a")), out_specs=(P("a"), P("a"))
    )
    known, _ = jax.jit(spread)(jnp.array([0.1, 0.3, 0.5, 0.7]), x)
    part = x[: method.shape[0]]
    alone = method.run(jax.random.fold_in(make_key("raw"), 0), part, 0.3)
    np.testing.assert_allclose(known[: method.shape[0]], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 10), P("a")),
        ((64, 10), P(("a", "b"))),
        ((40, 100), P(None, "a")),
        ((16, 14, 14, 3), P("a", "b")),
        ((16, 14, 14, 3), P(None, None, "b")),
        ((8, 4, 104), P("b", None, "a")),
        ((48,), P("a")),
        ((8, 1000), P("a", "b")),
    ],
)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_odd_shapes_equal_the_unsharded_result(shape, spec, kind):
    drop, x = jax.jit(partial(dropout, rate=0.3)), inputs(shape)
    y = drop(make_key("raw"), put(x, spec, kind))
    np.testing.assert_array_equal(y, drop(make_key("raw"), x))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((64, 10), P("a")), ((40, 100), P(None, "a")), ((8, 4, 104), P("b", None, "a"))],
)
def test_explicit_axes_need_no_collective_even_where_words_straddle_devices(shape, spec):
    drop, x = jax.jit(partial(dropout, rate=0.3)), put(inputs(shape), spec, AxisType.Explicit)
    assert not COLLECTIVE.findall(drop.lower(make_key("raw"), x).compile().as_text())


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_masks_shared_along_a_sharded_axis(axes, kind):
    drop, x = jax.jit(partial(dropout, rate=0.3, broadcast_dims=axes)), inputs((64, 256))
    y = drop(make_key("raw"), put(x, P("a", "b"), kind))
    np.testing.assert_array_equal(y, drop(make_key("raw"), x))


@pytest.mark.parametrize("method", [gaussian_dropout, alpha_dropout, concrete_dropout])
def test_noise_shared_along_an_explicit_axis(method):
    drop, x = jax.jit(partial(method, broadcast_dims=0)), inputs((16, 8))
    y = drop(make_key("raw"), put(x, P("a", "b"), AxisType.Explicit), jnp.float32(0.3))
    np.testing.assert_allclose(y, drop(make_key("raw"), x, jnp.float32(0.3)), rtol=1e-6)
    assert jax.typeof(y).sharding.spec == P("a", "b")


@pytest.mark.parametrize("implementation", KEY_IMPLEMENTATIONS)
def test_every_key_implementation_is_independent_of_the_sharding(implementation):
    drop = jax.jit(partial(dropout, rate=0.3))
    plain = drop(make_key(implementation), inputs((64, 256)))
    y = drop(make_key(implementation), put(inputs((64, 256)), P("a", "b")))
    np.testing.assert_array_equal(y, plain)


@pytest.mark.parametrize("context", [False, True])
def test_explicit_axes_work_eagerly_and_inside_a_mesh_context(context):
    x = put(inputs((64, 256)), P("a", "b"), AxisType.Explicit)
    plain = dropout(make_key("raw"), inputs((64, 256)), 0.3)
    if context:
        with jax.set_mesh(mesh(AxisType.Explicit)):
            y = dropout(make_key("raw"), x, 0.3)
            assert jax.typeof(y).sharding.spec == P("a", "b")
    else:
        y = dropout(make_key("raw"), x, 0.3)
    np.testing.assert_array_equal(y, plain)


def test_mask_can_be_drawn_sharded_on_explicit_axes():
    sharding = NamedSharding(mesh(AxisType.Explicit), P("a", "b"))

    def draw_and_apply(key, x, out_sharding):
        mask = jaxdrop.draw_mask(key, x.shape, 0.1, out_sharding=out_sharding)
        assert jax.typeof(mask.words).sharding.spec == P("a", "b")
        return jaxdrop.apply_mask(mask, x)

    x = put(inputs(), P("a", "b"), AxisType.Explicit)
    plain = dropout(make_key("raw"), inputs(), 0.1)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        for out_sharding in (sharding, P("a", "b")):
            for run in (draw_and_apply, jax.jit(draw_and_apply, static_argnums=2)):
                np.testing.assert_array_equal(run(make_key("raw"), x, out_sharding), plain)


@pytest.mark.parametrize(("shape", "spec"), [((64,), P("a")), ((2, 8), P("b", "a"))])
def test_booleans_of_a_mask_are_sharded_as_asked_where_words_do_not_split(shape, spec):
    x = jax.device_put(jnp.ones(shape), NamedSharding(mesh(AxisType.Explicit), spec))
    with jax.set_mesh(mesh(AxisType.Explicit)):
        mask = jaxdrop.draw_mask(make_key("raw"), shape, 0.5, out_sharding=spec)
        keep = mask.unpack()
        assert jax.typeof(keep).sharding.spec == spec
        assert jax.jit(jax.lax.select)(keep, x, x).sharding == x.sharding
    plain = jaxdrop.draw_mask(make_key("raw"), shape, 0.5)
    np.testing.assert_array_equal(keep, plain.unpack())


@pytest.mark.parametrize("out_sharding", ["a", P("a"), NamedSharding(mesh(), P("a"))])
def test_out_sharding_needs_explicit_axes(out_sharding):
    with pytest.raises(TypeError, match=r"^draw_mask: out_sharding must .*Explicit axes; got"):
        jaxdrop.draw_mask(make_key("raw"), (8, 32), 0.1, out_sharding=out_sharding)


def test_out_sharding_must_fit_the_shape():
    sharding = NamedSharding(mesh(AxisType.Explicit), P("a", None, "b"))
    with pytest.raises(ValueError, match=r"^draw_mask: out_sharding must have at most 2 entries"):
        jaxdrop.draw_mask(make_key("raw"), (8, 32), 0.1, out_sharding=sharding)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_shard_map_with_one_key_draws_the_same_mask_on_each_device(check_vma, rate):
    def local(key, x):
        return dropout(key, x, rate)

    spread = jax.shard_map(
        local, mesh=mesh(), in_specs=(P(), P("a", "b")), out_specs=P("a", "b"), check_vma=check_vma
    )
    y = jax.jit(spread)(make_key("raw"), jnp.ones((64, 256)))
    tile = dropout(make_key("raw"), jnp.ones((16, 128)), rate)
    np.testing.assert_array_equal(y, np.tile(tile, (4, 2)))


def test_shard_map_with_the_axis_index_folded_in_draws_independent_masks():
    def local(key, x):
        for axis in ("a", "b"):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return dropout(key, x, jnp.float32(0.3))

    spread = jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("a", "b")), out_specs=P("a", "b"))
    y = jax.jit(spread)(make_key("raw"), jnp.ones((64, 256)))
    for i in range(4):
        for j in range(2):
            key = jax.random.fold_in(jax.random.fold_in(make_key("raw"), i), j)
            tile = dropout(key, jnp.ones((16, 128)), 0.3)
            np.testing.assert_allclose(
                y[16 * i : 16 * (i + 1), 128 * j : 128 * (j + 1)], tile, rtol=1e-6
            )


def test_shard_map_over_some_axes_of_an_explicit_mesh():
    spread = jax.shard_map(
        lambda key, x: dropout(key, x, 0.3),
        in_specs=(P(), P("a")),
        out_specs=P("a"),
        axis_names={"a"},
    )
    with jax.set_mesh(mesh(AxisType.Explicit)):
        x = jax.device_put(jnp.ones((64, 256)), P("a", "b"))
        y = jax.jit(spread)(make_key("raw"), x)
    tile = dropout(make_key("raw"), jnp.ones((16, 256)), 0.3)
    np.testing.assert_array_equal(y, np.tile(tile, (4, 1)))


def test_gradient_inside_shard_map():
    def local(key, x):
        return jax.grad(lambda x: jnp.sum(dropout(key, x, 0.5) ** 2))(x)

    spread = jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("a")), out_specs=P("a"))
    y = jax.jit(spread)(make_key("raw"), jnp.ones((64, 256)))
    tile = 4 * dropout(make_key("raw"), jnp.ones((16, 256)), 0.5)
    np.testing.assert_array_equal(y, np.tile(tile, (4, 1)))


def test_fixed_counts_hold_on_sharded_arrays():
    x = put(inputs((64, 256)), P("a", "b"))
    y = jax.jit(
        lambda key, x: jaxdrop.apply_mask(
            jaxdrop.draw_fixed_count_mask(key, x.shape, 100, axis=1), x
        )
    )(make_key("raw"), x)
    np.testing.assert_array_equal((np.asarray(y) != 0).sum(1), 100)
