"""Methods that drop whole feature maps, residual branches or squares of images."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Inexact, Shaped

from jaxdrop.base.arguments import key_and_rate, refuse_swapped
from jaxdrop.base.axes import other_axes
from jaxdrop.base.names import fold_in_name
from jaxdrop.base.sharding import explicit_sharding
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, compute_dtype, poisoned, times, unpack_for, weighted
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.noise import signed_uniform, unit_uniform
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.threshold import checked_rate
from jaxdrop.core.words import Words, below, draw_pair, draw_words, grid_address, threefry_key
from jaxdrop.methods.masked import draw_for, drop
from jaxdrop.rescale import expected


def spatial_dropout(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    batch_axis: int | None = 0,
    channel_axis: int | None = -1,
    rescale: Rescale = expected,
) -> Inexact[Array, "*shape"]:
    """Drops whole feature maps: one decision for each sample and channel.

    E[y] = x and Var[y] = x^2 p / q at each element, as under `dropout`. All elements of
    a feature map share one decision, so only batch x channels decisions are drawn. It
    works for signals, images and volumes: all axes except the two named ones are
    spatial.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array, such as (batch, height, width, channels).
      rate: probability of dropping, in [0, 1]; may be traced.
      batch_axis: axis of the samples; None for one sample, as under `vmap`.
      channel_axis: axis of the channels; None if there is none.
      rescale: rule for the factor of the survivors.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], an axis is out of range,
        both are the same, or no axis is left.

    Example:
      >>> y = spatial_dropout(jax.random.key(0), jnp.ones((2, 5, 5, 3)), 0.5)
      >>> bool(jnp.all(y == y[:, :1, :1]))
      True

      Channels first:

      >>> drop = partial(spatial_dropout, rate=0.5, channel_axis=1)
      >>> y = drop(jax.random.key(0), jnp.ones((2, 3, 5, 5)))
      >>> bool(jnp.all(y == y[..., :1, :1]))
      True

    References:
      Tompson et al., "Efficient object localization using convolutional
      networks", arXiv:1411.4280 (2014).
    """
    check = Check("spatial_dropout")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    spatial = check.spatial_axes(x, batch_axis, channel_axis)
    return drop(check, key, x, rate, spatial, rescale)


def drop_path(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    batch_axis: int | None = 0,
    rescale: Rescale = expected,
) -> Inexact[Array, "*shape"]:
    """Drops a whole residual branch, with one decision per sample: stochastic depth.

    Use it as `x + drop_path(key, branch(x), rate)`. E[y] = x and
    Var[y] = x^2 p / q at each element. All elements of a sample share one decision. At
    rate 1 only the identity path is left.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array, what the branch returned.
      rate: probability of dropping the branch, in [0, 1]; may be traced.
      batch_axis: axis of the samples. None makes one decision for all of `x`: for a
        whole batch, or for one sample under `vmap` or `per_sample`.
      rescale: rule for the factor of the survivors. The paper's is `rescale.none`; it
        scales by `1 - rate` at test time instead.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `batch_axis` is out of
        range.

    Example:
      >>> branch = jnp.ones((4, 3))
      >>> y = drop_path(jax.random.key(0), branch, 0.5)
      >>> bool(jnp.all(y == y[:, :1]))
      True

    References:
      Huang et al., "Deep networks with stochastic depth", arXiv:1603.09382 (2016).
    """
    check = Check("drop_path")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    samples = check.distinct_axes(x, batch_axis=batch_axis)
    return drop(check, key, x, rate, other_axes(x.ndim, samples), rescale)


def drop_path_rates(rate: Rate, depth: int) -> Float[Array, "depth"] | tuple[float, ...]:
    """Rates that rise linearly with depth: block l of L gets `rate * l / L`.

    The expected number of blocks that are kept is `L - rate * (L + 1) / 2`.
    Some libraries let the first block have rate 0 instead, as in
    `numpy.linspace(0, rate, depth)`.

    Args:
      rate: the rate of the last block, in [0, 1]; may be traced.
      depth: number of blocks L, at least 1.

    Returns:
      L rates, from the first block to the last: Python floats if `rate` is known, an
      array if it is traced.

    Raises:
      TypeError: `rate` is not a number, or `depth` not an integer.
      ValueError: a known `rate` lies outside [0, 1], or `depth` is below 1.

    Example:
      >>> drop_path_rates(0.5, 4)
      (0.125, 0.25, 0.375, 0.5)

    References:
      Huang et al., "Deep networks with stochastic depth", arXiv:1603.09382
      (2016), equation 4.
    """
    check = Check("drop_path_rates")
    rate = check.probability("rate", rate)
    depth = check.whole_number("depth", depth, least=1)
    if isinstance(rate, Array):
        rate = checked_rate(rate)
        return rate * jnp.arange(1, depth + 1, dtype=rate.dtype) / depth
    return tuple(rate * block / depth for block in range(1, depth + 1))


def shake_drop(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    batch_axis: int | None = 0,
) -> Inexact[Array, "*shape"]:
    """Keeps a residual branch or multiplies it by noise, with other noise in the backward pass.

    For each sample, y = x with probability q = 1 - rate. Otherwise y = a x, where a is
    uniform in [-1, 1]. Derivatives are then multiplied not by a but by b, which is
    uniform in [0, 1] and independent of a. This holds in forward mode and in reverse
    mode. Nothing is rescaled:

      E[y] = q x, which is also the result without a key, at test time; Var[y] = x^2 (q
      + p / 3 - q^2); the derivative is q + p / 2 on average.

    Use it as `x + shake_drop(key, branch(x), rate)`, with `drop_path_rates` for the
    rates of all blocks.

    Args:
      key: one random key, consumed here; None for the mean, at test time.
      x: floating or complex array, what the branch returned.
      rate: probability of shaking the branch, in [0, 1]; may be traced.
      batch_axis: axis of the samples; None makes one decision for all of `x`, for one
        sample under `vmap` or `per_sample`.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `batch_axis` is out of
        range.

    Example:
      >>> branch = jnp.ones((4, 3))
      >>> y = shake_drop(jax.random.key(0), branch, 0.5)
      >>> bool(jnp.all((y == y[:, :1]) & (jnp.abs(y) <= 1)))
      True
      >>> shake_drop(None, branch, 0.5)[0]
      Array([0.5, 0.5, 0.5], dtype=float32)

    References:
      Yamada et al., "ShakeDrop regularization for deep residual learning",
      arXiv:1802.02375 (2018).
    """
    check = Check("shake_drop")
    if key is None:
        p = check.probability("rate", rate)
    else:
        key, p = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    samples = check.distinct_axes(x, batch_axis=batch_axis)
    on_grid = grid_rate(p)
    if key is None:
        return _mean_branch(x, on_grid)
    if on_grid.is_zero:
        return x
    return _shake_drop(key, x, on_grid, mask_layout(x.shape, other_axes(x.ndim, samples)))


@jax.jit
def _mean_branch(x: Array, rate: GridRate) -> Array:
    keep_prob, _ = rate.threshold.probabilities(compute_dtype(x))
    return weighted(x, keep_prob).astype(x.dtype)


@partial(jax.jit, static_argnames="layout")
def _shake_drop(key: Key, x: Array, rate: GridRate, layout: Layout) -> Array:
    mask = draw_for(key, x, rate, layout)
    keep = unpack_for(mask, x)
    # The mask has used the words of this key, so the factors use the words of another key.
    words_key = threefry_key(fold_in_name(key, "factors"))
    address = grid_address(layout.shape, layout.sharding(explicit_sharding(x)))
    first, second = draw_pair(words_key, address, jnp.uint32(0))
    wide = compute_dtype(x)
    factors = signed_uniform(first, wide), unit_uniform(second, wide)
    forward, backward = (
        poisoned(mask, jnp.where(keep, jnp.ones_like(by), by))
        for by in (jnp.broadcast_to(factor, layout.shape) for factor in factors)
    )
    return _multiply(x, forward, backward)


@jax.custom_jvp
def _multiply(x: Array, forward: Array, backward: Array) -> Array:
    """`x` times the first factor; its derivative is the second factor."""
    del backward
    return times(x, forward).astype(x.dtype)


@_multiply.defjvp
def _multiply_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    # Linear in the tangent of `x`, so that JAX can transpose it: one rule for both modes.
    # The factors are made of random words, so they have no tangents.
    return _multiply(*primals), times(tangents[0], primals[2]).astype(primals[0].dtype)


def cutout(
    key: Key,
    x: Shaped[ArrayLike, "*shape"],
    size: int | Sequence[int],
    *,
    batch_axis: int | None = 0,
    channel_axis: int | None = -1,
) -> Shaped[Array, "*shape"]:
    """Sets one square of each sample to zero, in all channels.

    The centre is uniform over all positions, and the square is cut off at the border.
    Nothing is rescaled, and no mean is kept. Along an axis of n positions, the square
    covers an inner position with probability `size / n`, and a position at the border
    with about half of that. A position is set to zero if the square covers it along all
    axes.

    Args:
      key: one random key, consumed here.
      x: array of any numbers, such as (batch, height, width, channels).
      size: edge of the square in elements, or one for each spatial axis. If an edge is
        even, one more element lies before the centre than after it.
      batch_axis: axis of the samples; None for one sample, as under `vmap`.
      channel_axis: axis of the channels; None if there is none.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not an array, `key` is not one key, or `size` is not an
        integer.
      ValueError: `size` is negative or has another length than there are
        spatial axes, an axis is out of range, both are the same, or no axis is
        left.

    Example:
      >>> y = cutout(jax.random.key(0), jnp.ones((1, 8, 8, 3)), 1)
      >>> int((y == 0).sum())
      3

    References:
      DeVries and Taylor, "Improved regularization of convolutional neural
      networks with cutout", arXiv:1708.04552 (2017).
    """
    check = Check("cutout")
    refuse_swapped(check, key, x, "x")
    key = check.one_key(key)
    x = check.any_array("x", x)
    spatial = check.spatial_axes(x, batch_axis, channel_axis)
    edges = check.edges("size", size, len(spatial), least=0)
    edges = tuple(min(e, 2 * x.shape[i]) for e, i in zip(edges, spatial, strict=True))
    batch = check.distinct_axes(x, batch_axis=batch_axis)
    return _cutout(key, x, edges, spatial, batch[0] if batch else None)


@partial(jax.jit, static_argnames=("edges", "spatial", "batch_axis"))
def _cutout(
    key: Key,
    x: Array,
    edges: tuple[int, ...],
    spatial: tuple[int, ...],
    batch_axis: int | None,
) -> Array:
    samples = 1 if batch_axis is None else x.shape[batch_axis]

    @partial(jax.checkpoint, prevent_cse=False)  # keeps the words, not the squares
    def cut(words: Words, x: Array) -> Array:
        inside = jnp.ones((1,) * x.ndim, bool)
        for i, (axis, edge) in enumerate(zip(spatial, edges, strict=True)):
            shape = tuple(samples if j == batch_axis else 1 for j in range(x.ndim))
            centre = below(words[:, i], np.uint32(x.shape[axis])).astype(jnp.int32).reshape(shape)
            line = tuple(n if j == axis else 1 for j, n in enumerate(x.shape))
            offset = lax.broadcasted_iota(jnp.int32, line, axis) - (centre - edge // 2)
            inside = inside & (offset >= 0) & (offset < edge)
        return jnp.where(inside, jnp.zeros_like(x), x)

    return cut(draw_words(key, (samples, len(spatial))), x)
