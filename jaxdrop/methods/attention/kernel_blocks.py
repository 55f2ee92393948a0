"""The sizes of a kernel's tiles, and how many threads compute one."""

from typing import NamedTuple

class Sizes(NamedTuple):
    """For one kernel: rows and columns of a tile, groups of 32 threads, blocks loaded ahead."""

    rows: int
    columns: int
    warps: int
    stages: int
