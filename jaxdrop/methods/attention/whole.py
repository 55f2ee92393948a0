"""Attention by its textbook formula, with all weights in memory; for readers and as a reference.

JAX differentiates it. It shares no pass and no derivative formula with the other
implementations, so tests can compare them with it.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxdrop.base.sharding import automatic
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import compute_dtype
from jaxdrop.methods.attention.arguments import Arguments
from jaxdrop.methods.attention.operands import Inputs, Selection, output_spec
from jaxdrop.methods.masked import drop_on_grid
from jaxdrop.rescale import expected


def whole(check: Check, arguments: Arguments) -> Array:
    """Softmax, then `dropout` of the weights, then the product with the values."""
    for name, size in zip(("query", "key"), arguments.blocks, strict=True):
        if size is not None:
            raise ValueError(
                f"{check}: {name}_block_size must be None with implementation='whole', which"
                f" has no blocks; got {size}. Leave it out, or use implementation='tiled'."
            )
    inputs, selection = arguments.inputs, arguments.selection
    attend = partial(_attention, arguments)
    return automatic(attend, output_spec(inputs), inputs, selection, arguments.dropping.rng)


# The arrays are passed separately from `arguments`, because `automatic` changes how they are split.
def _attention(
    arguments: Arguments, x: Inputs[Array], selection: Selection, rng: Key | None
) -> Array:
    wide, key_heads = compute_dtype(x.query), x.key.shape[2]
    batch, queries, heads, features = x.query.shape
    # Consecutive heads of queries share a head of keys.
    grouped = x.query.reshape(batch, queries, key_heads, heads // max(key_heads, 1), features)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, x.key, preferred_element_type=wide)
    logits = scores.reshape(arguments.weights_shape) * x.scale
    if x.bias is not None:
        logits = logits + x.bias.astype(wide)
    weights = _softmax(jnp.where(_visible(arguments, selection), logits, -jnp.inf))
    if rng is not None:
        dropping = arguments.dropping
        weights = drop_on_grid(rng, weights, dropping.rate, dropping.shared, expected)
    weights = weights.astype(x.value.dtype).reshape(scores.shape)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, x.value, preferred_element_type=wide)
    return out.astype(x.query.dtype).reshape(x.query.shape)


def _softmax(logits: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
    """Softmax over the last axis. If all logits are -inf it gives zeros, where `jax.nn`
    gives NaN.
    """
    # `highest` cancels, so its derivative is 0, but JAX cannot know this.
    highest = lax.stop_gradient(jnp.max(logits, -1, keepdims=True, initial=-jnp.inf))
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(highest), 0, highest))
    total = jnp.sum(weights, -1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def _visible(arguments: Arguments, selection: Selection) -> Bool[Array, "#B #N T S"]:
    """Which queries see which keys."""
    *_, queries, keys = arguments.weights_shape
    row = jnp.arange(queries, dtype=jnp.int32).reshape(1, 1, -1, 1)
    column = jnp.arange(keys, dtype=jnp.int32).reshape(1, 1, 1, -1)
    visible = jnp.ones((1, 1, queries, keys), bool)
    before, after = arguments.window
    if before is not None:
        visible &= column >= row - before
    if after is not None:
        visible &= column <= row + after
    if selection.mask is not None:
        visible &= selection.mask
    if selection.query_lengths is not None:
        visible &= row < selection.query_lengths[:, None, None, None]
    if selection.key_lengths is not None:
        visible &= column < selection.key_lengths[:, None, None, None]
    return visible
