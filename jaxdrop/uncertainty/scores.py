"""Scores of predictions against what was observed: likelihoods, distances and calibration."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxdrop.base.nan import nan_unless
from jaxdrop.base.validate import Check
from jaxdrop.uncertainty.arguments import checked_means, real_with_axes


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
      ValueError: `means` has no samples, or the others do not broadcast to it.

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
      ValueError: the shape of `labels` is not that of the examples.

    Example:
      >>> round(float(negative_log_likelihood(jnp.array([[0.5, 0.5]]), jnp.array([1]))), 4)
      0.6931

    References:
      Good, "Rational decisions" (1952).
    """
    p, labels, is_class = _labelled(Check("negative_log_likelihood"), probabilities, labels)
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
    return jnp.mean(nan_unless(is_class, jnp.sum(distance**2, -1)))


def expected_calibration_error(
    probabilities: Float[ArrayLike, "*batch K"], labels: Int[ArrayLike, "*batch"], *, bins: int = 15
) -> Calibration:
    """How far confidence lies from accuracy: the mean over bins, weighted by examples.

    The confidence of an example is its largest probability. Bin i of n holds
    confidences in (i / n, (i + 1) / n], and the first bin holds 0 too. The error
    depends on the number of bins and is biased upwards for few examples, so state both
    numbers. Even a calibrated model does not have error 0. To see its error, draw
    labels from the probabilities themselves (`jax.random.categorical`).

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).
      bins: how many bins, of equal width.

    Returns:
      A `Calibration`, whose bins make a reliability diagram; NaN if a label is out of
      range.

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
    right = nan_unless(is_class, right)

    # One pass per bin. The usual way, a scatter of all examples into the bins, adds
    # them one by one and loses small terms.
    def of_bin(edges: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        above, upto = edges
        inside = ~((confidence <= above) | (confidence > upto))  # a NaN is in every bin
        count = jnp.sum(inside, dtype=jnp.int32)
        gap = jnp.sum(jnp.where(inside, right - confidence, 0))
        return count, jnp.sum(jnp.where(inside, right, 0)), gap

    edges = jnp.asarray(bin_edges(bins, p.dtype))
    count, rights, gap = jax.lax.map(of_bin, (edges[:-1], edges[1:]))
    # The gap is summed by itself: a difference of two sums would cancel.
    accuracy = rights / count.astype(p.dtype)
    confidences = accuracy - gap / count.astype(p.dtype)
    return Calibration(jnp.sum(jnp.abs(gap)) / labels.size, confidences, accuracy, count)


def bin_edges(bins: int, dtype: Any) -> np.ndarray:
    """The bounds of bins of equal width, the first and the last of which are open."""
    # In NumPy: XLA multiplies by a reciprocal, and its 80 / 100 is below .8.
    edges = (np.arange(bins + 1) / bins).astype(dtype)
    # Rounding may give a confidence below 0 or above 1, which belongs to the first or the last bin.
    edges[0], edges[-1] = -np.inf, np.inf
    return edges


def _labelled(check: Check, probabilities: Any, labels: Any) -> tuple[Array, Array, Array]:
    """Probabilities, labels as int32 or wider, and which of the labels are a class."""
    p = real_with_axes(check, "probabilities", probabilities, 1)
    labels = check.integer_array("labels", labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    if labels.shape != p.shape[:-1]:
        raise ValueError(f"{check}: labels must have shape {p.shape[:-1]}; got {labels.shape}.")
    if p.size == 0:
        raise ValueError(f"{check}: probabilities must not be empty; got shape {p.shape}.")
    return p, labels, (labels >= 0) & (labels < p.shape[-1])
