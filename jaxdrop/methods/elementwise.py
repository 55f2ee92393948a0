"""Methods that decide element by element."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Inexact

from jaxdrop import rescale as rules
from jaxdrop.core import validate
from jaxdrop.core.apply import Rescale, rescale_and_select
from jaxdrop.core.bernoulli import bernoulli_mask
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.sharding import explicit_sharding
from jaxdrop.core.threshold import Rounded, round_known
from jaxdrop.core.types import Key, Rate


def dropout(
    key: Key,
    x: Inexact[Array, "*shape"],
    rate: Rate,
    *,
    broadcast_dims: int | Sequence[int] = (),
    rescale: Rescale = rules.expected,
) -> Inexact[Array, "*shape"]:
    """Zeroes elements of `x` independently with probability `rate`.

    Survivors are multiplied by `1 / keep_prob`, where `keep_prob` is the
    probability drawn with, so that each element keeps its mean: with
    q = 1 - p, E[y] = x and Var[y] = x^2 p / q. Dropped places are exactly 0,
    and so is their gradient, even where `x` is infinite or NaN.

    The mask is that of `draw_mask(key, x.shape, rate)`, whose docstring says
    what it depends on. The product is computed in float32 (float64 for 64-bit
    input) and rounded once. The backward pass keeps one bit per element; `x`
    too if the rule's own derivative needs it, as that of `preserve_sum` does.

    Args:
      key: one random key, consumed here.
      x: floating or complex array.
      rate: probability of dropping, in [0, 1]; may be traced. A known rate of
        0 returns `x` itself, whatever the rule. A traced rate outside, by more
        than rounding, turns the result into NaN and fails under `checkify`.
      broadcast_dims: axes along which the mask is shared.
      rescale: rule for the factor of the survivors, `(mask, x) -> factor`. With
        one of `jaxdrop.rescale` eager calls are compiled and cached; your own
        is called each time, so it may close over traced values.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `broadcast_dims` are
        out of range or repeated.

    Example:
      >>> y = dropout(jax.random.key(0), jnp.ones(4), 0.5)
      >>> bool(jnp.all((y == 0) | (y == 2)))
      True

      One mask a sample, and one mask for the batch:

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
    key = validate.one_key("dropout", key)
    x = validate.inexact_array("dropout", "x", x)
    rate = validate.probability("dropout", "rate", rate)
    shared = validate.axes("dropout", "broadcast_dims", broadcast_dims, x.ndim)
    rescale = rules.checked("dropout", rescale)
    if not isinstance(rate, Array):
        if rate == 0:
            return x
        if rate == 1:
            return jnp.zeros_like(x)
    settings = (*round_known(rate), mask_layout(x.shape, shared))
    if rules.is_own(rescale):
        return _dropout(key, x, *settings, rescale)
    return rescale_and_select(_draw_for(key, x, *settings), x, rescale)


def apply_mask(
    mask: Mask, x: Inexact[Array, "*shape"], *, rescale: Rescale = rules.expected
) -> Inexact[Array, "*shape"]:
    """Zeroes what the mask drops and rescales what it keeps.

    `dropout` at a rate above 0 is `draw_mask` followed by this.

    Args:
      mask: a mask of the shape of `x`, or 1 along axes where it is shared.
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
    if not isinstance(mask, Mask):
        raise TypeError(
            f"apply_mask: mask must be a Mask; got {validate.describe(mask)}. Use Mask.pack."
        )
    x = validate.inexact_array("apply_mask", "x", x)
    if mask.keep_prob.ndim:
        raise ValueError(
            f"apply_mask: mask must be one mask; got a batch of shape {mask.keep_prob.shape}."
            " Use jax.vmap."
        )
    validate.fits("apply_mask", mask.shape, x.shape)
    rescale = rules.checked("apply_mask", rescale)
    return (_apply_mask if rules.is_own(rescale) else rescale_and_select)(mask, x, rescale)


@partial(jax.jit, static_argnames=("pairs", "layout", "rule"))
def _dropout(key: Key, x: Array, rate: Rounded, pairs: int, layout: Layout, rule: Rescale) -> Array:
    return rescale_and_select(_draw_for(key, x, rate, pairs, layout), x, rule)


@partial(jax.jit, static_argnames=("pairs", "layout"))
def _draw_for(key: Key, x: Array, rate: Rounded, pairs: int, layout: Layout) -> Mask:
    return bernoulli_mask(key, rate, pairs, layout, explicit_sharding(x))


@partial(jax.jit, static_argnames="rule")
def _apply_mask(mask: Mask, x: Array, rule: Rescale) -> Array:
    return rescale_and_select(mask, x, rule)
