"""Dot-product attention that drops weights without ever holding all of them."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxdrop.base.compat import vary_as
from jaxdrop.base.sharding import automatic
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import compute_dtype, inverse_keep_prob
from jaxdrop.core.layout import mask_layout
from jaxdrop.core.rate import GridRate
from jaxdrop.core.words import threefry_key
from jaxdrop.methods.attention.arguments import BUDGET, GPU_BUDGET, Arguments, blocks, checked
from jaxdrop.methods.attention.operands import Draw, Fixed, Inputs
from jaxdrop.methods.attention.tiled import Plan, Plans, attend
from jaxdrop.methods.attention.tiling import Tiling
from jaxdrop.methods.masked import drop_on_grid
from jaxdrop.rescale import expected


def dot_product_attention(
    rng: Key | None,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K H"],
    rate: Rate,
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    broadcast_dims: int | Sequence[int] = (),
    query_block_size: int | None = None,
    key_block_size: int | None = None,
) -> Float[Array, "*B T N H"]:
    """Attention in which each weight is dropped with probability `rate`.

    `jax.nn.dot_product_attention` with a key and a rate: with m the mask and
    q = 1 - rate, the output is (m softmax(logits) / q) value, so its mean is the
    output without dropout. Arguments have the names and the meaning that they
    have there.

    The weights never exist as a whole, in either direction, unless one tile has
    them all: they are computed in tiles, and so is their mask. Memory grows with
    T + S, not with T S. Tiles in which `is_causal` or `local_window_size` hides
    everything are skipped. `vmap` computes a tile of each element at once, so
    give the batch as an axis, or block sizes, where memory is short.

    The mask is that of `dropout(rng, weights, rate)` for weights of shape
    (B, N, T, S), bit for bit, whatever the block sizes and however the arrays
    are split over devices. Splits over batch and heads need no communication.

    Args:
      rng: one random key, consumed here unless `rate` is a known 0, where it may
        be None.
      query: real floating array of shape (B, T, N, H) or (T, N, H).
      key: real floating array of shape (B, S, K, H) or (S, K, H). K divides N:
        N / K heads of queries in a row share a head of keys.
      value: array of the shape of `key`.
      rate: probability of dropping a weight, in [0, 1]; may be traced. A traced
        rate outside, by more than rounding, turns the result into NaN.
      bias: added to the logits; broadcasts to (B, N, T, S). Minus infinity
        hides a key from a query.
      mask: True where a query sees a key; broadcasts to (B, N, T, S).
      scale: of the logits; None for 1 / sqrt(H). May be traced.
      is_causal: whether query t sees no key after key t.
      query_seq_lengths: integers of shape (B,) or (), how many queries of each
        sample are real; the others give zeros.
      key_value_seq_lengths: integers of shape (B,) or (), how many keys of each
        sample are seen.
      local_window_size: how many keys before and after its own position a query
        sees; one number for both.
      broadcast_dims: axes of the weights, (B, N, T, S) or (N, T, S), along
        which the mask is shared.
      query_block_size: queries of a tile; None for a choice by shape, which is
        larger on a GPU. Changes memory and time, and the result by rounding only.
      key_block_size: keys of a tile; None for a choice by shape.

    Returns:
      An array with the shape and dtype of `query`. Queries that see no key give
      zeros.

    Raises:
      TypeError: an array is not of the kind stated, `query`, `key` and `value`
        differ in dtype, `rng` is not one key, or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], shapes do not agree, a
        block size is below 1, or `broadcast_dims` are out of range or repeated.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 4, 16))
      >>> y = dot_product_attention(jax.random.key(1), q, k, v, 0.1, is_causal=True)
      >>> y.shape
      (2, 128, 4, 16)
      >>> plain = jax.nn.dot_product_attention(q, k, v, is_causal=True)
      >>> same = dot_product_attention(None, q, k, v, 0.0, is_causal=True)
      >>> bool(jnp.allclose(same, plain, atol=1e-5))
      True

    References:
      Vaswani et al., "Attention is all you need", arXiv:1706.03762 (2017), for
      dropped weights in the code that came with it; Dao et al.,
      "FlashAttention", arXiv:2205.14135 (2022).
    """
    check = Check("dot_product_attention")
    arguments = checked(
        check,
        rng,
        query,
        key,
        value,
        rate,
        bias=bias,
        mask=mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        broadcast_dims=broadcast_dims,
    )
    shape = arguments.weights_shape
    batched, keys = arguments.inputs.query, arguments.inputs.key
    asked = query_block_size, key_block_size
    sizes = [blocks(check, batched, keys, *asked, budget) for budget in (GPU_BUDGET, BUDGET)]
    if math.prod(shape) == 0 or batched.size == 0 or arguments.drops_all:
        operands = arguments.rng, arguments.inputs, arguments.fixed
        out = vary_as(jnp.zeros_like(batched), operands)
    else:
        layout, seen = mask_layout(shape, arguments.shared), (arguments.before, arguments.after)
        plans = Plans(*(Plan(Tiling(*shape[2:], *size, *seen), layout) for size in sizes))
        out = _attend(arguments.rng, arguments.rate, arguments.inputs, arguments.fixed, plans)
    return out.reshape(jnp.shape(query))


def reference_dot_product_attention(
    rng: Key | None,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K H"],
    rate: Rate,
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    broadcast_dims: int | Sequence[int] = (),
) -> Float[Array, "*B T N H"]:
    """What `dot_product_attention` computes, with all weights in memory at once.

    Softmax, then `dropout` of the weights, then the product with the values: to
    read, and to compare with. Takes the same arguments, but for block sizes.

    Args:
      rng: one random key, consumed here unless `rate` is a known 0, where it may
        be None.
      query: real floating array of shape (B, T, N, H) or (T, N, H).
      key: real floating array of shape (B, S, K, H) or (S, K, H).
      value: array of the shape of `key`.
      rate: probability of dropping a weight, in [0, 1]; may be traced.
      bias: added to the logits; broadcasts to (B, N, T, S).
      mask: True where a query sees a key; broadcasts to (B, N, T, S).
      scale: of the logits; None for 1 / sqrt(H).
      is_causal: whether query t sees no key after key t.
      query_seq_lengths: integers of shape (B,) or ().
      key_value_seq_lengths: integers of shape (B,) or ().
      local_window_size: how many keys before and after its own position a query
        sees; one number for both.
      broadcast_dims: axes of the weights along which the mask is shared.

    Returns:
      An array with the shape and dtype of `query`. Queries that see no key give
      zeros.

    Raises:
      TypeError: as `dot_product_attention`.
      ValueError: as `dot_product_attention`.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 50, 4, 16))
      >>> y = reference_dot_product_attention(jax.random.key(1), q, k, v, 0.1)
      >>> tiled = dot_product_attention(jax.random.key(1), q, k, v, 0.1)
      >>> bool(jnp.allclose(y, tiled, atol=1e-5))
      True

    References:
      Vaswani et al., "Attention is all you need", arXiv:1706.03762 (2017).
    """
    check = Check("reference_dot_product_attention")
    arguments = checked(
        check,
        rng,
        query,
        key,
        value,
        rate,
        bias=bias,
        mask=mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        broadcast_dims=broadcast_dims,
    )
    materialised = partial(_materialised, arguments)
    fixed = arguments.fixed
    out = automatic(materialised, arguments.inputs.query, arguments.inputs, fixed, arguments.rng)
    return out.reshape(jnp.shape(query))


@partial(jax.jit, static_argnames="plans")
def _attend(rng: Key | None, rate: GridRate, inputs: Inputs, fixed: Fixed, plans: Plans) -> Array:
    if rng is not None:
        rate = rate.settle()
        keep_prob = jnp.asarray(rate.threshold.keep_prob)
        factor = inverse_keep_prob(keep_prob, compute_dtype(inputs.query))
        fixed = fixed._replace(draw=Draw(threefry_key(rng), rate, factor))

    def out(inputs: Inputs, fixed: Fixed) -> Array:
        return attend(plans, inputs, fixed).out.astype(inputs.query.dtype)

    return automatic(out, inputs.query, inputs, fixed)


def _materialised(arguments: Arguments, x: Inputs, fixed: Fixed, rng: Key | None) -> Array:
    batch, queries, heads, features = x.query.shape
    wide, key_heads = compute_dtype(x.query), x.key.shape[2]
    grouped = x.query.reshape(batch, queries, key_heads, heads // max(key_heads, 1), features)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, x.key, preferred_element_type=wide)
    logits = scores.reshape(arguments.weights_shape) * x.scale
    if x.bias is not None:
        logits = logits + x.bias.astype(wide)
    logits = jnp.where(_visible(arguments, fixed), logits, -jnp.inf)
    highest = lax.stop_gradient(jnp.max(logits, -1, keepdims=True, initial=-jnp.inf))
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(highest), 0, highest))
    total = jnp.sum(weights, -1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    if rng is not None:
        weights = drop_on_grid(rng, weights, arguments.rate, arguments.shared, expected)
    weights = weights.astype(x.value.dtype).reshape(scores.shape)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, x.value, preferred_element_type=wide)
    return out.astype(x.query.dtype).reshape(x.query.shape)


def _visible(arguments: Arguments, fixed: Fixed) -> Bool[Array, "#B #N T S"]:
    """Which queries see which keys."""
    *_, queries, keys = arguments.weights_shape
    row = jnp.arange(queries, dtype=jnp.int32).reshape(1, 1, -1, 1)
    column = jnp.arange(keys, dtype=jnp.int32).reshape(1, 1, 1, -1)
    visible = jnp.ones((1, 1, queries, keys), bool)
    if arguments.before is not None:
        visible &= column >= row - arguments.before
    if arguments.after is not None:
        visible &= column <= row + arguments.after
    if fixed.mask is not None:
        visible &= fixed.mask
    if fixed.query_lengths is not None:
        visible &= row < fixed.query_lengths[:, None, None, None]
    if fixed.key_lengths is not None:
        visible &= column < fixed.key_lengths[:, None, None, None]
    return visible
