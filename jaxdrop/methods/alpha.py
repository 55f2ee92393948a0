"""Alpha dropout, which keeps the mean 0 and variance 1 of networks with SELU."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.sharding import zeros_like
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import compute_dtype, times, unpack_for
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.threshold import Threshold
from jaxdrop.methods.masked import draw_for

_SELU_LIMIT = -1.7580993408473766  # what SELU tends to at -infinity: -scale * alpha


def alpha_dropout(
    key: Key | None,
    x: Float[ArrayLike, "*shape"],
    rate: Rate,
    *,
    broadcast_dims: int | Sequence[int] = (),
) -> Float[Array, "*shape"]:
    """Sets elements to the negative limit of SELU, keeping mean 0 and variance 1.

    y = a (m x + (1 - m) a') + b, where a' = -1.7581 is the limit of SELU, a = (q + a'^2
    q p)^(-1/2) and b = -a p a'. If x has mean 0 and variance 1, then y has exactly the
    same; other means and variances are not kept. Use it with `jax.nn.selu` and
    `lecun_normal` weights. `broadcast_dims` drops whole features: take `(1, 2)` for
    images with the channels last.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: real floating array.
      rate: probability of dropping, in [0, 1]; may be traced. A known rate of 0 returns
        `x` itself. At a rate of 1 the result is zeros, the limit of y.
      broadcast_dims: axes along which the mask is shared.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not real floating, `key` is not one key, or `rate` is
        not a number.
      ValueError: a known `rate` lies outside [0, 1], or `broadcast_dims` are
        out of range or repeated.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (100_000,))
      >>> y = alpha_dropout(jax.random.key(1), x, 0.3)
      >>> abs(float(y.mean())) < 0.02, abs(float(y.var()) - 1) < 0.02
      (True, True)

    References:
      Klambauer et al., "Self-normalizing neural networks", arXiv:1706.02515
      (2017), section 2 on alpha dropout.
    """
    check = Check("alpha_dropout")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.real_array("x", x)
    on_grid = grid_rate(rate)
    shared = check.axes("broadcast_dims", broadcast_dims, x.ndim)
    if on_grid.is_zero:
        return x
    if on_grid.is_one:
        return zeros_like(x)
    return _alpha_dropout(key, x, on_grid, mask_layout(x.shape, shared))


@partial(jax.jit, static_argnames="layout")
def _alpha_dropout(key: Key, x: Array, rate: GridRate, layout: Layout) -> Array:
    rate = rate.settle()
    mask = draw_for(key, x, rate, layout)

    @partial(jax.checkpoint, prevent_cse=False)
    def choose(mask: Mask, threshold: Threshold, x: Array) -> Array:
        q, p = threshold.probabilities(compute_dtype(x))
        # q + a'^2 q p = q (1 + a'^2 p). At q = 0 nothing is kept, and any finite a will do.
        a = lax.rsqrt(jnp.where(q == 0, 1, q * (1 + _SELU_LIMIT**2 * p)))
        kept = times(x, a) - a * p * _SELU_LIMIT
        dropped = a * q * _SELU_LIMIT  # a a' + b = a a' (1 - p)
        return jnp.where(unpack_for(mask, x), kept, dropped).astype(x.dtype)

    return choose(mask, rate.threshold, x)
