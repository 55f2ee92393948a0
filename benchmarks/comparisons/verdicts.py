"""Puts arrays into the words of a cell: whether two are the same, what values one has."""

from typing import Any

import numpy as np

TOLERANCE = 1e-6  # of float32 numbers around 1: a few roundings


def verdict(
    ours: Any, theirs: Any, expected: np.ndarray | None = None, reason: str | None = None
) -> str:
    """Same, or by how much they differ; `expected` is what the reason makes of ours."""
    difference = _difference(ours, theirs)
    if difference <= TOLERANCE:
        return "same"
    text = f"differs by up to {float(f'{100 * difference:.2g}'):g} %"
    if expected is None:
        return text
    if _difference(expected, theirs) > TOLERANCE:
        raise ValueError(f"{reason}: that is not the reason.")
    return f"{text}: {reason}"


def _difference(a: Any, b: Any) -> float:
    """The largest difference, as a share of the larger of the two numbers, or of 1."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Shapes {a.shape} and {b.shape} differ.")
    return float(np.max(np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1)))


def distinct(y: Any) -> str:
    """The different values of an array."""
    texts = {f"{value:.4g}" for value in np.asarray(y, np.float64).ravel()}
    return ", ".join(sorted(texts)).replace("nan", "NaN")
