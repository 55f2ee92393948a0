"""Mean and variance of samples; more samples can be added later."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdrop.base.averages import centred_mean
from jaxdrop.base.sharding import zeros_like
from jaxdrop.core.apply import widen


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of samples, element by element, and the number of samples.

    A pytree. The variance is that of the samples themselves: it divides by their
    number, so a single sample has variance 0.

    Attributes:
      count: how many samples, as a uint32 scalar.
      mean: their mean, a pytree like one sample.
      variance: their variance, a pytree like one sample.

    Example:
      >>> def fn(key, x):
      ...     return jaxdrop.dropout(key, x, 0.5)
      >>> moments = monte_carlo_moments(fn, 1000)(jax.random.key(0), jnp.ones(3))
      >>> jnp.round(moments.mean).tolist(), jnp.round(moments.variance).tolist()
      ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    """

    count: Array
    mean: Any
    variance: Any

    def merge(self, other: "Moments") -> "Moments":
        """The moments of these samples and others together.

        Under `vmap`, use `jax.vmap(Moments.merge)`. For thousands of samples, a single
        run is more exact than thousands of merges.

        Args:
          other: moments of other samples of the same function.

        Returns:
          The moments of all of them.

        Example:
          >>> one, other = (
          ...     Moments(jnp.uint32(1), jnp.float32(x), jnp.float32(0)) for x in (1, 3)
          ... )
          >>> both = one.merge(other)
          >>> int(both.count), float(both.mean), float(both.variance)
          (2, 2.0, 1.0)

        References:
          Chan, Golub and LeVeque, "Algorithms for computing the sample
          variance", The American Statistician 37 (1983).
        """
        return RunningMoments.of(self).add(other).moments


class RunningMoments(NamedTuple):
    """Moments to which samples are added, and the rounding errors of these sums.

    A long sum of small terms needs the errors: each addition is rounded to the digits
    of the large total, and the next addition corrects this error (Kahan).
    """

    moments: Moments
    lost_mean: Any
    lost_variance: Any

    @classmethod
    def of(cls, moments: Moments) -> "RunningMoments":
        """Moments whose sums have no rounding errors yet."""
        zeros = (jax.tree.map(zeros_like, x) for x in (moments.mean, moments.variance))
        return cls(moments, *zeros)

    def add(self, other: Moments) -> "RunningMoments":
        """Adds other samples, by Chan's formula and Kahan's summation.

        With w = n_b / (n_a + n_b) and d = mean_b - mean_a, the mean grows by w d and the
        variance by w (var_b - var_a + (1 - w) d^2). All are small corrections of totals.
        """
        moments = self.moments
        count = moments.count + other.count

        def share_of(x: Array) -> Array:
            return other.count.astype(x.dtype) / jnp.maximum(count, 1).astype(x.dtype)

        # The zeros at the start have no weight: 1 - w = 0. But 0 times an infinite d^2
        # would be NaN.
        is_first = moments.count == 0
        apart = jax.tree.map(_apart, moments.mean, other.mean)
        to_mean = jax.tree.map(lambda d: d * share_of(d), apart)

        def to_variance(a: Array, b: Array, d: Array) -> Array:
            part = share_of(a)
            between = jnp.where(is_first, 0, _square(d) * (1 - part))
            return (_apart(a, b) + between) * part

        variances = moments.variance, other.variance
        mean, lost_mean = _summed(moments.mean, to_mean, self.lost_mean)
        variance, lost_variance = _summed(
            moments.variance, jax.tree.map(to_variance, *variances, apart), self.lost_variance
        )
        return RunningMoments(Moments(count, mean, variance), lost_mean, lost_variance)


def _apart(a: Array, b: Array) -> Array:
    """The difference `b - a`; 0 if `a` is an infinity that `b` does not change."""
    stays = jnp.isinf(a) & ((a == b) | jnp.isfinite(b))
    return jnp.where(stays, 0, b - a)


def _summed(total: Any, terms: Any, lost: Any) -> tuple[Any, Any]:
    """The totals with the terms added, and how much too large rounding has made them."""
    terms = jax.tree.map(lambda term, excess: term - excess, terms, lost)
    sums = jax.tree.map(lambda x, term: x + term, total, terms)

    # What was really added, minus what should have been added. XLA does not simplify this to 0.
    def excess(x: Array, y: Array, term: Array) -> Array:
        return jnp.where(jnp.isfinite(y), (y - x) - term, 0)

    return sums, jax.tree.map(excess, total, sums, terms)


def moments_of(samples: Any, count: Array) -> Moments:
    """Moments of the first `count` samples along the first axis, exact where all are equal."""

    # The last batch may be filled up with samples that are not used.
    def average(x: Array) -> Array:
        kept = lax.expand_dims(lax.iota(jnp.uint32, len(x)) < count, range(1, x.ndim))
        return jnp.sum(jnp.where(kept, x, 0), 0) / count.astype(x.dtype)

    wide = jax.tree.map(widen, samples)
    mean = jax.tree.map(lambda x: centred_mean(x, average), wide)
    variance = jax.tree.map(lambda x, m: average(_square(x - m[None])), wide, mean)
    return Moments(count, mean, variance)


def _square(x: Array) -> Array:
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x * x
