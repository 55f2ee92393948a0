"""Laws of random decisions as counts that are binomial, so that each has an exact p-value.

A law counts one kind of event over draws of a panel. Its trials are independent, and each
has a known chance, so the count is binomial; nothing here is asymptotic. Pairs that are
compared are disjoint, since overlapping ones would not be independent.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

LAGS = (2, 3, 4, 7, 8, 16, 31, 32, 33, 64)
QUANTILES = (1e-4, 1e-2, 0.1, 0.5, 0.9, 0.99, 1 - 1e-4)


@dataclass(frozen=True)
class Law:
    """A family of counts over draws, each with its number of trials and its chance.

    Attributes:
      name: what is counted.
      count: `(draws, *shape) -> counts`, over a batch of an even number of draws.
      chance: the probability of each count's event: the lowest and the highest that
        are right, which differ where the law is known up to rounding.
      trials: of each count in so many draws.
      draws: how many draws that is.
    """

    name: str
    count: Callable[[jax.Array], jax.Array]
    chance: tuple[np.ndarray, np.ndarray]
    trials: int = 1
    draws: int = 1

    @property
    def tests(self) -> int:
        return self.chance[0].size


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


def both_rare(chance):
    return np.minimum(chance, 1 - chance) ** 2


def never(name, event):
    """A law that holds in every draw; `event` says in which it does not."""
    impossible = np.zeros(1)

    def count(drawn):
        return jnp.sum(event(drawn), dtype=jnp.int32)[None]

    return Law(name, count, (impossible, impossible))


def viewed(laws, view, prefix=""):
    """The same laws, of what `view` makes of a batch of draws."""
    return [
        replace(law, name=prefix + law.name, count=lambda drawn, law=law: law.count(view(drawn)))
        for law in laws
    ]


def by_place(name, chance, slack=0.0):
    """Each place of a draw has a chance of its own; draws are independent."""
    chance = np.asarray(chance, float)

    def count(kept):
        return jnp.sum(kept, axis=0, dtype=jnp.int32)

    return Law(name, count, span(lambda c: c, chance, slack))


def independent(shape, chance, slack=0.0):
    """All laws of booleans that are independent and have one chance."""
    size = math.prod(shape)
    laws = [_share("share kept", chance, slack, size, lambda kept: kept)]
    laws += [by_place("each element", np.full(shape, chance), slack)]
    laws += [_numbers_kept(size, chance, slack)]
    laws += [_consecutive_draws(shape, chance, slack)]
    for axis in range(len(shape)):
        if 1 < shape[axis] < size:
            laws += [_slices(axis, shape, chance, slack)]
    for axis in range(len(shape)):
        if shape[axis] > 1:
            laws += _neighbours(axis, shape, chance, slack)
    if shape and 2 < shape[0] <= 8:
        laws += _pairs_of_first_axis(shape, chance, slack)
    if size > 2:
        laws += [_each_pair(size, chance, slack)]
    for lag in LAGS:
        if 2 * lag <= size:
            laws += _apart(lag, size, chance, slack)
    return laws


def _share(name, chance, slack, trials, view, draws=1):
    def count(kept):
        return jnp.sum(view(kept), dtype=jnp.int32)[None]

    return Law(name, count, span(lambda c: c, np.full(1, chance), slack), trials, draws)


def _numbers_kept(size, chance, slack):
    """How often a draw keeps at most so many: sees whatever makes draws vary more, or less."""
    limits = np.unique(stats.binom.ppf(QUANTILES, size, chance)).astype(np.int32)
    limits = limits[(limits >= 0) & (limits < size)]

    def count(kept):
        number = jnp.sum(kept.reshape(len(kept), -1), axis=1, dtype=jnp.int32)
        return jnp.sum(number[:, None] <= limits[None], axis=0, dtype=jnp.int32)

    within = span(lambda c: stats.binom.cdf(limits, size, c), np.asarray(chance), slack)
    return Law("number kept in a draw", count, within)


def _consecutive_draws(shape, chance, slack):
    def count(kept):
        return jnp.sum(kept[0::2] == kept[1::2], axis=0, dtype=jnp.int32)

    within = span(agreement, np.full(shape, chance), slack)
    return Law("each element in consecutive draws", count, within, draws=2)


def _slices(axis, shape, chance, slack):
    others = tuple(i + 1 for i in range(len(shape)) if i != axis)

    def count(kept):
        return jnp.sum(kept, axis=(0, *others), dtype=jnp.int32)

    within = span(lambda c: c, np.full(shape[axis], chance), slack)
    return Law(f"slices of axis {axis}", count, within, math.prod(shape) // shape[axis])


def _neighbours(axis, shape, chance, slack):
    half = shape[axis] // 2
    trials = math.prod(shape) // shape[axis] * half

    def halves(kept):
        kept = jnp.moveaxis(kept, axis + 1, 1)
        return kept[:, 0 : 2 * half : 2], kept[:, 1 : 2 * half : 2]

    return _alike(f"neighbours along axis {axis}", halves, trials, chance, slack)


def _apart(lag, size, chance, slack):
    blocks = size // (2 * lag)

    def halves(kept):
        rows = kept.reshape(len(kept), -1)[:, : blocks * 2 * lag].reshape(-1, blocks, 2, lag)
        return rows[:, :, 0], rows[:, :, 1]

    return _alike(f"elements {lag} apart", halves, blocks * lag, chance, slack)


def _alike(name, halves, trials, chance, slack):
    """Two laws of disjoint pairs: how many are alike, and how many are both the rarer."""
    rarer = chance <= 0.5

    def alike(kept):
        first, second = halves(kept)
        return jnp.sum(first == second, dtype=jnp.int32)[None]

    def rare(kept):
        first, second = halves(kept)
        return jnp.sum((first == rarer) & (second == rarer), dtype=jnp.int32)[None]

    laws = ((f"{name} agree", alike, agreement), (f"{name} are both rare", rare, both_rare))
    return [
        Law(what, count, span(function, np.full(1, chance), slack), trials)
        for what, count, function in laws
    ]


def _pairs_of_first_axis(shape, chance, slack):
    trials = math.prod(shape[1:])
    laws = []
    for i, j in itertools.combinations(range(shape[0]), 2):

        def halves(kept, i=i, j=j):
            return kept[:, i], kept[:, j]

        laws += _alike(f"slices {i} and {j} of axis 0", halves, trials, chance, slack)
    return laws


def _each_pair(size, chance, slack):
    def count(kept):
        flat = kept.reshape(len(kept), -1)
        return jnp.sum(flat[:, 1:] == flat[:, :-1], axis=0, dtype=jnp.int32)

    within = span(agreement, np.full(size - 1, chance), slack)
    return Law("each element and the next", count, within)


def of_words(words, chance):
    """Laws of `words` packed words of 32 independent bits in each draw; a power of two."""
    bits = jax.lax.population_count
    laws = [_share("share kept", chance, 0, 32 * words, bits)]
    laws += [_lanes(words, chance)]
    laws += [_numbers_kept_in_words(words, chance)]
    for name, word in (("first", 0), ("last", words - 1)):
        each = by_place(f"each lane of the {name} word", np.full(32, chance))
        laws += viewed([each], partial(_bits_of_word, word=word))
    parts = min(words, 64)
    laws += viewed(
        [_slices(0, (parts, 32 * words // parts), chance, 0.0)],
        lambda drawn: bits(drawn).reshape(len(drawn), parts, -1),
        f"{parts} parts: ",
    )
    for lag in (1, 2, 4, 8, 16):
        laws += _lanes_apart(lag, words, chance)
    for lag in 2 ** np.arange(int(math.log2(words))):
        laws += _words_apart(int(lag), words, chance)
    laws += _pairs_of_words(
        "consecutive draws", lambda w: (w[0::2], w[1::2]), 32 * words, chance, 2
    )
    return laws


def _bits_of_word(drawn, word):
    return (drawn[:, word, None] >> np.arange(32, dtype=np.uint32)[None]) & np.uint32(1)


def _lanes(words, chance):
    def count(drawn):
        return lane_counts(drawn.reshape(-1, min(words, 128)))

    return Law("each lane", count, (np.full(32, chance),) * 2, words)


def lane_counts(rows):
    """How many words have each of the 32 bits, added four lanes at once in bytes."""
    found = []
    for shift in range(8):
        four = (rows >> np.uint32(shift)) & np.uint32(0x01010101)
        four = jnp.sum(four, axis=1, dtype=jnp.uint32)  # of at most 255 words
        found += [
            jnp.sum((four >> np.uint32(byte)) & np.uint32(255), dtype=jnp.int32)
            for byte in (0, 8, 16, 24)
        ]
    return jnp.stack([found[4 * (lane % 8) + lane // 8] for lane in range(32)])


def _numbers_kept_in_words(words, chance):
    law = _numbers_kept(32 * words, chance, 0.0)
    return viewed([law], jax.lax.population_count)[0]


def _lanes_apart(lag, words, chance):
    """Lanes that lie `lag` apart in one word: 16 disjoint pairs."""
    first = np.uint32(sum(1 << lane for lane in range(32) if lane // lag % 2 == 0))

    def halves(drawn):
        return drawn & first, (drawn >> np.uint32(lag)) & first

    return _pairs_of_words(f"lanes {lag} apart", halves, 16 * words, chance, spare=16)


def _words_apart(lag, words, chance):
    def halves(drawn):
        rows = drawn.reshape(len(drawn), -1, 2, lag)
        return rows[:, :, 0], rows[:, :, 1]

    return _pairs_of_words(f"words {lag} apart", halves, 16 * words, chance)


def _pairs_of_words(name, halves, trials, chance, draws=1, spare=0):
    """The two laws of pairs, of which `spare` bits a word are 0 in both halves."""
    bits = jax.lax.population_count
    flip = np.uint32(0 if chance <= 0.5 else 2**32 - 1)

    def alike(drawn):
        first, second = halves(drawn)
        agree = bits(~(first ^ second)).astype(jnp.int32) - spare
        return jnp.sum(agree, dtype=jnp.int32)[None]

    def rare(drawn):
        first, second = halves(drawn ^ flip)
        return jnp.sum(bits(first & second), dtype=jnp.int32)[None]

    laws = ((f"{name} agree", alike, agreement), (f"{name} are both rare", rare, both_rare))
    return [
        Law(what, count, (function(np.full(1, chance)),) * 2, trials, draws)
        for what, count, function in laws
    ]
