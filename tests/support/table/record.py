"""What one record of the table says of a method: each fact of it stands here and nowhere else.

The laws (test_laws.py), the fuzz, the statistics of fresh keys, the spread over devices,
the golden patterns, the gallery and the benchmark of methods all read these records. A
method that keeps the mean by an independent mask needs its name and its function; other
fields say in what a method differs from that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fresh.kinds import Kind, masks

FLOATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
WITH_INFINITY = ("float32", "bfloat16", "float16", "float8_e5m2")
MATRICES = ((0,), (0, 3), (5, 1), (2, 3, 33))
# A shape for each number of axes that splits over the eight devices along its first two.
LARGE = {1: (8192,), 2: (64, 128), 3: (16, 8, 64), 4: (16, 8, 8, 32)}


def nowhere(ndim: int) -> tuple[int, ...]:
    """Each element has a decision of its own."""
    del ndim
    return ()


def behind_first(ndim: int) -> tuple[int, ...]:
    """One decision for each index of the first axis."""
    return tuple(range(1, ndim))


def between_first_and_last(ndim: int) -> tuple[int, ...]:
    """One decision for each sample and channel."""
    return tuple(range(1, ndim - 1))


@dataclass(frozen=True)
class Fuzz:
    """How a method is called at random, and what NumPy makes of the same call.

    `run(key, x, rate, **options)` is compared with
    `reference(key, rate, shape, unit, **options)`, of `reference/`. What is None is
    filled in by `fuzzing.methods.fuzzed`: the record's `run`, `broadcast_dims` at random
    if the method takes them, and the reference of `dropout` with what the record shares.
    """

    reference: Callable[..., Any] | None = None
    options: Callable[[Any, tuple[int, ...]], dict[str, Any]] | None = None  # of (draw, shape)
    run: Callable[..., Any] | None = None
    least: int = 0  # x has at least so many axes
    most: int = 3  # and at most so many
    floats: tuple[str, ...] | None = None  # dtypes, where not all of the record's
    specials: tuple[float, ...] = (np.nan, np.inf, -np.inf)  # that x may hold
    # What only the reference is given: of whether the rate is traced, and of the dtype of x.
    told: Callable[[bool, Any], dict[str, Any]] = lambda traced, dtype: {}


@dataclass(frozen=True)
class Fresh:
    """The exact laws that the run on fresh keys compares counts with."""

    of: Callable[[Any, float], Kind] = masks  # makes them for the record and a rate
    traced: bool = True  # they are known exactly for traced rates too


@dataclass(frozen=True)
class Gallery:
    """A panel of `examples/methods_gallery.py`: the method on ones with named axes."""

    axes: dict[str, int] = field(default_factory=lambda: {"sample": 6, "unit": 12})
    columns: tuple[str, ...] = ()  # axes from left to right, outermost first; default: the last
    alike: tuple[str, ...] | None = None  # axes that share a decision; default: by `shared`
    keeps: str = "the mean"
    fate: str = "zeroed"  # of what is hit: "replaced", "disturbed", "nearly" or "partly zeroed"
    # What survivors of ones become, by the probability of keeping; None where they differ.
    survivor: Callable[[float], float] | None = lambda keep_prob: 1 / keep_prob
    asked: str = ""  # what the method is asked for; default: the rate
    # How many decisions of which kind; default: one for each part that is not alike.
    drawn: tuple[int, str] | None = None
    note: str = ""  # what the picture says; default: what is alike
    run: Callable[..., jax.Array] | None = None  # (key, x, rate) -> y; default: the record's


@dataclass(frozen=True)
class Timed:
    """A row of `benchmarks/methods.py`: the method on an input of realistic size."""

    shape: tuple[int, ...] = (4096, 4096)
    title: str = ""  # what the row says behind the function's name
    # From this shape to that of one element for each decision; default: by `shared`.
    decisions: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
    reads: int = 1  # how many arrays of this shape
    dtype: str = "float32"  # integers have no backward pass
    run: Callable[..., jax.Array] | None = None  # (key, *arrays, rate) -> y; default: the record's


@dataclass(frozen=True)
class Spread:
    """What is spread over the devices of several processes, if not the record's own run."""

    run: Callable[..., jax.Array]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Method:
    """One way to drop: `(key, x, rate) -> y`, and what is true of it."""

    name: str  # begins with that of the function
    run: Callable[..., jax.Array]

    # What the laws are tried on.
    shape: tuple[int, ...] = (6, 40)
    small: tuple[int, ...] = (5,)  # where Jacobians are taken
    odd_shapes: tuple[tuple[int, ...], ...] = ((), *MATRICES)
    floats: tuple[str, ...] = FLOATS

    # What is true of it.
    # The axes along which one decision holds, by the number of all axes.
    shared: Callable[[int], tuple[int, ...]] = nowhere
    linear: bool = True  # in x for one key, and so is its own derivative
    keeps_mean: bool = True  # E[y] = x
    # How far float32 results of two programs may lie apart, where the method subtracts numbers
    # of about one, so that what is left near zero has few exact digits.
    rounding: float = 0.0
    broadcasts: bool = True  # takes `broadcast_dims`
    aggregates: bool = False  # sums over x enter the factor, so a NaN spreads
    counts: bool = False  # over all of x, so that devices add up
    # What dropped ones become; None where that is not one number.
    at_dropped: Callable[[float], float | None] = lambda rate: 0.0
    at_kept: float | None = None  # what kept ones become, where only that is one number
    at_zero: Callable[[jax.Array], jax.Array] = lambda x: x  # what rate 0 gives
    at_one: Callable[[jax.Array], bool] = lambda y: not y.any()  # what rate 1 leaves
    drops_all_at_one: bool = True  # so that the gradient is zero there
    takes_complex: bool = True
    takes_rate: bool = True  # else it has a golden pattern, but no laws of rates
    takes_traced_rate: bool = True
    rate_learns: bool = False  # is given by its logit, which has a gradient
    monotone: bool = True  # with one key, a higher rate only drops more
    keeps_words_alone: bool = True  # for the backward pass
    compiles_anew: bool = False  # in each eager call, for a function that is made in each
    cumulative: bool = False  # calls `jnp.cumsum`
    argument: str | None = "x"  # the name of x in errors; None if any dtype will do

    # How it is fuzzed, counted, shown, timed and spread; a text says why it is not.
    fuzz: Fuzz = Fuzz()
    fresh: Fresh = Fresh()
    gallery: Gallery | str = Gallery()
    timed: Timed | str = Timed()
    spread: Spread | None = None

    @property
    def function(self) -> str:
        """The public name: `drop_key` of "drop_key+softmax"."""
        return self.name.split("+")[0].split(" ")[0]

    @property
    def large(self) -> tuple[int, ...]:
        """A shape that splits over devices."""
        return LARGE[len(self.shape)]

    def kept(self, y: jax.Array, rate: float) -> jax.Array:
        """True where nothing was dropped."""
        dropped = self.at_dropped(rate)
        if dropped is None:
            return jnp.ones(y.shape, bool)
        return ~jnp.isclose(y, dropped, rtol=1e-6, atol=0)

    def decisions(self, y: jax.Array, rate: float) -> np.ndarray:
        """What was kept of ones; where each becomes a number of its own, the signs of the noise."""
        if self.at_kept is not None:
            return np.asarray(y == self.at_kept)
        return np.asarray(y > 1 if self.at_dropped(rate) is None else self.kept(y, rate))

    def pattern(self, key: jax.Array, rate: float = 0.3) -> np.ndarray:
        """What one key decides of ones: the golden pattern."""
        return self.decisions(self.run(key, jnp.ones(self.shape), rate), rate)
