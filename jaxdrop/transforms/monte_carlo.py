"""Runs a function with many keys, and returns all results or their mean and variance."""

from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdrop.base.compat import zeros_of
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.words import fold_in_all, mark_consumed
from jaxdrop.transforms.moments import Moments, RunningMoments, moments_of

P = ParamSpec("P")
Out = TypeVar("Out")

Progress: TypeAlias = Callable[[int], object]
"""A function, such as `tqdm.update`, that is told how many samples were just finished."""

Carry: TypeAlias = tuple[Array, RunningMoments]
"""The state between batches: the number of the next sample, and the moments of all earlier ones."""


def monte_carlo(
    fn: Callable[Concatenate[Key, P], Out],
    num_samples: int,
    *,
    batch_size: int | None = None,
    start: int = 0,
    progress: Progress | None = None,
) -> Callable[Concatenate[Key, P], Out]:
    """Runs a function with many keys and stacks what it returns.

    Sample i uses `jax.random.fold_in(key, i)`. So its masks depend neither on the
    number of samples nor on `batch_size`, and `start` continues an earlier run. (With
    another batch size, XLA may round products differently. If `fn` itself draws numbers
    with `jax.random` from an `rbg` key, these depend on the batch, as always under
    `vmap`. The drops of jaxdrop do not.)

    The samples of a network with dropout show how much its answer depends on the
    dropped units. This is a heuristic for the uncertainty of a posterior: the rate sets
    the spread, which need not shrink with more data. So measure its calibration before
    you rely on it.

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays.
      num_samples: how many samples, at least 1.
      batch_size: the most samples that run at once, under `vmap`; None for all. All
        batches have one size; the last is filled up with samples that are not used.
      start: the number of the first sample. If the key reuse checker is on and you
        continue a run, pass a `jax.random.clone` of its key.
      progress: called on the host after each batch with the number of its
        samples, such as `tqdm.update`; None for no calls. It may lag behind the
        result (`jax.effects_barrier` waits for it). Under `vmap` it is called once
        per mapped element.

    Returns:
      A function `(key, *args, **kwargs)` that returns the samples along a new
      first axis. It is not compiled: wrap it in `jax.jit`.

    Raises:
      TypeError: `num_samples`, `batch_size` or `start` are not integers, or `fn` or
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
    check.function_of("fn", fn, "(key, ...)")
    batches = _batches(check, num_samples, batch_size, start, progress)
    return partial(_stacked, fn, batches)


def monte_carlo_moments(
    fn: Callable[Concatenate[Key, P], Any],
    num_samples: int,
    *,
    batch_size: int | None = 1,
    start: int = 0,
    progress: Progress | None = None,
) -> Callable[Concatenate[Key, P], Moments]:
    """Runs a function with many keys and keeps count, mean and variance.

    The samples are those of `monte_carlo`, but memory does not grow with their number,
    because each batch is merged into the moments and not kept. (A gradient keeps the
    residuals of each sample; if `fn` is wrapped in `jax.checkpoint`, it keeps only the
    inputs of `fn`.) Let `fn` return everything whose mean you need, such as
    probabilities and their entropy.

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays.
      num_samples: how many samples, at least 1.
      batch_size: the most samples that run at once, under `vmap`; None for all.
      start: the number of the first sample; `Moments.merge` joins runs.
      progress: called on the host after each batch with the number of its
        samples, as by `monte_carlo`; None for no calls.

    Returns:
      A function `(key, *args, **kwargs)` that returns `Moments`, in float32 or
      wider. It is not compiled: wrap it in `jax.jit`.

    Raises:
      TypeError: `num_samples`, `batch_size` or `start` are not integers, or `fn` or
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
    check.function_of("fn", fn, "(key, ...)")
    batches = _batches(check, num_samples, batch_size, start, progress)
    return partial(_moments, fn, batches)


# What the functions above return are these two, with their first arguments bound, so that it
# can be pickled if `fn` can.
def _stacked(
    fn: Callable[..., Any], batches: "_Batches", /, key: Key, *args: Any, **kwargs: Any
) -> Any:
    run = batch_of(fn, Check("monte_carlo").one_key(key), args, kwargs)

    def step(first: Array, _: None) -> tuple[Array, Any]:
        samples = run(first, batches.size)
        batches.tell(samples, first)
        return first + batches.size, samples

    _, found = lax.scan(step, jnp.uint32(batches.start), length=batches.number)
    return jax.tree.map(lambda x: lax.collapse(x, 0, 2)[: batches.samples], found)


def _moments(
    fn: Callable[..., Any], batches: "_Batches", /, key: Key, *args: Any, **kwargs: Any
) -> Moments:
    run = batch_of(fn, Check("monte_carlo_moments").one_key(key), args, kwargs)

    def step(carry: Carry, _: None) -> tuple[Carry, None]:
        first, total = carry
        samples = run(first, batches.size)
        batches.tell(samples, first)
        total = total.add(moments_of(samples, batches.left(first)))
        return (first + batches.size, total), None

    def one_batch() -> Moments:
        return moments_of(run(jnp.uint32(batches.start), batches.size), jnp.uint32(0))

    begin = jnp.uint32(batches.start), RunningMoments.of(zeros_of(one_batch))
    return lax.scan(step, begin, length=batches.number)[0][1].moments


class _Batches(NamedTuple):
    """How samples are run: in batches of one size, one after another."""

    samples: int
    size: int  # of all batches; the last may use fewer
    number: int
    start: int
    progress: Progress | None

    def left(self, first: Array) -> Array:
        """How many samples the batch that starts with this number has."""
        # Modulo 2^32: the last number may be 2^32 - 1, and the difference wraps back.
        end = jnp.uint32((self.start + self.samples) % 2**32)
        return jnp.minimum(end - first, jnp.uint32(self.size))

    def tell(self, samples: Any, first: Array) -> None:
        """Tells the host how many samples a batch has, once it is computed."""
        progress = self.progress
        if progress is None:
            return

        def tell(count: Array, _: list[Array]) -> None:
            progress(int(count))

        # The callback waits for its operands. The operands are sums: they are small,
        # and each is whole on one device, even if the samples are split over devices.
        leaves = [x for x in jax.tree.leaves(samples) if not _is_extended(x)]
        jax.debug.callback(tell, self.left(first), [jnp.sum(x) for x in leaves])


def _batches(check: Check, samples: Any, batch: Any, start: Any, progress: Any) -> _Batches:
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
    # Both quotients are rounded up. With equal batches the last batch wastes least: 10
    # samples, of which at most 6 run at once, become 5 and 5.
    batches = -(-samples // min(batch, samples))
    return _Batches(samples, -(-samples // batches), batches, start, progress)


def batch_of(
    fn: Callable[..., Any], key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Array, int], Any]:
    """A function `(first, count)` that runs `count` samples together, from number `first` on."""
    mark_consumed(key)

    def run(first: Array, count: int) -> Any:
        keys = fold_in_all(key, first + lax.iota(jnp.uint32, count))
        return jax.vmap(lambda key: fn(key, *args, **kwargs))(keys)

    return run


def _is_extended(x: Array) -> bool:
    """Whether an array holds keys, which cannot be added up."""
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)
