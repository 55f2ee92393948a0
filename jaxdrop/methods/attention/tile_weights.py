"""The weights of one tile: scores, logits, softmax, and which of them are kept."""

from dataclasses import dataclass
from functools import reduce

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool

from jaxdrop.core.layout import Layout
from jaxdrop.core.words import Words, as_word
from jaxdrop.methods.attention.operands import (
    TO_WEIGHTS,
    Attended,
    Draw,
    Inputs,
    Selection,
    product,
)
from jaxdrop.methods.attention.tiles import Span, draw_tile
from jaxdrop.methods.attention.tiling import Tile


@dataclass(frozen=True)
class TileWeights:
    """How the weights of any tile are computed; known while tracing.

    Attributes:
      layout: the layout of the mask of all weights, (*B, N, T, S), of which the tiles
        may be a part.
      batch: sizes of the axes B here, which are merged in arrays.
      soft_cap: the number below which logits stay; None for any.
    """

    layout: Layout
    batch: tuple[int, ...]
    soft_cap: float | None

    def scores_and_logits(
        self, x: Inputs[Array], selection: Selection, tile: Tile
    ) -> tuple[Array, Array]:
        """Scores, which are products of queries and keys, and logits, which the softmax takes."""
        scores = product(TO_WEIGHTS, tile.rows(x.query), tile.columns(x.key))
        logits = capped(scores * x.scale, self.soft_cap)
        if x.bias is not None:
            logits = logits + tile.part(x.bias).astype(logits.dtype)
        visible = _visible(selection, tile)
        if visible is not None:
            # -inf, since any finite number would give weights to a query that sees nothing.
            logits = jnp.where(visible, logits, -jnp.inf)
        # Scores are returned too, because the derivative by the scale is a sum over them.
        return scores, logits

    def scores_and_weights(
        self, x: Inputs[Array], selection: Selection, attended: Attended, tile: Tile
    ) -> tuple[Array, Array]:
        """Products of queries and keys, and their softmax, before anything is dropped."""
        scores, logits = self.scores_and_logits(x, selection, tile)
        # Two subtractions, since `highest + log_total` would round `log_total` away.
        centred = logits - tile.rows(attended.highest)
        return scores, jnp.exp(centred - tile.rows(attended.log_total))

    def keep_mask(
        self, draw: Draw | None, tile: Tile, weights: Array
    ) -> Bool[Array, "#B #K #G #t #s"] | None:
        """Which weights of a tile are kept; None for all."""
        if draw is None:
            return None
        # Bits depend on the position in the mask of (*B, N, T, S), so every pass draws
        # the same mask.
        batch, key_heads, groups = weights.shape[:3]
        samples = lax.iota(jnp.uint32, batch).reshape(batch, 1, 1)
        heads = lax.iota(jnp.uint32, key_heads * groups).reshape(1, key_heads, groups)
        start = draw.start or (None,) * len(self.layout.shape)
        leading = [*unravelled(samples, self.batch), heads]
        row, column = tile.row_span, tile.column_span
        return draw_tile(
            draw.key,
            draw.rate,
            self.layout,
            [_from(*pair) for pair in zip(start, leading, strict=False)],
            Span(_from(start[-2], row.start), row.length),
            Span(_from(start[-1], column.start), column.length),
            at_words=tile.tiling.columns_start_words and start[-1] is None,
        )


def unravelled(samples: Words, batch: tuple[int, ...]) -> list[Words]:
    """The indices along the axes of a batch, from those of the merged axis."""
    indices: list[Words] = []
    for size in batch[:0:-1]:
        indices.append(lax.rem(samples, as_word(size)))
        samples = lax.div(samples, as_word(size))
    return [samples, *reversed(indices)]


def _from(start: Words | None, index: Array | int) -> Array:
    index = jnp.asarray(index)
    return index if start is None else start + index.astype(jnp.uint32)


def _visible(selection: Selection, tile: Tile) -> Bool[Array, "#B #K #G t s"] | None:
    """Which queries of a tile see which keys; None for all."""
    visible = [tile.visible(selection.shift)]
    if selection.mask is not None:
        visible.append(tile.part(selection.mask))
    if selection.query_lengths is not None:
        visible.append(tile.row_numbers < _per_sample(selection.query_lengths))
    if selection.key_lengths is not None:
        visible.append(tile.column_numbers < _per_sample(selection.key_lengths))
    if selection.segments is not None:
        queries, keys = selection.segments
        of_rows = tile.rows(queries[:, None, None, :, None])
        visible.append(of_rows == tile.part(keys[:, None, None, None, :]))
    visible = [flags for flags in visible if flags is not None]
    return reduce(jnp.logical_and, visible) if visible else None


def capped(logits: Array, soft_cap: float | None) -> Array:
    """Logits that stay below a number, with a slope of 1 at 0."""
    if soft_cap is None:
        return logits
    cap = jnp.asarray(soft_cap, logits.dtype)
    return cap * jnp.tanh(logits / cap)


def below_cap(slopes: Array, logits: Array, soft_cap: float | None) -> Array:
    """Slopes times the derivative of `capped` at the logits."""
    if soft_cap is None:
        return slopes
    return slopes * (1 - jnp.tanh(logits / jnp.asarray(soft_cap, logits.dtype)) ** 2)


def dropped(keep: Array | None, x: Array) -> Array:
    """Sets dropped weights to zero. The caller applies the factor of the survivors."""
    return x if keep is None else jnp.where(keep, x, jnp.zeros_like(x))


def _per_sample(x: Array) -> Array:
    return x[:, None, None, None, None]
