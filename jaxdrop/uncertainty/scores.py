"""Scores of predictions against what was observed: likelihoods and distances."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxdrop.base.nan import nan_unless
from jaxdrop.base.validate import Check
from jaxdrop.uncertainty.arguments import checked_means, labelled


def predictive_log_likelihood(
    targets: Float[ArrayLike, "*batch"],
    means: Float[ArrayLike, "T *batch"],
    variances: Float[ArrayLike, "T *batch"] | Float[ArrayLike, ""] | float,
) -> Float[Array, "*batch"]:
    """Log-density of targets under the mixture of the samples' normal distributions, in nats.

    Args:
      targets: what was observed.
      means: what each sample predicts, samples along the first axis.
      variances: the variance that each sample states, at least 0. It is a single number
        if the noise is the same everywhere (Gal's 1 / tau).

    Returns:
      ln (1/T) sum_t N(target; mean_t, variance_t), for each example.

    Raises:
      TypeError: an array is not real and floating.
      ValueError: `means` has no axes or no samples, or the others do not broadcast to it.

    Example:
      >>> density = predictive_log_likelihood(jnp.zeros(()), jnp.zeros(5), 1.0)
      >>> round(float(density), 4)  # -ln sqrt(2 pi)
      -0.9189

    References:
      Gal and Ghahramani, arXiv:1506.02142 (2016), equation 8.
    """
    check = Check("predictive_log_likelihood")
    means = checked_means(check, means)
    targets = check.like("targets", targets, means[0], "means[0]")
    variances = check.like("variances", variances, means, "means")
    errors, some_noise = targets[None] - means, variances != 0
    spread = jnp.where(some_noise, variances, 1)
    densities = -0.5 * (errors**2 / spread + jnp.log(2 * jnp.pi * spread))
    # At variance 0 all mass is at one point: the density is infinite at the mean and 0 elsewhere.
    certain = jnp.where(errors == 0, jnp.inf, -jnp.inf)
    densities = jnp.where(some_noise, densities, certain)
    return jax.nn.logsumexp(densities, 0) - jnp.log(jnp.asarray(len(means), means.dtype))


def negative_log_likelihood(
    probabilities: Float[ArrayLike, "*batch K"], labels: Int[ArrayLike, "*batch"]
) -> Float[Array, ""]:
    """Mean of -ln p, where p is the probability given to the right class, in nats.

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).

    Returns:
      A scalar; infinite if a right class was given probability 0, and NaN if a label
      is out of range.

    Raises:
      TypeError: `probabilities` is not real and floating, or `labels` are not integers.
      ValueError: `probabilities` is empty or has no axes, or the shape of `labels` is not
        that of the examples.

    Example:
      >>> round(float(negative_log_likelihood(jnp.array([[0.5, 0.5]]), jnp.array([1]))), 4)
      0.6931

    References:
      Good, "Rational decisions" (1952).
    """
    p, labels, is_class = labelled(Check("negative_log_likelihood"), probabilities, labels)
    is_label = jax.nn.one_hot(labels, p.shape[-1], dtype=jnp.bool_)
    # Only one term counts: the other classes have ln 1 = 0, with gradient 0.
    of_label = jnp.sum(jnp.log(jnp.where(is_label, p, 1)), -1)
    return -jnp.mean(nan_unless(is_class, of_label))


def brier_score(
    probabilities: Float[ArrayLike, "*batch K"], labels: Int[ArrayLike, "*batch"]
) -> Float[Array, ""]:
    """Mean squared distance between probabilities and the right answer, in [0, 2].

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).

    Returns:
      A scalar, the mean over examples of the sum over classes; NaN if a label is
      out of range.

    Raises:
      TypeError: `probabilities` is not real and floating, or `labels` are not integers.
      ValueError: `probabilities` is empty or has no axes, or the shape of `labels` is not
        that of the examples.

    Example:
      >>> float(brier_score(jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([1, 0])))
      0.25

    References:
      Brier, "Verification of forecasts expressed in terms of probability",
      Monthly Weather Review 78 (1950).
    """
    squares = _squared_distances(Check("brier_score"), probabilities, labels)
    return jnp.mean(jnp.sum(squares, -1))


def classwise_brier_score(
    probabilities: Float[ArrayLike, "*batch K"], labels: Int[ArrayLike, "*batch"]
) -> Float[Array, "K"]:
    """Brier score of each class against all others: the parts of `brier_score`.

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).

    Returns:
      For each class the mean over examples of (p - 1)^2 if it is the right one, and of
      p^2 if not, in [0, 1]. The sum is `brier_score`. All are NaN if a label is out of
      range.

    Raises:
      TypeError: `probabilities` is not real and floating, or `labels` are not integers.
      ValueError: `probabilities` is empty or has no axes, or the shape of `labels` is not
        that of the examples.

    Example:
      >>> p = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
      >>> classwise_brier_score(p, jnp.array([1, 0])).tolist()
      [0.125, 0.125, 0.0]

    References:
      Brier, "Verification of forecasts expressed in terms of probability",
      Monthly Weather Review 78 (1950).
    """
    squares = _squared_distances(Check("classwise_brier_score"), probabilities, labels)
    return jnp.mean(squares, tuple(range(squares.ndim - 1)))


def _squared_distances(check: Check, probabilities: Any, labels: Any) -> Array:
    """Of each class from the truth, 0 or 1; NaN where a label is none."""
    p, labels, is_class = labelled(check, probabilities, labels)
    distance = p - jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    return nan_unless(is_class[..., None], distance**2)
