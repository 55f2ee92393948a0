"""Continuous ranked probability scores: how far a predicted distribution lies from what came.

The score of a distribution F and an observation y is the integral over x of
(F(x) - [y <= x])^2, which is E|X - y| - E|X - X'| / 2 with X and X' independent from F.
It is at least 0, has the unit of y, and for a sure prediction is the absolute error.
The mean over many y is least for the F that they come from.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxdrop.base.validate import Check
from jaxdrop.uncertainty.arguments import checked_means, real_with_axes


def crps_normal(
    targets: Float[ArrayLike, "*batch"],
    means: Float[ArrayLike, "*batch"] | float,
    variances: Float[ArrayLike, "*batch"] | float,
) -> Float[Array, "*batch"]:
    """Continuous ranked probability score of normal distributions, in closed form.

    s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with s the standard deviation and
    z = (target - mean) / s. Its mean over targets from the distribution is s / sqrt(pi).

    Args:
      targets: what was observed.
      means: the mean that was predicted for each; it must broadcast to `targets`.
      variances: the variance that was predicted, at least 0; likewise.

    Returns:
      The score of each example, in the unit of the targets. Lower is better. It is
      |target - mean| where the variance is 0, and NaN where it is negative.

    Raises:
      TypeError: an array is not real, or `targets` is not floating.
      ValueError: `means` or `variances` does not broadcast to `targets`.

    Example:
      >>> round(float(crps_normal(jnp.array(0.0), 0.0, 1.0)), 4)  # (sqrt 2 - 1) / sqrt pi
      0.2337

    References:
      Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation",
      Journal of the American Statistical Association 102 (2007), equation 21.
    """
    check = Check("crps_normal")
    targets = real_with_axes(check, "targets", targets, 0)
    means = check.like("means", means, targets, "targets")
    variances = check.like("variances", variances, targets, "targets")
    return _mean_distance(targets - means, variances) - _half_spread(variances)


def crps_mixture(
    targets: Float[ArrayLike, "*batch"],
    means: Float[ArrayLike, "T *batch"],
    variances: Float[ArrayLike, "T *batch"] | float,
) -> Float[Array, "*batch"]:
    """Continuous ranked probability score of the mixture of the samples' normal distributions.

    The mean of A(target - mean_t, variance_t), minus half the mean over all pairs of
    A(mean_t - mean_u, variance_t + variance_u), where A(m, v) = E|N(m, v)|. The
    distribution is that of `predictive_log_likelihood`. The time is that of T^2
    numbers for each example, the memory that of T.

    Args:
      targets: what was observed.
      means: what each sample predicts, samples along the first axis.
      variances: the variance that each sample states, at least 0. It is a single number
        if the noise is the same everywhere.

    Returns:
      The score of each example, in the unit of the targets. Lower is better. If all
      variances are 0, it is the plain `crps_ensemble`.

    Raises:
      TypeError: an array is not real, or `means` is not floating.
      ValueError: `means` has no axes or no samples, or the others do not broadcast to it.

    Example:
      >>> round(float(crps_mixture(jnp.array(0.0), jnp.zeros(5), 1.0)), 4)  # five times the same
      0.2337

    References:
      Grimit et al., "The continuous ranked probability score for circular variables",
      Quarterly Journal of the Royal Meteorological Society 132 (2006), equation 5.
    """
    check = Check("crps_mixture")
    means = checked_means(check, means)
    targets = check.like("targets", targets, means[0], "means[0]")
    variances = check.like("variances", variances, means, "means")

    def from_others(one: tuple[Array, Array]) -> Array:
        mean, variance = one
        return jnp.mean(_mean_distance(means - mean[None], variances + variance[None]), 0)

    errors = jnp.mean(_mean_distance(targets[None] - means, variances), 0)
    return errors - jnp.mean(jax.lax.map(from_others, (means, variances)), 0) / 2


def crps_ensemble(
    targets: Float[ArrayLike, "*batch"],
    samples: Float[ArrayLike, "T *batch"],
    *,
    estimator: Literal["fair", "plain"] = "fair",
) -> Float[Array, "*batch"]:
    """Continuous ranked probability score from samples of the predicted distribution.

    mean |x_t - target| - sum over t < u of |x_t - x_u| / c, by sorting: O(T log T).

    "fair": c = T (T - 1). The score of the distribution that the samples come from,
    without bias: the expectation over samples is the score at any number of them, and
    it does not favour samples that lie closer together than the truth.

    "plain": c = T^2. The score of the samples themselves, as if each had the
    probability 1/T. Its expectation is higher by E|X - X'| / (2 T): more samples are
    better. Take it where these T samples are all that is ever used.

    Samples of means alone, such as those of `monte_carlo`, have no noise of the targets
    in them. Add it to the samples, or use `crps_mixture`.

    Args:
      targets: what was observed.
      samples: samples of the prediction along the first axis.
      estimator: "fair" or "plain".

    Returns:
      The score of each example, at least 0, in the unit of the targets. Lower is better.

    Raises:
      TypeError: an array is not real, or `samples` is not floating.
      ValueError: `samples` has no axes or no samples, or only one for "fair";
        `targets` does not broadcast to one sample; or `estimator` is neither of the two.

    Example:
      >>> samples = jnp.array([0.0, 4.0])
      >>> [float(crps_ensemble(jnp.array(1.0), samples, estimator=e)) for e in ("fair", "plain")]
      [0.0, 1.0]

    References:
      Ferro, "Fair scores for ensemble forecasts", Quarterly Journal of the Royal
      Meteorological Society 140 (2014); Zamo and Naveau, "Estimation of the continuous
      ranked probability score with limited information", Mathematical Geosciences 50
      (2018).
    """
    check = Check("crps_ensemble")
    if estimator not in ("fair", "plain"):
        raise ValueError(f'{check}: estimator must be "fair" or "plain"; got {estimator!r}.')
    samples = checked_means(check, samples, "samples")
    targets = check.like("targets", targets, samples[0], "samples[0]")
    count, fair = len(samples), int(estimator == "fair")
    if count == fair:
        raise ValueError(
            f"{check}: samples must have at least 2 samples for the fair estimator; got shape"
            f' {samples.shape}. Use "plain", which is the absolute error of one sample.'
        )
    errors = jnp.sort(samples - targets[None], 0)
    # A sum over the gaps between neighbours, none of which is negative, as the integral of
    # the definition is: the difference of two means would cancel. Behind k of T samples the
    # square is (k / T)^2 below the target, and for the fair estimator k (k - 1) / T (T - 1).
    k = np.arange(count + 1, dtype=np.float64)
    weights = jnp.asarray(k * (k - fair) / (count * (count - fair)), errors.dtype)
    weights = weights.reshape(-1, *(1 for _ in targets.shape))
    zero = jnp.zeros_like(errors[:1])
    below = jnp.diff(jnp.minimum(errors, 0), axis=0, append=zero)
    above = jnp.diff(jnp.maximum(errors, 0), axis=0, prepend=zero)
    return jnp.sum(below * weights[1:] + above * weights[:0:-1], 0)


def _mean_distance(mean: Array, variance: Array) -> Array:
    """E|X| of a normal distribution: m erf(m / sqrt(2 v)) + 2 sqrt(v) phi(m / sqrt(v))."""
    some_noise = variance != 0
    spread = jnp.sqrt(jnp.where(some_noise, variance, 1))
    z = mean / spread
    distance = mean * jax.lax.erf(z / math.sqrt(2)) + 2 * spread * norm.pdf(z)
    # Not `abs`, whose gradient at 0 is 1 in JAX.
    return jnp.where(some_noise, distance, mean * jnp.sign(mean))


def _half_spread(variance: Array) -> Array:
    """E|X - X'| / 2 of a normal distribution, sqrt(v / pi); its gradient at 0 is taken to be 0."""
    some_noise = variance != 0
    spread = jnp.sqrt(jnp.where(some_noise, variance, 1) / math.pi)
    return jnp.where(some_noise, spread, 0)
