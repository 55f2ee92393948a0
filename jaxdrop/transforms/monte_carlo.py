"""Many runs of a function with a key: stacked, or as moments that take the memory of one run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdrop.base.averages import centred_mean
from jaxdrop.base.compat import zeros_of
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import widen
from jaxdrop.core.words import fold_in_all, mark_consumed

Progress: TypeAlias = Callable[[int], object]
"""Is told on the host how many samples have just been finished, such as `tqdm.update`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of samples, element by element, and how many they are of.

    A pytree. `variance` is that of the samples themselves: it divides by their
    number, so that one sample has variance 0.

    Attributes:
      count: how many samples, as a uint32 scalar.
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

        Under `vmap`, use `jax.vmap(Moments.merge)`. A single run adds up thousands
        of terms more exactly than as many merges.

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
        return _Running.of(self).add(other).moments


def monte_carlo(
    fn: Callable[..., Any],
    num_samples: int,
    *,
    batch_size: int | None = None,
    start: int = 0,
    progress: Progress | None = None,
) -> Callable[..., Any]:
    """Runs a function with many keys and stacks what it returns.

    Sample i uses `jax.random.fold_in(key, i)`. So its masks depend neither on how
    many samples there are nor on `batch_size`, and a run is extended with `start`.
    (XLA may round the products of another batch size differently. And what `fn`
    itself draws by `jax.random` from an `rbg` key depends on the batch, as always
    under `vmap`; the drops of jaxdrop do not.)

    The samples of a network with dropout say how much its answer depends on the
    units it drops. That is a heuristic for the uncertainty of a posterior: the
    spread is set by the rate and need not shrink with more data, so measure its
    calibration before you rely on it.

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays.
      num_samples: how many samples, at least 1.
      batch_size: how many run at once at most, under `vmap`; None for all. Batches
        are of equal size, the last one filled up with samples that are not used.
      start: the number of the first sample. To extend a run, pass a
        `jax.random.clone` of its key if the key reuse checker is on.
      progress: called on the host after each batch with the number of its
        samples, such as `tqdm.update`; None for no calls. It may lag behind the
        result (`jax.effects_barrier` waits for it), and under `vmap` is called for
        each mapped element.

    Returns:
      A function `(key, *args, **kwargs)` that returns the samples along a new
      first axis. It is not compiled: wrap it in `jax.jit`.

    Raises:
      TypeError: `num_samples`, `batch_size` or `start` are not integers, or
        `progress` is no function; or when called, if `key` is not one key.
      ValueError: `num_samples` or `batch_size` is below 1, `start` below 0, or
        their last number not below 2^32.

    Example:
      >>> fn = partial(jaxdrop.dropout, rate=0.5)
      >>> samples = monte_carlo(fn, 100)(jax.random.key(0), jnp.ones(3))
      >>> samples.shape
      (100, 3)
      >>> more = monte_carlo(fn, 50, start=50, batch_size=4)(jax.random.key(0), jnp.ones(3))
      >>> bool((more == samples[50:]).all())
      True

    References:
      Gal and Ghahramani, "Dropout as a Bayesian approximation",
      arXiv:1506.02142 (2016); Osband, "Risk versus uncertainty in deep
      learning" (2016), for what the spread is not.
    """
    check = Check("monte_carlo")
    plan = _plan(check, num_samples, batch_size, start, progress)

    def stacked(key: Key, *args: Any, **kwargs: Any) -> Any:
        run = batch_of(fn, check.one_key(key), args, kwargs)

        def step(first: Array, _: None) -> tuple[Array, Any]:
            samples = run(first, plan.batch)
            plan.tell(samples, first)
            return first + plan.batch, samples

        _, batches = lax.scan(step, jnp.uint32(plan.start), length=plan.batches)
        return jax.tree.map(lambda x: lax.collapse(x, 0, 2)[: plan.samples], batches)

    return stacked


def monte_carlo_moments(
    fn: Callable[..., Any],
    num_samples: int,
    *,
    batch_size: int | None = 1,
    start: int = 0,
    progress: Progress | None = None,
) -> Callable[..., Moments]:
    """Runs a function with many keys and keeps count, mean and variance.

    The samples are those of `monte_carlo`, but memory does not grow with their
    number: each batch is merged into the moments and forgotten. (A gradient keeps
    what it needs of each sample, or its inputs alone if `fn` is wrapped in
    `jax.checkpoint`.) Return whatever has a mean that you need, such as
    probabilities and their entropy.

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays.
      num_samples: how many samples, at least 1.
      batch_size: how many run at once at most, under `vmap`; None for all.
      start: the number of the first sample; `Moments.merge` joins runs.
      progress: called on the host after each batch with the number of its
        samples, as by `monte_carlo`; None for no calls.

    Returns:
      A function `(key, *args, **kwargs)` that returns `Moments`, in float32 or
      wider. It is not compiled: wrap it in `jax.jit`.

    Raises:
      TypeError: `num_samples`, `batch_size` or `start` are not integers, or
        `progress` is no function; or when called, if `key` is not one key.
      ValueError: `num_samples` or `batch_size` is below 1, `start` below 0, or
        their last number not below 2^32.

    Example:
      >>> def fn(key, x):
      ...     return jaxdrop.dropout(key, x, 0.2)
      >>> moments = monte_carlo_moments(fn, 10_000, batch_size=100)(jax.random.key(0), jnp.ones(1))
      >>> int(moments.count), abs(float(moments.variance[0]) - 0.25) < 0.05  # p / q
      (10000, True)

    References:
      Welford, "Note on a method for calculating corrected sums of squares and
      products", Technometrics 4 (1962); Chan, Golub and LeVeque (1983).
    """
    check = Check("monte_carlo_moments")
    plan = _plan(check, num_samples, batch_size, start, progress)

    def moments(key: Key, *args: Any, **kwargs: Any) -> Moments:
        run = batch_of(fn, check.one_key(key), args, kwargs)

        def step(carry: tuple[Array, _Running], _: None) -> tuple[tuple[Array, _Running], None]:
            first, total = carry
            samples = run(first, plan.batch)
            plan.tell(samples, first)
            total = total.add(_moments_of(samples, plan.left(first)))
            return (first + plan.batch, total), None

        def one_batch() -> Moments:
            return _moments_of(run(jnp.uint32(plan.start), plan.batch), jnp.uint32(0))

        begin = jnp.uint32(plan.start), _Running.of(zeros_of(one_batch))
        return lax.scan(step, begin, length=plan.batches)[0][1].moments

    return moments


class _Plan(NamedTuple):
    samples: int
    batch: int  # at most all samples
    batches: int
    start: int
    progress: Progress | None

    def left(self, first: Array) -> Array:
        """How many samples the batch from this number on has: all but the last are full."""
        end = jnp.uint32((self.start + self.samples) % 2**32)
        return jnp.minimum(end - first, jnp.uint32(self.batch))

    def tell(self, samples: Any, first: Array) -> None:
        """Tells the host, after the batch is there, how many samples it has."""
        progress = self.progress
        if progress is None:
            return

        def tell(count: Array, _: list[Array]) -> None:
            progress(int(count))

        # The host waits for its operands, of which a sum is small however the samples are split.
        leaves = [x for x in jax.tree.leaves(samples) if not _is_extended(x)]
        jax.debug.callback(tell, self.left(first), [jnp.sum(x) for x in leaves])


def _plan(check: Check, samples: Any, batch: Any, start: Any, progress: Any) -> _Plan:
    samples = check.whole_number("num_samples", samples, 1)
    start = check.whole_number("start", start, 0)
    batch = samples if batch is None else check.whole_number("batch_size", batch, 1)
    if start + samples > 2**32:
        raise ValueError(
            f"{check}: start + num_samples must be at most 2^32; got {start} + {samples}."
        )
    if progress is not None and not callable(progress):
        raise TypeError(
            f"{check}: progress must be a function of the number of samples just finished;"
            f" got {progress!r}."
        )
    batches = -(-samples // min(batch, samples))
    return _Plan(samples, -(-samples // batches), batches, start, progress)


def batch_of(
    fn: Callable[..., Any], key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Array, int], Any]:
    """A function of the first number and the count that runs so many samples side by side."""
    mark_consumed(key)

    def run(first: Array, count: int) -> Any:
        keys = fold_in_all(key, first + lax.iota(jnp.uint32, count))
        return jax.vmap(lambda key: fn(key, *args, **kwargs))(keys)

    return run


def _is_extended(x: Array) -> bool:
    """Whether an array is one of keys, which cannot be added up."""
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


class _Running(NamedTuple):
    """Moments, and what rounding has lost of them: a long sum of small terms needs it."""

    moments: Moments
    lost_mean: Any
    lost_variance: Any

    @classmethod
    def of(cls, moments: Moments) -> "_Running":
        zeros = (jax.tree.map(jnp.zeros_like, x) for x in (moments.mean, moments.variance))
        return cls(moments, *zeros)

    def add(self, other: Moments) -> "_Running":
        """With other samples, by Chan's formula and Kahan's summation."""
        moments = self.moments
        count = moments.count + other.count

        def share_of(x: Array) -> Array:
            return other.count.astype(x.dtype) / jnp.maximum(count, 1).astype(x.dtype)

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
        return _Running(Moments(count, mean, variance), lost_mean, lost_variance)


def _apart(a: Array, b: Array) -> Array:
    """What is to be added to `a` for `b`: 0 for equal infinities."""
    return jnp.where(jnp.isinf(a) & (a == b), 0, b - a)


def _summed(total: Any, terms: Any, lost: Any) -> tuple[Any, Any]:
    """Totals with the terms added, and what is now too large in them."""
    terms = jax.tree.map(lambda term, excess: term - excess, terms, lost)
    sums = jax.tree.map(lambda x, term: x + term, total, terms)

    def excess(x: Array, y: Array, term: Array) -> Array:
        return jnp.where(jnp.isfinite(y), (y - x) - term, 0)

    return sums, jax.tree.map(excess, total, sums, terms)


def _moments_of(samples: Any, count: Array) -> Moments:
    """Moments of the first samples along the first axis, exact where all are equal."""

    def average(x: Array) -> Array:
        kept = lax.expand_dims(lax.iota(jnp.uint32, len(x)) < count, range(1, x.ndim))
        return jnp.sum(jnp.where(kept, x, 0), 0) / count.astype(x.dtype)

    wide = jax.tree.map(widen, samples)
    mean = jax.tree.map(lambda x: centred_mean(x, average), wide)
    variance = jax.tree.map(lambda x, m: average(_square(x - m[None])), wide, mean)
    return Moments(count, mean, variance)


def _square(x: Array) -> Array:
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x * x
