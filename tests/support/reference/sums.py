"""Maps in which sums over the input enter the factor: those that are not
linear, with the derivatives worked out by hand.

Bounds are of first order in `unit`. A sum of n terms loses at most n roundings of the
sum of their magnitudes, in whatever order it is taken.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from reference.methods import Unclear, kept_of


@dataclass
class Kept:
    """What the two rules share: `x` times a factor `F`, or times 1 / q where it is undefined.

    Of a cotangent both parts, that of the product and that of the factor, are rounded
    to the dtype of `x` before they are added: to `narrow` of themselves, or to
    `spacing` where they are small; beyond `most` they overflow.
    """

    keep: Any
    keep_prob: float
    unit: float
    axis: Any
    narrow: float
    spacing: float
    most: float
    tolerance: float = 1e-3

    def total(self, x):
        return np.sum(x, self.axis, keepdims=True)

    def terms(self, x):
        axes = range(x.ndim) if self.axis is None else self.axis
        return int(np.prod([x.shape[axis] for axis in axes], dtype=int))

    def fallback(self, defined, factor):
        """The factor, and what it loses where it is 1 / q."""
        inverse = 1 / self.keep_prob if self.keep_prob else 0.0
        return np.where(defined, factor, inverse), 2 * self.unit * inverse

    def value(self, x):
        factor, error, *_ = self.factor(x)
        bound = (error + self.unit * np.abs(factor)) * np.abs(x)
        return self.keep * factor * x, self.keep * bound

    def tangent(self, x, t):
        factor, error, defined, along, steep = self.factor(x)
        slope, size, lost = along(t)
        slope, size = np.where(defined, slope, 0), np.where(defined, size, 0)
        moved = self.keep * (factor * t + slope * x)
        bound = error * np.abs(t) + (steep * size + np.where(defined, lost, 0)) * np.abs(x)
        bound = bound + 3 * self.unit * (np.abs(factor * t) + size * np.abs(x))
        return moved, self.keep * bound

    def cotangent(self, x, c):
        factor, error, defined, _, steep = self.factor(x)
        product = self.keep * c * x
        back, size, lost = self.back(x, product, self.total(np.abs(product)), factor, error)
        back, size = np.where(defined, back, 0), np.where(defined, size, 0)
        bound = self.keep * (error + 3 * self.unit * np.abs(factor)) * np.abs(c)
        bound = bound + (steep + 3 * self.unit) * size + np.where(defined, lost, 0)
        direct = self.keep * factor * c
        if np.any(np.maximum(np.abs(direct), np.abs(back)) > self.most / 2):
            raise Unclear
        bound = bound + self.narrow * (np.abs(direct) + np.abs(back)) + self.spacing
        return direct + back, bound


class Sum(Kept):
    """F = sum x / sum of kept x."""

    def factor(self, x):
        n, kept = self.terms(x), self.keep * x
        below, size = self.total(kept), self.total(np.abs(kept))
        margin = np.abs(below) - self.tolerance * size
        if np.any((np.abs(margin) <= 4 * n * self.unit * size) & (size > 0)):
            raise Unclear
        defined = margin > 0
        divisor = np.where(defined, below, 1)
        factor, fallback_error = self.fallback(defined, self.total(x) / divisor)
        scale = np.abs(factor)
        above = self.total(np.abs(x))
        lost = n * self.unit * (above + scale * size) / np.abs(divisor) + self.unit * scale
        error = np.where(defined, lost, fallback_error)
        steep = self.unit * (2 * n + 2 * n * size / np.abs(divisor) + 10)

        def along(t):
            kept_t = self.keep * t
            slope = (self.total(t) - factor * self.total(kept_t)) / divisor
            moved = self.total(np.abs(kept_t))
            size = (self.total(np.abs(t)) + scale * moved) / np.abs(divisor)
            return slope, size, error * moved / np.abs(divisor)

        return factor, error, defined, along, steep

    def back(self, x, product, size, factor, error):
        below = self.total(self.keep * x)
        below = np.where(below == 0, 1, below)
        back = self.total(product) * (1 - factor * self.keep) / below
        return (
            back,
            size * (1 + np.abs(factor) * self.keep) / np.abs(below),
            size * error * self.keep / np.abs(below),
        )


class Norm(Kept):
    """F = norm of x / norm of kept x."""

    def factor(self, x):
        n, kept = self.terms(x), self.keep * x
        self.whole, self.part = (self.total(np.abs(each) ** 2) for each in (x, kept))
        defined = self.part > 0
        part = np.where(defined, self.part, 1)
        factor, fallback_error = self.fallback(defined, np.sqrt(self.whole / part))
        error = np.where(defined, (n + 8) * self.unit * factor, fallback_error)

        def along(t):
            inner, size = np.real(np.conj(x) * t), np.abs(x * t)
            slope = factor * self.difference(self.total(inner), self.total(self.keep * inner), -1)
            size = factor * self.difference(self.total(size), self.total(self.keep * size), 1)
            return slope, size, 0.0

        return factor, error, defined, along, self.unit * (4 * n + 30)

    def difference(self, of_whole, of_part, sign):
        whole, part = (np.where(each > 0, each, 1) for each in (self.whole, self.part))
        return of_whole / whole + sign * of_part / part

    def back(self, x, product, size, factor, error):
        slope, conjugate = np.real(self.total(product)), np.conj(x)
        back = slope * factor * self.difference(conjugate, self.keep * conjugate, -1)
        size = size * factor * self.difference(np.abs(x), self.keep * np.abs(x), 1)
        return back, size, 0.0


def preserve_sum(key, rate, shape, unit, axis, **dtype):
    return Sum(*kept_of(key, shape, rate, ()), unit, axis, **dtype)


def preserve_norm(key, rate, shape, unit, axis, **dtype):
    return Norm(*kept_of(key, shape, rate, ()), unit, axis, **dtype)


@dataclass
class Attention:
    """Dropped weights `A = m P / q` of logits, `P` their softmax over what is visible.

    `narrow` is the unit of the dtype in which weights are multiplied with values,
    and `tiles` how many of them a row of the weights may be split into.
    """

    keep: Any
    keep_prob: float
    unit: float
    visible: Any
    tiles: int
    narrow: float

    def weights(self, x):
        """P, A and what each loses, as a share of it."""
        logits = np.where(self.visible, x, -np.inf)
        highest = np.max(logits, -1, keepdims=True, initial=-np.inf)
        centred = logits - np.where(np.isneginf(highest), 0, highest)
        each = np.exp(centred)
        total = each.sum(-1, keepdims=True)
        weights = each / np.where(total == 0, 1, total)
        kept = self.keep * weights / self.keep_prob if self.keep_prob else 0 * weights
        # The exponent is rounded where it is taken, and its error is a share of the result;
        # so is the total's, of so many terms and one more rounding for each tile.
        depth = np.where(np.isfinite(centred), np.abs(centred), 0).max(initial=0)
        lost = self.unit * (2 * depth + 2 * x.shape[-1] + 8 * self.tiles + 24) + 2 * self.narrow
        return weights, kept, lost

    def value(self, x):
        _, kept, lost = self.weights(x)
        return kept, lost * kept

    def tangent(self, x, t):
        weights, kept, lost = self.weights(x)
        mean, size = (np.sum(weights * each, -1, keepdims=True) for each in (t, np.abs(t)))
        return kept * (t - mean), 3 * lost * kept * (np.abs(t) + size)

    def cotangent(self, x, c):
        weights, kept, lost = self.weights(x)
        back, size = (np.sum(kept * each, -1, keepdims=True) for each in (c, np.abs(c)))
        bound = 3 * lost * (kept * np.abs(c) + weights * size)
        return kept * c - weights * back, bound


def attention(key, rate, shape, unit, is_causal, shared, query_block, key_block, narrow):
    *batch, queries, keys = shape
    heads = (*batch, 1, queries, keys) if batch else (1, queries, keys)
    keep, q = kept_of(key, heads, rate, shared)
    visible = np.tri(queries, keys, dtype=bool) if is_causal else np.ones((queries, keys), bool)
    tiles = -(-keys // max(key_block or keys, 1))
    return Attention(np.squeeze(keep, -3), q, unit, visible, tiles, narrow)
