"""Attention tile by tile: the forward pass, the pass for tangents, and the pass for cotangents.

Each pass is one loop over tiles, for all heads at once, so a split over batch or heads
needs no communication. No pass keeps more than one tile of the weights: it computes
them again from the log-sum-exp of each row, and draws the mask again.

With logits S, their log-sum-exp L, weights P = exp(S - L), mask m and keep probability
q, the dropped weights are A = m P / q and the output is O = A V. So the tangents are

  dO = (A dS) V + A dV - D O and dL = D, where D = rowsum(P dS),

where products of matrices of the same shape are element by element. The transpose of
this map takes cotangents O' of the output and L' of the log-sum-exp, and gives

  V' = A^T O' and S' = A (O' V^T) - P (rowsum(O' O) - L').

References:
  Rabe and Staats, "Self-attention does not need O(n^2) memory",
  arXiv:2112.05682 (2021); Dao et al., "FlashAttention", arXiv:2205.14135 (2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.export import is_symbolic_dim

from jaxdrop.base.compat import vary_as
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import compute_dtype
from jaxdrop.methods.attention.arguments import Arguments
from jaxdrop.methods.attention.block_sizes import BUDGET, GPU_BUDGET, Budget, block_sizes
from jaxdrop.methods.attention.operands import (
    NOTHING_SEEN,
    TO_KEYS,
    TO_QUERIES,
    TO_WEIGHTS,
    Attended,
    Inputs,
    Result,
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
from jaxdrop.methods.attention.skipping import tiles_to_compute
from jaxdrop.methods.attention.tile_slopes import added_below_logits, logits_along
from jaxdrop.methods.attention.tile_weights import TileWeights, dropped
from jaxdrop.methods.attention.tiling import Tile, Tiling

Carry = TypeVar("Carry")


def tiled(check: Check, arguments: Arguments) -> Result:
    """Attention in tiles."""
    for name, size in zip(("query", "key"), arguments.weights_shape[2:], strict=True):
        if is_symbolic_dim(size):
            raise ValueError(
                f"{check}: {name} must have a known length with implementation='tiled'; got"
                f" {size}. Use implementation='whole', or None."
            )
    return attention_by(tiled_passes(arguments), arguments)


def tiled_passes(arguments: Arguments) -> Passes:
    """The passes of `tiled`; tiles are larger on a GPU."""
    weights = TileWeights(arguments.layout, arguments.batch, arguments.soft_cap)
    window = arguments.window
    is_shifted = arguments.selection.shift is not None and window != (None, None)

    def passes(budget: Budget) -> TiledPasses:
        blocks = block_sizes(arguments.inputs, arguments.blocks, budget)
        tiling = Tiling(*arguments.weights_shape[2:], *blocks, *window, is_shifted)
        return TiledPasses(tiling, weights)

    on_gpu, elsewhere = passes(GPU_BUDGET), passes(BUDGET)
    return elsewhere if on_gpu == elsewhere else ByPlatform(on_gpu, elsewhere)


@dataclass(frozen=True)
class TiledPasses:
    """`Passes` that are loops over tiles.

    Attributes:
      tiling: the tiles of the weights.
      weights: how the weights of a tile are computed.
    """

    tiling: Tiling
    weights: TileWeights

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        """Attention by an online softmax: sums are scaled down when a row gets a higher logit."""
        operands = inputs, selection
        x, selection = grouped(*operands)
        rows, features = x.query.shape[:-1], x.value.shape[-1:]
        wide = compute_dtype(x.query)

        def step(sums: _Sums, tile: Tile) -> _Sums:
            numerator, total, highest = map(tile.rows, sums)
            _, logits = self.weights.scores_and_logits(x, selection, tile)
            new_highest = jnp.maximum(highest, jnp.max(logits, -1, keepdims=True))
            origin = _finite(new_highest)
            # The sums are of exp(logits - highest), so they are scaled to the new `highest`.
            weights, shrink = jnp.exp(logits - origin), jnp.exp(highest - origin)
            new_total = total * shrink + jnp.sum(weights, -1, keepdims=True)
            # Only the numerator is dropped: the softmax has all weights in its denominator.
            kept = dropped(self.weights.keep_mask(selection.draw, tile, weights), weights)
            new_numerator = numerator * shrink + product(TO_QUERIES, kept, tile.columns(x.value))
            new = new_numerator, new_total, new_highest
            return _Sums(*map(tile.put_rows, sums, new))

        start = _Sums(
            jnp.zeros(rows + features, wide),
            jnp.zeros((*rows, 1), wide),
            jnp.full((*rows, 1), -jnp.inf, wide),
        )
        return _attended(self._over_tiles(operands, selection, step, start), selection)

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        """Tangents of the output and of `log_total`."""
        inputs, selection, attended = residuals
        key_heads, wide = inputs.key.shape[2], compute_dtype(inputs.query)
        (x, selection), d = grouped(inputs, selection), by_heads(tangents, key_heads)
        out = by_group(attended.out, key_heads)

        # The loop carries q times the first two terms of dO, and D. The third term of
        # dO needs no tiles, because D is one number per row.
        def step(carry: tuple[Array, Array], tile: Tile) -> tuple[Array, Array]:
            d_numerator, d_log_total = carry
            scores, weights = self.weights.scores_and_weights(x, selection, attended, tile)
            kept = dropped(self.weights.keep_mask(selection.draw, tile, weights), weights)
            d_logits = logits_along(x, d, tile, scores, self.weights.soft_cap)
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
        end = self._over_tiles((residuals, tangents), selection, step, start)
        return by_head(end[0] * selection.factor(wide) - end[1] * out), end[1]

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        """The transpose of `along`: cotangents of the inputs that `asked` marks."""
        inputs, selection, attended = residuals
        key_heads, wide = inputs.key.shape[2], compute_dtype(inputs.query)
        x, selection = grouped(inputs, selection)
        factor = selection.factor(wide)
        d_out, d_log_total = by_group(cotangents[0], key_heads), cotangents[1]
        # The part of S' that depends only on the row. It uses the output in full
        # precision, since it cancels.
        products = d_out * by_group(attended.out, key_heads)
        inner = jnp.sum(products, -1, keepdims=True) - d_log_total
        d_out = d_out.astype(x.value.dtype)
        logits_asked = asked.query or asked.key or asked.bias or asked.scale

        def step(d: Slopes, tile: Tile) -> Slopes:
            scores, weights = self.weights.scores_and_weights(x, selection, attended, tile)
            keep = self.weights.keep_mask(selection.draw, tile, weights)
            d_rows = tile.rows(d_out)
            if d.value is not None:
                kept = dropped(keep, weights) * factor
                d = d._replace(value=tile.add_columns(d.value, product(TO_KEYS, kept, d_rows)))
            if not logits_asked:
                return d
            d_kept = product(TO_WEIGHTS, d_rows, tile.columns(x.value)) * factor
            d_logits = weights * (dropped(keep, d_kept) - tile.rows(inner))
            return added_below_logits(d, x, tile, scores, d_logits, self.weights.soft_cap)

        end = self._over_tiles((residuals, cotangents), selection, step, _zeros(x, asked, wide))
        return as_given(end, inputs)

    def _over_tiles(
        self,
        operands: Any,
        selection: Selection,
        step: Callable[[Carry, Tile], Carry],
        start: Carry,
    ) -> Carry:
        """Runs a step for each tile. `operands` are the values that the steps close over."""
        tiling, flags = self.tiling, tiles_to_compute(self.tiling, selection)
        # In `shard_map` the carry of a loop must vary over the same mesh axes as the
        # results of the loop.
        start = vary_as(start, operands)

        # Under `checkpoint`, for derivatives of the passes themselves: without it, reverse
        # mode would keep every tile.
        @partial(jax.checkpoint, prevent_cse=False)
        def run(carry: Carry, number: Array) -> Carry:
            return step(carry, Tile(tiling, tiling.starts(number)))

        def body(
            state: tuple[Array, Carry], flag: Array | None
        ) -> tuple[tuple[Array, Carry], None]:
            number, carry = state
            if flag is None:
                carry = run(carry, number)
            else:
                carry = lax.cond(flag, run, lambda carry, _: carry, carry, number)
            return (number + np.int32(1), carry), None

        (_, end), _ = lax.scan(body, (jnp.int32(0), start), flags, length=tiling.count)
        return end


class _Sums(NamedTuple):
    """Sums over the keys of each row: of exp(logits - highest) V where kept, and of
    exp(logits - highest).
    """

    numerator: Array
    total: Array
    highest: Array


def _attended(sums: _Sums, selection: Selection) -> Attended:
    """Makes the result from the sums over all keys."""
    numerator, total, highest = sums
    # A row that sees nothing has the sum 0. With 1 instead of 0 nothing is NaN, here or
    # in derivatives. The weights of this row are exp(-inf) = 0 in every pass.
    empty = total == 0
    total = jnp.where(empty, 1, total)
    out = jnp.where(empty, 0, numerator / total) * selection.factor(numerator.dtype)
    log_total = jnp.where(empty, NOTHING_SEEN, jnp.log(total))
    return Attended(by_head(out), _finite(highest), log_total)


def _finite(highest: Array) -> Array:
    """The number to subtract from the logits of a row: the highest logit, or 0 if all are -inf."""
    return jnp.where(jnp.isneginf(highest), jnp.zeros_like(highest), highest)


def _zeros(x: Inputs[Array], asked: Inputs[bool], dtype: jnp.dtype) -> Slopes:
    """Zeros to start the sums from, for the inputs that `asked` marks."""
    pairs = zip(x, asked, strict=True)
    return Inputs(
        *(
            jnp.zeros(leaf.shape, dtype) if wanted and leaf is not None else None
            for leaf, wanted in pairs
        )
    )
