"""Attention split over batch and heads: equal to the unsplit one, with no communication."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import COLLECTIVE, mesh
from modes import make_key

from jaxdrop import dot_product_attention
from jaxdrop.base.compat import varying_axes
from jaxdrop.methods.attention.operands import Inputs, output_specs

SPECS = [P("a"), P(None, None, ("a", "b")), P("a", None, "b")]
OPTIONS = {"is_causal": True, "query_block_size": 32, "key_block_size": 32}
SHAPE = (8, 96, 8, 16)

every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
both_kinds = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])


def inputs(count=3, shape=SHAPE):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(count)]


def put(arrays, spec, kind):
    return [jax.device_put(x, NamedSharding(mesh(kind), spec)) for x in arrays]


def attend(query, key, value, rate=0.3, rng=None):
    rng = make_key("raw") if rng is None else rng
    return dot_product_attention(rng, query, key, value, rate, **OPTIONS)


def value_and_cotangents(query, key, value, cotangent, rate=0.3):
    y, pull = jax.vjp(lambda *x: attend(*x, rate), query, key, value)
    return y, *pull(cotangent)


@pytest.fixture(scope="module")
def alone():
    """What one device computes, and its program."""
    program = jax.jit(value_and_cotangents).lower(*inputs(4)).compile()
    return program(*inputs(4)), program


@both_kinds
@every_spec
def test_splits_over_batch_and_heads_need_no_collective_and_share_the_work(kind, spec, alone):
    expected, whole = alone
    arrays = put(inputs(4), spec, kind)
    program = jax.jit(value_and_cotangents).lower(*arrays).compile()
    for ours, theirs in zip(program(*arrays), expected, strict=True):
        assert ours.sharding.is_equivalent_to(arrays[0].sharding, 4)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not COLLECTIVE.findall(program.as_text())
    parts = arrays[0].size // arrays[0].addressable_shards[0].data.size
    assert program.cost_analysis()["flops"] < 1.05 * whole.cost_analysis()["flops"] / parts
    shapes = re.findall(r"u32\[([\d,]+)\]", program.as_text())
    largest_words = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert largest_words <= 64 * 32 * 32 // parts  # a tile of 64 heads, unpacked


@both_kinds
def test_mask_does_not_depend_on_the_split(kind):
    # Values are an identity matrix, so the output is the dropped weights themselves.
    eye = jnp.broadcast_to(jnp.eye(96)[:, None], (8, 96, 8, 96))
    query, key = (jnp.zeros((8, 96, 8, 96)) for _ in range(2))
    plain = attend(query, key, eye) != 0
    y = jax.jit(attend)(*put([query, key, eye], P("a", None, "b"), kind))
    np.testing.assert_array_equal(y != 0, plain)


@both_kinds
def test_traced_rate_and_grouped_heads_on_a_mesh(kind):
    query, *pair = inputs()
    pair = [x[:, :, ::4] for x in pair]  # 2 heads of keys
    arrays = put([query, *pair], P("a", None, "b"), kind)
    program = jax.jit(attend).lower(*arrays, jnp.float32(0.3)).compile()
    assert not COLLECTIVE.findall(program.as_text())
    y = program(*arrays, jnp.float32(0.3))
    np.testing.assert_allclose(y, attend(query, *pair), rtol=1e-4, atol=1e-5)


def test_vmap_over_an_explicit_axis():
    keys = jax.random.split(make_key("raw"), 8)
    over_samples = jax.vmap(lambda rng, *x: attend(*x, rng=rng))
    arrays = put(inputs(), P("a", None, "b"), AxisType.Explicit)
    (split_keys,) = put([keys], P("a"), AxisType.Explicit)

    def loss(rng, *x):
        return (over_samples(rng, *x) ** 2).sum()

    grads = jax.jit(jax.grad(loss, (1, 2, 3)))
    for ours, theirs in zip(grads(split_keys, *arrays), grads(keys, *inputs()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("implementation", ["tiled", "whole"])
def test_batch_that_is_split_in_any_input_is_split_in_the_output(implementation, rate):
    query, *pair = inputs()
    bias = jnp.arange(8.0).reshape(8, 1, 1, 1)
    plain = dot_product_attention(make_key("raw"), query, *pair, rate, bias=bias)

    def attend(rng, query, key, value, bias):
        options = {"bias": bias, "implementation": implementation}
        y = dot_product_attention(rng, query, key, value, rate, **options)
        return y, query, key, value, bias  # with these, JAX knows the devices

    for number in range(4):
        arrays = [query, *pair, bias]
        (arrays[number],) = put([arrays[number]], P("a"), AxisType.Explicit)
        compiled = jax.jit(attend).lower(make_key("raw"), *arrays).compile()
        y, *_ = compiled(make_key("raw"), *arrays)
        np.testing.assert_allclose(y, plain, rtol=1e-4, atol=1e-5)
        assert y.sharding.spec[0] == "a"
        assert not COLLECTIVE.findall(compiled.as_text())


@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("a", "b")], ids=str)
def test_of_several_axes_of_the_batch_the_first_stays_split(spec):
    arrays = inputs(3, (4, 4, 5, 2, 3))
    y = jax.jit(attend)(*put(arrays, spec, AxisType.Explicit))
    np.testing.assert_allclose(y, attend(*arrays), rtol=1e-5, atol=1e-6)
    assert jax.typeof(y).sharding.spec == P(spec[0], None, None, None, None)


@pytest.mark.parametrize(
    ("specs", "of_output", "of_rows"),
    [
        ((P("a", None, "b"), P(), P()), ("a", None, "b", None), ("a", None, "b")),
        ((P(), P("a"), P("b")), ("a", None, None, None), ("a", None, None)),  # the first of two
        ((P(None, "a"), P("a"), P("b")), ("b", "a", None, None), ("b", "a", None)),
        ((P(None, None, None, "a"), P(), P()), (None,) * 4, (None,) * 3),  # other features
    ],
    ids=str,
)
def test_output_is_split_as_the_query_and_along_the_batch_as_the_first_input(
    specs, of_output, of_rows
):
    mesh_of_types = mesh(AxisType.Explicit)
    arrays = [
        jax.device_put(jnp.ones((8, 8, 8, n)), NamedSharding(mesh_of_types, spec))
        for n, spec in zip((8, 8, 4), specs, strict=True)
    ]
    found = output_specs(Inputs(*arrays, None, jnp.ones(())))
    assert tuple(map(tuple, found)) == (of_output, of_rows)


def test_batch_is_not_split_like_keys_over_a_mesh_axis_that_splits_heads_of_the_query():
    query, *pair = inputs()
    (split_query,) = put([query], P(None, None, "a"), AxisType.Explicit)
    y = attend(split_query, *put(pair, P("a"), AxisType.Explicit))
    np.testing.assert_allclose(y, attend(query, *pair), rtol=1e-4, atol=1e-5)
    assert tuple(jax.typeof(y).sharding.spec)[:3] == (None, None, "a")


@pytest.mark.parametrize("check_vma", [True, False])
def test_cotangent_of_shared_keys_is_summed_over_devices_in_shard_map(check_vma):
    query, *pair = inputs()
    pair = [x[:2] for x in pair]
    spread = jax.shard_map(
        attend,
        mesh=mesh(),
        in_specs=(P("a"), P(), P()),
        out_specs=P("a"),
        check_vma=check_vma,
    )

    def by_hand(query, *pair):
        return jnp.concatenate([attend(query[i : i + 2], *pair) for i in range(0, 8, 2)])

    found, expected = (
        jax.jit(jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), (0, 1, 2)))(query, *pair)
        for f in (spread, by_hand)
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@both_kinds
def test_gradient_inside_a_shard_map_over_some_axes(kind):
    def local(*arrays):
        return jax.grad(lambda *x: (attend(*x) ** 2).sum())(*arrays)

    spread = jax.shard_map(
        local, mesh=mesh(kind), in_specs=P("a"), out_specs=P("a"), axis_names={"a"}
    )
    y = jax.jit(spread)(*put(inputs(), P("a", None, "b"), kind))
    expected = jnp.concatenate([local(*(x[i : i + 2] for x in inputs())) for i in range(0, 8, 2)])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rate", "queries"), [(1, 4), (0.3, 0), (0.3, 4)])
def test_output_varies_over_the_mesh_axes_of_all_arguments(rate, queries):
    """Where nothing is left to attend to, too."""

    def local(bias):
        query, key = jnp.ones((1, queries, 1, 2)), jnp.ones((1, 4, 1, 2))
        y = dot_product_attention(make_key("raw"), query, key, key, rate, bias=bias)
        assert varying_axes(y) == {"a"}
        return y

    split = jax.shard_map(local, mesh=mesh(), in_specs=P("a"), out_specs=P("a"))
    bias = jnp.ones((4, 1, queries, 4))
    assert jax.eval_shape(split, bias).shape == (4, queries, 1, 2)
