"""One tile inside a kernel: its part of each array, its logits, and its mask."""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdrop.core.layout import Layout
from jaxdrop.methods.attention.arguments import Window
from jaxdrop.methods.attention.kernel.blocks import block_width
from jaxdrop.methods.attention.kernel.call import load, over_features, program, store
from jaxdrop.methods.attention.kernel.mask import Source, keep_tile
from jaxdrop.methods.attention.kernel.operands import Operands
from jaxdrop.methods.attention.tiles import Span


@dataclass(frozen=True)
class KernelTiles:
    """What all tiles of a kernel have in common; known while tracing.

    Attributes:
      layout: the layout of the mask of all weights, (B, N, T, S).
      window: how many keys before and after its own position a query sees.
      pairs: how many pairs of digits the mask needs.
      queries: all queries.
      keys: all keys.
      features: features of a head.
      samples: samples of one call. Under `vmap` kernels are given those of all calls.
      groups: heads of queries that share a head of keys.
      rows: queries of a tile, a power of two.
      columns: keys of a tile, a power of two of whole words.
      parts: into how many parts the features of a result over keys are cut.
    """

    layout: Layout
    window: Window
    pairs: int
    queries: int
    keys: int
    features: int
    samples: int
    groups: int
    rows: int = 0  # these three differ between kernels
    columns: int = 0
    parts: int = 1

    @property
    def width(self) -> int:
        """Features of a block."""
        return block_width(self.features)

    def key_blocks(self, row: Array, length: Array | None) -> tuple[Any, Any]:
        """The first block of keys that a block of queries may see, and the end of them."""
        before, after = self.window
        return _blocks(self.columns, self.keys, row, self.rows, (before, after), length)

    def query_blocks(self, column: Array, length: Array | None) -> tuple[Any, Any]:
        """The first block of queries that may see a block of keys, and the end of them."""
        before, after = self.window
        return _blocks(self.rows, self.queries, column, self.columns, (after, before), length)


def _blocks(
    block: int,
    size: int,
    start: Array,
    length: int,
    reach: tuple[int | None, int | None],
    seen: Array | None,
) -> tuple[Any, Any]:
    first, end = np.int32(0), np.int32(-(-size // block))
    if reach[0] is not None:
        first = lax.div(jnp.maximum(start - np.int32(reach[0]), 0), np.int32(block))
    if reach[1] is not None:
        last = start + np.int32(length - 1 + reach[1])
        end = jnp.minimum(lax.div(last, np.int32(block)) + 1, end)
    if seen is not None:
        end = jnp.minimum(lax.div(seen + np.int32(block - 1), np.int32(block)), end)
    return first, end


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

    def rows(self, ref: Any, features: Span | None = None) -> Array:
        """Its queries in (t, g, h), with some or all features; zeros beyond the last."""
        features = features or self._all_features
        index = (self._row_span, self.group, tuple(features))
        return load(ref, index, self._in_array(self.row_numbers, self.tiles.queries, features))

    def put_rows(self, ref: Any, x: Array) -> None:
        """Writes its queries into (t, g, h)."""
        features = self._all_features
        index = (self._row_span, self.group, tuple(features))
        store(ref, index, x, self._in_array(self.row_numbers, self.tiles.queries, features))

    def columns(self, ref: Any) -> Array:
        """Its keys in (s, h); zeros beyond the last."""
        features = self._all_features
        index = (self._column_span, tuple(features))
        return load(ref, index, self._in_array(self.column_numbers, self.tiles.keys, features))

    def put_columns(self, ref: Any, x: Array, features: Span) -> None:
        """Writes some features of its keys into (s, h)."""
        index = (self._column_span, tuple(features))
        store(ref, index, x, self._in_array(self.column_numbers, self.tiles.keys, features))

    def of_rows(self, ref: Any) -> Array:
        """One number for each of its queries, from (g, t); zeros beyond the last."""
        return load(ref, (self.group, self._row_span), self._row_numbers_in_array)

    def put_of_rows(self, ref: Any, x: Array) -> None:
        """Writes one number for each of its queries into (g, t)."""
        store(ref, (self.group, self._row_span), x, self._row_numbers_in_array)

    def logits(self, query: Array, key: Array) -> Array:
        """Products of queries and keys, scaled and biased; -inf where a key is not seen."""
        arrays = self.arrays
        logits = over_features(query, key) * arrays.factors[0]
        if arrays.bias is not None:
            logits = logits + self._part(arrays.bias).astype(jnp.float32)
        row, column = self.row_numbers[:, None], self.column_numbers[None]
        before, after = self.tiles.window
        visible: list[Array] = []
        # Rows beyond the last too: a bias of 1000 would give them infinite weights, and NaN
        # where these meet the zeros that such rows have for everything else.
        if self.tiles.queries % self.tiles.rows:
            visible.append(row < np.int32(self.tiles.queries))
        if self.tiles.keys % self.tiles.columns:
            visible.append(column < np.int32(self.tiles.keys))
        if before is not None:
            visible.append(row - np.int32(before) <= column)
        if after is not None:
            visible.append(row + np.int32(after) >= column)
        if arrays.query_lengths is not None:
            visible.append(row < arrays.query_lengths[...])
        if arrays.key_lengths is not None:
            visible.append(column < arrays.key_lengths[...])
        if arrays.mask is not None:
            visible.append(self._part(arrays.mask))
        seen = _all(visible, logits.shape)
        return logits if seen is None else jnp.where(seen, logits, -jnp.inf)

    def keep(self) -> Array | None:
        """Which weights are kept; None for all."""
        tiles, arrays = self.tiles, self.arrays
        if arrays.words is None or arrays.threshold is None:
            return None
        (first, second), (start, digits) = ((x[0], x[1]) for x in (arrays.words, arrays.threshold))
        head = self.key_head * np.uint32(tiles.groups) + jnp.uint32(self.group)
        keep = keep_tile(
            Source((first, second), start, digits, tiles.pairs),
            tiles.layout,
            (self.sample, head),
            Span(*self._row_span),
            Span(*self._column_span),
        )
        return jnp.broadcast_to(keep, (tiles.rows, tiles.columns))

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

    def _in_array(self, numbers: Array, size: int, features: Span) -> Array | None:
        """Which elements of some rows or columns with their features there are; None for all."""
        tiles, block, seen = self.tiles, numbers.shape[0], list[Array]()
        if size % block:
            seen.append(numbers[:, None] < np.int32(size))
        if tiles.features != tiles.width:
            feature = features.start + lax.iota(jnp.int32, features.length)
            seen.append(feature[None] < np.int32(tiles.features))
        return _all(seen, (block, features.length))

    @property
    def _all_features(self) -> Span:
        return Span(0, self.tiles.width)

    @property
    def _row_numbers_in_array(self) -> Array | None:
        queries = self.tiles.queries
        whole = queries % self.tiles.rows == 0
        return None if whole else self.row_numbers < np.int32(queries)

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
    sample = lax.rem(sample, np.uint32(tiles.samples))
    return KernelTile(tiles, arrays, sample, key_head, head[1], row, column)


def _all(conditions: list[Array], shape: tuple[int, ...]) -> Array | None:
    """Where all conditions hold; None for everywhere."""
    spread = [jnp.broadcast_to(condition, shape) for condition in conditions]
    return reduce(jnp.logical_and, spread) if spread else None
