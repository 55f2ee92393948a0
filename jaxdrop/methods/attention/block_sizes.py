"""The sizes of tiles of attention: as the caller asks, or by a budget of memory."""

from typing import NamedTuple

from jax import Array
from jax.export import is_symbolic_dim

from jaxdrop.core.layout import WORD_BITS
from jaxdrop.methods.attention.arguments import Blocks
from jaxdrop.methods.attention.operands import Inputs


class Budget(NamedTuple):
    """How many weights a tile may hold."""

    all_heads: int  # for all samples and heads together, which are computed at once
    least: int  # for each head, even if there are many heads, unless its query is smaller
    most: int  # for each head, even if there are few heads


# Smaller tiles need more time, larger tiles need more memory. On a CPU, 4 MiB of
# float32 are enough (measured). A GPU starts about 20 kernels per tile of any size, so
# tiles are larger there. The number is the largest power of two for which 64 heads of
# 4096 queries and keys need less than a tenth of the temporaries of attention with all
# weights in memory (benchmarks/programs.py).
GPU_BUDGET = Budget(2**25, 2**14, 2**22)
BUDGET = Budget(2**20, 2**14, 2**19)


def block_sizes(inputs: Inputs[Array], asked: Blocks, budget: Budget) -> tuple[int, int]:
    """Rows and columns of a tile: the caller's sizes, or a choice by the shapes."""
    batch, queries, heads, features = inputs.query.shape
    keys = inputs.key.shape[1]
    # If the query of a head is small, a tile should not be larger than it. But 32 x 32
    # is always allowed, because smaller tiles would waste bits of their words.
    least = min(budget.least, max(queries * features, WORD_BITS**2))
    # A symbolic batch may be large.
    of_a_head = 0 if is_symbolic_dim(batch) else budget.all_heads // max(batch * heads, 1)
    area = min(max(of_a_head, least), budget.most)
    rows, columns = asked
    if rows is None:
        # Nearly square: the power of two below the root of the area.
        rows = _even(queries, 1 << (area.bit_length() - 1) // 2)
    rows = min(rows, queries)
    if columns is None:
        columns = _even(keys, area // max(rows, 1))
    return rows, min(columns, keys)


def _even(size: int, block: int) -> int:
    """The block size that cuts an axis into the same number of parts as `block`, but equal parts.

    It is rounded up to whole words of the mask, so it may exceed `block`.
    """
    # A last part with few elements would cost as much as a full one.
    count = -(-size // max(block, 1))
    even = -(-size // max(count, 1))
    return min(size, -(-even // WORD_BITS) * WORD_BITS)
