"""Derivatives of the logits of one tile: along tangents of the inputs, and back to the inputs."""

from functools import reduce

import jax.numpy as jnp
from jax import Array

from jaxdrop.methods.attention.operands import (
    TO_KEYS,
    TO_QUERIES,
    TO_WEIGHTS,
    Inputs,
    Slopes,
    product,
)
from jaxdrop.methods.attention.tile_weights import below_cap
from jaxdrop.methods.attention.tiling import Tile


def logits_along(
    x: Inputs[Array], d: Slopes, tile: Tile, scores: Array, soft_cap: float | None
) -> Array | None:
    """Tangents dS of the logits of a tile, which are `scores * scale`, capped, `+ bias`;
    None if the tangents are zero.
    """
    terms: list[Array] = []
    if d.query is not None:
        terms.append(product(TO_WEIGHTS, tile.rows(d.query), tile.columns(x.key)) * x.scale)
    if d.key is not None:
        terms.append(product(TO_WEIGHTS, tile.rows(x.query), tile.columns(d.key)) * x.scale)
    if d.scale is not None:
        terms.append(scores * d.scale)
    if terms and soft_cap is not None:
        terms = [below_cap(reduce(jnp.add, terms), scores * x.scale, soft_cap)]
    if d.bias is not None:
        terms.append(tile.part(d.bias).astype(scores.dtype))
    return reduce(jnp.add, terms) if terms else None


def added_below_logits(
    d: Slopes,
    x: Inputs[Array],
    tile: Tile,
    scores: Array,
    d_logits: Array,
    soft_cap: float | None,
) -> Slopes:
    """Adds the part of one tile to the cotangents of the inputs of the logits, from the
    tile's S'.
    """
    if d.bias is not None:
        d = d._replace(bias=tile.add_part(d.bias, d_logits))
    d_logits = below_cap(d_logits, scores * x.scale, soft_cap)
    d_scores = d_logits * x.scale
    if d.query is not None:
        d_query = product(TO_QUERIES, d_scores, tile.columns(x.key))
        d = d._replace(query=tile.add_rows(d.query, d_query))
    if d.key is not None:
        d_key = product(TO_KEYS, d_scores, tile.rows(x.query))
        d = d._replace(key=tile.add_columns(d.key, d_key))
    if d.scale is not None:
        d = d._replace(scale=d.scale + jnp.sum(d_logits * scores))
    return d
