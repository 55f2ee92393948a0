"""What samples of a prediction say: spread, its parts, and whether it is calibrated.

Samples come from `jaxdrop.monte_carlo`, along the first axis; or from
`monte_carlo_moments`, whose mean is all that the streaming forms need. Logarithms
are natural, so that entropies are in nats.

Dropout's samples are a heuristic posterior. Their spread is set by the rate and
need not shrink with more data (Osband 2016), and with T samples the mutual
information is low: by a factor of 1 - 1/T where it is small, and by more where
samples disagree. Whether a spread means anything on your data is what calibration
measures.

References:
  Gal, "Uncertainty in deep learning", thesis, Cambridge (2016), section 3.3;
  Depeweg et al., "Decomposition of uncertainty in Bayesian deep learning",
  arXiv:1710.07283 (2018), for the parts.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxdrop.base.averages import centred_mean
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import widen

__all__ = [
    "Calibration",
    "Classification",
    "Regression",
    "brier_score",
    "classification",
    "expected_calibration_error",
    "mutual_information",
    "negative_log_likelihood",
    "predictive_entropy",
    "predictive_log_likelihood",
    "regression",
    "variation_ratio",
]


class Classification(NamedTuple):
    """What samples of class probabilities say of each example.

    Attributes:
      probabilities: their mean.
      total: entropy of the mean, in nats: what is not known of the label.
      aleatoric: mean of the entropies: what each sample leaves open.
      epistemic: the difference, the mutual information of label and sample: how
        much the samples disagree. In [0, min(total, ln K)].
      variation_ratio: the share of samples whose most probable class is not
        that of most samples.

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
    """What samples of a predicted normal distribution say of each example.

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Calibration:
    """How confidence compares with accuracy, in bins of equal width.

    Attributes:
      error: the mean over examples of |accuracy - confidence| of their bin.
      confidence: mean confidence of each bin; NaN where it is empty.
      accuracy: share of right answers of each bin; NaN where it is empty.
      count: examples of each bin.

    Example:
      >>> p, labels = jnp.array([[0.8, 0.2], [0.8, 0.2]]), jnp.array([0, 1])
      >>> found = expected_calibration_error(p, labels, bins=2)
      >>> found.count.tolist(), float(found.accuracy[1])
      ([0, 2], 0.5)
    """

    error: Float[Array, ""]
    confidence: Float[Array, "bins"]
    accuracy: Float[Array, "bins"]
    count: Int[Array, "bins"]


def predictive_entropy(probabilities: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
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
    return _entropy(_real(Check("predictive_entropy"), "probabilities", probabilities, 1))


def mutual_information(samples: Float[Array, "T *batch K"]) -> Float[Array, "*batch"]:
    """How much samples of class probabilities disagree, in nats: `classification(...).epistemic`.

    Args:
      samples: probabilities, samples along the first axis, classes along the last.

    Returns:
      Entropy of the mean less the mean of the entropies.

    Raises:
      TypeError: `samples` is not a real floating array.
      ValueError: it has fewer than 2 axes, no samples or no classes.

    Example:
      >>> round(float(mutual_information(jnp.eye(2))), 4)  # sure of two different classes: ln 2
      0.6931

    References:
      Houlsby et al., "Bayesian active learning", arXiv:1112.5745 (2011).
    """
    return _classification(_samples(Check("mutual_information"), samples)).epistemic


def classification(samples: Float[Array, "T *batch K"]) -> Classification:
    """Splits the uncertainty of a classifier into what is noise and what samples disagree on.

    With less memory: `monte_carlo_moments` of a function that returns `(p,
    predictive_entropy(p))` has mean probabilities and the aleatoric part as its
    means; the total is `predictive_entropy` of the former.

    Args:
      samples: probabilities, samples along the first axis, classes along the last.
        It is not checked that they add up to 1: pass `jax.nn.softmax` of logits.

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
    return _classification(_samples(Check("classification"), samples))


def _classification(samples: Array) -> Classification:
    mean = centred_mean(samples)
    total = _entropy(mean)
    # The mean divergence from the mean: no difference of large numbers. What rounding
    # leaves outside of [0, total] is cut off by `where`, as `clip` halves gradients at its ends.
    epistemic = jnp.mean(jnp.sum(samples * (_log(samples) - _log(mean)[None]), -1), 0)
    epistemic = jnp.where(epistemic > total, total, epistemic)
    epistemic = jnp.where(epistemic < 0, 0, epistemic)
    aleatoric = jnp.mean(_entropy(samples), 0)
    return Classification(mean, total, aleatoric, epistemic, variation_ratio(samples))


def regression(
    means: Float[Array, "T *batch"], variances: Float[Array, "T *batch"] | None = None
) -> Regression:
    """Splits the variance of a prediction into noise and what samples disagree on.

    Args:
      means: what each sample predicts, samples along the first axis.
      variances: the variance that each sample states, such as an output of the
        network, of the same shape or one that broadcasts to it; None for 0.

    Returns:
      A `Regression`.

    Raises:
      TypeError: an array is not real and floating.
      ValueError: `means` has no samples, or `variances` does not broadcast to it.

    Example:
      >>> parts = regression(jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5]))
      >>> [float(part) for part in parts]
      [2.0, 1.0, 0.5, 1.5]

    References:
      Kendall and Gal, "What uncertainties do we need in Bayesian deep
      learning?", arXiv:1703.04977 (2017).
    """
    check = Check("regression")
    means = _means(check, means)
    given = 0.0 if variances is None else variances
    aleatoric = jnp.mean(check.like("variances", given, means, "means"), 0)
    mean = centred_mean(means)
    epistemic = jnp.mean((means - mean[None]) ** 2, 0)
    return Regression(mean, epistemic, aleatoric, epistemic + aleatoric)


def predictive_log_likelihood(
    targets: Float[Array, "*batch"],
    means: Float[Array, "T *batch"],
    variances: Float[Array, "T *batch"] | Float[Array, ""] | float,
) -> Float[Array, "*batch"]:
    """Log-density of targets under the mixture of the samples' normal distributions, in nats.

    Args:
      targets: what was observed.
      means: what each sample predicts, samples along the first axis.
      variances: the variance of each, at least 0; one number if the noise is the
        same everywhere (Gal's 1 / tau).

    Returns:
      ln (1/T) sum_t N(target; mean_t, variance_t), for each example.

    Raises:
      TypeError: an array is not real and floating.
      ValueError: `means` has no samples, or the others do not broadcast to it.

    Example:
      >>> density = predictive_log_likelihood(jnp.zeros(()), jnp.zeros(5), 1.0)
      >>> round(float(density), 4)  # -ln sqrt(2 pi)
      -0.9189

    References:
      Gal and Ghahramani, arXiv:1506.02142 (2016), equation 8.
    """
    check = Check("predictive_log_likelihood")
    means = _means(check, means)
    targets = check.like("targets", targets, means[0], "means[0]")
    variances = check.like("variances", variances, means, "means")
    errors, some_noise = targets[None] - means, variances != 0
    spread = jnp.where(some_noise, variances, 1)
    densities = -0.5 * (errors**2 / spread + jnp.log(2 * jnp.pi * spread))
    certain = jnp.where(errors == 0, jnp.inf, -jnp.inf)
    densities = jnp.where(some_noise, densities, certain)
    return jax.nn.logsumexp(densities, 0) - jnp.log(jnp.asarray(len(means), means.dtype))


def variation_ratio(samples: Float[Array, "T *batch K"]) -> Float[Array, "*batch"]:
    """The share of samples that vote against the class that most of them vote for.

    Args:
      samples: probabilities or logits, samples along the first axis, classes
        along the last.

    Returns:
      A number in [0, 1 - 1/K] for each example; 0 where all samples agree.

    Raises:
      TypeError: `samples` is not a real floating array.
      ValueError: it has fewer than 2 axes, no samples or no classes.

    Example:
      >>> float(variation_ratio(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])))
      0.25

    References:
      Freeman, "Elementary applied statistics" (1965).
    """
    samples = _samples(Check("variation_ratio"), samples)
    count = len(samples)
    votes = jax.nn.one_hot(jnp.argmax(samples, -1), samples.shape[-1], dtype=jnp.int32)
    against = count - jnp.max(jnp.sum(votes, 0), -1)
    return against.astype(samples.dtype) / count


def negative_log_likelihood(
    probabilities: Float[Array, "*batch K"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Mean of -ln of the probability given to the right class, in nats.

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).

    Returns:
      A scalar; infinite where a right class was given probability 0, and NaN if
      a label is out of range.

    Raises:
      TypeError: `probabilities` is not real and floating, or `labels` are not integers.
      ValueError: the shape of `labels` is not that of the examples.

    Example:
      >>> round(float(negative_log_likelihood(jnp.array([[0.5, 0.5]]), jnp.array([1]))), 4)
      0.6931

    References:
      Good, "Rational decisions" (1952).
    """
    p, labels, is_class = _labelled(Check("negative_log_likelihood"), probabilities, labels)
    is_label = jax.nn.one_hot(labels, p.shape[-1], dtype=jnp.bool_)
    of_label = jnp.sum(jnp.log(jnp.where(is_label, p, 1)), -1)
    return -jnp.mean(jnp.where(is_class, of_label, jnp.nan))


def brier_score(
    probabilities: Float[Array, "*batch K"], labels: Int[Array, "*batch"]
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
      ValueError: the shape of `labels` is not that of the examples.

    Example:
      >>> float(brier_score(jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([1, 0])))
      0.25

    References:
      Brier, "Verification of forecasts expressed in terms of probability",
      Monthly Weather Review 78 (1950).
    """
    p, labels, is_class = _labelled(Check("brier_score"), probabilities, labels)
    distance = p - jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    return jnp.mean(jnp.where(is_class, jnp.sum(distance**2, -1), jnp.nan))


def expected_calibration_error(
    probabilities: Float[Array, "*batch K"], labels: Int[Array, "*batch"], *, bins: int = 15
) -> Calibration:
    """How far confidence lies from accuracy: the mean over bins, by their examples.

    The confidence of an example is its largest probability. Bin i of n holds
    confidences in (i / n, (i + 1) / n], the first one 0 too. The error depends on the
    number of bins and is biased upwards for few examples, so state both. A
    calibrated model does not have 0: see what labels that are drawn from the
    probabilities themselves (`jax.random.categorical`) give.

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).
      bins: how many bins, of equal width.

    Returns:
      A `Calibration`, which also draws a reliability diagram; NaN if a label is out
      of range.

    Raises:
      TypeError: `probabilities` is not real and floating, `labels` or `bins` are
        not integers.
      ValueError: the shape of `labels` is not that of the examples, or `bins` is
        below 1.

    Example:
      >>> p = jnp.array([[0.8, 0.2], [0.8, 0.2]])
      >>> round(float(expected_calibration_error(p, jnp.array([0, 1])).error), 4)  # |.5 - .8|
      0.3

    References:
      Guo et al., "On calibration of modern neural networks", arXiv:1706.04599 (2017).
    """
    check = Check("expected_calibration_error")
    p, labels, is_class = _labelled(check, probabilities, labels)
    bins = check.whole_number("bins", bins, 1)
    confidence = jnp.max(p, -1)
    right = (jnp.argmax(p, -1).astype(labels.dtype) == labels).astype(p.dtype)
    right = jnp.where(is_class, right, jnp.nan)

    # A pass for each bin: adding up by bin, one by one, would lose the small terms.
    def of_bin(edges: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        above, upto = edges
        inside = ~((confidence <= above) | (confidence > upto))  # a NaN is in every bin
        count = jnp.sum(inside, dtype=jnp.int32)
        gap = jnp.sum(jnp.where(inside, right - confidence, 0))
        return count, jnp.sum(jnp.where(inside, right, 0)), gap

    edges = jnp.arange(bins + 1, dtype=p.dtype) / bins
    bounds = edges.at[0].set(-jnp.inf)[:-1], edges.at[-1].set(jnp.inf)[1:]
    count, rights, gap = jax.lax.map(of_bin, bounds)
    accuracy = rights / count.astype(p.dtype)
    confidences = accuracy - gap / count.astype(p.dtype)
    return Calibration(jnp.sum(jnp.abs(gap)) / labels.size, confidences, accuracy, count)


def _real(check: Check, name: str, x: Any, least_axes: int) -> Array:
    x = widen(check.real_array(name, x))
    if x.ndim < least_axes:
        raise ValueError(
            f"{check}: {name} must have at least {least_axes} axes; got shape {x.shape}."
        )
    return x


def _samples(check: Check, samples: Any) -> Array:
    samples = _real(check, "samples", samples, 2)
    if 0 in (samples.shape[0], samples.shape[-1]):
        raise ValueError(
            f"{check}: samples must have at least one sample and one class;"
            f" got shape {samples.shape}."
        )
    return samples


def _means(check: Check, means: Any) -> Array:
    means = _real(check, "means", means, 1)
    if len(means) == 0:
        raise ValueError(f"{check}: means must have at least one sample; got shape {means.shape}.")
    return means


def _labelled(check: Check, probabilities: Any, labels: Any) -> tuple[Array, Array, Array]:
    """Probabilities, labels in a type that holds them, and which of them are a class."""
    p = _real(check, "probabilities", probabilities, 1)
    labels = check.integer_array("labels", labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    if labels.shape != p.shape[:-1]:
        raise ValueError(f"{check}: labels must have shape {p.shape[:-1]}; got {labels.shape}.")
    if p.size == 0:
        raise ValueError(f"{check}: probabilities must not be empty; got shape {p.shape}.")
    return p, labels, (labels >= 0) & (labels < p.shape[-1])


def _entropy(p: Array) -> Array:
    return -jnp.sum(p * _log(p), -1)


def _log(p: Array) -> Array:
    """Logarithm, and 0 where p is 0: such a class adds nothing, and neither does its gradient."""
    return jnp.log(jnp.where(p == 0, 1, p))
