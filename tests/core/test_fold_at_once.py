"""The fold for GPUs, run here: the same bits as the loop, in one order of the digits."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P
from lowering import lowered
from meshes import mesh
from modes import enable_x64

import jaxdrop
from jaxdrop.core.bernoulli import _fold_in_a_loop
from jaxdrop.core.fold_at_once import _overrule_packed, fold_at_once, idle_pairs
from jaxdrop.core.words import flat_address, grid_address

KEY = np.uint32(3), np.uint32(0xDEADBEEF)
ONES = 0xFFFFFFFF
PAIRS = (2, 4, 8, 16)


@cache
def compiled(pairs, skips, in_order):
    """The loop and the reduction."""
    at_once = partial(fold_at_once, pairs=pairs, skips=skips, in_order=in_order)
    return jax.jit(partial(_fold_in_a_loop, pairs=pairs, skips=skips)), jax.jit(at_once)


def both(
    digits, pairs, *, shape=(3, 5), start=0, key=KEY, skips=False, address=None, in_order=True
):
    """The words of the loop and of the reduction."""
    operands = [jnp.asarray(start, jnp.uint32), jnp.asarray(digits, jnp.uint32)]
    address = grid_address(shape) if address is None else address
    rest = tuple(map(jnp.asarray, key)), address
    return [run(*operands, *rest) for run in compiled(pairs, skips, in_order)]


@pytest.mark.quick
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("x64", [False, True])
@given(digits=st.integers(0, ONES), start=st.sampled_from([0, ONES]))
@settings(max_examples=10)
def test_words_equal_those_of_the_loop(pairs, x64, digits, start):
    with enable_x64(x64):
        loop, reduced = both(digits & (ONES << (32 - 2 * pairs)), pairs, start=start)
    np.testing.assert_array_equal(loop, reduced)
    assert reduced.dtype == jnp.uint32


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 33)])
def test_words_of_all_shapes_equal_those_of_the_loop(shape):
    np.testing.assert_array_equal(*both(0x12345678, 16, shape=shape))


@pytest.mark.parametrize("pairs", PAIRS)
def test_words_at_any_address_equal_those_of_the_loop(pairs):
    rows, columns = (lax.broadcasted_iota(jnp.uint32, (3, 4), axis) for axis in (0, 1))
    address = flat_address([rows + 2**21, columns + 5], (2**22, 2**13))
    assert address.high.any()
    np.testing.assert_array_equal(*both(0xE6660000, pairs, address=address, in_order=False))


@pytest.mark.parametrize("lowest", [0, 1, 2, 15, 16, 17, 30, 31, 32])
def test_pairs_of_zeros_are_left_out(lowest):
    digits = jnp.uint32((0xA5A5A5A5 | 1) << lowest & ONES)
    assert idle_pairs(digits) == lowest // 2
    loop, reduced = both(digits, 16, skips=True)
    np.testing.assert_array_equal(reduced, loop)
    np.testing.assert_array_equal(reduced, both(digits, 16)[0])


def test_a_batch_of_rates_leaves_out_no_pairs():
    digits = jnp.array([0x80000000, 0x12345678], jnp.uint32)
    assert jax.vmap(idle_pairs, out_axes=None)(digits) == 0


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_masks_under_vmap_equal_those_of_each_key_and_rate(axes):
    def words(data, rate):
        return jaxdrop.draw_mask(jax.random.wrap_key_data(data), (3, 70), rate).words

    operands = jax.random.bits(jax.random.key(0), (3, 2)), jnp.array([0.5, 0.1, 1e-5])
    given = [x if axis == 0 else x[1] for x, axis in zip(operands, axes, strict=True)]
    drawn = lowered("cuda", jax.vmap(words, axes), *given).compile()(*given)
    for i in range(3):
        of_one = [x[i] if axis == 0 else x[1] for x, axis in zip(operands, axes, strict=True)]
        np.testing.assert_array_equal(drawn[i], words(*of_one))


@pytest.mark.parametrize("traced", [False, True])
def test_shards_draw_by_themselves(traced):
    def shard(data, rate, x):
        key = jax.random.wrap_key_data(data)
        key = jax.random.fold_in(key, lax.axis_index("a"))
        return jaxdrop.dropout(key, x, rate if traced else 0.1)

    devices, spec = mesh(AxisType.Auto), P("a")
    run = jax.shard_map(shard, mesh=devices, in_specs=(P(), P(), spec), out_specs=spec)
    operands = np.array([0, 42], np.uint32), jnp.float32(0.1), jnp.ones((256, 64))
    program = lowered("cuda", run, *operands)
    assert "stablehlo.while" not in program.as_text()
    np.testing.assert_array_equal(program.compile()(*operands), jax.jit(run)(*operands))


def test_shards_draw_with_a_batch_of_rates():
    def shard(data, rate, x):
        return jax.vmap(jaxdrop.dropout)(jax.random.wrap_key_data(data), x, rate)

    run = jax.shard_map(shard, mesh=mesh(AxisType.Auto), in_specs=P("a"), out_specs=P("a"))
    operands = jax.random.bits(jax.random.key(0), (8, 2)), jnp.linspace(0.1, 0.9, 8)
    operands = (*operands, jnp.ones((8, 70)))
    drawn = lowered("cuda", run, *operands).compile()(*operands)
    one_by_one = [
        jaxdrop.dropout(jax.random.wrap_key_data(data), x, rate)
        for data, rate, x in zip(*operands, strict=True)
    ]
    np.testing.assert_array_equal(drawn, jnp.stack(one_by_one))


@pytest.mark.quick
def test_the_higher_digit_overrules_whatever_the_order_of_the_products():
    rng = np.random.default_rng(0)
    with enable_x64(True):
        kept, decided = rng.integers(0, 2**32, (2, 3, 1000), np.uint64)
        a, b, c = jnp.asarray((decided << np.uint64(32)) | (kept & decided))
        left = _overrule_packed(_overrule_packed(a, b), c)
        np.testing.assert_array_equal(left, _overrule_packed(a, _overrule_packed(b, c)))
        assert (left != _overrule_packed(_overrule_packed(b, a), c)).any()
        np.testing.assert_array_equal(_overrule_packed(jnp.zeros_like(a), a), a)
        np.testing.assert_array_equal(_overrule_packed(a, jnp.zeros_like(a)), a)
