"""Laws of random decisions as counts that are binomial, so that each has an exact p-value.

A law counts one kind of event over draws of a panel. Its trials are independent, and each
has a known chance, so the count is binomial; nothing here is asymptotic. Pairs that are
compared are disjoint, since overlapping ones would not be independent.
"""

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

LAGS = (2, 8, 31, 32, 33)
QUANTILES = (1e-4, 1e-2, 0.1, 0.5, 0.9, 0.99, 1 - 1e-4)


@dataclass(frozen=True)
class Law:
    """A family of counts over draws, each with its number of trials and its chance.

    Attributes:
      name: what is counted.
      count: `(draws, *shape) -> counts`, over a batch of an even number of draws; jitted, and
        the same function for all panels, so that it compiles once a shape.
      chance: the probability of each count's event: the lowest and the highest that
        are right, which differ where the law is known up to rounding.
      trials: of each count in so many draws.
      draws: how many draws that is.
      view: what the count is given, of a batch of draws.
    """

    name: str
    count: Callable[[jax.Array], jax.Array]
    chance: tuple[np.ndarray, np.ndarray]
    trials: int = 1
    draws: int = 1
    view: Callable[[jax.Array], jax.Array] = lambda drawn: drawn

    @property
    def tests(self) -> int:
        return self.chance[0].size


def counter(function):
    """Jits a count of draws; what else it takes is known."""
    return jax.jit(function, static_argnames=tuple(inspect.signature(function).parameters)[1:])


def p_values(counts, trials, chance):
    """Twice the smaller tail, each at the chance that makes it largest: an upper bound."""
    low, high = chance
    above = stats.binom.sf(np.asarray(counts) - 1, trials, high)
    below = stats.binom.cdf(counts, trials, low)
    return np.minimum(1, 2 * np.minimum(above, below))


def smallest_found(trials, chance, level, power):
    """The smallest rise, and the smallest fall, of a chance that a test at `level` finds."""
    low, high = chance
    above = stats.binom.isf(level / 2, trials, high) + 1  # the first count that is rejected
    below = stats.binom.ppf(level / 2, trials, low) - 1  # the last one on the other side
    rise = _crossing(lambda c: stats.binom.sf(above - 1, trials, c) - power, high, 1)
    fall = _crossing(lambda c: stats.binom.cdf(below, trials, c) - power, low, 0)
    return rise - high, low - fall


def _crossing(excess, start, end):
    if excess(end) < 0:
        return math.nan
    return optimize.brentq(excess, start, end, xtol=1e-300, rtol=1e-12)


def span(function, chance, slack):
    """The lowest and highest value of a function of a chance that is known up to `slack`."""
    near = np.linspace(np.maximum(chance - slack, 0), np.minimum(chance + slack, 1), 3)
    values = np.stack([function(each) for each in near])
    return values.min(0), values.max(0)


def agreement(chance):
    return chance**2 + (1 - chance) ** 2


def pair_chances(chance):
    """That two decisions agree, are both True, and are both False."""
    return np.stack([agreement(chance), chance**2, (1 - chance) ** 2])


def same(chance):
    return chance


def never(name, view):
    """A law that holds in every draw; `view` says where it does not."""
    return Law(name, count_all, (np.zeros(1), np.zeros(1)), view=view)


def viewed(laws, view, prefix=""):
    """The same laws, of what `view` makes of a batch of draws."""
    return [replace(law, name=prefix + law.name, view=view) for law in laws]


def by_place(name, chance, slack=0.0):
    """Each place of a draw has a chance of its own; draws are independent."""
    return Law(name, count_places, span(same, np.asarray(chance, float), slack))


@counter
def count_places(kept):
    return jnp.sum(kept, axis=0, dtype=jnp.int32)


@counter
def count_all(kept):
    return jnp.sum(kept, dtype=jnp.int32)[None]


def independent(shape, chance, slack=0.0):
    """All laws of booleans that are independent and have one chance."""
    size = math.prod(shape)

    def law(name, count, function, places, trials=1, draws=1):
        return Law(name, count, span(function, np.full(places, chance), slack), trials, draws)

    laws = [law("share kept", count_all, same, (1,), size)]
    laws += [law("each element", count_places, same, shape)]
    laws += [law("each element in consecutive draws", count_consecutive, agreement, shape, draws=2)]
    numbers = span(lambda c: stats.binom.cdf(np.arange(size), size, c), np.asarray(chance), slack)
    laws += [Law("number kept in a draw", count_numbers, numbers)]
    if size > 2:
        laws += [law("each element and the next", count_next, agreement, size - 1)]
    for axis, length in enumerate(shape):
        if 1 < length < size:
            count = partial(count_slices, axis=axis)
            laws += [law(f"slices of axis {axis}", count, same, length, size // length)]
        if length > 1:
            count = partial(count_neighbours, axis=axis)
            trials = size // length * (length // 2)
            laws += [law(f"neighbours along axis {axis}", count, pair_chances, (), trials)]
    if shape and 2 < shape[0] <= 8:
        pairs = (shape[0] * (shape[0] - 1) // 2,)
        trials = size // shape[0]
        laws += [law("pairs of slices of axis 0", count_slice_pairs, pair_chances, pairs, trials)]
    for lag in LAGS:
        if 2 * lag <= size:
            count, trials = partial(count_apart, lag=lag), size // (2 * lag) * lag
            laws += [law(f"elements {lag} apart", count, pair_chances, (), trials)]
    return laws


@counter
def count_consecutive(kept):
    return count_places(kept[0::2] == kept[1::2])


@counter
def count_numbers(kept):
    """How often a draw keeps at most so many: sees what makes draws vary more, or less."""
    size = math.prod(kept.shape[1:])
    number = jnp.sum(kept.reshape(len(kept), -1), axis=1, dtype=jnp.int32)
    return jnp.cumsum(jnp.bincount(number, length=size + 1))[:-1]


@counter
def count_next(kept):
    flat = kept.reshape(len(kept), -1)
    return count_places(flat[:, 1:] == flat[:, :-1])


@counter
def count_slices(kept, axis):
    others = tuple(i for i in range(kept.ndim) if i != axis + 1)
    return jnp.sum(kept, axis=others, dtype=jnp.int32)


@counter
def count_neighbours(kept, axis):
    kept = jnp.moveaxis(kept, axis + 1, 1)
    pairs = kept.shape[1] // 2
    return _pairs(kept[:, 0 : 2 * pairs : 2], kept[:, 1 : 2 * pairs : 2])


@counter
def count_apart(kept, lag):
    flat = kept.reshape(len(kept), -1)
    blocks = flat.shape[1] // (2 * lag)
    rows = flat[:, : blocks * 2 * lag].reshape(-1, blocks, 2, lag)
    return _pairs(rows[:, :, 0], rows[:, :, 1])


@counter
def count_slice_pairs(kept):
    pairs = itertools.combinations(range(kept.shape[1]), 2)
    return jnp.stack([_pairs(kept[:, i], kept[:, j]) for i, j in pairs], axis=1)


def _pairs(first, second):
    """How many pairs agree, are both True, and are both False."""
    events = (first == second, first & second, ~(first | second))
    return jnp.stack([jnp.sum(event, dtype=jnp.int32) for event in events])


def of_words(words, chance):
    """Laws of `words` packed words of 32 independent bits in each draw; a power of two."""

    def law(name, count, function, places, trials=1, draws=1):
        return Law(name, count, span(function, np.full(places, chance), 0.0), trials, draws)

    parts = min(words, 64)
    limits = tuple(np.unique(stats.binom.ppf(QUANTILES, 32 * words, chance)).tolist())
    numbers = (stats.binom.cdf(limits, 32 * words, chance),) * 2
    laws = [
        law("share kept", partial(count_parts, parts=1), same, 1, 32 * words),
        law("each part of 64", partial(count_parts, parts=parts), same, parts, 32 * words // parts),
        law("each lane", count_lanes, same, 32, words),
        Law("number kept in a draw", partial(count_words_kept, limits=limits), numbers),
        law("each lane of the first word", partial(count_word, word=0), same, 32),
        law("each lane of the last word", partial(count_word, word=words - 1), same, 32),
        law("consecutive draws", count_consecutive_words, pair_chances, (), 32 * words, draws=2),
    ]
    for lag in (1, 2, 4, 8, 16):
        count = partial(count_lanes_apart, lag=lag)
        laws += [law(f"lanes {lag} apart", count, pair_chances, (), 16 * words)]
    for lag in (2**i for i in range(int(math.log2(words)))):
        count = partial(count_words_apart, lag=lag)
        laws += [law(f"words {lag} apart", count, pair_chances, (), 16 * words)]
    return laws


@counter
def count_parts(drawn, parts):
    rows = drawn.reshape(len(drawn), parts, -1)
    return jnp.sum(jax.lax.population_count(rows), axis=(0, 2), dtype=jnp.int32)


@counter
def count_lanes(drawn):
    """How many words have each of the 32 bits, added four lanes at once in bytes."""
    rows = drawn.reshape(-1, 128)
    found = []
    for shift in range(8):
        four = (rows >> np.uint32(shift)) & np.uint32(0x01010101)
        four = jnp.sum(four, axis=1, dtype=jnp.uint32)  # of at most 255 words
        found += [
            jnp.sum((four >> np.uint32(byte)) & np.uint32(255), dtype=jnp.int32)
            for byte in (0, 8, 16, 24)
        ]
    return jnp.stack([found[4 * (lane % 8) + lane // 8] for lane in range(32)])


@counter
def count_words_kept(drawn, limits):
    number = jnp.sum(jax.lax.population_count(drawn), axis=1, dtype=jnp.int32)
    return jnp.stack([jnp.sum(number <= int(limit), dtype=jnp.int32) for limit in limits])


@counter
def count_word(drawn, word):
    bit = np.arange(32, dtype=np.uint32)[None]
    return jnp.sum((drawn[:, word, None] >> bit) & np.uint32(1), axis=0, dtype=jnp.int32)


@counter
def count_consecutive_words(drawn):
    return _word_pairs(drawn[0::2], drawn[1::2], np.uint32(2**32 - 1))


@counter
def count_lanes_apart(drawn, lag):
    """Lanes that lie `lag` apart in one word: 16 disjoint pairs."""
    first = np.uint32(sum(1 << lane for lane in range(32) if lane // lag % 2 == 0))
    return _word_pairs(drawn, drawn >> np.uint32(lag), first)


@counter
def count_words_apart(drawn, lag):
    rows = drawn.reshape(len(drawn), -1, 2, lag)
    return _word_pairs(rows[:, :, 0], rows[:, :, 1], np.uint32(2**32 - 1))


def _word_pairs(first, second, lanes):
    """How many pairs of bits at `lanes` agree, are both 1, and are both 0."""
    events = (~(first ^ second), first & second, ~(first | second))
    bits = [jax.lax.population_count(event & lanes) for event in events]
    return jnp.stack([jnp.sum(each, dtype=jnp.int32) for each in bits])
