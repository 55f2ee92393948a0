"""The sizes of a kernel's tiles, and how many threads compute one."""

from typing import NamedTuple

from jaxdrop.base.validate import Check
from jaxdrop.methods.attention.arguments import Arguments


class Sizes(NamedTuple):
    """For one kernel: rows and columns of a tile, groups of 32 threads, blocks loaded ahead."""

    rows: int
    columns: int
    warps: int
    stages: int


class AllSizes(NamedTuple):
    """For all of them."""

    forward: Sizes
    back_to_keys: Sizes
    back_to_queries: Sizes


_SMALL = Sizes(64, 64, 4, 2)


def checked_sizes(check: Check, arguments: Arguments) -> AllSizes:
    """What the caller asks for, or a choice."""
    chosen = AllSizes(_SMALL, _SMALL, _SMALL)
    rows, columns = arguments.blocks
    return AllSizes(
        *(
            sizes._replace(rows=rows or sizes.rows, columns=columns or sizes.columns)
            for sizes in chosen
        )
    )
