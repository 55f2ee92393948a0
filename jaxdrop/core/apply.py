"""The last step: unpacks, rescales and selects. Only packed words are kept for gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, UInt32

from jaxdrop.base.axes import broadcasts
from jaxdrop.base.describe import describe
from jaxdrop.base.sharding import explicit_sharding
from jaxdrop.core.mask import Mask

Rescale: TypeAlias = Callable[[Mask, Array], Array]
"""A rule `(mask, x) -> factor` for what survivors are multiplied by."""


def rescale_and_select(mask: Mask, x: Array, rule: Rescale) -> Array:
    """Survivors times the factor of the rule, and zeros elsewhere, in the dtype of `x`.

    Under `checkpoint` the backward pass keeps only the inputs that it needs, which are
    the packed words, and unpacks them again. A custom derivative could do the same, but
    would have no forward mode.
    """

    def rescaled(mask: Mask, x: Array) -> Array:
        mask = replace(mask, keep_prob=lax.stop_gradient(mask.keep_prob))
        factor = _checked_factor(rule(mask, x), x)
        # A bad traced rate must be visible in the result, whatever the rule does.
        scaled = times(x, poisoned(mask, factor))
        keep = unpack_for(mask, x)
        return jnp.where(keep, scaled, jnp.zeros_like(scaled)).astype(x.dtype)

    return jax.checkpoint(rescaled, prevent_cse=False)(mask, x)


def _checked_factor(factor: Any, x: Array) -> Array:
    """Returns the result of a rescale rule if `x` can be multiplied by it."""
    if not isinstance(factor, jax.Array | np.ndarray | np.generic | float | int | complex):
        raise TypeError(f"rescale: the rule's factor must be an array; got {describe(factor)}.")
    factor = jnp.asarray(factor)
    if jnp.iscomplexobj(factor) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"rescale: the rule's factor must be real for {x.dtype}; got {factor.dtype}."
        )
    if not broadcasts(factor.shape, x.shape):
        raise ValueError(
            f"rescale: the rule's factor must broadcast to {x.shape}; got shape {factor.shape}."
        )
    # A scalar stays a scalar, since it broadcasts anyway.
    missing = (1,) * (x.ndim - factor.ndim) if factor.ndim else ()
    return factor.reshape(missing + factor.shape)


def select(mask: Mask, x: Array, other: Array) -> Array:
    """`x` where the mask keeps, `other` elsewhere; nothing is scaled."""

    def choose(mask: Mask, x: Array, other: Array) -> Array:
        return poisoned(mask, jnp.where(unpack_for(mask, x), x, other))

    return jax.checkpoint(choose, prevent_cse=False)(mask, x, other)


def poisoned(mask: Mask, y: Array) -> Array:
    """The result, or a poison if the mask was drawn at a bad rate.

    It is NaN for floats, the integer farthest from 0 for integers, False for booleans.
    """
    if mask.keep_prob.ndim:  # a factor may be smaller than the array of probabilities
        y = jnp.broadcast_to(y, jnp.broadcast_shapes(y.shape, mask.keep_prob.shape))
    if jnp.issubdtype(y.dtype, jnp.inexact):
        # Not a constant, at which `jax.debug_nans` would stop though it is not used.
        poison = lax.stop_gradient(mask.keep_prob).astype(y.dtype)
    elif y.dtype == jnp.bool_:
        poison = jnp.zeros_like(y)
    else:
        bounds = jnp.iinfo(y.dtype)
        poison = jnp.full_like(y, bounds.min or bounds.max)
    return jnp.where(jnp.isnan(mask.keep_prob), poison, y)


def unpack_for(mask: Mask, x: Array) -> Bool[Array, "..."]:
    """The booleans of the mask, sharded like `x` if the type of `x` has a sharding."""
    return mask.layout.unpack(mask.words, mask.layout.sharding(explicit_sharding(x)))


def count_flags(flags: Bool[Array, "..."], axes: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The number of True over the axes, which remain with size 1.

    One axis is summed first, in the narrowest type that holds its size. XLA on a CPU
    stores the flags in the type of the sum; with 32 bits per flag this took ten times
    as long.
    """
    for dtype in (jnp.uint8, jnp.uint16):
        known = [axis for axis in axes if isinstance(flags.shape[axis], int)]
        fitting = [axis for axis in known if flags.shape[axis] <= jnp.iinfo(dtype).max]
        if fitting:
            first = max(fitting, key=lambda axis: flags.shape[axis])
            flags = jnp.sum(flags, first, dtype, keepdims=True)
            break
    return jnp.sum(flags, axes, jnp.uint32, keepdims=True)


def inverse_keep_prob(keep_prob: Array, dtype: jnp.dtype) -> Array:
    """1 / q, and 0 where nothing is kept."""
    keep_prob = keep_prob.astype(dtype)
    # Divides by 1 there: an infinite branch would make the gradient NaN even if it is not selected.
    some_kept = keep_prob != 0
    return jnp.where(some_kept, 1 / jnp.where(some_kept, keep_prob, 1), 0)


def compute_dtype(x: Array) -> jnp.dtype:
    """The real dtype to compute factors in: float32, or float64 for 64-bit input."""
    wide = x.dtype in (jnp.float64, jnp.complex128)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def widen(x: Array) -> Array:
    """The array in the dtype to compute in: float32 or wider, or complex."""
    return x if jnp.iscomplexobj(x) else x.astype(compute_dtype(x))


def times(x: Array, factor: Array) -> Array:
    """The product in float32 or wider, for the caller to round once."""
    x = widen(x)
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(factor):
        # Real and imaginary parts are multiplied separately: a complex product would
        # turn an infinite part into NaN.
        factor = factor.astype(compute_dtype(x))
        return lax.complex(x.real * factor, x.imag * factor)
    return x * factor.astype(x.dtype)


def weighted(x: Array, weight: Array) -> Array:
    """The product in float32 or wider; zeros where the weight is 0, even if `x` is infinite."""
    return jnp.where(weight == 0, 0, times(x, weight))
