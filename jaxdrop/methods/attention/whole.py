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
from jaxdrop.methods.attention.operands import Inputs, Result, Selection, output_specs
from jaxdrop.methods.attention.tile_weights import capped
from jaxdrop.methods.masked import drop_on_grid
from jaxdrop.rescale import expected


def whole(check: Check, arguments: Arguments) -> Result:
    """Softmax, then `dropout` of the weights, then the product with the values."""
    for name, size in zip(("query", "key"), arguments.blocks, strict=True):
        if size is not None:
            raise ValueError(
                f"{check}: {name}_block_size must be None with implementation='whole', which"
                f" has no blocks; got {size}. Leave it out, or use implementation='tiled'."
            )
    inputs, selection = arguments.inputs, arguments.selection
    attend = partial(_attention, arguments)
    specs = output_specs(inputs)
    return automatic(
        attend, specs if arguments.residual else specs[0], inputs, selection, arguments.dropping.rng
    )


# The arrays are passed separately from `arguments`, because `automatic` changes how they are split.
def _attention(
    arguments: Arguments, x: Inputs[Array], selection: Selection, rng: Key | None
) -> Result:
    wide, key_heads = compute_dtype(x.query), x.key.shape[2]
    batch, queries, heads, features = x.query.shape
    # Consecutive heads of queries share a head of keys.
    grouped = x.query.reshape(batch, queries, key_heads, heads // max(key_heads, 1), features)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, x.key, preferred_element_type=wide)
    logits = capped(scores.reshape(arguments.weights_shape) * x.scale, arguments.soft_cap)
    if x.bias is not None:
        logits = logits + x.bias.astype(wide)
    weights, residual = _softmax(logits, _visible(arguments, selection))
    if rng is not None:
        _, rate, shared, within = arguments.dropping
        weights = weights.reshape(arguments.all_axes)
        weights = drop_on_grid(rng, weights, rate, shared, expected, within)
    weights = weights.astype(x.value.dtype).reshape(scores.shape)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, x.value, preferred_element_type=wide)
    out = out.astype(x.query.dtype).reshape(*x.query.shape[:-1], x.value.shape[-1])
    return (out, jnp.swapaxes(residual, 1, 2)) if arguments.residual else out


def _softmax(
    logits: Float[Array, "B N T S"], visible: Bool[Array, "#B #N T S"]
) -> tuple[Float[Array, "B N T S"], Float[Array, "B N T"]]:
    """Softmax over the visible logits of the last axis, and the log-sum-exp. If there are
    none, or all are -inf, it gives zeros, where `jax.nn` gives NaN.
    """
    # The usual mask of -inf would make `jax.debug_infs` stop at numbers that nobody sees.
    lowest = float(jnp.finfo(logits.dtype).min)
    logits = jnp.where(visible, logits, lowest)
    # `highest` cancels, so its derivative is 0, but JAX cannot know this.
    highest = lax.stop_gradient(jnp.max(logits, -1, keepdims=True, initial=lowest))
    weights = jnp.where(visible, jnp.exp(logits - highest), 0)
    total = jnp.sum(weights, -1, keepdims=True)
    nothing = total == 0
    log_of_nothing = jnp.log(lax.stop_gradient(total))  # -inf, where it is used
    total = jnp.where(nothing, 1, total)
    residual = jnp.where(nothing, log_of_nothing, highest + jnp.log(total))
    return weights / total, residual[..., 0]


def _visible(arguments: Arguments, selection: Selection) -> Bool[Array, "#B #N T S"]:
    """Which queries see which keys."""
    *_, queries, keys = arguments.weights_shape
    row = jnp.arange(queries, dtype=jnp.int32).reshape(1, 1, -1, 1)
    column = jnp.arange(keys, dtype=jnp.int32).reshape(1, 1, 1, -1)
    visible = jnp.ones((1, 1, queries, keys), bool)
    before, after = arguments.window
    shifted = row if selection.shift is None else row + selection.shift
    if before is not None:
        visible &= column >= shifted - before
    if after is not None:
        visible &= column <= shifted + after
    if selection.mask is not None:
        visible &= selection.mask
    if selection.query_lengths is not None:
        visible &= row < selection.query_lengths[:, None, None, None]
    if selection.key_lengths is not None:
        visible &= column < selection.key_lengths[:, None, None, None]
    if selection.segments is not None:
        queries, keys = selection.segments
        visible &= queries[:, None, :, None] == keys[:, None, None, :]
    return visible
