"""The kernel of the forward pass: each program computes a block of queries of one head."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdrop.methods.attention.kernel.call import exp, over_keys, program
from jaxdrop.methods.attention.kernel.operands import Operands
from jaxdrop.methods.attention.kernel.tile import tile_at
from jaxdrop.methods.attention.kernel.tiles import KernelTiles
from jaxdrop.methods.attention.operands import NOTHING_SEEN
from jaxdrop.methods.attention.tile_weights import dropped


def forward(tiles: KernelTiles, arrays: Operands, results: Any) -> None:
    """Writes the output and the log-sum-exp, in two parts as in `Attended`."""
    row = program(0) * np.int32(tiles.rows)
    groups = np.int32(tiles.groups)
    head = lax.div(program(1), groups), lax.rem(program(1), groups)
    at_row = tile_at(tiles, arrays, head, row, jnp.int32(0))
    query = at_row.rows(arrays.query, tiles.of_query)

    def step(block: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # An online softmax, as in `tiled`.
        numerator, total, highest = sums
        tile = at_row.at(column=block * np.int32(tiles.columns))
        logits = tile.logits(tile.scaled(query, tile.columns(arrays.key, tiles.of_query)))
        new_highest = jnp.maximum(highest, jnp.max(logits, 1))
        origin = _finite(new_highest)
        weights, shrink = exp(logits - origin[:, None]), exp(highest - origin)
        value = tile.columns(arrays.value, tiles.of_value)
        kept = dropped(tile.keep(), weights).astype(value.dtype)
        numerator = numerator * shrink[:, None] + over_keys(kept, value)
        return numerator, total * shrink + jnp.sum(weights, 1), new_highest

    zeros = jnp.zeros(tiles.rows, jnp.float32)
    start = jnp.zeros((tiles.rows, tiles.of_value.width), jnp.float32), zeros, zeros - jnp.inf
    numerator, total, highest = lax.fori_loop(*tiles.key_blocks(arrays, row), step, start)
    # As in `tiled`: a row that sees nothing gives zeros, and 1 as its total.
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    out = jnp.where(empty[:, None], 0.0, numerator / total[:, None]) * arrays.factors[1]
    at_row.put_rows(results[0], out, tiles.of_value)
    at_row.put_of_rows(results[1], _finite(highest))
    at_row.put_of_rows(results[2], jnp.where(empty, NOTHING_SEEN, jnp.log(total)))


def _finite(highest: Array) -> Array:
    return jnp.where(highest == -jnp.inf, 0.0, highest)
