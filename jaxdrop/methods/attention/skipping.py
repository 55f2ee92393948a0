"""Which tiles see nothing, where this is known only while a program runs.

What is known before is in `tiling`. Here tiles may be skipped because the position of
the weights in a larger matrix is traced, or because rows and columns belong to different
documents.
"""

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from jaxdrop.methods.attention.operands import Selection
from jaxdrop.methods.attention.tiling import Tiling


def tiles_to_compute(tiling: Tiling, selection: Selection) -> Bool[Array, "tiles"] | None:
    """For each tile that `tiling` counts, whether some query may see some key; None for all."""
    if tiling.count == 0:
        return None
    flags = [_in_window(tiling, selection.shift), _in_a_document(tiling, selection)]
    known = [each for each in flags if each is not None]
    return reduce(jnp.logical_and, known) if known else None


def _in_window(tiling: Tiling, shift: Int[Array, ""] | None) -> Bool[Array, "tiles"] | None:
    """Whether a window reaches from some row of a tile to some column."""
    if shift is None or not tiling.is_shifted:
        return None
    i, j = tiling.numbers
    row, column = i * np.int32(tiling.row_block), j * np.int32(tiling.column_block)
    last_row = np.minimum(row + np.int32(tiling.row_block), tiling.queries) - np.int32(1)
    last_column = np.minimum(column + np.int32(tiling.column_block), tiling.keys) - np.int32(1)
    seen = jnp.ones(i.shape, bool)
    if tiling.before is not None:
        seen &= last_column >= row + shift - np.int32(tiling.before)
    if tiling.after is not None:
        seen &= column <= last_row + shift + np.int32(tiling.after)
    return seen


def _in_a_document(tiling: Tiling, selection: Selection) -> Bool[Array, "tiles"] | None:
    """Whether the ranges of the documents of rows and columns meet in some sample.

    Of ids that never fall, as packed documents have, only tiles that lie between
    documents are outside of the range.
    """
    if selection.segments is None:
        return None
    queries, keys = selection.segments
    least_row, most_row = ranges_of_ids(queries, tiling.row_block)
    least_column, most_column = ranges_of_ids(keys, tiling.column_block)
    i, j = tiling.numbers
    meet = (least_row[:, i] <= most_column[:, j]) & (least_column[:, j] <= most_row[:, i])
    # All samples are computed at once, so a tile is skipped where all of them skip it.
    return meet.any(axis=0)


def ranges_of_ids(ids: Int[Array, "B any"], block: int) -> tuple[Array, Array]:
    """The least and the greatest id in each block."""
    # The last id stands for those that are missing in the last block.
    padded = jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % block)), mode="edge")
    blocks = padded.reshape(ids.shape[0], -1, block)
    return blocks.min(axis=-1), blocks.max(axis=-1)
