"""Many runs of a function with a key: stacked, or as moments that take the memory of one run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdrop.core import validate
from jaxdrop.core.apply import widen
from jaxdrop.core.types import Key
from jaxdrop.core.words import mark_consumed

Progress: TypeAlias = Callable[[int], object]
"""Is told on the host how many samples have just been finished, such as `tqdm.update`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of samples, element by element, and how many they are of.

    A pytree. `variance` is that of the samples themselves: it divides by their
    number, so that one sample has variance 0.

    Attributes:
      count: how many samples, as a float32 scalar.
      mean: their mean, a pytree like one sample.
      variance: their variance, the same.

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

        Args:
          other: moments of other samples of the same function.

        Returns:
          The moments of all of them.

        Example:
          >>> one, other = (Moments(jnp.float32(1), jnp.float32(x), jnp.float32(0)) for x in (1, 3))
          >>> both = one.merge(other)
          >>> float(both.count), float(both.mean), float(both.variance)
          (2.0, 2.0, 1.0)

        References:
          Chan, Golub and LeVeque, "Algorithms for computing the sample
          variance", The American Statistician 37 (1983).
        """
        count = self.count + other.count
        share = other.count / count
        step = jax.tree.map(lambda a, b: b - a, self.mean, other.mean)
        mean = jax.tree.map(lambda a, d: a + d * share.astype(d.dtype), self.mean, step)

        def variance(a: Array, b: Array, d: Array) -> Array:
            part = share.astype(a.dtype)
            return a + (b - a) * part + _square(d) * (part * (1 - part))

        return Moments(count, mean, jax.tree.map(variance, self.variance, other.variance, step))


def monte_carlo(
    fn: Callable[..., Any],
    num_samples: int,
    *,
    batch_size: int | None = None,
    start: int = 0,
    progress: Progress | None = None,
) -> Callable[..., Any]:
    """Runs a function with many keys and stacks what it returns.

    Sample i uses `jax.random.fold_in(key, i)`. So it depends neither on how many
    samples there are nor on `batch_size`, and a run is extended with `start`.

    The samples of a network with dropout say how much its answer depends on the
    units it drops. That is a heuristic for the uncertainty of a posterior: the
    spread is set by the rate and need not shrink with more data, so measure its
    calibration before you rely on it.

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays.
      num_samples: how many samples, at least 1.
      batch_size: how many run at once, under `vmap`; None for all.
      start: the number of the first sample.
      progress: called on the host after each batch with the number of its
        samples, such as `tqdm.update`; None for no calls.

    Returns:
      A function `(key, *args, **kwargs)` that returns the samples along a new
      first axis. It is not compiled: wrap it in `jax.jit`.

    Raises:
      TypeError: `num_samples`, `batch_size` or `start` are not integers; or when
        called, if `key` is not one key.
      ValueError: `num_samples` or `batch_size` is below 1, or `start` below 0.

    Example:
      >>> fn = partial(jaxdrop.dropout, rate=0.5)
      >>> samples = monte_carlo(fn, 100)(jax.random.key(0), jnp.ones(3))
      >>> samples.shape
      (100, 3)
      >>> first = monte_carlo(fn, 10, batch_size=4)(jax.random.key(0), jnp.ones(3))
      >>> bool((first == samples[:10]).all())
      True

    References:
      Gal and Ghahramani, "Dropout as a Bayesian approximation",
      arXiv:1506.02142 (2016); Osband, "Risk versus uncertainty in deep
      learning" (2016), for what the spread is not.
    """
    plan = _plan("monte_carlo", num_samples, batch_size, start, progress)

    def stacked(key: Key, *args: Any, **kwargs: Any) -> Any:
        run = batch_of(fn, validate.one_key("monte_carlo", key), args, kwargs)
        firsts, last, rest = plan.parts
        _, batches = lax.scan(
            lambda _, first: (None, plan.told(run(first, plan.batch), plan.batch)), None, firsts
        )
        parts = [jax.tree.map(lambda x: lax.collapse(x, 0, 2), batches)]
        if rest:
            parts.append(plan.told(run(last, rest), rest))
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)

    return stacked


def monte_carlo_moments(
    fn: Callable[..., Any],
    num_samples: int,
    *,
    batch_size: int | None = None,
    start: int = 0,
    progress: Progress | None = None,
) -> Callable[..., Moments]:
    """Runs a function with many keys and keeps count, mean and variance.

    The samples are those of `monte_carlo`, but memory does not grow with their
    number: each batch is merged into the moments and forgotten. Return
    whatever has a mean that you need, such as probabilities and their entropy.

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays.
      num_samples: how many samples, at least 1.
      batch_size: how many run at once, under `vmap`; None for one at a time.
      start: the number of the first sample; `Moments.merge` joins runs.
      progress: called on the host after each batch with the number of its
        samples; None for no calls.

    Returns:
      A function `(key, *args, **kwargs)` that returns `Moments`, in float32 or
      wider. It is not compiled: wrap it in `jax.jit`.

    Raises:
      TypeError: `num_samples`, `batch_size` or `start` are not integers; or when
        called, if `key` is not one key.
      ValueError: `num_samples` or `batch_size` is below 1, or `start` below 0.

    Example:
      >>> def fn(key, x):
      ...     return jaxdrop.dropout(key, x, 0.2)
      >>> moments = monte_carlo_moments(fn, 10_000, batch_size=100)(jax.random.key(0), jnp.ones(1))
      >>> float(moments.count), round(float(moments.variance[0]), 1)  # p / q = .25
      (10000.0, 0.2)

    References:
      Welford, "Note on a method for calculating corrected sums of squares and
      products", Technometrics 4 (1962); Chan, Golub and LeVeque (1983).
    """
    batch_size = 1 if batch_size is None else batch_size
    plan = _plan("monte_carlo_moments", num_samples, batch_size, start, progress)

    def moments(key: Key, *args: Any, **kwargs: Any) -> Moments:
        run = batch_of(fn, validate.one_key("monte_carlo_moments", key), args, kwargs)
        firsts, last, rest = plan.parts

        def add(total: Moments, first: Array) -> tuple[Moments, None]:
            batch = _moments_of(run(first, plan.batch), plan.batch)
            return plan.told(total.merge(batch), plan.batch), None

        total = _moments_of(run(firsts[0], plan.batch), plan.batch)
        total, _ = lax.scan(add, plan.told(total, plan.batch), firsts[1:])
        if rest:
            total = plan.told(total.merge(_moments_of(run(last, rest), rest)), rest)
        return total

    return moments


class _Plan(NamedTuple):
    samples: int
    batch: int  # at most all samples
    start: int
    progress: Progress | None

    @property
    def parts(self) -> tuple[Array, Array, int]:
        """The first sample of each whole batch, and that of those left over and their number."""
        whole, rest = divmod(self.samples, self.batch)
        firsts = jnp.arange(whole, dtype=jnp.uint32) * self.batch + self.start
        return firsts, jnp.uint32(self.start + whole * self.batch), rest

    def told(self, x: Any, count: int) -> Any:
        """The same, after the host has been told that it is there."""
        progress, leaves = self.progress, jax.tree.leaves(x)
        if progress is None or not leaves:
            return x

        def tell(_: Array) -> None:
            progress(count)

        # An operand makes the host wait for the samples.
        jax.debug.callback(tell, jnp.ravel(leaves[0])[:1])
        return x


def _plan(function: str, samples: Any, batch: Any, start: Any, progress: Progress | None) -> _Plan:
    samples = validate.whole_number(function, "num_samples", samples, 1)
    start = validate.whole_number(function, "start", start, 0)
    batch = samples if batch is None else validate.whole_number(function, "batch_size", batch, 1)
    return _Plan(samples, min(batch, samples), start, progress)


def batch_of(
    fn: Callable[..., Any], key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Array, int], Any]:
    """A function of the first number and the count that runs so many samples side by side."""
    mark_consumed(key)

    def sample(number: Array) -> Any:
        return fn(jax.random.fold_in(key, number), *args, **kwargs)

    return lambda first, count: jax.vmap(sample)(first + lax.iota(jnp.uint32, count))


def _moments_of(samples: Any, count: int) -> Moments:
    """Moments along the first axis, exact where all samples are equal."""
    wide = jax.tree.map(widen, samples)
    centred = jax.tree.map(lambda x: x - x[:1], wide)
    shift = jax.tree.map(lambda x: jnp.mean(x, 0), centred)
    mean = jax.tree.map(lambda x, d: x[0] + d, wide, shift)
    variance = jax.tree.map(lambda x, d: jnp.mean(_square(x - d[None]), 0), centred, shift)
    return Moments(jnp.float32(count), mean, variance)


def _square(x: Array) -> Array:
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x * x
