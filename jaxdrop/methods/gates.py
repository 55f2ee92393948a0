"""Gates that learn to be exactly 0 or 1: pruning by gradient descent, with a penalty on L0."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Inexact

from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import widen
from jaxdrop.core.layout import Layout
from jaxdrop.core.noise import FARTHEST_LOGIT, multiply_by_noise, standard_logistic
from jaxdrop.methods.masked import key_and_parameter


def hard_concrete(
    key: Key,
    x: Inexact[ArrayLike, "*shape"],
    log_alpha: Float[ArrayLike, "..."] | float,
    *,
    temperature: Float[ArrayLike, ""] | float = 2 / 3,
    stretch: tuple[float, float] = (-0.1, 1.1),
    broadcast_dims: int | Sequence[int] = (),
) -> Inexact[Array, "*shape"]:
    """Multiplies `x` by hard concrete gates, which are often exactly 0 or exactly 1.

    y = x z with z = min(1, max(0, a + (b - a) s)), s = sigmoid((log_alpha + ln u -
    ln(1 - u)) / temperature), u uniform and (a, b) the stretch. For v in [0, 1)

      P(z > v) = sigmoid(log_alpha - temperature ln((v - a) / (b - v))),

    so P(z = 0) = sigmoid(temperature ln(-a / b) - log_alpha), P(z = 1) =
    sigmoid(log_alpha - temperature ln((1 - a) / (b - 1))), and E[z] is the integral of
    P(z > v) over v. With the defaults and log_alpha 0 these are .168, .168 and .5.
    The gradient to `log_alpha` passes through gates that are neither 0 nor 1.

    Minimise the loss plus a factor times the sum of `hard_concrete_penalty`. At test
    time multiply by `hard_concrete_gate`, and leave out what it closes. `x` may be a
    layer's input, with a gate for each feature, or the weights themselves. Under one
    key the gates are those of `concrete_dropout` at -log_alpha, stretched and not
    divided by their mean.

    Args:
      key: one random key, consumed here.
      x: floating or complex array.
      log_alpha: the parameter to train: one number for all of `x`, or an array that
        broadcasts to `x`, such as one of shape (features,). The larger, the more often
        the gate is open: +inf gives `x`, -inf zeros.
      temperature: how soft the gates are, above 0 and well below 1 (the paper's beta);
        may be traced.
      stretch: the bounds a < 0 and b > 1 before the cut (the paper's gamma and zeta).
      broadcast_dims: axes along which the noise is shared.

    Returns:
      An array with the shape and dtype of `x`, computed in float32 or wider; zeros where
      a gate is closed, even if `x` is infinite or NaN.

    Raises:
      TypeError: `x` is not floating or complex, `log_alpha` is not real and
        floating, `temperature` is not a number, `stretch` is not two numbers, or `key`
        is not one key.
      ValueError: `log_alpha` does not broadcast to `x`, a known `temperature` is not
        positive, `stretch` does not reach below 0 and above 1, or `broadcast_dims` are
        out of range or repeated.

    Example:
      >>> y = hard_concrete(jax.random.key(0), jnp.ones(100_000), 0.0)
      >>> [round(float(share), 2) for share in ((y == 0).mean(), (y == 1).mean(), y.mean())]
      [0.17, 0.17, 0.5]

    References:
      Louizos, Welling and Kingma, "Learning sparse neural networks through L0
      regularization", arXiv:1712.01312 (2018), equations 10 and 11.
    """
    check = Check("hard_concrete")
    key, x, log_alpha, layout = key_and_parameter(
        check, key, x, "log_alpha", log_alpha, broadcast_dims
    )
    temperature = check.amount("temperature", temperature, positive=True)
    bounds = _checked_stretch(check, stretch)
    return _hard_concrete(
        key, x, log_alpha, jnp.asarray(temperature, log_alpha.dtype), layout, bounds
    )


def hard_concrete_gate(
    log_alpha: Float[ArrayLike, "*shape"] | float, *, stretch: tuple[float, float] = (-0.1, 1.1)
) -> Float[Array, "*shape"]:
    """The gate for test time: what `hard_concrete` has with no noise and temperature 1.

    min(1, max(0, a + (b - a) sigmoid(log_alpha))), with (a, b) the stretch. With the
    defaults it is exactly 0 for log_alpha below -2.398 and exactly 1 above 2.398. It is
    not the mean of the gates, which is neither 0 nor 1.

    Args:
      log_alpha: the trained parameter, any shape.
      stretch: the bounds that it was trained with.

    Returns:
      The gate for each parameter, in [0, 1], in float32 or wider.

    Raises:
      TypeError: `log_alpha` is not real and floating, or `stretch` is not two numbers.
      ValueError: `stretch` does not reach below 0 and above 1.

    Example:
      >>> hard_concrete_gate(jnp.array([-3.0, 0.0, 3.0])).tolist()
      [0.0, 0.5, 1.0]

    References:
      Louizos, Welling and Kingma, arXiv:1712.01312 (2018), equation 13.
    """
    check = Check("hard_concrete_gate")
    log_alpha = widen(check.floating("log_alpha", log_alpha))
    return _stretched(jax.nn.sigmoid(log_alpha), _checked_stretch(check, stretch))


def hard_concrete_penalty(
    log_alpha: Float[ArrayLike, "*shape"] | float,
    *,
    temperature: Float[ArrayLike, ""] | float = 2 / 3,
    stretch: tuple[float, float] = (-0.1, 1.1),
) -> Float[Array, "*shape"]:
    """The probability that a gate of `hard_concrete` is not 0, the penalty on L0.

    P(z != 0) = sigmoid(log_alpha - temperature ln(-a / b)), with (a, b) the stretch.
    The sum over gates is the expected number that are open. If a gate opens several
    weights, multiply by their number: then it is the expected number of weights that
    are not 0. The loss for N examples is the mean loss plus lambda / N times that sum.

    Args:
      log_alpha: the parameter of `hard_concrete`, any shape.
      temperature: as there.
      stretch: as there.

    Returns:
      The probability for each gate, with the shape of `log_alpha`, in float32 or wider.

    Raises:
      TypeError: `log_alpha` is not real and floating, `temperature` is not a number, or
        `stretch` is not two numbers.
      ValueError: a known `temperature` is not positive, or `stretch` does not reach
        below 0 and above 1.

    Example:
      >>> penalty = hard_concrete_penalty(jnp.array([-10.0, 0.0, 10.0]))
      >>> [round(float(p), 4) for p in penalty]
      [0.0002, 0.8318, 1.0]

    References:
      Louizos, Welling and Kingma, arXiv:1712.01312 (2018), equation 12.
    """
    check = Check("hard_concrete_penalty")
    log_alpha = widen(check.floating("log_alpha", log_alpha))
    temperature = check.amount("temperature", temperature, positive=True)
    low, high = _checked_stretch(check, stretch)
    odds = jnp.asarray(temperature, log_alpha.dtype) * math.log(-low / high)
    return jax.nn.sigmoid(log_alpha - odds)


def _checked_stretch(check: Check, stretch: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in stretch if not isinstance(bound, str))
    except (TypeError, ValueError):
        raise TypeError(f"{check}: stretch must be two numbers; got {stretch!r}.") from None
    if not (-math.inf < low < 0 and 1 < high < math.inf):
        raise ValueError(f"{check}: stretch must reach below 0 and above 1; got {stretch}.")
    return low, high


def gate_of_noise(
    noise: Array, log_alpha: Array, temperature: Array, bounds: tuple[float, float]
) -> Array:
    """The gate that standard logistic noise makes: the larger the noise, the more it closes."""
    near = jnp.clip(log_alpha, -FARTHEST_LOGIT, FARTHEST_LOGIT)
    # The noise is symmetric. With this sign it closes what it drops in `concrete_dropout`.
    return _stretched(jax.nn.sigmoid((near - noise) / temperature), bounds)


def _stretched(s: Array, bounds: tuple[float, float]) -> Array:
    low, high = bounds
    return jnp.clip(low + (high - low) * s, 0, 1)


@partial(jax.jit, static_argnames=("layout", "bounds"))
def _hard_concrete(
    key: Key,
    x: Array,
    log_alpha: Array,
    temperature: Array,
    layout: Layout,
    bounds: tuple[float, float],
) -> Array:
    gate, parameters = partial(gate_of_noise, bounds=bounds), (log_alpha, temperature)
    return multiply_by_noise(key, x, layout, standard_logistic, gate, *parameters, learned=True)
