"""Methods that decide element by element."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Inexact

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.describe import describe
from jaxdrop.base.sharding import zeros_like
from jaxdrop.base.types import Axes, Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, compute_dtype, rescale_and_select
from jaxdrop.core.fixed_count import count_axes, fixed_count_mask, nearest_count
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.noise import multiply_by_noise, standard_normal
from jaxdrop.core.part import Part
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.threshold import Threshold, checked_rate
from jaxdrop.methods.masked import drop
from jaxdrop.rescale import checked_rule, expected, is_own_rule


def dropout(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    broadcast_dims: int | Sequence[int] = (),
    rescale: Rescale = expected,
    part: Part | None = None,
) -> Inexact[Array, "*shape"]:
    """Zeroes elements of `x` independently with probability `rate`.

    Survivors are multiplied by `1 / keep_prob`, where `keep_prob` is the probability
    that the mask was drawn with. So each element keeps its mean: with q = 1 - p,
    E[y] = x and Var[y] = x^2 p / q. The probability is a multiple of 2^-16, or of 2^-32
    near 0 and 1: at a rate of 0.2 ones become 1.2499952, because 0.8 is drawn as
    0.8000031. Dropped elements are exactly 0, and so is their gradient, even where `x`
    is infinite or NaN. The rate has no gradient: learn one with `concrete_dropout`.

    The mask is `draw_mask(key, x.shape, rate)`. The docstring of `draw_mask` says what
    a mask depends on. The product is computed in float32 (float64 for 64-bit input) and
    rounded once. The backward pass keeps one bit per element. It keeps `x` too if the
    derivative of the rule needs it, as with `preserve_sum`.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array.
      rate: probability of dropping, in [0, 1]; may be traced. A known rate of 0 returns
        `x` itself, whatever the rule. A traced rate that is out of range by more than
        rounding turns the result into NaN. Under `checkify` it is an error.
      broadcast_dims: axes along which the mask is shared.
      rescale: rule for the factor of the survivors, `(mask, x) -> factor`. If it is
        from `jaxdrop.rescale`, eager calls are compiled and cached. A rule of your own
        is called each time, so it may close over traced values.
      part: where `x` lies in a larger array. Then `x` gets this part of the mask of the
        larger array, as a shard in `shard_map` should. `Part` has an example.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, `rate` is not a
        number, or `part` is not a `Part`.
      ValueError: a known `rate` lies outside [0, 1], `broadcast_dims` are out of range
        or repeated, or `part` does not fit `x`.

    Example:
      >>> y = dropout(jax.random.key(0), jnp.ones(4), 0.5)
      >>> bool(jnp.all((y == 0) | (y == 2)))
      True

      >>> round(float(jnp.max(dropout(jax.random.key(0), jnp.ones(4), 0.2))), 7)
      1.2499952

      One mask per sample, and one mask for the batch:

      >>> xs, key = jnp.ones((8, 4)), jax.random.key(0)
      >>> drop = partial(dropout, rate=0.5)
      >>> each = jax.vmap(drop)(jax.random.split(key, 8), xs)
      >>> shared = jax.vmap(drop, in_axes=(None, 0))(key, xs)
      >>> bool(jnp.all(shared == dropout(key, xs, 0.5, broadcast_dims=(0,))))
      True

    References:
      Srivastava et al., "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15 (2014).
    """
    check = Check("dropout")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    shared = check.axes("broadcast_dims", broadcast_dims, x.ndim)
    return drop(check, key, x, rate, shared, rescale, part)


def gaussian_dropout(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    broadcast_dims: int | Sequence[int] = (),
) -> Inexact[Array, "*shape"]:
    """Multiplies `x` by normal noise of mean 1, with the variance of `dropout`.

    y = x (1 + sqrt(p / q) e) with e standard normal, so E[y] = x and Var[y] = x^2
    p / q, as under `dropout`. The backward pass draws the noise again instead of
    keeping it. The noise depends on the same things as a mask of `draw_mask`. Rounding
    is the exception: the logarithms of two backends may differ in the last bit.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array.
      rate: the rate p of the `dropout` that has the same variance, in [0, 1]; may be
        traced. At a rate of 1 the variance is infinite; the result is zeros, as with
        `dropout`.
      broadcast_dims: axes along which the noise is shared.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `broadcast_dims` are
        out of range or repeated.

    Example:
      >>> y = gaussian_dropout(jax.random.key(0), jnp.ones(100_000), 0.2)
      >>> abs(float(y.mean()) - 1) < 0.01, abs(float(y.var()) - 0.2 / 0.8) < 0.01
      (True, True)

    References:
      Srivastava et al., "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15 (2014), section 10.
    """
    check = Check("gaussian_dropout")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    on_grid = grid_rate(rate)
    shared = check.axes("broadcast_dims", broadcast_dims, x.ndim)
    if on_grid.is_zero:
        return x
    if on_grid.is_one:
        return zeros_like(x)
    return _gaussian_dropout(key, x, on_grid, mask_layout(x.shape, shared))


def fixed_count_dropout(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    axis: Axes = None,
    broadcast_dims: int | Sequence[int] = (),
) -> Inexact[Array, "*shape"]:
    """Keeps exactly k = round(n (1 - rate)) of n elements, in every draw.

    Survivors are multiplied by n / k, so E[y] = x and Var[y_i] = x_i^2 (n/k - 1), while
    Cov(y_i, y_j) = -x_i x_j (n/k - 1) / (n - 1). The number of survivors does not vary,
    so the sum of a constant input does not vary either. A half is rounded to the even
    count. If k is 0, the result is zeros. For another factor, draw a mask with
    `draw_fixed_count_mask` and apply it with `apply_mask`.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array.
      rate: share of elements to drop, in [0, 1]; may be traced. A traced share is
        only as exact as its dtype.
      axis: axes along which elements are counted together; None for all. Each
        position along the other axes has a draw of its own.
      broadcast_dims: axes along which the mask is shared. The elements along such an
        axis count as one.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], `axis` or
        `broadcast_dims` are out of range or repeated, or `axis` spans 2^31
        elements or more, or a symbolic size of `jax.export`.

    Example:
      >>> y = fixed_count_dropout(jax.random.key(0), jnp.ones((3, 8)), 0.25, axis=1)
      >>> (y != 0).sum(axis=1).tolist(), y.sum(axis=1).tolist()
      ([6, 6, 6], [8.0, 8.0, 8.0])

    References:
      Fan, Muller and Rezucha, "Development of sampling plans by using
      sequential (item by item) selection techniques", JASA 57 (1962).
    """
    check = Check("fixed_count_dropout")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    shared = check.axes("broadcast_dims", broadcast_dims, x.ndim)
    layout = mask_layout(x.shape, shared)
    over, size = count_axes(check, axis, layout)
    if isinstance(rate, Array):
        return _fixed_count_dropout(key, x, _traced_count(rate, size), layout, over)
    if rate in (0, 1):
        return x if rate == 0 else zeros_like(x)
    return _fixed_count_dropout(key, x, nearest_count(size * (1 - rate)), layout, over)


def apply_mask(
    mask: Mask, x: Inexact[ArrayLike, "*shape"], *, rescale: Rescale = expected
) -> Inexact[Array, "*shape"]:
    """Zeroes what the mask drops and rescales what it keeps.

    `dropout` at a rate above 0 is `draw_mask` followed by `apply_mask`.

    Args:
      mask: a mask with the shape of `x`, or with size 1 along the axes where it is shared.
      x: floating or complex array.
      rescale: rule for the factor of the survivors, `(mask, x) -> factor`.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `mask` is not a `Mask`, or `x` is not floating or complex.
      ValueError: the mask has another shape, or is a batch drawn under `vmap`.

    Example:
      >>> mask = jaxdrop.draw_mask(jax.random.key(0), (2, 3), 0.5)
      >>> x = jnp.ones((2, 3))
      >>> bool(jnp.all(apply_mask(mask, x) == jnp.where(mask.unpack(), 2 * x, 0)))
      True

    References:
      Srivastava et al., "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15 (2014).
    """
    check = Check("apply_mask")
    if not isinstance(mask, Mask):
        raise TypeError(f"{check}: mask must be a Mask; got {describe(mask)}. Use Mask.pack.")
    x = check.inexact_array("x", x)
    if mask.batch_shape:
        raise ValueError(
            f"{check}: mask must be one mask; got a batch of shape {mask.batch_shape}."
            " Use jax.vmap."
        )
    same_rank = len(mask.shape) == x.ndim
    if not same_rank or any(m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)):
        raise ValueError(
            f"{check}: mask must have the shape of x, or size 1 where it is shared;"
            f" got {mask.shape} for {x.shape}."
        )
    rescale = checked_rule(check, rescale)
    return (_apply_mask if is_own_rule(rescale) else rescale_and_select)(mask, x, rescale)


@partial(jax.jit, static_argnames="rule")
def _apply_mask(mask: Mask, x: Array, rule: Rescale) -> Array:
    return rescale_and_select(mask, x, rule)


@partial(jax.jit, static_argnames="layout")
def _gaussian_dropout(key: Key, x: Array, rate: GridRate, layout: Layout) -> Array:
    def factor(noise: Array, threshold: Threshold) -> Array:
        q, p = threshold.probabilities(noise.dtype)
        some_kept = q != 0  # a traced rate of 1 gives zeros, as a known one does
        spread = jnp.sqrt(p / jnp.where(some_kept, q, 1))
        return jnp.where(some_kept, 1 + spread * noise, 0)

    return multiply_by_noise(key, x, layout, standard_normal, factor, rate.threshold)


@partial(jax.jit, static_argnames=("layout", "axes"))
def _fixed_count_dropout(
    key: Key, x: Array, count: int | Array, layout: Layout, axes: tuple[int, ...]
) -> Array:
    size = math.prod([layout.shape[axis] for axis in axes])

    # One division is rounded once. `keep_prob` is a quotient, so 1 / `keep_prob` is rounded twice.
    def by_count(mask: Mask, x: Array) -> Array:
        return size / jnp.maximum(count, 1).astype(compute_dtype(x))

    return rescale_and_select(fixed_count_mask(key, count, layout, axes), x, by_count)


@partial(jax.jit, static_argnames="size")
def _traced_count(rate: Array, size: int) -> Array:
    """The count for a traced rate. It is -1 for a bad rate, which turns the result into NaN."""
    rate = checked_rate(rate)
    return jnp.where(jnp.isnan(rate), -1, nearest_count(size * (1 - rate))).astype(jnp.int32)
