"""Attention tile by tile: the passes forward, along tangents, and back from cotangents.

Each pass is one loop over tiles, for all heads at once, so that a split over
batch or heads needs no communication. No pass keeps more of the weights than a
tile: they are computed again from the log-sum-exp of each row, and the mask is
drawn again.

With logits S, their log-sum-exp L, weights P = exp(S - L), mask m and keep
probability q, the dropped weights are A = m P / q and the output is O = A V.
So, along tangents,

  dO = (A dS) V + A dV - D O and dL = D, where D = rowsum(P dS),

products of matrices of one shape being by element. The transpose of this map
takes cotangents O' of the output and L' of the log-sum-exp to

  V' = A^T O' and S' = A (O' V^T) - P (rowsum(O' O) - L').

References:
  Rabe and Staats, "Self-attention does not need O(n^2) memory",
  arXiv:2112.05682 (2021); Dao et al., "FlashAttention", arXiv:2205.14135 (2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdrop.base.compat import vary_as
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import compute_dtype
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.methods.attention.arguments import Arguments
from jaxdrop.methods.attention.block_sizes import BUDGET, GPU_BUDGET, Budget, block_sizes
from jaxdrop.methods.attention.operands import (
    TO_KEYS,
    TO_QUERIES,
    TO_WEIGHTS,
    Attended,
    Inputs,
    Selection,
    Slopes,
    as_given,
    by_group,
    by_head,
    by_heads,
    grouped,
    product,
)
from jaxdrop.methods.attention.passes import ByPlatform, Passes, Residuals, attention_by
from jaxdrop.methods.attention.tile_weights import (
    dropped,
    keep_mask,
    scores_and_logits,
    scores_and_weights,
)
from jaxdrop.methods.attention.tiling import Tile, Tiling

Carry = TypeVar("Carry")


def tiled(check: Check, arguments: Arguments) -> Array:
    """Attention in tiles."""
    del check  # whatever fits together can be cut into tiles
    return attention_by(tiled_passes(arguments), arguments)


def tiled_passes(arguments: Arguments) -> Passes:
    """The passes of `tiled`, in larger tiles on a GPU."""
    layout = mask_layout(arguments.weights_shape, arguments.dropping.shared)

    def passes(budget: Budget) -> TiledPasses:
        blocks = block_sizes(arguments.inputs, arguments.blocks, budget)
        return TiledPasses(Tiling(*arguments.weights_shape[2:], *blocks, *arguments.window), layout)

    on_gpu, elsewhere = passes(GPU_BUDGET), passes(BUDGET)
    return elsewhere if on_gpu == elsewhere else ByPlatform(on_gpu, elsewhere)


@dataclass(frozen=True)
class TiledPasses:
    """`Passes` that are loops over tiles.

    Attributes:
      tiling: the tiles of the weights.
      layout: the layout of the mask of all weights, (B, N, T, S).
    """

    tiling: Tiling
    layout: Layout

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        """Attention, with sums that are scaled down as rows meet higher logits."""
        operands = inputs, selection
        x, selection = grouped(*operands)
        rows, features = x.query.shape[:-1], x.query.shape[-1:]
        wide = compute_dtype(x.query)

        def step(sums: _Sums, tile: Tile) -> _Sums:
            numerator, total, highest = map(tile.rows, sums)
            _, logits = scores_and_logits(x, selection, tile)
            new_highest = jnp.maximum(highest, jnp.max(logits, -1, keepdims=True))
            origin = _finite(new_highest)
            # Sums so far are of exp(logits - highest): now the origin is another.
            weights, shrink = jnp.exp(logits - origin), jnp.exp(highest - origin)
            new_total = total * shrink + jnp.sum(weights, -1, keepdims=True)
            # The numerator alone drops: the softmax is that of all weights.
            kept = dropped(keep_mask(self.layout, selection.draw, tile, weights), weights)
            new_numerator = numerator * shrink + product(TO_QUERIES, kept, tile.columns(x.value))
            new = new_numerator, new_total, new_highest
            return _Sums(*map(tile.put_rows, sums, new))

        start = _Sums(
            jnp.zeros(rows + features, wide),
            jnp.zeros((*rows, 1), wide),
            jnp.full((*rows, 1), -jnp.inf, wide),
        )
        return _attended(_over_tiles(self.tiling, operands, step, start), selection)

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        """Tangents of the output and of `log_total`."""
        inputs, selection, attended = residuals
        key_heads, wide = inputs.key.shape[2], compute_dtype(inputs.query)
        (x, selection), d = grouped(inputs, selection), by_heads(tangents, key_heads)
        out = by_group(attended.out, key_heads)

        # Carries q times the first two terms of dO, and D. The third term of dO
        # needs no tiles: D is a number for each row.
        def step(carry: tuple[Array, Array], tile: Tile) -> tuple[Array, Array]:
            d_numerator, d_log_total = carry
            scores, weights = scores_and_weights(x, selection, attended, tile)
            kept = dropped(keep_mask(self.layout, selection.draw, tile, weights), weights)
            d_logits = _logits_along(x, d, tile, scores)
            if d_logits is not None:
                d_rows = jnp.sum(weights * d_logits, -1, keepdims=True)
                d_log_total = tile.add_rows(d_log_total, d_rows)
                d_rows = product(TO_QUERIES, kept * d_logits, tile.columns(x.value))
                d_numerator = tile.add_rows(d_numerator, d_rows)
            if d.value is not None:
                d_rows = product(TO_QUERIES, kept, tile.columns(d.value))
                d_numerator = tile.add_rows(d_numerator, d_rows)
            return d_numerator, d_log_total

        start = jnp.zeros(out.shape, wide), jnp.zeros(attended.log_total.shape, wide)
        end = _over_tiles(self.tiling, (residuals, tangents), step, start)
        return by_head(end[0] * selection.factor(wide) - end[1] * out), end[1]

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        """Cotangents of those inputs that are asked for: the transpose of `along`."""
        inputs, selection, attended = residuals
        key_heads, wide = inputs.key.shape[2], compute_dtype(inputs.query)
        x, selection = grouped(inputs, selection)
        factor = selection.factor(wide)
        d_out, d_log_total = by_group(cotangents[0], key_heads), cotangents[1]
        # The rows' part of S', from the output in full precision: it cancels.
        products = d_out * by_group(attended.out, key_heads)
        inner = jnp.sum(products, -1, keepdims=True) - d_log_total
        d_out = d_out.astype(x.value.dtype)
        logits_asked = asked.query or asked.key or asked.bias or asked.scale

        def step(d: Slopes, tile: Tile) -> Slopes:
            scores, weights = scores_and_weights(x, selection, attended, tile)
            keep = keep_mask(self.layout, selection.draw, tile, weights)
            d_rows = tile.rows(d_out)
            if d.value is not None:
                kept = dropped(keep, weights) * factor
                d = d._replace(value=tile.add_columns(d.value, product(TO_KEYS, kept, d_rows)))
            if not logits_asked:
                return d
            d_kept = product(TO_WEIGHTS, d_rows, tile.columns(x.value)) * factor
            d_logits = weights * (dropped(keep, d_kept) - tile.rows(inner))
            return _added_below_logits(d, x, tile, scores, d_logits)

        end = _over_tiles(self.tiling, (residuals, cotangents), step, _zeros(x, asked, wide))
        return as_given(end, inputs)


class _Sums(NamedTuple):
    """Sums over the keys of each row: of exp(logits - highest) V where kept, and of the exp."""

    numerator: Array
    total: Array
    highest: Array


def _attended(sums: _Sums, selection: Selection) -> Attended:
    """What the sums over all keys amount to."""
    numerator, total, highest = sums
    # A row that sees nothing has the sum 0. With 1 in its place nothing is NaN,
    # here or in derivatives, and its weights, exp(-inf), are 0 in every pass.
    empty = total == 0
    total = jnp.where(empty, 1, total)
    out = jnp.where(empty, 0, numerator / total) * selection.factor(numerator.dtype)
    return Attended(by_head(out), _finite(highest), jnp.log(total))


def _finite(highest: Array) -> Array:
    """What to subtract from the logits of a row: their highest, or 0 if all are -inf."""
    return jnp.where(jnp.isneginf(highest), jnp.zeros_like(highest), highest)


def _logits_along(x: Inputs[Array], d: Slopes, tile: Tile, scores: Array) -> Array | None:
    """Tangents dS of a tile's logits, which are `scores * scale + bias`; None if they stay."""
    terms: list[Array] = []
    if d.query is not None:
        terms.append(product(TO_WEIGHTS, tile.rows(d.query), tile.columns(x.key)) * x.scale)
    if d.key is not None:
        terms.append(product(TO_WEIGHTS, tile.rows(x.query), tile.columns(d.key)) * x.scale)
    if d.bias is not None:
        terms.append(tile.part(d.bias).astype(scores.dtype))
    if d.scale is not None:
        terms.append(scores * d.scale)
    return reduce(jnp.add, terms) if terms else None


def _added_below_logits(
    d: Slopes, x: Inputs[Array], tile: Tile, scores: Array, d_logits: Array
) -> Slopes:
    """Cotangents of what logits are made of, with the part of one tile added: from S' on down."""
    d_scores = d_logits * x.scale
    if d.query is not None:
        d_query = product(TO_QUERIES, d_scores, tile.columns(x.key))
        d = d._replace(query=tile.add_rows(d.query, d_query))
    if d.key is not None:
        d_key = product(TO_KEYS, d_scores, tile.rows(x.query))
        d = d._replace(key=tile.add_columns(d.key, d_key))
    if d.bias is not None:
        d = d._replace(bias=tile.add_part(d.bias, d_logits))
    if d.scale is not None:
        d = d._replace(scale=d.scale + jnp.sum(d_logits * scores))
    return d


def _zeros(x: Inputs[Array], asked: Inputs[bool], dtype: jnp.dtype) -> Slopes:
    """Sums to start from, for the inputs that are asked for."""
    pairs = zip(x, asked, strict=True)
    return Inputs(
        *(
            jnp.zeros(leaf.shape, dtype) if wanted and leaf is not None else None
            for leaf, wanted in pairs
        )
    )


def _over_tiles(
    tiling: Tiling, operands: Any, step: Callable[[Carry, Tile], Carry], start: Carry
) -> Carry:
    """Runs a step for each tile. `operands` is what the steps close over."""
    # In `shard_map` a loop must carry what varies over the mesh as its results do.
    start = vary_as(start, operands)

    # Under `checkpoint`, for derivatives of the passes themselves: those in
    # reverse would otherwise keep every tile.
    @partial(jax.checkpoint, prevent_cse=False)
    def run(carry: Carry, number: Array) -> Carry:
        return step(carry, Tile(tiling, tiling.starts(number)))

    def body(state: tuple[Array, Carry], _: None) -> tuple[tuple[Array, Carry], None]:
        number, carry = state
        return (number + np.int32(1), run(carry, number)), None

    (_, end), _ = lax.scan(body, (jnp.int32(0), start), None, length=tiling.count)
    return end
