"""Parts of larger weights: what is skipped, what is merged, and how arrays are split."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import COLLECTIVE, mesh
from modes import make_key, quick_jit

from jaxdrop import Part, dot_product_attention

BLOCKS = {"query_block_size": 32, "key_block_size": 32}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("implementation", ["tiled", "kernel"])
@pytest.mark.parametrize("hidden_by", ["documents", "a traced start"])
def test_tiles_in_which_nothing_is_seen_are_skipped(implementation, hidden_by):
    """Where values are NaN, the product with a weight of 0 would be NaN too."""
    rows = normal(2, 96, 1, 4)
    lost = rows.at[:, 64:].set(jnp.nan)

    @quick_jit
    def slopes(start, query, values):
        ids = jnp.broadcast_to(jnp.arange(96) // 64, (2, 96))
        options = {"segment_ids": (ids[:, :64], ids)}
        if hidden_by == "a traced start":
            part = Part((0, 0, start, 0), (2, 1, 100, 96))
            options = {"part": part, "is_causal": True}
        attend = partial(dot_product_attention, make_key("raw"), rate=0.3, **BLOCKS, **options)
        attend = partial(attend, implementation=implementation)
        out, pull = jax.vjp(lambda *arrays: attend(*arrays), query, rows, values)
        return out, pull(out)

    found, expected = (slopes(0, rows[:, :64], values) for values in (lost, rows))
    chex.assert_trees_all_equal(found, expected)


def test_traced_start_moves_the_keys_that_a_window_reaches():
    query, pair = normal(1, 8, 1, 2), normal(1, 96, 1, 2, seed=1)

    def attend(start, **options):
        part = Part((0, 0, start, 0), (1, 1, 100, 96))
        options |= {"part": part, "local_window_size": (3, 0)}
        return dot_product_attention(None, query, pair, pair, 0, **options)

    tiled = partial(attend, query_block_size=4, key_block_size=8)
    expected = attend(50, implementation="whole")
    for moved in (tiled, partial(attend, implementation="kernel")):
        np.testing.assert_allclose(quick_jit(moved)(50), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_lengths_count_from_the_first_of_the_larger_weights(start):
    rows = normal(1, 12, 1, 2)
    part, seen = Part((0, 0, 0, start), (1, 1, 12, 12)), jnp.arange(start, 12) < 7
    attend = partial(dot_product_attention, None, rows, rows[:, start:], rows[:, start:], 0)
    found = attend(part=part, key_value_seq_lengths=jnp.array([7]))
    expected = attend(mask=seen[None, None, None], implementation="whole")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["tiled", "whole", "kernel"])
@pytest.mark.parametrize(
    ("rate", "keys", "features"), [(1, 5, 4), (1.0, 0, 4), (0.3, 0, 4), (0.3, 5, 0)]
)
def test_log_sum_exp_where_the_output_is_zeros(implementation, rate, keys, features):
    """Or where it is empty."""
    query, pair = normal(2, 3, 2, 4), normal(2, keys, 2, 4, seed=1)
    attend = partial(dot_product_attention, return_residual=True, implementation=implementation)
    out, residual = attend(make_key("raw"), query, pair, pair[..., :features], rate)
    np.testing.assert_array_equal(out, jnp.zeros((2, 3, 2, features)))
    expected = jax.nn.logsumexp(jnp.einsum("btnh,bsnh->btns", query, pair) / 2, axis=-1)
    np.testing.assert_allclose(residual, expected, rtol=1e-6)


def test_log_sum_exp_has_a_derivative():
    query, pair = normal(2, 3, 2, 4), normal(2, 5, 2, 4, seed=1)
    attend = partial(dot_product_attention, make_key("raw"), rate=0.3, return_residual=True)
    found = jax.grad(lambda query: attend(query, pair, pair)[1].sum())(query)
    weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->btns", query, pair) / 2)
    expected = jnp.einsum("btns,bsnh->btnh", weights, pair) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [P("b"), P(None, "a"), P("b", "a", None, None)], ids=str)
def test_batch_axes_that_are_split_in_types(spec):
    query = normal(2, 4, 8, 2, 4)
    attend = partial(dot_product_attention, make_key("raw"), rate=0.3, return_residual=True)
    expected = attend(query, query, query[..., :3])
    split = jax.device_put(query, NamedSharding(mesh(AxisType.Explicit), spec))
    found = jax.jit(lambda x: attend(x, x, x[..., :3]))(split)
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    for x in found:
        assert tuple(jax.typeof(x).sharding.spec)[:2] == (spec[0], None)


def test_parts_need_no_collective():
    attend = partial(dot_product_attention, make_key("raw"), rate=0.3, is_causal=True)

    def local(query, pair):
        first = jax.lax.axis_index("a") * query.shape[1]
        part = Part((0, 0, first, 0), (2, 2, 64, 64))
        return attend(query, pair, pair, part=part)

    rows, x = P(None, "a"), normal(2, 64, 2, 4)
    split = jax.jit(jax.shard_map(local, mesh=mesh(), in_specs=(rows, P()), out_specs=rows))
    compiled = split.lower(x, x).compile()
    assert not COLLECTIVE.findall(compiled.as_text())
    np.testing.assert_allclose(compiled(x, x), attend(x, x, x), rtol=1e-4, atol=1e-5)
