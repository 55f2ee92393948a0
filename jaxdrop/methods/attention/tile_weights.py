"""The weights of one tile: scores, logits, softmax, and which of them are kept."""

from functools import reduce

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool

from jaxdrop.core.layout import Layout
from jaxdrop.methods.attention.operands import (
    TO_WEIGHTS,
    Attended,
    Draw,
    Inputs,
    Selection,
    product,
)
from jaxdrop.methods.attention.tiles import draw_tile
from jaxdrop.methods.attention.tiling import Tile


def scores_and_logits(x: Inputs[Array], selection: Selection, tile: Tile) -> tuple[Array, Array]:
    """Scores, which are products of queries and keys, and logits, which the softmax takes."""
    scores = product(TO_WEIGHTS, tile.rows(x.query), tile.columns(x.key))
    logits = scores * x.scale
    if x.bias is not None:
        logits = logits + tile.part(x.bias).astype(logits.dtype)
    visible = [tile.visible(), None if selection.mask is None else tile.part(selection.mask)]
    if selection.query_lengths is not None:
        visible.append(tile.row_numbers < _per_sample(selection.query_lengths))
    if selection.key_lengths is not None:
        visible.append(tile.column_numbers < _per_sample(selection.key_lengths))
    visible = [flags for flags in visible if flags is not None]
    if visible:
        # -inf, since any finite number would give weights to a query that sees nothing.
        logits = jnp.where(reduce(jnp.logical_and, visible), logits, -jnp.inf)
    # Scores are returned too, because the derivative by the scale is a sum over them.
    return scores, logits


def scores_and_weights(
    x: Inputs[Array], selection: Selection, attended: Attended, tile: Tile
) -> tuple[Array, Array]:
    """Products of queries and keys, and their softmax, before anything is dropped."""
    scores, logits = scores_and_logits(x, selection, tile)
    # Two subtractions, since `highest + log_total` would round `log_total` away.
    centred = logits - tile.rows(attended.highest)
    return scores, jnp.exp(centred - tile.rows(attended.log_total))


def keep_mask(
    layout: Layout, draw: Draw | None, tile: Tile, weights: Array
) -> Bool[Array, "#B #K #G #t #s"] | None:
    """Which weights of a tile are kept; None for all."""
    if draw is None:
        return None
    # Bits depend on the position in the mask of (B, N, T, S), so every pass draws the same mask.
    batch, key_heads, groups = weights.shape[:3]
    samples = lax.iota(jnp.uint32, batch).reshape(batch, 1, 1)
    heads = lax.iota(jnp.uint32, key_heads * groups).reshape(1, key_heads, groups)
    return draw_tile(
        draw.key,
        draw.rate,
        layout,
        (samples, heads),
        tile.row_span,
        tile.column_span,
        at_words=tile.tiling.columns_start_words,
    )


def dropped(keep: Array | None, x: Array) -> Array:
    """Sets dropped weights to zero. The caller applies the factor of the survivors."""
    return x if keep is None else jnp.where(keep, x, jnp.zeros_like(x))


def _per_sample(x: Array) -> Array:
    return x[:, None, None, None, None]
