"""What all tiles of a kernel have in common: sizes, windows, and which blocks a block may see."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdrop.core.layout import Layout
from jaxdrop.methods.attention.arguments import Window
from jaxdrop.methods.attention.kernel.blocks import LEAST_WIDTH, block_width
from jaxdrop.methods.attention.kernel.operands import Operands


class Features(NamedTuple):
    """Some features of a block."""

    start: Array | int
    length: int
    present: int  # how many there are of all features
    width: int  # how many of all features a block has, with those that are missing

    def part(self, number: Array, parts: int) -> "Features":
        """One of several equal parts."""
        length = self.width // parts
        return self._replace(start=number * np.int32(length), length=length)


@dataclass(frozen=True)
class KernelTiles:
    """What all tiles of a kernel have in common; known while tracing.

    Attributes:
      layout: the layout of the mask of all weights, (*B, N, T, S), of which the tiles may
        be a part.
      batch: sizes of the axes B of one call, which are merged. Under `vmap` kernels are
        given the samples of all calls.
      at_words: whether all columns of the mask that are multiples of 32 here are so in
        the mask of all weights.
      window: how many keys before and after its own number a query sees.
      soft_cap: the number below which logits stay; None for any.
      pairs: how many pairs of digits the mask needs.
      queries: all queries.
      keys: all keys.
      query_features: features of queries and keys.
      value_features: features of values.
      groups: heads of queries that share a head of keys.
      rows: queries of a tile, a power of two.
      columns: keys of a tile, a power of two of whole words.
      parts: into how many parts the features of a result over keys are cut.
    """

    layout: Layout
    batch: tuple[int, ...]
    at_words: bool
    window: Window
    soft_cap: float | None
    pairs: int
    queries: int
    keys: int
    query_features: int
    value_features: int
    groups: int
    rows: int = 0  # these three differ between kernels
    columns: int = 0
    parts: int = 1

    @property
    def of_query(self) -> Features:
        """All features of queries and keys."""
        return self._all(self.query_features)

    @property
    def of_value(self) -> Features:
        """All features of values and of the output."""
        return self._all(self.value_features)

    def _all(self, count: int) -> Features:
        width = max(block_width(count), self.parts * LEAST_WIDTH)
        return Features(0, width, count, width)

    def key_blocks(self, arrays: Operands, row: Array) -> tuple[Any, Any]:
        """The first block of keys that a block of queries may see, and the end of them."""
        before, after = self.window
        shifted = row if arrays.shift is None else row + arrays.shift[...]
        found = _blocks(self.columns, self.keys, shifted, self.rows, (before, after))
        block = lax.div(row, np.int32(self.rows))
        return _within(found, self.columns, arrays.key_lengths, arrays.spans, block)

    def query_blocks(self, arrays: Operands, column: Array) -> tuple[Any, Any]:
        """The first block of queries that may see a block of keys, and the end of them."""
        before, after = self.window
        shifted = column if arrays.shift is None else column - arrays.shift[...]
        found = _blocks(self.rows, self.queries, shifted, self.columns, (after, before))
        block = lax.div(column, np.int32(self.columns))
        return _within(found, self.rows, arrays.query_lengths, arrays.spans, block)


def _within(
    found: tuple[Any, Any], block: int, length: Any, spans: Any, number: Array
) -> tuple[Any, Any]:
    """Of the blocks that a window reaches, those that have what is real, in the same documents."""
    first, end = found
    if length is not None:
        end = jnp.minimum(lax.div(length[...] + np.int32(block - 1), np.int32(block)), end)
    if spans is not None:
        first, end = jnp.maximum(spans[number, 0], first), jnp.minimum(spans[number, 1], end)
    return first, end


def _blocks(
    block: int,
    size: int,
    start: Array,
    length: int,
    reach: tuple[int | None, int | None],
) -> tuple[Any, Any]:
    first, end = np.int32(0), np.int32(-(-size // block))
    if reach[0] is not None:
        first = lax.div(jnp.maximum(start - np.int32(reach[0]), 0), np.int32(block))
    if reach[1] is not None:
        last = start + np.int32(length - 1 + reach[1])
        end = jnp.minimum(lax.div(last, np.int32(block)) + 1, end)
    return first, end
