"""How far the confidence of a classifier lies from its accuracy, in bins of equal width or mass."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxdrop.base.nan import nan_unless
from jaxdrop.base.sharding import whole
from jaxdrop.base.validate import Check
from jaxdrop.uncertainty.arguments import labelled


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Calibration:
    """How confidence compares with accuracy in bins.

    The bins are those of all predictions. Where each class has bins of its own, all
    fields but `error` have the classes along a first axis.

    Attributes:
      error: the mean over what is in the bins of |accuracy - confidence| of its bin.
      confidence: mean confidence of each bin; NaN where it is empty.
      accuracy: share of right answers of each bin; NaN where it is empty.
      count: how many are in each bin.

    Example:
      >>> p, labels = jnp.array([[0.8, 0.2], [0.8, 0.2]]), jnp.array([0, 1])
      >>> found = expected_calibration_error(p, labels, bins=2)
      >>> found.count.tolist(), float(found.accuracy[1])
      ([0, 2], 0.5)
      >>> gaps = jnp.abs(found.accuracy - found.confidence)
      >>> round(float(jnp.nanmax(gaps)), 4)  # the maximum calibration error
      0.3
    """

    error: Float[Array, ""]
    confidence: Float[Array, "*classes bins"]
    accuracy: Float[Array, "*classes bins"]
    count: Int[Array, "*classes bins"]


def expected_calibration_error(
    probabilities: Float[ArrayLike, "*batch K"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bins: int = 15,
    adaptive: bool = False,
) -> Calibration:
    """How far confidence lies from accuracy: the mean over bins, weighted by examples.

    The confidence of an example is its largest probability. Bin i of n holds
    confidences in (i / n, (i + 1) / n], and the first bin holds 0 too. The error
    depends on the number of bins and is biased upwards for few examples, so state both
    numbers. Even a calibrated model does not have error 0. To see its error, draw
    labels from the probabilities themselves (`jax.random.categorical`).

    Adaptive bins hold equally many examples, give or take one: of N examples in n bins,
    the first N mod n bins have one more. Equal confidences are in one bin, whatever the
    order of the examples, so with ties the bins may differ more, or be empty.

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).
      bins: how many bins.
      adaptive: whether the bins are of equal mass (ACE) and not of equal width (ECE).

    Returns:
      A `Calibration`, whose bins make a reliability diagram; NaN if a label is out of
      range.

    Raises:
      TypeError: `probabilities` is not real and floating, `labels` or `bins` are
        not integers.
      ValueError: `probabilities` is empty or has no axes, the shape of `labels` is not
        that of the examples, or `bins` is below 1.

    Example:
      >>> p = jnp.array([[0.8, 0.2], [0.8, 0.2]])
      >>> round(float(expected_calibration_error(p, jnp.array([0, 1])).error), 4)  # |.5 - .8|
      0.3

    References:
      Guo et al., "On calibration of modern neural networks", arXiv:1706.04599 (2017);
      adaptive bins: Nguyen and O'Connor, "Posterior calibration and exploratory
      analysis for natural language processing models", arXiv:1508.05154 (2015).
    """
    check = Check("expected_calibration_error")
    p, labels, is_class = labelled(check, probabilities, labels)
    bins = check.whole_number("bins", bins, 1)
    confidence, right = _top(p, labels, is_class)
    return _in_bins(confidence, right, jnp.ones(labels.shape, jnp.bool_), bins, adaptive)


def classwise_calibration_error(
    probabilities: Float[ArrayLike, "*batch K"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bins: int = 15,
    adaptive: bool = False,
) -> Calibration:
    """How far the probabilities of each class lie from how often it is the right one.

    Where `expected_calibration_error` looks at the largest probability alone, this
    looks at all K: each class has bins of its own, in which every example is, by its
    probability of that class. The error is the mean over classes of that of their bins.
    It is small where most of many classes are nearly impossible, whatever the others
    are like, so state the number of classes too.

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).
      bins: how many bins each class has.
      adaptive: whether the bins are of equal mass and not of equal width, as in
        `expected_calibration_error`.

    Returns:
      A `Calibration` of K times `bins` bins. `accuracy` is how often the class was
      right. The error is the static calibration error (SCE) of Nixon and, with adaptive
      bins, their adaptive calibration error (ACE). NaN if a label is out of range.

    Raises:
      TypeError: `probabilities` is not real and floating, `labels` or `bins` are
        not integers.
      ValueError: `probabilities` is empty or has no axes, the shape of `labels` is not
        that of the examples, or `bins` is below 1.

    Example:
      >>> p = jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
      >>> found = classwise_calibration_error(p, jnp.array([0, 1]), bins=4)
      >>> round(float(found.error), 4)  # (0 + |.5 - .25| + |0 - .25|) / 3
      0.1667

    References:
      Nixon et al., "Measuring calibration in deep learning", arXiv:1904.01685 (2019);
      Kull et al., "Beyond temperature scaling", arXiv:1910.12656 (2019).
    """
    check = Check("classwise_calibration_error")
    p, labels, is_class = labelled(check, probabilities, labels)
    bins = check.whole_number("bins", bins, 1)
    everyone = jnp.ones(labels.shape, jnp.bool_)

    def of_class(p: Array, is_right: Array) -> Calibration:
        return _in_bins(p, nan_unless(is_class, is_right), everyone, bins, adaptive)

    truth = jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    return _all_classes(jax.vmap(of_class, -1)(p, truth))


def top_label_calibration_error(
    probabilities: Float[ArrayLike, "*batch K"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bins: int = 15,
    adaptive: bool = False,
) -> Calibration:
    """How far confidence lies from accuracy where it matters which class was predicted.

    As in `expected_calibration_error`, the confidence of an example is its largest
    probability. But each class has bins of its own, for the examples that it was
    predicted for. So overconfidence in one class cannot make up for too little in
    another, and with bins of equal width the error is at least that of
    `expected_calibration_error`. Each bin has fewer examples, so it is biased upwards
    more.

    Args:
      probabilities: classes along the last axis.
      labels: the right class of each example, in [0, K).
      bins: how many bins each class has.
      adaptive: whether the bins are of equal mass and not of equal width, as in
        `expected_calibration_error`.

    Returns:
      A `Calibration` of K times `bins` bins, each for the examples of one predicted
      class. NaN if a label is out of range.

    Raises:
      TypeError: `probabilities` is not real and floating, `labels` or `bins` are
        not integers.
      ValueError: `probabilities` is empty or has no axes, the shape of `labels` is not
        that of the examples, or `bins` is below 1.

    Example:
      >>> p = jnp.array([[0.75, 0.25], [0.25, 0.75]])
      >>> labels = jnp.array([0, 0])  # right for the first class alone
      >>> for error in (expected_calibration_error, top_label_calibration_error):
      ...     print(error(p, labels).error)  # |.5 - .75|, and the mean of .25 and .75
      0.25
      0.5

    References:
      Gupta and Ramdas, "Top-label calibration and multiclass-to-binary reductions",
      arXiv:2107.08353 (2022).
    """
    check = Check("top_label_calibration_error")
    p, labels, is_class = labelled(check, probabilities, labels)
    bins = check.whole_number("bins", bins, 1)
    confidence, right = _top(p, labels, is_class)
    predicted = jax.nn.one_hot(jnp.argmax(p, -1), p.shape[-1], dtype=jnp.bool_)

    def of_class(is_predicted: Array) -> Calibration:
        return _in_bins(confidence, right, is_predicted, bins, adaptive)

    return _all_classes(jax.vmap(of_class, -1)(predicted))


def _top(p: Array, labels: Array, is_class: Array) -> tuple[Array, Array]:
    """The largest probability, and whether it is that of the label."""
    is_right = jnp.argmax(p, -1).astype(labels.dtype) == labels
    return jnp.max(p, -1), nan_unless(is_class, is_right.astype(p.dtype))


def _all_classes(classes: Calibration) -> Calibration:
    """The bins of all classes, and the error over all that is in them."""
    counts = jnp.sum(classes.count, -1)
    weights = counts.astype(classes.error.dtype)  # their sum may exceed the integers
    error = jnp.sum(classes.error * weights) / jnp.sum(weights)
    return Calibration(error, classes.confidence, classes.accuracy, classes.count)


def _in_bins(
    confidence: Array, right: Array, among: Array, bins: int, adaptive: bool
) -> Calibration:
    """The calibration of those examples that are among the chosen ones."""
    # A NaN is in every bin, and among every choice: it must not be hidden.
    among = among | jnp.isnan(confidence) | jnp.isnan(right)

    # One pass per bin. The usual way, a scatter of all examples into the bins, adds
    # them one by one and loses small terms.
    def of_bin(edges: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        above, upto = edges
        inside = among & ~((confidence <= above) | (confidence > upto))
        count = jnp.sum(inside, dtype=jnp.int32)
        gap = jnp.sum(jnp.where(inside, right - confidence, 0))
        return count, jnp.sum(jnp.where(inside, right, 0)), gap

    edges = jnp.asarray(bin_edges(bins, confidence.dtype))
    if adaptive:
        edges = _edges_of_equal_mass(confidence, among, bins)
    count, rights, gap = jax.lax.map(of_bin, (edges[:-1], edges[1:]))
    # The gap is summed by itself: a difference of two sums would cancel.
    accuracy = rights / count.astype(confidence.dtype)
    confidences = accuracy - gap / count.astype(confidence.dtype)
    total = jnp.maximum(jnp.sum(among, dtype=jnp.int32), 1).astype(confidence.dtype)
    return Calibration(jnp.sum(jnp.abs(gap)) / total, confidences, accuracy, count)


def bin_edges(bins: int, dtype: Any) -> np.ndarray:
    """The bounds of bins of equal width, the first and the last of which are open."""
    # In NumPy: XLA multiplies by a reciprocal, and its 80 / 100 is below .8.
    edges = (np.arange(bins + 1) / bins).astype(dtype)
    # Rounding may give a confidence below 0 or above 1, which belongs to the first or the last bin.
    edges[0], edges[-1] = -np.inf, np.inf
    return edges


def _edges_of_equal_mass(confidence: Array, among: Array, bins: int) -> Array:
    """The bounds of bins that hold equally many of the chosen examples, if none are equal."""
    chosen = jnp.sort(whole(jnp.where(among, confidence, jnp.inf)), axis=None)
    count, i = jnp.sum(among, dtype=jnp.int32), jnp.arange(1, bins, dtype=jnp.int32)
    ends = i * (count // bins) + jnp.minimum(i, count % bins)  # how many are below each bound
    inner = jnp.where(ends == 0, -jnp.inf, chosen[jnp.maximum(ends - 1, 0)])
    infinity = jnp.full(1, jnp.inf, chosen.dtype)
    return jnp.concatenate([-infinity, inner, infinity])
