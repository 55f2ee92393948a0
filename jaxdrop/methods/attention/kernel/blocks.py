"""What kernels can serve, and the sizes of their tiles."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxdrop.base.validate import Check
from jaxdrop.core.layout import WORD_BITS
from jaxdrop.methods.attention.arguments import Arguments

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
LEAST_WIDTH = 16  # of a block of features, for tensor cores


class Sizes(NamedTuple):
    """Of the tiles of one kernel, and how many threads compute one."""

    rows: int
    columns: int
    warps: int  # groups of 32 threads
    stages: int = 2  # blocks that are loaded ahead
    parts: int = 1  # of the features of a result over keys, each for a program of its own


class AllSizes(NamedTuple):
    """For all kernels."""

    forward: Sizes
    back_to_keys: Sizes
    back_to_queries: Sizes


# By the bytes of a number and the features of a block: the largest tiles that leave
# the assembler registers to spare, for an H200 (benchmarks/programs.py). A kernel that
# runs out of them keeps numbers in slow memory. No time was taken.
_SIZES = {
    (2, 32): AllSizes(Sizes(128, 64, 8), Sizes(64, 64, 4), Sizes(64, 64, 4)),
    (2, 64): AllSizes(Sizes(128, 64, 8), Sizes(64, 64, 8), Sizes(64, 64, 4)),
    (2, 128): AllSizes(Sizes(128, 64, 8), Sizes(32, 64, 8), Sizes(64, 64, 8)),
    (2, 256): AllSizes(Sizes(64, 32, 8), Sizes(32, 64, 8), Sizes(64, 32, 8)),
    (4, 32): AllSizes(Sizes(128, 64, 8), Sizes(32, 64, 4), Sizes(64, 64, 4)),
    (4, 64): AllSizes(Sizes(128, 32, 8), Sizes(32, 32, 4), Sizes(64, 32, 4)),
    (4, 128): AllSizes(Sizes(64, 32, 8), Sizes(16, 32, 8), Sizes(32, 32, 8)),
    (4, 256): AllSizes(Sizes(32, 32, 8), Sizes(16, 32, 8, parts=2), Sizes(32, 32, 8)),
}
_WIDTHS = sorted({width for _, width in _SIZES})


def block_width(features: int) -> int:
    """Features of a block: a power of two."""
    return max(LEAST_WIDTH, 1 << max(features - 1, 0).bit_length())


def checked_sizes(check: Check, arguments: Arguments) -> AllSizes:
    """The sizes that the caller asks for, or a choice, if kernels can serve the arguments."""
    query = arguments.inputs.query
    if query.dtype not in _DTYPES:
        raise TypeError(
            f"{check}: query must be float32, bfloat16 or float16 with implementation='kernel';"
            f" got {query.dtype}. Cast it, or use implementation='tiled'."
        )
    for name, x in (("query", query), ("value", arguments.inputs.value)):
        if x.shape[-1] > _WIDTHS[-1]:
            raise ValueError(
                f"{check}: {name} must have at most {_WIDTHS[-1]} features with"
                f" implementation='kernel'; got {x.shape[-1]}. Use implementation='tiled'."
            )
    width = block_width(max(query.shape[-1], arguments.inputs.value.shape[-1]))
    rows, columns = (
        _checked_block(check, name, size)
        for name, size in zip(("query", "key"), arguments.blocks, strict=True)
    )
    chosen = _SIZES[query.dtype.itemsize, max(width, _WIDTHS[0])]
    return AllSizes(
        *(
            sizes._replace(rows=rows or sizes.rows, columns=columns or sizes.columns)
            for sizes in chosen
        )
    )


def _checked_block(check: Check, name: str, size: int | None) -> int | None:
    # GPUs compute blocks of powers of two, and a mask is drawn in whole words.
    if size is not None and (size < WORD_BITS or size & (size - 1)):
        raise ValueError(
            f"{check}: {name}_block_size must be a power of two of at least {WORD_BITS} with"
            f" implementation='kernel'; got {size}. Leave it out, or use implementation='tiled'."
        )
    return size
