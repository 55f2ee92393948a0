"""The kernels of the backward pass: one over blocks of keys, one over blocks of queries.

`tiled` has the formulas. Each kernel computes the weights again from the log-sum-exp and
draws their mask again, so neither keeps weights, and no two programs add to one array.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdrop.methods.attention.kernel.call import (
    exp,
    over_features,
    over_keys,
    over_queries,
    program,
)
from jaxdrop.methods.attention.kernel.operands import Operands
from jaxdrop.methods.attention.kernel.tile import KernelTile, tile_at
from jaxdrop.methods.attention.kernel.tiles import KernelTiles
from jaxdrop.methods.attention.tile_weights import below_cap, dropped


def back_to_keys(tiles: KernelTiles, arrays: Operands, results: Any) -> None:
    """Writes the cotangents of a block of keys and values, or a part of their features."""
    parts = np.int32(tiles.parts)
    column = lax.div(program(0), parts) * np.int32(tiles.columns)
    number = lax.rem(program(0), parts)
    of_query, of_value = (x.part(number, tiles.parts) for x in (tiles.of_query, tiles.of_value))
    zero = jnp.int32(0)
    at_column = tile_at(tiles, arrays, (program(1), zero), zero, column)
    key = at_column.columns(arrays.key, tiles.of_query)
    value = at_column.columns(arrays.value, tiles.of_value)
    first, end = tiles.query_blocks(arrays, column)

    def of_group(group: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        def step(block: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            d_key, d_value = sums
            tile = at_column.at(group=group, row=block * np.int32(tiles.rows))
            rows = _rows(tile)
            kept, d_logits = _slopes(tile, rows, key, value)
            # The weights need all features; of wide results only a part fits in registers.
            d_out, query = rows.d_out, rows.query
            if tiles.parts != 1:
                d_out = tile.rows(arrays.d_out, of_value)
                query = tile.rows(arrays.query, of_query)
            d_value += over_queries(kept.astype(value.dtype), d_out)
            d_key += over_queries(d_logits.astype(key.dtype), query)
            return d_key, d_value

        return lax.fori_loop(first, end, step, sums)

    zeros = (jnp.zeros((tiles.columns, x.length), jnp.float32) for x in (of_query, of_value))
    groups = np.int32(0), np.int32(tiles.groups)
    d_key, d_value = lax.fori_loop(*groups, of_group, tuple(zeros))
    at_column.put_columns(results[0], d_key * arrays.factors[0], of_query)
    at_column.put_columns(results[1], d_value * arrays.factors[1], of_value)


def back_to_queries(tiles: KernelTiles, arrays: Operands, results: Any) -> None:
    """Writes the cotangents of a block of queries."""
    row = program(0) * np.int32(tiles.rows)
    groups = np.int32(tiles.groups)
    head = lax.div(program(1), groups), lax.rem(program(1), groups)
    at_row = tile_at(tiles, arrays, head, row, jnp.int32(0))
    rows = _rows(at_row)

    def step(block: Array, d_query: Array) -> Array:
        tile = at_row.at(column=block * np.int32(tiles.columns))
        key = tile.columns(arrays.key, tiles.of_query)
        _, d_logits = _slopes(tile, rows, key, tile.columns(arrays.value, tiles.of_value))
        return d_query + over_keys(d_logits.astype(key.dtype), key)

    start = jnp.zeros((tiles.rows, tiles.of_query.width), jnp.float32)
    d_query = lax.fori_loop(*tiles.key_blocks(arrays, row), step, start)
    at_row.put_rows(results[0], d_query * arrays.factors[0], tiles.of_query)


class _Rows(NamedTuple):
    """What the slopes of a block of queries depend on."""

    query: Array
    d_out: Array
    highest: Array
    log_total: Array
    inner: Array


def _rows(tile: KernelTile) -> _Rows:
    arrays = tile.arrays
    columns = map(tile.of_rows, (arrays.highest, arrays.log_total, arrays.inner))
    spread = (x[:, None] for x in columns)
    query = tile.rows(arrays.query, tile.tiles.of_query)
    return _Rows(query, tile.rows(arrays.d_out, tile.tiles.of_value), *spread)


def _slopes(tile: KernelTile, rows: _Rows, key: Array, value: Array) -> tuple[Array, Array]:
    """The weights that are kept, and the cotangents of the scaled products."""
    # Two subtractions, as in `tile_weights`, since the sum would round `log_total` away.
    scaled = tile.scaled(rows.query, key)
    weights = exp(tile.logits(scaled) - rows.highest - rows.log_total)
    keep = tile.keep()
    d_weights = dropped(keep, over_features(rows.d_out, value)) * tile.arrays.factors[1]
    d_logits = weights * (d_weights - rows.inner)
    return dropped(keep, weights), below_cap(d_logits, scaled, tile.tiles.soft_cap)
