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
from jaxdrop.methods.attention.kernel.tile import KernelTile, KernelTiles, tile_at
from jaxdrop.methods.attention.tile_weights import dropped
from jaxdrop.methods.attention.tiles import Span


def back_to_keys(tiles: KernelTiles, arrays: Operands, results: Any) -> None:
    """Writes the cotangents of a block of keys and values, or a part of their features."""
    parts, length = np.int32(tiles.parts), tiles.width // tiles.parts
    column = lax.div(program(0), parts) * np.int32(tiles.columns)
    features = Span(lax.rem(program(0), parts) * np.int32(length), length)
    zero = jnp.int32(0)
    at_column = tile_at(tiles, arrays, (program(1), zero), zero, column)
    key, value = at_column.columns(arrays.key), at_column.columns(arrays.value)
    queries = None if arrays.query_lengths is None else arrays.query_lengths[...]
    first, end = tiles.query_blocks(column, queries)

    def of_group(group: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        def step(block: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            d_key, d_value = sums
            tile = at_column.at(group=group, row=block * np.int32(tiles.rows))
            rows = _rows(tile)
            kept, d_logits = _slopes(tile, rows, key, value)
            # The weights need all features; of wide results only a part fits in registers.
            d_out, query = rows.d_out, rows.query
            if tiles.parts != 1:
                d_out, query = (tile.rows(x, features) for x in (arrays.d_out, arrays.query))
            d_value += over_queries(kept.astype(value.dtype), d_out)
            d_key += over_queries(d_logits.astype(key.dtype), query)
            return d_key, d_value

        return lax.fori_loop(first, end, step, sums)

    zeros = jnp.zeros((tiles.columns, length), jnp.float32)
    d_key, d_value = lax.fori_loop(np.int32(0), np.int32(tiles.groups), of_group, (zeros, zeros))
    at_column.put_columns(results[0], d_key * arrays.factors[0], features)
    at_column.put_columns(results[1], d_value * arrays.factors[1], features)


def back_to_queries(tiles: KernelTiles, arrays: Operands, results: Any) -> None:
    """Writes the cotangents of a block of queries."""
    row = program(0) * np.int32(tiles.rows)
    groups = np.int32(tiles.groups)
    head = lax.div(program(1), groups), lax.rem(program(1), groups)
    at_row = tile_at(tiles, arrays, head, row, jnp.int32(0))
    rows = _rows(at_row)

    def step(block: Array, d_query: Array) -> Array:
        tile = at_row.at(column=block * np.int32(tiles.columns))
        key = tile.columns(arrays.key)
        _, d_logits = _slopes(tile, rows, key, tile.columns(arrays.value))
        return d_query + over_keys(d_logits.astype(key.dtype), key)

    length = None if arrays.key_lengths is None else arrays.key_lengths[...]
    start = jnp.zeros((tiles.rows, tiles.width), jnp.float32)
    d_query = lax.fori_loop(*tiles.key_blocks(row, length), step, start)
    at_row.put_rows(results[0], d_query * arrays.factors[0])


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
    return _Rows(tile.rows(arrays.query), tile.rows(arrays.d_out), *spread)


def _slopes(tile: KernelTile, rows: _Rows, key: Array, value: Array) -> tuple[Array, Array]:
    """The weights that are kept, and the cotangents of the logits."""
    # Two subtractions, as in `tile_weights`, since the sum would round `log_total` away.
    weights = exp(tile.logits(rows.query, key) - rows.highest - rows.log_total)
    keep = tile.keep()
    d_weights = dropped(keep, over_features(rows.d_out, value)) * tile.arrays.factors[1]
    return dropped(keep, weights), weights * (d_weights - rows.inner)
