"""How the weights, queries by keys, are cut into tiles, and which tiles are computed."""

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int32

from jaxdrop.core.layout import WORD_BITS
from jaxdrop.methods.attention.tiles import Span


class Starts(NamedTuple):
    """Where a tile starts, and at which row and column its new elements begin.

    The last tile along an axis is moved back so that it ends with the axis. So it
    repeats rows or columns of the previous tile.
    """

    row: Int32[Array, ""]
    new_row: Int32[Array, ""]
    column: Int32[Array, ""]
    new_column: Int32[Array, ""]


@dataclass(frozen=True)
class Tiling:
    """The tiles of a matrix of weights, decided before anything is traced.

    Attributes:
      queries: rows of the matrix.
      keys: columns of the matrix.
      row_block: rows of a tile.
      column_block: columns of a tile.
      before: how many keys before its own position a query sees; None for all.
      after: the same for keys after it; 0 for causal attention.
      is_shifted: whether positions of queries count from elsewhere than those of keys,
        and from where is traced. Then it is not known which tiles can be skipped.
    """

    queries: int
    keys: int
    row_block: int
    column_block: int
    before: int | None
    after: int | None
    is_shifted: bool = False

    @property
    def columns_start_words(self) -> bool:
        """Whether the columns of every tile start at a multiple of 32."""
        whole_words = self.column_block % WORD_BITS == 0 and self.keys % self.column_block == 0
        return whole_words or self.column_block == self.keys

    @property
    def columns(self) -> int:
        """The number of tiles in a row of tiles, including those that are skipped."""
        return -(-self.keys // self.column_block)

    @cached_property
    def seen(self) -> tuple[Int32[np.ndarray, "rows"], Int32[np.ndarray, "rows"]]:
        """For each row of tiles: the first tile in which a query may see a key, and the
        number of such tiles. They are consecutive. All other tiles are skipped.
        """
        first_row = np.arange(0, self.queries, self.row_block)
        last_row = np.minimum(first_row + self.row_block, self.queries) - 1
        first, end = np.zeros_like(first_row), np.full_like(first_row, self.columns)
        if self.before is not None and not self.is_shifted:
            first = np.maximum(first_row - self.before, 0) // self.column_block
            end[first_row - self.before >= self.keys] = 0
        if self.after is not None and not self.is_shifted:
            end = np.minimum((last_row + self.after) // self.column_block + 1, end)
        return first.astype(np.int32), np.maximum(end - first, 0).astype(np.int32)

    @property
    def count(self) -> int:
        """The number of tiles that are computed."""
        return int(self.seen[1].sum(dtype=np.int64))

    @property
    def numbers(self) -> tuple[Int32[np.ndarray, "tiles"], Int32[np.ndarray, "tiles"]]:
        """In which row of tiles, and in which column, each computed tile is."""
        first, count = self.seen
        before = np.cumsum(count, dtype=np.int32) - count
        i = np.repeat(np.arange(count.size, dtype=np.int32), count)
        return i, np.arange(i.size, dtype=np.int32) - (before - first)[i]

    def starts(self, number: Int32[Array, ""]) -> Starts:
        """Where a tile starts. `number` counts the computed tiles, row by row."""
        first, count = self.seen
        columns = np.int32(self.columns)
        if (count == columns).all():
            # If no tile is skipped, no table is needed.
            i, j = lax.div(number, columns), lax.rem(number, columns)
        else:
            # The tile is after all rows of tiles that end at or before its number.
            end = np.cumsum(count, dtype=np.int32)
            i = jnp.sum(jnp.asarray(end) <= number, dtype=jnp.int32)
            j = number - jnp.asarray(end - count - first)[i]
        new_row, new_column = i * np.int32(self.row_block), j * np.int32(self.column_block)
        return Starts(
            jnp.minimum(new_row, np.int32(self.queries - self.row_block)),
            new_row,
            jnp.minimum(new_column, np.int32(self.keys - self.column_block)),
            new_column,
        )


class Tile(NamedTuple):
    """One tile: takes its part of arrays that have an axis of queries or keys."""

    tiling: Tiling
    starts: Starts

    @property
    def row_span(self) -> Span:
        """Its rows."""
        return Span(self.starts.row, self.tiling.row_block)

    @property
    def column_span(self) -> Span:
        """Its columns."""
        return Span(self.starts.column, self.tiling.column_block)

    @property
    def row_numbers(self) -> Int32[Array, "1 1 1 rows 1"]:
        """Position of each of its rows among all queries, along axis T of (B, K, G, T, S)."""
        shape = (1, 1, 1, self.tiling.row_block, 1)
        return self.starts.row + lax.broadcasted_iota(jnp.int32, shape, 3)

    @property
    def column_numbers(self) -> Int32[Array, "1 1 1 1 columns"]:
        """Position of each of its columns among all keys, along axis S."""
        shape = (1, 1, 1, 1, self.tiling.column_block)
        return self.starts.column + lax.broadcasted_iota(jnp.int32, shape, 4)

    def rows(self, x: Array) -> Array:
        """The tile's queries in (..., T, any)."""
        return _slice(x, self.row_span, -2)

    def columns(self, x: Array) -> Array:
        """The tile's keys in (..., S, any)."""
        return _slice(x, self.column_span, -2)

    def part(self, x: Array) -> Array:
        """The tile itself in (..., T, S)."""
        return _slice(self.rows(x), self.column_span, -1)

    def put_rows(self, x: Array, rows: Array) -> Array:
        """The array (..., T, any) with other values for the tile's queries."""
        return lax.dynamic_update_slice_in_dim(x, rows, self.starts.row, -2)

    def add_rows(self, x: Array, rows: Array) -> Array:
        """The array (..., T, any) with something added for the tile's queries."""
        return self.put_rows(x, self.rows(x) + rows)

    def add_columns(self, x: Array, columns: Array) -> Array:
        """The array (..., S, any) with something added for the tile's keys."""
        columns = self.columns(x) + columns
        return lax.dynamic_update_slice_in_dim(x, columns, self.starts.column, -2)

    def add_part(self, x: Array, part: Array) -> Array:
        """The array (..., T, S) with a tile added, summed along axes where its size is 1."""
        old = self.part(x)
        shared = [axis for axis in range(x.ndim) if old.shape[axis] != part.shape[axis]]
        new = old + jnp.sum(part, shared, keepdims=True)
        zero = np.int32(0)
        row = zero if x.shape[-2] == 1 else self.starts.row
        column = zero if x.shape[-1] == 1 else self.starts.column
        return lax.dynamic_update_slice(x, new, (*[zero] * (x.ndim - 2), row, column))

    def visible(self, shift: Int32[Array, ""] | None = None) -> Bool[Array, "..."] | None:
        """Which rows see which columns by position; None for all.

        If tiles overlap, each pair is visible in only one of them. With a shift, the
        position of a row is its number and the shift.
        """
        tiling, starts = self.tiling, self.starts
        row, column = self.row_numbers, self.column_numbers
        conditions: list[Array] = []
        if tiling.queries % tiling.row_block:
            conditions.append(row >= starts.new_row)
        if tiling.keys % tiling.column_block:
            conditions.append(column >= starts.new_column)
        row = row if shift is None else row + shift
        if tiling.before is not None:
            conditions.append(row - np.int32(tiling.before) <= column)
        if tiling.after is not None:
            conditions.append(row + np.int32(tiling.after) >= column)
        return reduce(jnp.logical_and, conditions) if conditions else None


def _slice(x: Array, span: Span, axis: int) -> Array:
    """A part of an axis, or the whole axis if its size is 1."""
    return x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, span.start, span.length, axis)
