"""Axes of arrays, as integers of at least 0."""

from collections.abc import Sequence


def other_axes(ndim: int, axes: Sequence[int | None]) -> tuple[int, ...]:
    """All axes except the given ones."""
    return tuple(axis for axis in range(ndim) if axis not in axes)
