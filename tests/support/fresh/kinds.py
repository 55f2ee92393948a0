"""What a key decides, by kinds: what is looked at in a draw, and the exact laws of that.

Each kind is made for a record of the table and a rate; `Fresh` of the record names it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from fresh.laws import Law, by_place, independent, never, viewed
from reference.masks import keep_prob
from reference.regions import erased_size
from scipy import optimize, stats

import jaxdrop

BOUNDS = np.linspace(-5, 5, 41)  # of normal noise
SHARES = np.array([1e-4, 1e-3, 0.01, *np.linspace(0.05, 0.95, 19), 0.99, 0.999, 0.9999])

# By how much a chance is off, at most: of what is made of one word, and of a float32 that
# is compared with a bound.
ONE_WORD, FLOAT = 2.0**-32, 2.0**-20


def differs_from(y, unit):
    """What was kept of ones, where the unit is what becomes of dropped ones."""
    return ~jnp.isclose(y, unit, rtol=1e-6, atol=0)


def equals(y, unit):
    """What was kept of ones, where the unit is what becomes of kept ones."""
    return y == unit


def noise_in_units(y, unit):
    return (y - 1) / unit


def share_of_one(y, unit):
    return y * unit


@dataclass(frozen=True)
class Kind:
    """The laws of one kind of decision.

    Attributes:
      laws: of what `view` shows.
      decisions: how many are made at random in one draw.
      unit: what a value is compared with; an operand of the program, so that panels that
        differ in it share one.
      view: of what a method makes of ones, and of the unit.
    """

    laws: list[Law]
    decisions: int
    unit: float
    view: Callable[[jax.Array, jax.Array], jax.Array] = differs_from


def slice_shape(record):
    """The shape of one slice along the axes that share a decision."""
    axes = record.shared(len(record.shape))
    return tuple(n for i, n in enumerate(record.shape) if i not in axes)


def masks(record, rate):
    """Elements that are kept independently, alike along shared axes."""
    return _masks(record, rate, independent(slice_shape(record), keep_prob(rate)))


def _masks(record, rate, laws):
    axes = record.shared(len(record.shape))
    laws, size = _shared(axes, laws), math.prod(slice_shape(record))
    if record.at_kept is not None:
        return Kind(laws, size, record.at_kept, equals)
    return Kind(laws, size, record.at_dropped(rate))


def fixed_count(record, rate, over=0):
    """A fixed number that is kept over all axes of a slice from `over` on."""
    shape = slice_shape(record)
    count = round(math.prod(shape[over:]) * (1 - rate))
    return _masks(record, rate, _fixed_count(shape, over, count))


def given_count(record, rate, count):
    """So many that are kept of all elements of a slice, whatever the rate."""
    return _masks(record, rate, _fixed_count(slice_shape(record), 0, count))


def blocks(record, rate, over, edges, exact):
    """Blocks with these edges along the axes from `over` on."""
    return _masks(record, rate, _blocks(record.shape, over, edges, rate, exact))


def keys_left(record, rate):
    """Rows of keys of which one is left where all would be dropped."""
    return _masks(record, rate, _keys_left(record.shape, keep_prob(rate)))


def squares(record, rate, edge):
    """One square for each sample, alike along the last axis."""
    kind = _masks(record, rate, _squares(record.shape, edge))
    return replace(kind, decisions=2 * record.shape[0])  # the coordinates of its centre


def rectangles(record, rate, area, aspect):
    """A rectangle in some samples, alike along the last axis."""
    batch, *sizes, _ = record.shape
    drawn = [erased_size(which, *sizes, area, aspect) for which in range(2**14)]
    chances = [_one_rectangle(sizes, size) for size in drawn]
    chance = 1 - (1 - keep_prob(rate)) * np.mean(chances, axis=0)
    chance = np.broadcast_to(chance, (batch, *sizes))
    laws = [by_place("each position", chance, 4 * ONE_WORD)]
    return _masks(record, rate, [*laws, *_apart_from_the_next_sample(chance, 4 * ONE_WORD)])


@cache
def _one_rectangle_of(n, side):
    """The share of places along an axis at which a side covers each position."""
    starts = np.arange(n - side + 1)[:, None]
    return ((np.arange(n) >= starts) & (np.arange(n) < starts + side)).mean(0)


def _one_rectangle(sizes, sides):
    return np.multiply.outer(*map(_one_rectangle_of, sizes, sides))


def spans(record, rate, width):
    """Spans that begin anywhere, along the last axis that is not shared."""
    return _masks(record, rate, _spans(slice_shape(record), rate, width))


def spans_of_number(record, rate, width, number):
    """So many spans that lie inside of this axis."""
    kind = _masks(record, rate, _spans_of_number(slice_shape(record), width, number))
    return replace(kind, decisions=2 * number * slice_shape(record)[0])


def normal_noise(record, rate, chance_of):
    """Noise with the variance of `dropout` that keeps with the chance `chance_of(rate)`."""
    chance = chance_of(rate)
    spread = math.sqrt((1 - chance) / chance)
    laws, size = _normal_noise(record.shape, spread), math.prod(record.shape)
    return Kind(laws, size, spread, noise_in_units)


def concrete_noise(record, rate):
    laws, size = _concrete_noise(record.shape, 1 - rate), math.prod(record.shape)
    return Kind(laws, size, 1 - rate, share_of_one)


def hard_gates(record, rate):
    """Gates that are exactly 0 with the chance of a temperature of 2/3, stretched to (-.1, 1.1)."""
    odds = (1 - rate) / rate * 11 ** (2 / 3)
    laws = independent(slice_shape(record), odds / (1 + odds), 8 * FLOAT)
    return _masks(record, rate, laws)


def _shared(axes, laws):
    """The laws of the first slice along `axes`, with which all others agree in every draw."""
    if not axes:
        return laws
    laws = [replace(law, view=_first_slice(axes, law.view)) for law in laws]
    return [*laws, never("shared along its axes", _differs(axes))]


@cache
def _first_slice(axes, view):
    return lambda drawn: view(_first(drawn, axes))


@cache
def _differs(axes):
    behind = tuple(axis + 1 for axis in axes)
    return lambda drawn: drawn != jnp.expand_dims(_first(drawn, axes), behind)


def _first(drawn, axes):
    return drawn[tuple(0 if i - 1 in axes else slice(None) for i in range(drawn.ndim))]


def _fixed_count(shape, first, count):
    """Exactly `count` kept over all axes from `first` on, each set equally likely.

    That is exact except for equal words, of which the place decides.
    """
    size = math.prod(shape[first:])
    once, twice = count / size, count * (count - 1) / (size * (size - 1))
    ties = size * ONE_WORD
    laws = [never("exact count", _has_not(count, tuple(range(first + 1, len(shape) + 1))))]
    laws += [by_place("each element", np.full(shape, once), ties)]
    for apart in sorted({1, 2, shape[-1] // 2}):
        pairs = by_place(f"each pair {apart} apart", np.full(shape, twice), 2 * ties)
        laws += viewed([pairs], _both_along(len(shape), apart))
    if first:
        agree = np.full((shape[0] - 1, *shape[1:]), once**2 + (1 - once) ** 2)
        other = by_place("each element and the next along axis 0", agree, 4 * ties)
        laws += viewed([other], _agree_along(1))
    return laws


@cache
def _has_not(count, axes):
    return lambda kept: jnp.sum(kept, axis=axes, dtype=jnp.int32) != count


@cache
def _agree_along(axis):
    def agree(kept):
        later = jax.lax.slice_in_dim(kept, 1, None, axis=axis)
        return later == jax.lax.slice_in_dim(kept, 0, -1, axis=axis)

    return agree


@cache
def _both_along(axis, apart):
    return lambda kept: kept & jnp.roll(kept, apart, axis=axis)


def _blocks(shape, first, edges, rate, exact):
    """Each position survives if no seed whose block covers it fell; so do pairs of them."""
    sizes = shape[first : first + len(edges)]
    gamma = jaxdrop.drop_block_gamma(rate, sizes, edges, exact=exact)
    rarer = round(min(gamma, 1 - gamma) * 2**32) / 2**32
    no_seed = 1 - rarer if gamma < 0.5 else rarer
    cover = _cover(sizes, edges)
    alone = _over(shape, first, no_seed ** cover.sum(-1))
    laws = [by_place("each position", alone)]
    for axis in range(len(sizes)):
        for apart in range(1, min(sizes[axis], 4)):
            both = no_seed ** (cover | np.roll(cover, apart, axis)).sum(-1)
            name = f"each pair {apart} apart along axis {first + axis}"
            pairs = by_place(name, _over(shape, first, both))
            laws += viewed([pairs], _both_along(first + axis + 1, apart))
    for axis in (i for i in range(len(shape)) if not first <= i < first + len(edges)):
        agree = np.take(alone**2 + (1 - alone) ** 2, range(1, shape[axis]), axis)
        pairs = by_place(f"each position and the next along axis {axis}", agree)
        laws += viewed([pairs], _agree_along(axis + 1))
    return laws


def _cover(sizes, blocks):
    """Which seeds cover which position, by the definition."""
    seeds = [n - b + 1 for n, b in zip(sizes, blocks, strict=True)]
    cover = np.zeros((*sizes, *seeds), bool)
    for seed in np.ndindex(*seeds):
        block = tuple(slice(s, s + b) for s, b in zip(seed, blocks, strict=True))
        cover[(*block, *seed)] = True
    return cover.reshape(*sizes, -1)


def _over(shape, first, chance):
    """A chance of each position, for all samples and channels."""
    behind = (1,) * (len(shape) - first - chance.ndim)
    return np.broadcast_to(chance.reshape((1,) * first + chance.shape + behind), shape)


def _squares(shape, edge):
    """The square covers a position from the centres that reach it, along each axis apart."""
    batch, *sizes, _ = shape
    covered = []
    for n in sizes:
        behind = np.arange(n)[:, None] - (np.arange(n)[None] - edge // 2)  # the first of the edge
        covered.append(((behind >= 0) & (behind < edge)).mean(1))
    chance = 1 - np.multiply.outer(*covered)
    agree = np.broadcast_to(chance**2 + (1 - chance) ** 2, (batch - 1, *sizes))
    # Each of two coordinates is one word, rounded at both ends of what covers a position.
    position = by_place("each position", np.broadcast_to(chance, (batch, *sizes)), 4 * ONE_WORD)
    pair = by_place("each position and the next sample", agree, 8 * ONE_WORD)
    return [position, *viewed([pair], _agree_along(1))]


def _spans(shape, rate, width):
    """A position survives if no span that begins at it or before reaches it; so do pairs."""
    least, most = width
    wider = np.array([np.mean(np.arange(least, most + 1) > d) for d in range(most)])
    goal = partial(_missed, wider=wider, rate=rate)
    begin = round(optimize.brentq(goal, 0, 1, xtol=1e-15) * 2**32) / 2**32
    spared = 1 - begin * wider
    alone, size = spared.prod(), shape[-1]
    laws = [by_place("each position", np.full(shape, alone), most * ONE_WORD)]
    for apart in range(1, min(size, most + 2)):
        both = np.full(shape, alone * spared[:apart].prod())
        both[..., :apart] = alone * spared[: size - apart].prod()  # around the border
        pairs = by_place(f"each pair {apart} apart", both, 2 * most * ONE_WORD)
        laws += viewed([pairs], _both_along(len(shape), apart))
    return [*laws, *_apart_from_the_next_sample(np.full(shape, alone), most * ONE_WORD)]


def _missed(begin, wider, rate):
    return 1 - np.prod(1 - begin * wider) - rate


def _spans_of_number(shape, width, number):
    """Positions, and neighbours, by going through all widths and places of one span."""
    size, chances = shape[-1], {0: 0.0, 1: 0.0}
    widths = [min(each, size) for each in width]
    widths = range(widths[0], widths[1] + 1)
    for each in widths:
        for start in range(size - each + 1):
            inside = (np.arange(size) >= start) & (np.arange(size) < start + each)
            share = 1 / (len(widths) * (size - each + 1))
            for apart in chances:
                chances[apart] = chances[apart] + share * ~(inside | np.roll(inside, apart))
    alone, both = (np.broadcast_to(chance**number, shape) for chance in chances.values())
    slack = 4 * number * len(widths) * ONE_WORD
    pairs = viewed([by_place("neighbours", both, slack)], _both_along(len(shape), 1))
    laws = [by_place("each position", alone, slack), *pairs]
    return [*laws, *_apart_from_the_next_sample(alone, slack)]


def _apart_from_the_next_sample(chance, slack):
    agree = (chance**2 + (1 - chance) ** 2)[1:]
    return viewed([by_place("the next sample", agree, 2 * slack)], _agree_along(1))


def _keys_left(shape, chance):
    """Keys that are kept independently; where a row would lose all, one of them stays."""
    rows, keys = shape
    one, both = chance + (1 - chance) ** keys / keys, chance**2
    at_most = np.concatenate([[0.0], stats.binom.cdf(np.arange(1, keys), keys, chance)])
    number = by_place("number kept in a row", np.broadcast_to(at_most, (rows, keys)))
    next_key = by_place("each key and the next", np.full((rows, keys - 1), both))
    next_row = by_place(
        "each key in a row and the next", np.full((rows - 1, keys), one**2), 2 * ONE_WORD
    )
    return [
        by_place("each key", np.full(shape, one), ONE_WORD),
        *viewed([number], _keeps_at_most),
        *viewed([next_key], _next_key),
        *viewed([next_row], _next_row),
    ]


def _keeps_at_most(kept):
    number = jnp.sum(kept, axis=-1, dtype=jnp.int32, keepdims=True)
    return number <= np.arange(kept.shape[-1], dtype=np.int32)[None, None]


def _next_key(kept):
    return kept[..., 1:] & kept[..., :-1]


def _next_row(kept):
    return kept[:, 1:] & kept[:, :-1]


def _normal_noise(shape, spread):
    """The noise against the normal law at 41 bounds, its sign, and how large it is."""
    below = stats.norm.cdf(BOUNDS)
    # It is read off y = 1 + spread e, which is rounded too; what a bound is off by moves
    # the chance by the density. The last term is for u, a uniform number of 24 digits.
    rounding = (1 + np.abs(BOUNDS) + 2 / spread) * FLOAT
    within = _around(below, stats.norm.pdf(BOUNDS) * rounding + 2.0**-25)
    bounds = Law("bounds of the noise", count_noise, within, math.prod(shape))
    even = independent(shape, 0.5, (1 + 1 / spread) * FLOAT)
    return [bounds, *viewed(even, _is_above, "signs: "), *viewed(even, _is_large, "sizes: ")]


def _concrete_noise(shape, kept):
    """At temperature 1: z is at most c with the probability sigmoid(logit(rate) + logit(c))."""
    odds = (1 - kept) / kept * SHARES / (1 - SHARES)
    bounds = Law(
        "bounds of the mask", count_soft, _around(odds / (1 + odds), 8 * FLOAT), math.prod(shape)
    )
    return [bounds, *viewed(independent(shape, kept, 8 * FLOAT), _is_kept)]


def _around(chance, slack):
    return np.clip(chance - slack, 0, 1), np.clip(chance + slack, 0, 1)


def _is_above(noise):
    return noise > 0


def _is_large(noise):
    return jnp.abs(noise) > np.float32(stats.norm.ppf(0.75))


def _is_kept(soft):
    return soft > np.float32(0.5)


@jax.jit
def count_noise(noise):
    return _count_at(noise, BOUNDS)


@jax.jit
def count_soft(soft):
    return _count_at(soft, SHARES)


def _count_at(values, bounds):
    def count(bound):
        return jnp.sum(values <= bound, dtype=jnp.int32)

    return jax.lax.map(count, jnp.asarray(bounds, jnp.float32))
