"""Whether what was observed lies where a regression said that it would, and how often."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxdrop.base.nan import nan_unless
from jaxdrop.base.validate import Check
from jaxdrop.uncertainty.arguments import checked_means, real_with_axes


def interval_coverage(
    targets: Float[ArrayLike, "*batch"],
    lower: Float[ArrayLike, "*batch"] | float,
    upper: Float[ArrayLike, "*batch"] | float,
) -> Float[Array, ""]:
    """The share of targets that lie in their intervals (PICP).

    For calibrated intervals of level 90 % it is near .9, with a standard error of
    sqrt(.9 * .1 / N) for N independent targets. Intervals that are wide enough cover
    everything, so state their width or `interval_score` too.

    Take the bounds from samples of the prediction by `jnp.quantile(samples, q, axis=0)`
    for q = .05 and .95, or from a normal one, mean -+ 1.645 standard deviations. The
    samples must have the noise of the targets in them.

    Args:
      targets: what was observed.
      lower: lower bounds, which belong to the intervals; they must broadcast to
        `targets`.
      upper: upper bounds, likewise.

    Returns:
      A scalar in [0, 1]; NaN if a lower bound is above its upper one or anything is NaN.

    Raises:
      TypeError: an array is not real, or `targets` is not floating.
      ValueError: `targets` is empty, or a bound does not broadcast to it.

    Example:
      >>> float(interval_coverage(jnp.array([0.0, 1.0, 2.0, 5.0]), 0.0, 2.0))
      0.75

    References:
      Khosravi et al., "Comprehensive review of neural network-based prediction
      intervals and new advances", IEEE Transactions on Neural Networks 22 (2011).
    """
    check = Check("interval_coverage")
    targets, lower, upper = _interval(check, targets, lower, upper)
    if targets.size == 0:
        raise ValueError(f"{check}: targets must not be empty; got shape {targets.shape}.")
    covered = ((lower <= targets) & (targets <= upper)).astype(targets.dtype)
    return jnp.mean(nan_unless((lower <= upper) & (targets == targets), covered))


def interval_score(
    targets: Float[ArrayLike, "*batch"],
    lower: Float[ArrayLike, "*batch"] | float,
    upper: Float[ArrayLike, "*batch"] | float,
    *,
    alpha: Float[ArrayLike, ""] | float,
) -> Float[Array, "*batch"]:
    """Width of intervals, plus 2 / alpha times how far targets lie outside (Winkler score).

    Its mean is least for the central interval of probability 1 - alpha: from the
    quantile of alpha / 2 to that of 1 - alpha / 2.

    Args:
      targets: what was observed.
      lower: lower bounds; they must broadcast to `targets`.
      upper: upper bounds, likewise.
      alpha: the probability of lying outside, in (0, 1]: .1 for intervals of level
        90 %; may be traced.

    Returns:
      The score of each example, in the unit of the targets. Lower is better. NaN where
      a lower bound is above its upper one.

    Raises:
      TypeError: an array is not real, `targets` is not floating, or `alpha` is not a
        number.
      ValueError: a bound does not broadcast to `targets`, or a known `alpha` is not in
        (0, 1].

    Example:
      >>> interval_score(jnp.array([0.5, 3.0]), 0.0, 2.0, alpha=0.1).tolist()  # 2 + 20 * 1
      [2.0, 22.0]

    References:
      Winkler, "A decision-theoretic approach to interval estimation", Journal of the
      American Statistical Association 67 (1972); Gneiting and Raftery (2007),
      equation 43.
    """
    check = Check("interval_score")
    targets, lower, upper = _interval(check, targets, lower, upper)
    alpha = check.probability("alpha", alpha)
    if not isinstance(alpha, jax.Array) and alpha == 0:
        raise ValueError(f"{check}: alpha must be above 0; got {alpha}.")
    alpha = jnp.asarray(alpha, targets.dtype)
    outside = jnp.maximum(lower - targets, 0) + jnp.maximum(targets - upper, 0)
    score = upper - lower + 2 / alpha * outside
    return nan_unless((lower <= upper) & (alpha > 0) & (alpha <= 1), score)


def probability_integral_transform(
    targets: Float[ArrayLike, "*batch"],
    means: Float[ArrayLike, "T *batch"],
    variances: Float[ArrayLike, "T *batch"] | float | None = None,
) -> Float[Array, "*batch"]:
    """The probability that the prediction gave to values below each target (PIT).

    The mean over samples of Phi((target - mean_t) / sqrt(variance_t)). If the
    predictions are calibrated, these values are uniform on [0, 1]. In a histogram, a
    valley says that the predictions are too narrow, a hill that they are too wide, and
    a slope that they are biased.

      pit = probability_integral_transform(targets, means, variances)
      jnp.mean(pit <= level)  # how many lie below the predicted quantile of this level
      jnp.mean(abs(pit - 0.5) <= level / 2)  # how many the central interval covers

    Without variances it is the share of samples below the target, a multiple of 1/T
    that takes each of the T + 1 values equally often if samples and target come from
    one continuous distribution (the rank histogram). A sample that equals the target
    counts as half.

    Args:
      targets: what was observed.
      means: what each sample predicts, samples along the first axis.
      variances: the variance that each sample states, at least 0. It is a single number
        if the noise is the same everywhere, and None for 0, where `means` are samples
        of the targets, noise and all.

    Returns:
      A number in [0, 1] for each example.

    Raises:
      TypeError: an array is not real, or `means` is not floating.
      ValueError: `means` has no axes or no samples, or the others do not broadcast to it.

    Example:
      >>> samples = jnp.array([1.0, 2.0, 3.0, 4.0])
      >>> float(probability_integral_transform(jnp.array(3.5), samples))
      0.75

    References:
      Dawid, "Statistical theory: the prequential approach", Journal of the Royal
      Statistical Society A 147 (1984); Gneiting, Balabdaoui and Raftery, "Probabilistic
      forecasts, calibration and sharpness", Journal of the Royal Statistical Society B
      69 (2007).
    """
    check = Check("probability_integral_transform")
    means = checked_means(check, means)
    targets = check.like("targets", targets, means[0], "means[0]")
    given = 0.0 if variances is None else variances
    variances = check.like("variances", given, means, "means")
    errors, some_noise = targets[None] - means, variances != 0
    spread = jnp.sqrt(jnp.where(some_noise, variances, 1))
    step = (jnp.sign(errors) + 1) / 2  # not `heaviside`, which hides a NaN
    return jnp.mean(jnp.where(some_noise, ndtr(errors / spread), step), 0)


def _interval(
    check: Check,
    targets: Float[ArrayLike, "*batch"],
    lower: Float[ArrayLike, "*batch"] | float,
    upper: Float[ArrayLike, "*batch"] | float,
) -> tuple[Array, Array, Array]:
    targets = real_with_axes(check, "targets", targets, 0)
    lower = check.like("lower", lower, targets, "targets")
    return targets, lower, check.like("upper", upper, targets, "targets")
