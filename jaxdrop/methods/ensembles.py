"""Ensembles of a few fixed masks, which are drawn once and kept for training and for tests."""

import math
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Inexact, Int

from jaxdrop.base.arguments import refuse_swapped
from jaxdrop.base.axes import lies_inside
from jaxdrop.base.compat import enable_x64
from jaxdrop.base.nan import nan_unless
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.words import Words, draw_words


def draw_masksembles(
    key: Key, features: int, num_masks: int, *, scale: float = 2.0
) -> Bool[Array, "num_masks features"]:
    """Draws the fixed masks of a Masksembles ensemble, with a given overlap.

    Each of the n masks keeps exactly M of the C features, and each feature is kept by at
    least one mask. All families with these two properties are equally likely. That is
    the published construction: n independent sets of M out of about M scale places,
    drawn again and again until exactly C places are in use, of which the others are
    removed. Here it takes one draw without rejections: in a family that is drawn mask by
    mask, the number of features that a mask adds has a law that is known exactly.

      M = C / (scale (1 - (1 - 1 / scale)^n)), rounded down, and at least C / n.

    So each mask by itself is a uniform set of M features. Two of them share M / scale
    features on average, but for the rounding of M: the probability of sharing k is
    proportional to C(M, k) C(C - M, M - k) V(C - 2 M + k), where V(u) is the
    probability that n - 2 independent sets of M features contain u given ones. A scale
    of 1 makes all masks keep everything, a large one makes them disjoint.

    Keep the masks with the parameters, or draw them again with the same key.

    Args:
      key: one random key, consumed here.
      features: C, how many features there are.
      num_masks: n, how many masks to draw.
      scale: the paper's S, at least 1; it must be known.

    Returns:
      Booleans, True where a feature is kept; each row is a mask for `masksembles`.

    Raises:
      TypeError: `key` is not one key, or the others are not numbers.
      ValueError: `features` or `num_masks` is below 1, or `scale` is.

    Example:
      >>> masks = draw_masksembles(jax.random.key(0), 64, 4, scale=2.0)
      >>> masks.sum(axis=1).tolist(), bool(masks.any(axis=0).all())
      ([34, 34, 34, 34], True)

    References:
      Durasov et al., "Masksembles for uncertainty estimation", arXiv:2012.08334 (2021).
    """
    check = Check("draw_masksembles")
    refuse_swapped(check, key, features, "features")
    key = check.one_key(key)
    features = check.whole_number("features", features, 1)
    num_masks = check.whole_number("num_masks", num_masks, 1)
    return _draw(key, features, num_masks, _kept_features(check, features, num_masks, scale))


def masksembles(
    masks: Bool[ArrayLike, "num_masks features"],
    x: Inexact[ArrayLike, "*shape"],
    index: Int[ArrayLike, "..."] | int,
    *,
    batch_axis: int = 0,
    feature_axis: int = -1,
) -> Inexact[Array, "*shape"]:
    """Zeroes the features that one of the fixed masks drops: one member of the ensemble.

    Nothing is scaled, in training or at test time, so each member sees the same numbers
    in both. In training give each sample a mask, of its own group or at random:

      index = jnp.arange(batch) % num_masks
      index = jax.random.randint(key, (batch,), 0, num_masks)

    At test time run all members. They come along the first axis, as `monte_carlo`
    returns its samples, and all functions of `jaxdrop.uncertainty` take them:

      samples = jax.vmap(lambda i: model(params, x, i))(jnp.arange(num_masks))
      parts = uncertainty.classification(samples)

    Args:
      masks: what `draw_masksembles` returned.
      x: floating or complex array.
      index: which mask to apply: one number for all samples, or one for each. It may be
        traced; a traced index out of range gives NaN.
      batch_axis: axis of the samples, if there is an index for each.
      feature_axis: axis of the features.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating or complex, `masks` are not booleans, or `index` is
        not of integers.
      ValueError: `masks` do not have a row for each mask and a column for each feature,
        `index` is neither one number nor one for each sample, a known one is out of
        range, or an axis is.

    Example:
      >>> masks = jnp.array([[True, True, False], [False, True, True]])
      >>> masksembles(masks, jnp.ones((2, 3)), jnp.array([1, 0])).tolist()
      [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]

    References:
      Durasov et al., "Masksembles for uncertainty estimation", arXiv:2012.08334 (2021).
    """
    check = Check("masksembles")
    x = check.inexact_array("x", x)
    masks = check.any_array("masks", masks)
    if masks.dtype != jnp.bool_:
        raise TypeError(f"{check}: masks must be boolean; got {masks.dtype}.")
    feature_axis = check.axis("feature_axis", feature_axis, x.ndim)
    if masks.ndim != 2 or 0 in masks.shape or masks.shape[1] != x.shape[feature_axis]:
        raise ValueError(
            f"{check}: masks must have shape (masks, {x.shape[feature_axis]}); got {masks.shape}."
        )
    index = _checked_index(check, index, len(masks))
    axes: tuple[int, ...] = ()
    if index.ndim:
        axes = check.distinct_axes(x, batch_axis=batch_axis, feature_axis=feature_axis)[:1]
        if index.shape != (x.shape[axes[0]],):
            raise ValueError(
                f"{check}: index must be a scalar or have shape {(x.shape[axes[0]],)}; got shape"
                f" {index.shape}."
            )
    return _apply(masks, x, index, axes, feature_axis)


def _checked_index(check: Check, index: ArrayLike, count: int) -> Array:
    known = index if isinstance(index, int | np.integer | np.ndarray) else None
    index = check.integer_array("index", index)
    if known is not None and not np.all((np.asarray(known) >= 0) & (known < count)):
        raise ValueError(f"{check}: index must lie in [0, {count}); got {known}.")
    # Judged before it is narrowed, which makes 0 of 2^32.
    return jnp.where(lies_inside(index, count), index.astype(jnp.int32), -1)


@partial(jax.jit, static_argnames=("batch_axes", "feature_axis"))
def _apply(
    masks: Array, x: Array, index: Array, batch_axes: tuple[int, ...], feature_axis: int
) -> Array:
    def along(axes: tuple[int, ...]) -> list[int]:
        return [n if axis in axes else 1 for axis, n in enumerate(x.shape)]

    # A comparison with each number and not a lookup, which an index split over Explicit
    # axes could not do.
    numbers = jnp.arange(len(masks), dtype=jnp.int32).reshape(-1, *along(()))
    chosen = index.reshape(along(batch_axes))[None] == numbers
    kept = jnp.any(chosen & masks.reshape(-1, *along((feature_axis,))), 0)
    return nan_unless(jnp.any(chosen, 0), jnp.where(kept, x, jnp.zeros_like(x)))


def _kept_features(check: Check, features: int, num_masks: int, scale: float) -> int:
    """How many features each mask keeps."""
    scale = check.known_amount("scale", scale)
    if scale < 1:
        raise ValueError(f"{check}: scale must be at least 1; got {scale}.")
    # How many features are in use for each one that a mask keeps. Written so that it does
    # not cancel for a large scale.
    in_use = scale * -math.expm1(num_masks * math.log1p(-1 / scale)) if scale > 1 else 1.0
    return min(features, max(int(features / in_use), -(-features // num_masks)))


@partial(jax.jit, static_argnames=("features", "num_masks", "count"))
def _draw(key: Key, features: int, num_masks: int, count: int) -> Array:
    words = draw_words(key, (num_masks, features + 2))  # two for the number of new features
    covered, masks = jnp.zeros(features, jnp.bool_), list[Array]()
    for row, left in zip(words, reversed(range(num_masks)), strict=True):
        uncovered = jnp.sum(~covered, dtype=jnp.int32)
        new = _draw_new(row[:2], uncovered, features, count, left)
        # The uncovered features come first, each half in random order.
        number = jnp.arange(features, dtype=jnp.int32)
        *_, order = lax.sort((covered.astype(jnp.uint32), row[2:], number), num_keys=2)
        _, rank = lax.sort((order, number), num_keys=1)
        keep = (rank < new) | ((rank >= uncovered) & (rank < uncovered + count - new))
        covered, masks = covered | keep, [*masks, keep]
    return jnp.stack(masks)


def _draw_new(words: Words, uncovered: Array, features: int, count: int, left: int) -> Array:
    """How many of the features that a mask keeps no mask before it does."""
    with enable_x64():
        high, low = words[0].astype(jnp.float64), (words[1] >> np.uint32(11)).astype(jnp.float64)
        uniform = high * 2.0**-32 + low * 2.0**-53  # below 1
        below = jnp.cumsum(new_feature_weights(uncovered, features, count, left))
        new = jnp.sum(below <= uniform * below[-1], dtype=jnp.int32)
        return jnp.minimum(new, uncovered)


def new_feature_weights(
    uncovered: Int[Array, ""], features: int, count: int, left: int
) -> Float[Array, "count+1"]:
    """To what the probabilities are proportional that a mask keeps 0 to `count` new features.

    There are as many ways to choose them, and the old ones beside them, times the
    probability that the masks that are `left` cover what remains.
    """
    factorials = jnp.asarray(_log_factorials(features))
    covers = jnp.asarray(_log_covers(features, count, left))
    new = jnp.arange(count + 1, dtype=jnp.int32)
    parts = (new, uncovered - new, count - new, features - uncovered - count + new)
    ways = sum((-factorials[jnp.maximum(part, 0)] for part in parts), jnp.zeros(count + 1))
    possible = (parts[1] >= 0) & (parts[3] >= 0)
    logs = jnp.where(possible, ways + covers[jnp.maximum(parts[1], 0)], -jnp.inf)
    return jnp.exp(logs - jnp.max(logs))


@lru_cache
def _log_factorials(most: int) -> np.ndarray:
    return np.array([math.lgamma(n + 1) for n in range(most + 1)])


@lru_cache
def _log_covers(features: int, count: int, left: int) -> np.ndarray:
    """The logarithms of the probabilities that `left` masks cover u given features.

    For each u that the masks before them can leave uncovered.
    """
    logs = np.full(features + 1, -np.inf)
    if left == 0:
        logs[0] = 0
        return logs
    factorials, fewer = _log_factorials(features), _log_covers(features, count, left - 1)

    def log_choose(n: int, k: np.ndarray) -> np.ndarray:
        return factorials[n] - factorials[k] - factorials[n - k]

    for u in range(min(features - count, left * count) + 1):
        new = np.arange(max(0, u + count - features), min(count, u) + 1)
        terms = log_choose(u, new) + log_choose(features - u, count - new) + fewer[u - new]
        logs[u] = np.logaddexp.reduce(terms) - log_choose(features, np.array(count))
    return logs
