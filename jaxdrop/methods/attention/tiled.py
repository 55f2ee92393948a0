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
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool

from jaxdrop.base.compat import vary_as
from jaxdrop.base.platforms import by_platform
from jaxdrop.core.apply import compute_dtype
from jaxdrop.core.layout import Layout
from jaxdrop.methods.attention.linear import linear_map, opaque
from jaxdrop.methods.attention.operands import (
    Draw,
    Fixed,
    Inputs,
    Result,
    as_given,
    by_group,
    by_head,
    by_heads,
    grouped,
)
from jaxdrop.methods.attention.tiles import draw_tile
from jaxdrop.methods.attention.tiling import Tile, Tiling

Carry = TypeVar("Carry")
Out = TypeVar("Out")

_WEIGHTS = "bkrh,bksh->bkrs"
_TO_QUERIES = "bkrs,bksh->bkrh"
_TO_KEYS = "bkrs,bkrh->bksh"


@dataclass(frozen=True)
class Plan:
    """The static part.

    Attributes:
      tiling: the tiles of the weights.
      layout: the layout of the mask of all weights, (B, N, T, S).
    """

    tiling: Tiling
    layout: Layout


class Plans(NamedTuple):
    """Plans that differ in their tiles alone, so that passes by one fit those by another."""

    on_gpu: Plan
    elsewhere: Plan

    def run(self, one_pass: Callable[..., Out], *operands: Any) -> Out:
        """A pass by the plan for the platform that it is lowered for."""
        if self.on_gpu == self.elsewhere:
            return one_pass(self.on_gpu, *operands)
        return by_platform(*(partial(one_pass, plan) for plan in self), *operands)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend(plans: Plans, inputs: Inputs, fixed: Fixed) -> Result:
    """Attention. Rows that see nothing give zeros."""
    return opaque(partial(plans.run, _forward), (inputs, fixed))


@partial(attend.defjvp, symbolic_zeros=True)
def _attend_jvp(plans: Plans, primals: Any, tangents: Any) -> tuple[Result, Result]:
    inputs, fixed = primals
    result = attend(plans, inputs, fixed)
    moving = Inputs(*(None if isinstance(t, SymbolicZero) else t for t in tangents[0]))
    asked = Inputs(*(t is not None for t in moving))
    along, back = partial(plans.run, _along), partial(plans.run, partial(_back, asked))
    d_out, d_log_total = linear_map(along, back, (inputs, fixed, result), moving)
    return result, Result(d_out, jnp.zeros_like(result.highest), d_log_total)


def _forward(plan: Plan, operands: tuple[Inputs, Fixed]) -> Result:
    x, fixed = grouped(*operands)
    rows, features = x.query.shape[:-1], x.query.shape[-1:]
    wide = compute_dtype(x.query)

    def step(carry: tuple[Array, ...], tile: Tile) -> tuple[Array, ...]:
        numerator, total, highest = map(tile.rows, carry)
        _, logits = _scores_and_logits(x, fixed, tile)
        new_highest = jnp.maximum(highest, jnp.max(logits, -1, keepdims=True))
        origin = _finite(new_highest)
        weights, shrink = jnp.exp(logits - origin), jnp.exp(highest - origin)
        new_total = total * shrink + jnp.sum(weights, -1, keepdims=True)
        kept = _drop(_keep(plan, fixed.draw, tile, weights), weights)
        new_numerator = numerator * shrink + _dot(_TO_QUERIES, kept, tile.columns(x.value))
        new = new_numerator, new_total, new_highest
        return tuple(map(tile.put_rows, carry, new))

    start = (
        jnp.zeros(rows + features, wide),
        jnp.zeros((*rows, 1), wide),
        jnp.full((*rows, 1), -jnp.inf, wide),
    )
    numerator, total, highest = _over_tiles(plan, operands, step, start)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    out = jnp.where(empty, 0, numerator / total) * fixed.factor(wide)
    return Result(by_head(out), _finite(highest), jnp.log(total))


def _along(plan: Plan, residuals: Any, moving: Inputs) -> tuple[Array, Array]:
    """Tangents of the output and of `log_total`."""
    inputs, fixed, result = residuals
    key_heads, wide = inputs.key.shape[2], compute_dtype(inputs.query)
    (x, fixed), d = grouped(inputs, fixed), by_heads(moving, key_heads)
    out = by_group(result.out, key_heads)
    logits_move = any(part is not None for part in (d.query, d.key, d.bias, d.scale))

    def d_logits(tile: Tile, scores: Array) -> Array:
        terms: list[Array] = []
        if d.query is not None:
            terms.append(_dot(_WEIGHTS, tile.rows(d.query), tile.columns(x.key)) * x.scale)
        if d.key is not None:
            terms.append(_dot(_WEIGHTS, tile.rows(x.query), tile.columns(d.key)) * x.scale)
        if d.bias is not None:
            terms.append(tile.part(d.bias).astype(wide))
        if d.scale is not None:
            terms.append(scores * d.scale)
        return reduce(jnp.add, terms)

    def step(carry: tuple[Array, Array], tile: Tile) -> tuple[Array, Array]:
        d_numerator, d_log_total = carry
        scores, weights = _scores_and_weights(x, fixed, result, tile)
        kept = _drop(_keep(plan, fixed.draw, tile, weights), weights)
        if logits_move:
            d_tile = d_logits(tile, scores)
            d_log_total = tile.add_rows(d_log_total, jnp.sum(weights * d_tile, -1, keepdims=True))
            d_rows = _dot(_TO_QUERIES, kept * d_tile, tile.columns(x.value))
            d_numerator = tile.add_rows(d_numerator, d_rows)
        if d.value is not None:
            d_rows = _dot(_TO_QUERIES, kept, tile.columns(d.value))
            d_numerator = tile.add_rows(d_numerator, d_rows)
        return d_numerator, d_log_total

    start = jnp.zeros(out.shape, wide), jnp.zeros(result.log_total.shape, wide)
    d_numerator, d_log_total = _over_tiles(plan, (residuals, moving), step, start)
    d_out = d_numerator * fixed.factor(wide) - d_log_total * out
    return by_head(d_out), d_log_total


def _back(asked: Inputs, plan: Plan, residuals: Any, cotangents: tuple[Array, Array]) -> Inputs:
    """Cotangents of those inputs that are asked for: the transpose of `_along`."""
    inputs, fixed, result = residuals
    key_heads, wide = inputs.key.shape[2], compute_dtype(inputs.query)
    x, fixed = grouped(inputs, fixed)
    factor = fixed.factor(wide)
    d_out, d_log_total = by_group(cotangents[0], key_heads), cotangents[1]
    products = d_out * by_group(result.out, key_heads)
    inner = jnp.sum(products, -1, keepdims=True) - d_log_total
    d_out = d_out.astype(x.value.dtype)
    logits_asked = asked.query or asked.key or asked.bias or asked.scale

    def step(d: Inputs, tile: Tile) -> Inputs:
        scores, weights = _scores_and_weights(x, fixed, result, tile)
        keep = _keep(plan, fixed.draw, tile, weights)
        d_rows = tile.rows(d_out)
        if asked.value:
            kept = _drop(keep, weights) * factor
            d = d._replace(value=tile.add_columns(d.value, _dot(_TO_KEYS, kept, d_rows)))
        if not logits_asked:
            return d
        d_kept = _dot(_WEIGHTS, d_rows, tile.columns(x.value)) * factor
        d_logits = weights * (_drop(keep, d_kept) - tile.rows(inner))
        d_scores = d_logits * x.scale
        if asked.query:
            d_query = _dot(_TO_QUERIES, d_scores, tile.columns(x.key))
            d = d._replace(query=tile.add_rows(d.query, d_query))
        if asked.key:
            d_key = _dot(_TO_KEYS, d_scores, tile.rows(x.query))
            d = d._replace(key=tile.add_columns(d.key, d_key))
        if asked.bias:
            d = d._replace(bias=tile.add_part(d.bias, d_logits))
        if asked.scale:
            d = d._replace(scale=d.scale + jnp.sum(d_logits * scores))
        return d

    start = Inputs(
        *(jnp.zeros(leaf.shape, wide) if a else None for leaf, a in zip(x, asked, strict=True))
    )
    return as_given(_over_tiles(plan, (residuals, cotangents), step, start), inputs)


def _over_tiles(
    plan: Plan, operands: Any, step: Callable[[Carry, Tile], Carry], start: Carry
) -> Carry:
    """Runs a step for each tile; what it carries varies over the mesh axes of its operands."""
    start = vary_as(start, operands)

    # Under `checkpoint`, for derivatives of the passes themselves: those in
    # reverse would otherwise keep every tile.
    @partial(jax.checkpoint, prevent_cse=False)
    def run(carry: Carry, number: Array) -> Carry:
        return step(carry, Tile(plan.tiling, plan.tiling.starts(number)))

    def body(state: tuple[Array, Carry], _: None) -> tuple[tuple[Array, Carry], None]:
        number, carry = state
        return (number + np.int32(1), run(carry, number)), None

    (_, end), _ = lax.scan(body, (jnp.int32(0), start), None, length=plan.tiling.count)
    return end


def _scores_and_logits(x: Inputs, fixed: Fixed, tile: Tile) -> tuple[Array, Array]:
    """Products of queries and keys, and what the softmax is taken of."""
    scores = _dot(_WEIGHTS, tile.rows(x.query), tile.columns(x.key))
    logits = scores * x.scale
    if x.bias is not None:
        logits = logits + tile.part(x.bias).astype(logits.dtype)
    visible = [tile.visible(), None if fixed.mask is None else tile.part(fixed.mask)]
    if fixed.query_lengths is not None:
        visible.append(tile.row_numbers < _per_sample(fixed.query_lengths))
    if fixed.key_lengths is not None:
        visible.append(tile.column_numbers < _per_sample(fixed.key_lengths))
    visible = [flags for flags in visible if flags is not None]
    if visible:
        logits = jnp.where(reduce(jnp.logical_and, visible), logits, -jnp.inf)
    return scores, logits


def _scores_and_weights(x: Inputs, fixed: Fixed, result: Result, tile: Tile) -> tuple[Array, Array]:
    """Products of queries and keys, and what the softmax makes of them, before anything drops."""
    scores, logits = _scores_and_logits(x, fixed, tile)
    centred = logits - tile.rows(result.highest)
    return scores, jnp.exp(centred - tile.rows(result.log_total))


def _keep(
    plan: Plan, draw: Draw | None, tile: Tile, weights: Array
) -> Bool[Array, "#B #K #G #t #s"] | None:
    """Which weights of a tile are kept; None for all."""
    if draw is None:
        return None
    batch, key_heads, groups = weights.shape[:3]
    samples = lax.iota(jnp.uint32, batch).reshape(batch, 1, 1)
    heads = lax.iota(jnp.uint32, key_heads * groups).reshape(1, key_heads, groups)
    return draw_tile(
        draw.key,
        draw.rate,
        plan.layout,
        (samples, heads),
        tile.row_span,
        tile.column_span,
        at_words=plan.tiling.columns_start_words,
    )


def _drop(keep: Array | None, x: Array) -> Array:
    return x if keep is None else jnp.where(keep, x, jnp.zeros_like(x))


def _dot(subscripts: str, a: Array, b: Array) -> Array:
    """A product in the narrower of two dtypes, summed in float32 or wider.

    Groups and rows are one axis in it: XLA on a CPU would transpose tiles to
    sum over two.
    """
    narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    groups, rows = a.shape[2:4]
    a, b = (
        lax.collapse(x, 2, 4) if x.ndim == 5 else x for x in (a.astype(narrow), b.astype(narrow))
    )
    product = jnp.einsum(subscripts, a, b, preferred_element_type=compute_dtype(a))
    if subscripts == _TO_KEYS:
        return product
    return product.reshape(*product.shape[:2], groups, rows, -1)


def _finite(highest: Array) -> Array:
    """What to subtract from logits, the highest of which may be minus infinity."""
    return jnp.where(jnp.isneginf(highest), jnp.zeros_like(highest), highest)


def _per_sample(x: Array) -> Array:
    return x[:, None, None, None, None]
