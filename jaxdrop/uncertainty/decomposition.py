"""Splits the uncertainty of samples into noise and disagreement."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxdrop.base.averages import centred_mean
from jaxdrop.base.validate import Check
from jaxdrop.uncertainty.arguments import checked_means, checked_samples, real_with_axes


class Classification(NamedTuple):
    """What samples of class probabilities say about each example.

    Attributes:
      probabilities: their mean.
      total: entropy of the mean, in nats: all uncertainty about the label.
      aleatoric: mean of the entropies: the uncertainty that each sample states by itself.
      epistemic: the difference, which is the mutual information of label and sample:
        how much the samples disagree. In [0, min(total, ln K)].
      variation_ratio: the share of samples that vote for another class than the
        class with the most votes.

    Example:
      >>> parts = classification(jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
      >>> parts.probabilities.tolist(), float(parts.aleatoric[0])
      ([[0.5, 0.5]], 0.0)
    """

    probabilities: Float[Array, "*batch K"]
    total: Float[Array, "*batch"]
    aleatoric: Float[Array, "*batch"]
    epistemic: Float[Array, "*batch"]
    variation_ratio: Float[Array, "*batch"]


class Regression(NamedTuple):
    """What samples of a predicted normal distribution say about each example.

    Attributes:
      mean: the mean of the means.
      epistemic: the variance of the means.
      aleatoric: the mean of the variances.
      total: their sum, the variance of the mixture.

    Example:
      >>> parts = regression(jnp.array([1.0, 3.0]))
      >>> float(parts.mean), float(parts.total)
      (2.0, 1.0)
    """

    mean: Float[Array, "*batch"]
    epistemic: Float[Array, "*batch"]
    aleatoric: Float[Array, "*batch"]
    total: Float[Array, "*batch"]


def predictive_entropy(probabilities: Float[ArrayLike, "*batch K"]) -> Float[Array, "*batch"]:
    """Entropy of class probabilities, in nats.

    Args:
      probabilities: real floating array, classes along the last axis.

    Returns:
      -sum p ln p, in float32 or wider, with 0 ln 0 = 0.

    Raises:
      TypeError: `probabilities` is not a real floating array.
      ValueError: it has no axes.

    Example:
      >>> round(float(predictive_entropy(jnp.array([0.5, 0.5]))), 4)  # ln 2
      0.6931

    References:
      Shannon, "A mathematical theory of communication" (1948).
    """
    return _entropy(real_with_axes(Check("predictive_entropy"), "probabilities", probabilities, 1))


def mutual_information(samples: Float[ArrayLike, "T *batch K"]) -> Float[Array, "*batch"]:
    """How much samples of class probabilities disagree, in nats: `classification(...).epistemic`.

    Args:
      samples: probabilities, samples along the first axis, classes along the last.

    Returns:
      Entropy of the mean, minus the mean of the entropies.

    Raises:
      TypeError: `samples` is not a real floating array.
      ValueError: it has fewer than 2 axes, no samples or no classes.

    Example:
      >>> round(float(mutual_information(jnp.eye(2))), 4)  # sure of two different classes: ln 2
      0.6931

    References:
      Houlsby et al., "Bayesian active learning", arXiv:1112.5745 (2011).
    """
    return _classification(checked_samples(Check("mutual_information"), samples)).epistemic


def classification(samples: Float[ArrayLike, "T *batch K"]) -> Classification:
    """Splits the uncertainty of a classifier into noise and disagreement of the samples.

    To save memory, let a function return `(p, predictive_entropy(p))` and take its
    `monte_carlo_moments`. Their means are the mean probabilities and the aleatoric
    part. The `predictive_entropy` of the mean probabilities is the total.

    Args:
      samples: probabilities, samples along the first axis, classes along the last.
        Nothing checks that they add up to 1. For logits, pass their `jax.nn.softmax`.

    Returns:
      A `Classification`; `total` is `aleatoric` plus `epistemic` up to rounding.

    Raises:
      TypeError: `samples` is not a real floating array.
      ValueError: it has fewer than 2 axes, no samples or no classes.

    Example:
      >>> unsure = classification(jnp.full((10, 4), 0.25))  # all samples say so
      >>> round(float(unsure.aleatoric), 4), float(unsure.epistemic)
      (1.3863, 0.0)

    References:
      Depeweg et al., arXiv:1710.07283 (2018); variation ratio: Freeman,
      "Elementary applied statistics" (1965).
    """
    return _classification(checked_samples(Check("classification"), samples))


def _classification(samples: Array) -> Classification:
    mean = centred_mean(samples)
    total = _entropy(mean)
    # This is the mean divergence from the mean. The usual form, a difference of two
    # entropies, would cancel. Rounding may leave [0, total]. `where` brings it back;
    # `clip` would halve the gradient at both ends.
    epistemic = jnp.mean(jnp.sum(samples * (_log(samples) - _log(mean)[None]), -1), 0)
    epistemic = jnp.where(epistemic > total, total, epistemic)
    epistemic = jnp.where(epistemic < 0, 0, epistemic)
    aleatoric = jnp.mean(_entropy(samples), 0)
    return Classification(mean, total, aleatoric, epistemic, variation_ratio(samples))


def regression(
    means: Float[ArrayLike, "T *batch"], variances: Float[ArrayLike, "T *batch"] | None = None
) -> Regression:
    """Splits the variance of a prediction into noise and disagreement of the samples.

    Args:
      means: what each sample predicts, samples along the first axis.
      variances: the variance that each sample states, such as an output of the
        network; it must broadcast to `means`. None for 0.

    Returns:
      A `Regression`.

    Raises:
      TypeError: an array is not real and floating.
      ValueError: `means` has no axes or no samples, or `variances` does not broadcast to it.

    Example:
      >>> parts = regression(jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5]))
      >>> [float(part) for part in parts]
      [2.0, 1.0, 0.5, 1.5]

    References:
      Kendall and Gal, "What uncertainties do we need in Bayesian deep
      learning?", arXiv:1703.04977 (2017).
    """
    check = Check("regression")
    means = checked_means(check, means)
    given = 0.0 if variances is None else variances
    aleatoric = jnp.mean(check.like("variances", given, means, "means"), 0)
    mean = centred_mean(means)
    epistemic = jnp.mean((means - mean[None]) ** 2, 0)
    return Regression(mean, epistemic, aleatoric, epistemic + aleatoric)


def variation_ratio(
    samples: Float[ArrayLike, "T *batch K"], *, probabilistic: bool = False
) -> Float[Array, "*batch"]:
    """The share of samples that do not vote for the class with the most votes.

    The probabilistic form counts no votes: it is what the mean probabilities leave to
    all classes but the likeliest, 1 - max p. It has a gradient, and needs no more than
    the mean: pass `p[None]`.

    Args:
      samples: probabilities or logits, samples along the first axis, classes
        along the last. The probabilistic form needs probabilities.
      probabilistic: whether to look at the mean probabilities and not at votes.

    Returns:
      A number in [0, 1 - 1/K] for each example; of votes, 0 where all samples agree.

    Raises:
      TypeError: `samples` is not a real floating array.
      ValueError: it has fewer than 2 axes, no samples or no classes.

    Example:
      >>> samples = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
      >>> float(variation_ratio(samples))
      0.25
      >>> round(float(variation_ratio(samples, probabilistic=True)), 4)  # 1 - .65
      0.35

    References:
      Freeman, "Elementary applied statistics" (1965).
    """
    samples = checked_samples(Check("variation_ratio"), samples)
    count, classes = len(samples), samples.shape[-1]
    if probabilistic:
        mean = centred_mean(samples)
        # The sum of the others, which does not cancel as 1 - max p does.
        is_likeliest = jax.nn.one_hot(jnp.argmax(mean, -1), classes, dtype=jnp.bool_)
        return jnp.sum(jnp.where(is_likeliest, 0, mean), -1)
    # If probabilities are equal, the first class gets the vote. Integers count exactly.
    votes = jax.nn.one_hot(jnp.argmax(samples, -1), classes, dtype=jnp.int32)
    against = count - jnp.max(jnp.sum(votes, 0), -1)
    return against.astype(samples.dtype) / count


def _entropy(p: Array) -> Array:
    return -jnp.sum(p * _log(p), -1)


def _log(p: Array) -> Array:
    """The logarithm, or 0 where p is 0: such a class adds nothing, not even to gradients."""
    return jnp.log(jnp.where(p == 0, 1, p))
