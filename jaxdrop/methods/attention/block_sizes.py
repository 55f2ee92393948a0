"""How large the tiles of attention are: as asked for, or as memory allows."""

from typing import NamedTuple

from jax import Array

from jaxdrop.core.layout import WORD_BITS
from jaxdrop.methods.attention.arguments import Blocks
from jaxdrop.methods.attention.operands import Inputs


class Budget(NamedTuple):
    """How many weights a tile may hold."""

    all_heads: int  # of all samples and heads together, as they are computed at once
    least: int  # of each head, however many there are, unless its query is smaller
    most: int  # of each head, however few there are


# Smaller tiles cost time and larger ones memory. On a CPU, 4 MiB of float32 were
# measured to do. A GPU starts some 20 kernels a tile, whatever its size, so there
# it is the largest power of two with which 64 heads of 4096 queries and keys take
# less than a tenth of the temporaries of attention that keeps all its weights
# (benchmarks/programs.py).
GPU_BUDGET = Budget(2**25, 2**14, 2**22)
BUDGET = Budget(2**20, 2**14, 2**19)


def block_sizes(inputs: Inputs[Array], asked: Blocks, budget: Budget) -> tuple[int, int]:
    """Rows and columns of a tile: what is asked for, or a choice by the shapes."""
    batch, queries, heads, features = inputs.query.shape
    keys = inputs.key.shape[1]
    # Where the query of a head is small, tiles should not outgrow it, but one of
    # 32 x 32 is always allowed: smaller ones would waste bits of their words.
    least = min(budget.least, max(queries * features, WORD_BITS**2))
    area = min(max(budget.all_heads // max(batch * heads, 1), least), budget.most)
    rows, columns = asked
    if rows is None:
        # Near to square: the power of two below the root of the area.
        rows = _even(queries, 1 << (area.bit_length() - 1) // 2)
    rows = min(rows, queries)
    if columns is None:
        columns = _even(keys, area // max(rows, 1))
    return rows, min(columns, keys)


def _even(size: int, block: int) -> int:
    """The block size that cuts an axis into as many parts as `block` does, but into equal ones.

    Rounded up to whole words of the mask, by which it may exceed `block`.
    """
    # A last part of few elements would cost as much as a full one.
    count = -(-size // max(block, 1))
    even = -(-size // max(count, 1))
    return min(size, -(-even // WORD_BITS) * WORD_BITS)
