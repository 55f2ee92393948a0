"""Methods whose rate is a parameter: a leaf of the pytree that the optimizer trains."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Inexact

from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import widen
from jaxdrop.core.layout import Layout
from jaxdrop.core.noise import (
    FARTHEST_LOGIT,
    multiply_by_noise,
    standard_logistic,
    standard_normal,
)
from jaxdrop.methods.masked import key_and_parameter

# Coefficients that the papers fitted: k1, k2, k3 and c1, c2, c3 of the docstring below.
_MOLCHANOV = (0.63576, 1.87320, 1.48695)
_KINGMA = (1.16145124, -1.50204118, 0.58629921)


def concrete_dropout(
    key: Key,
    x: Inexact[ArrayLike, "*shape"],
    rate_logit: Float[ArrayLike, "..."] | float,
    *,
    temperature: Float[ArrayLike, ""] | float = 0.1,
    broadcast_dims: int | Sequence[int] = (),
) -> Inexact[Array, "*shape"]:
    """Dropout whose rate has a gradient, by a mask that is nearly 0 or 1.

    y = x z / q with z = 1 - sigmoid((rate_logit + ln u - ln(1 - u)) / temperature), u
    uniform, and q = sigmoid(-rate_logit). As the temperature falls to 0, this becomes
    `dropout` at rate p = sigmoid(rate_logit). At any temperature z exceeds 1/2 with
    probability q. But z is neither 0 nor 1, and its mean is only nearly q. At
    temperature .1 and q = .9 the mean of z is .89882, so E[y] = .99869 x. Dropped
    elements are small, not zero.

    Minimise the loss plus `concrete_dropout_penalty`; with the loss alone the rate
    would fall to 0. At test time leave the dropout out, or run the network under
    `monte_carlo`.

    Args:
      key: one random key, consumed here.
      x: floating or complex array.
      rate_logit: logarithm of the odds of dropping, ln(p / (1 - p)). It is one number
        for all of `x` or an array that broadcasts to `x`, such as one of shape
        (features,). This is the parameter to train; it may start at
        `jax.scipy.special.logit(0.1)`. -inf keeps everything, +inf gives zeros.
      temperature: how soft the mask is, above 0 and well below 1; may be traced.
      broadcast_dims: axes along which the noise is shared.

    Returns:
      An array with the shape and dtype of `x`, computed in float32 or wider.

    Raises:
      TypeError: `x` is not floating or complex, `rate_logit` is not real and
        floating, `temperature` is not a number, or `key` is not one key.
      ValueError: `rate_logit` does not broadcast to `x`, a known `temperature` is
        not positive, or `broadcast_dims` are out of range or repeated.

    Example:
      >>> def loss(logit):
      ...     return concrete_dropout(jax.random.key(0), jnp.ones(1000), logit).var()
      >>> bool(jax.grad(loss)(-2.0) > 0)  # a higher rate, a noisier output
      True

    References:
      Gal, Hron and Kendall, "Concrete dropout", arXiv:1705.07832 (2017).
    """
    check = Check("concrete_dropout")
    key, x, logit, layout = key_and_parameter(
        check, key, x, "rate_logit", rate_logit, broadcast_dims
    )
    temperature = check.amount("temperature", temperature, positive=True)
    return _concrete_dropout(key, x, logit, jnp.asarray(temperature, logit.dtype), layout)


def concrete_dropout_penalty(
    rate_logit: Float[ArrayLike, ""] | float,
    weights: Any,
    num_features: int,
    *,
    weight_regularizer: float,
    dropout_regularizer: float,
) -> Float[Array, ""]:
    """The term to add to the loss so that the rate of `concrete_dropout` is learned.

    weight_regularizer * sum(weights^2) / (1 - p)
      + dropout_regularizer * num_features * (p ln p + (1 - p) ln(1 - p))

    The first part is a sum over the weights that follow the dropout; it makes a high
    rate costly. The second part is least at rate 1/2. Both follow from the evidence
    lower bound. For N examples, a prior of length-scale l and a loss that is a mean
    over examples, take

      weight_regularizer = l^2 / (2 N), dropout_regularizer = 1 / N for a negative
      log-likelihood in nats, such as the cross-entropy;
      l^2 / (tau N) and 2 / (tau N) for a squared error of precision tau.

    Args:
      rate_logit: logarithm of the odds of dropping, as in `concrete_dropout`.
      weights: a pytree of the arrays that the dropped input is multiplied by.
      num_features: how many features are dropped independently, which is the size of
        the layer's input.
      weight_regularizer: factor of the squared weights, at least 0.
      dropout_regularizer: factor of the negative entropy, at least 0.

    Returns:
      A scalar, in float32 or wider. If each feature has a rate of its own, use
      `jax.vmap` over the rates and the rows of the weights, with `num_features=1`, and
      add up the results.

    Raises:
      TypeError: `rate_logit` or a weight is not real and floating, or one of the other
        arguments is not a number.
      ValueError: `rate_logit` is not a scalar, `num_features` is below 1, or a known
        regularizer is negative.

    Example:
      >>> kernel = jnp.ones((4, 3))
      >>> penalty = partial(
      ...     concrete_dropout_penalty, weight_regularizer=0.5, dropout_regularizer=1.0
      ... )
      >>> round(float(penalty(0.0, kernel, 4)), 4)  # 0.5 * 12 / 0.5 - 4 ln 2
      9.2274

    References:
      Gal, Hron and Kendall, arXiv:1705.07832 (2017), equations 2 to 4.
    """
    check = Check("concrete_dropout_penalty")
    logit = widen(check.floating("rate_logit", rate_logit))
    if logit.shape:
        raise ValueError(
            f"{check}: rate_logit must be a scalar; got shape {logit.shape}. Use jax.vmap."
        )
    count = check.whole_number("num_features", num_features, 1)
    factors = {"weight_regularizer": weight_regularizer, "dropout_regularizer": dropout_regularizer}
    of_weights, of_rate = (
        jnp.asarray(check.amount(name, value), logit.dtype) for name, value in factors.items()
    )
    squares = [
        jnp.sum(widen(check.real_array("weights", leaf)) ** 2) for leaf in jax.tree.leaves(weights)
    ]
    total = sum((square.astype(logit.dtype) for square in squares), jnp.zeros((), logit.dtype))
    decay = of_weights * total
    # If all weights are 0, no rate is costly. The logit is 0 there, since 0 times infinity is NaN.
    decay *= 1 + jnp.exp(jnp.where(decay == 0, 0, logit))  # 1 / (1 - p) = 1 + e^logit
    return decay + of_rate * float(count) * _negative_entropy(logit)  # no int32 need hold it


def variational_dropout(
    key: Key,
    x: Inexact[ArrayLike, "*shape"],
    log_alpha: Float[ArrayLike, "..."] | float,
    *,
    broadcast_dims: int | Sequence[int] = (),
) -> Inexact[Array, "*shape"]:
    """Multiplies `x` by normal noise of mean 1 and a variance that is learned.

    y = x (1 + sqrt(alpha) e) with e standard normal, so E[y] = x and Var[y] = alpha
    x^2. It is `gaussian_dropout` with alpha = p / (1 - p), and one key gives both the
    same noise. `x` may be a layer's input, or the weights themselves with one alpha
    each. With weights it leads to sparse networks: weights whose alpha has become large
    (in the paper, ln alpha > 3) are noise and can be set to 0. The variance of the
    gradient of a weight then grows with its alpha, so begin with a small alpha.
    Minimise the loss plus `variational_dropout_kl`; with the loss alone alpha would
    fall to 0. At test time leave the noise out, or run the network under `monte_carlo`.

    Args:
      key: one random key, consumed here.
      x: floating or complex array.
      log_alpha: ln alpha, the parameter to train: one number for all of `x`, or an
        array that broadcasts to `x`. -inf gives `x`. +inf gives zeros, as
        `gaussian_dropout` does at rate 1.
      broadcast_dims: axes along which the noise is shared.

    Returns:
      An array with the shape and dtype of `x`, computed in float32 or wider.

    Raises:
      TypeError: `x` is not floating or complex, `log_alpha` is not real and
        floating, or `key` is not one key.
      ValueError: `log_alpha` does not broadcast to `x`, or `broadcast_dims` are
        out of range or repeated.

    Example:
      >>> y = variational_dropout(jax.random.key(0), jnp.ones(100_000), jnp.log(0.25))
      >>> abs(float(y.mean()) - 1) < 0.01, abs(float(y.var()) - 0.25) < 0.01
      (True, True)

    References:
      Kingma, Salimans and Welling, "Variational dropout and the local
      reparameterization trick", arXiv:1506.02557 (2015); Molchanov, Ashukha and
      Vetrov, "Variational dropout sparsifies deep neural networks",
      arXiv:1701.05369 (2017).
    """
    check = Check("variational_dropout")
    key, x, log_alpha, layout = key_and_parameter(
        check, key, x, "log_alpha", log_alpha, broadcast_dims
    )
    return _variational_dropout(key, x, log_alpha, layout)


def variational_dropout_kl(
    log_alpha: Float[ArrayLike, "*shape"] | float,
    *,
    approximation: Literal["molchanov", "kingma"] = "molchanov",
) -> Float[Array, "*shape"]:
    """Divergence of the noise of a weight from the log-uniform prior, in nats.

    The loss for N examples is the mean negative log-likelihood, plus 1 / N times the
    sum of this divergence over all weights. If several weights share an alpha, each of
    them counts. The divergence depends on alpha alone and has no closed form. There are
    two approximations of

      KL = (gamma + ln 2 - ln alpha) / 2 + E ln|1 + sqrt(alpha) e|,

    which tends to 0 as alpha grows (gamma = .5772 is Euler's constant):

    "molchanov": k1 sigmoid(-k2 - k3 ln alpha) + ln(1 + 1 / alpha) / 2 with
    (.63576, 1.8732, 1.48695), for any alpha; it is off by at most .0094 nats.

    "kingma": (gamma + ln 2 - ln alpha) / 2 - c1 alpha - c2 alpha^2 - c3 alpha^3 with
    (1.16145124, -1.50204118, .58629921), for alpha <= 1 only; there it is off by at
    most .041 nats. For larger alpha the result is the value at 1, and the gradient is
    0. So bound alpha by 1, as the paper does.

    The log-uniform prior is improper, and the posterior may be improper too. So take
    this for a published regularizer, not for a bound of the evidence.

    Args:
      log_alpha: ln alpha, any shape.
      approximation: "molchanov" or "kingma".

    Returns:
      The divergence for each alpha, with the shape of `log_alpha`, in float32 or wider.

    Raises:
      TypeError: `log_alpha` is not real and floating.
      ValueError: `approximation` is neither of the two.

    Example:
      >>> kl = variational_dropout_kl(jnp.array([-5.0, 0.0, 5.0]))
      >>> [round(float(k), 3) for k in kl]
      [3.137, 0.431, 0.003]

    References:
      Kingma, Salimans and Welling, arXiv:1506.02557 (2015), appendix C; Molchanov,
      Ashukha and Vetrov, arXiv:1701.05369 (2017), equation 14; Hron, Matthews and
      Ghahramani, "Variational Bayesian dropout: pitfalls and fixes",
      arXiv:1807.01969 (2018).
    """
    check = Check("variational_dropout_kl")
    log_alpha = widen(check.floating("log_alpha", log_alpha))
    if approximation == "molchanov":
        k1, k2, k3 = _MOLCHANOV
        return k1 * jax.nn.sigmoid(-k2 - k3 * log_alpha) + jax.nn.softplus(-log_alpha) / 2
    if approximation != "kingma":
        raise ValueError(
            f'{check}: approximation must be "molchanov" or "kingma"; got {approximation!r}.'
        )
    log_alpha = jnp.where(log_alpha > 0, 0, log_alpha)  # `minimum` would halve the slope at 0
    alpha = jnp.exp(log_alpha)
    c1, c2, c3 = _KINGMA
    polynomial = alpha * (c1 + alpha * (c2 + alpha * c3))  # Horner's form
    return (np.euler_gamma + math.log(2) - log_alpha) / 2 - polynomial


def _negative_entropy(logit: Array) -> Array:
    """The sum p ln p + (1 - p) ln(1 - p) for p = sigmoid(logit), and 0 where p is 0 or 1."""
    finite = jnp.where(jnp.isinf(logit), 0, logit)
    # -ln p = softplus(-logit), which stays exact where p is near 0 or 1.
    entropy = -jax.nn.sigmoid(finite) * jax.nn.softplus(-finite)
    entropy -= jax.nn.sigmoid(-finite) * jax.nn.softplus(finite)
    return jnp.where(jnp.isinf(logit), 0, entropy)


@partial(jax.jit, static_argnames="layout")
def _concrete_dropout(
    key: Key, x: Array, logit: Array, temperature: Array, layout: Layout
) -> Array:
    def factor(noise: Array, logit: Array, temperature: Array) -> Array:
        # z / q, where z = 1 - sigmoid(v) = sigmoid(-v) and 1 / q = 1 + e^logit.
        near = jnp.clip(logit, -FARTHEST_LOGIT, FARTHEST_LOGIT)
        kept = jax.nn.sigmoid(-(near + noise) / temperature)
        return jnp.where(logit == jnp.inf, 0, kept * (1 + jnp.exp(near)))

    noise, parameters = standard_logistic, (logit, temperature)
    return multiply_by_noise(key, x, layout, noise, factor, *parameters, learned=True)


@partial(jax.jit, static_argnames="layout")
def _variational_dropout(key: Key, x: Array, log_alpha: Array, layout: Layout) -> Array:
    def factor(noise: Array, log_alpha: Array) -> Array:
        some_kept = log_alpha != jnp.inf
        spread = jnp.exp(jnp.where(some_kept, log_alpha, 0) / 2)  # the root of alpha
        return jnp.where(some_kept, 1 + spread * noise, 0)

    return multiply_by_noise(key, x, layout, standard_normal, factor, log_alpha, learned=True)
