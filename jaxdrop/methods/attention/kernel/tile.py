"""One tile inside a kernel: its part of each array, its logits, and its mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdrop.methods.attention.kernel.call import load, over_features, program, store
from jaxdrop.methods.attention.kernel.mask import Source, keep_tile
from jaxdrop.methods.attention.kernel.operands import Operands
from jaxdrop.methods.attention.kernel.tiles import Features, KernelTiles
from jaxdrop.methods.attention.tile_weights import capped, unravelled
from jaxdrop.methods.attention.tiles import Span


@dataclass(frozen=True)
class KernelTile:
    """A tile that starts at a query and a key, for one sample and head.

    The sample and the head of keys are numbers in the whole mask, of which a device may
    have a part.
    """

    tiles: KernelTiles
    arrays: Operands  # of references to the part of one sample and one head of keys
    sample: Array
    key_head: Array
    group: Array  # which head of queries of those that share the head of keys
    row: Array
    column: Array

    def at(self, **changed: Any) -> "KernelTile":
        """A tile elsewhere."""
        return replace(self, **changed)

    @property
    def row_numbers(self) -> Array:
        """The positions of its queries."""
        return self.row + lax.iota(jnp.int32, self.tiles.rows)

    @property
    def column_numbers(self) -> Array:
        """The positions of its keys."""
        return self.column + lax.iota(jnp.int32, self.tiles.columns)

    def rows(self, ref: Any, features: Features) -> Array:
        """Its queries in (t, g, h), with some or all features; zeros beyond the last."""
        index = (self._row_span, self.group, features[:2])
        return load(ref, index, self._in_array(self.row_numbers, self.tiles.queries, features))

    def put_rows(self, ref: Any, x: Array, features: Features) -> None:
        """Writes its queries into (t, g, h)."""
        index = (self._row_span, self.group, features[:2])
        store(ref, index, x, self._in_array(self.row_numbers, self.tiles.queries, features))

    def columns(self, ref: Any, features: Features) -> Array:
        """Its keys in (s, h); zeros beyond the last."""
        index = (self._column_span, features[:2])
        return load(ref, index, self._in_array(self.column_numbers, self.tiles.keys, features))

    def put_columns(self, ref: Any, x: Array, features: Features) -> None:
        """Writes some features of its keys into (s, h)."""
        index = (self._column_span, features[:2])
        store(ref, index, x, self._in_array(self.column_numbers, self.tiles.keys, features))

    def of_rows(self, ref: Any) -> Array:
        """One number for each of its queries, from (g, t); zeros beyond the last."""
        return load(ref, (self.group, self._row_span), self._rows_in_array)

    def put_of_rows(self, ref: Any, x: Array) -> None:
        """Writes one number for each of its queries into (g, t)."""
        store(ref, (self.group, self._row_span), x, self._rows_in_array)

    def scaled(self, query: Array, key: Array) -> Array:
        """Products of queries and keys, scaled."""
        return over_features(query, key) * self.arrays.factors[0]

    def logits(self, scaled: Array) -> Array:
        """What the softmax takes: capped and biased, and -inf where a key is not seen."""
        logits = capped(scaled, self.tiles.soft_cap)
        if self.arrays.bias is not None:
            logits = logits + self._part(self.arrays.bias).astype(jnp.float32)
        seen = _all([*self._visible_by_position(), *self._visible_by_arrays()], logits.shape)
        return logits if seen is None else jnp.where(seen, logits, -jnp.inf)

    def _visible_by_position(self) -> list[Array]:
        row, column = self.row_numbers[:, None], self.column_numbers[None]
        before, after = self.tiles.window
        visible: list[Array] = []
        # Rows beyond the last too: a bias of 1000 would give them infinite weights, and NaN
        # where these meet the zeros that such rows have for everything else.
        if self.tiles.queries % self.tiles.rows:
            visible.append(row < np.int32(self.tiles.queries))
        if self.tiles.keys % self.tiles.columns:
            visible.append(column < np.int32(self.tiles.keys))
        row = row if self.arrays.shift is None else row + self.arrays.shift[...]
        if before is not None:
            visible.append(row - np.int32(before) <= column)
        if after is not None:
            visible.append(row + np.int32(after) >= column)
        return visible

    def _visible_by_arrays(self) -> list[Array]:
        arrays, row, column = self.arrays, self.row_numbers[:, None], self.column_numbers[None]
        visible: list[Array] = []
        if arrays.query_lengths is not None:
            visible.append(row < arrays.query_lengths[...])
        if arrays.key_lengths is not None:
            visible.append(column < arrays.key_lengths[...])
        if arrays.mask is not None:
            visible.append(self._part(arrays.mask))
        if arrays.query_segments is not None and arrays.key_segments is not None:
            of_rows = load(arrays.query_segments, (self._row_span,), self._rows_in_array)
            of_columns = load(arrays.key_segments, (self._column_span,), self._columns_in_array)
            visible.append(of_rows[:, None] == of_columns[None])
        return visible

    def keep(self) -> Array | None:
        """Which weights are kept; None for all."""
        tiles, arrays = self.tiles, self.arrays
        if arrays.words is None or arrays.threshold is None:
            return None
        (first, second), (start, digits) = ((x[0], x[1]) for x in (arrays.words, arrays.threshold))
        head = self.key_head * np.uint32(tiles.groups) + jnp.uint32(self.group)
        *leading, row, column = self._placed(
            [*unravelled(self.sample, tiles.batch), head, self.row, self.column]
        )
        keep = keep_tile(
            Source((first, second), start, digits, tiles.pairs),
            tiles.layout,
            leading,
            Span(row, tiles.rows),
            Span(column, tiles.columns),
            at_words=tiles.at_words,
        )
        return jnp.broadcast_to(keep, (tiles.rows, tiles.columns))

    def _placed(self, indices: Sequence[Array]) -> Sequence[Array]:
        """Indices in the mask of all weights."""
        place = self.arrays.place
        if place is None:
            return indices
        return [index.astype(jnp.uint32) + place[i] for i, index in enumerate(indices)]

    def _part(self, ref: Any) -> Array:
        """The tile itself in (#g, #t, #s)."""
        tiles, (groups, rows, columns) = self.tiles, ref.shape
        seen: list[Array] = []
        if rows != 1 and tiles.queries % tiles.rows:
            seen.append(self.row_numbers[:, None] < np.int32(tiles.queries))
        if columns != 1 and tiles.keys % tiles.columns:
            seen.append(self.column_numbers[None] < np.int32(tiles.keys))
        index = (
            jnp.int32(0) if groups == 1 else self.group,
            (0, 1) if rows == 1 else self._row_span,
            (0, 1) if columns == 1 else self._column_span,
        )
        return load(ref, index, _all(seen, (index[1][1], index[2][1])))

    def _in_array(self, numbers: Array, size: int, features: Features) -> Array | None:
        """Which elements of some rows or columns with their features there are; None for all."""
        block, seen = numbers.shape[0], list[Array]()
        if size % block:
            seen.append(numbers[:, None] < np.int32(size))
        if features.present != features.width:
            feature = features.start + lax.iota(jnp.int32, features.length)
            seen.append(feature[None] < np.int32(features.present))
        return _all(seen, (block, features.length))

    @property
    def _rows_in_array(self) -> Array | None:
        queries = self.tiles.queries
        whole = queries % self.tiles.rows == 0
        return None if whole else self.row_numbers < np.int32(queries)

    @property
    def _columns_in_array(self) -> Array | None:
        keys = self.tiles.keys
        whole = keys % self.tiles.columns == 0
        return None if whole else self.column_numbers < np.int32(keys)

    @property
    def _row_span(self) -> tuple[Array, int]:
        return self.row, self.tiles.rows

    @property
    def _column_span(self) -> tuple[Array, int]:
        return self.column, self.tiles.columns


def tile_at(
    tiles: KernelTiles, arrays: Operands, head: tuple[Array, Array], row: Array, column: Array
) -> KernelTile:
    """A tile of the sample of this program. `head` is the head of keys, and which of its group."""
    sample, key_head = program(2).astype(jnp.uint32), head[0].astype(jnp.uint32)
    if arrays.origin is not None:
        sample, key_head = sample + arrays.origin[0], key_head + arrays.origin[1]
    # Under `vmap` the samples of all calls are in one row, and each call has its own mask.
    sample = lax.rem(sample, np.uint32(math.prod(tiles.batch)))
    return KernelTile(tiles, arrays, sample, key_head, head[1], row, column)


def _all(conditions: list[Array], shape: tuple[int, ...]) -> Array | None:
    """Where all conditions hold; None for everywhere."""
    spread = [jnp.broadcast_to(condition, shape) for condition in conditions]
    return reduce(jnp.logical_and, spread) if spread else None
