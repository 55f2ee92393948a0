"""Every method with a mask as panels of the fresh-key run: what is drawn, and its laws."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from fresh.laws import Law, by_place, independent, never, viewed
from reference.masks import keep_prob
from scipy import stats
from table.methods import CUTOUT, METHODS

import jaxdrop

KNOWN_RATES = (0.1, 0.5, 0.9)
TRACED_RATES = (1 / 3, 0.5, 0.9)

# What is shared along which axes of the table's shape: the laws are those of one slice.
SHARED = {
    "spatial_dropout": (1, 2),
    "drop_path": (1,),
    "drop_path of a batch": (0, 1),
    "drop_condition": (1,),
    "embedding_dropout": (1,),
    "locked_dropout": (0,),
    "drop_edges": (1,),
    "drop_nodes": (1,),
    "drop_heads": (1, 3),
}
NORMAL = ("gaussian_dropout", "variational_dropout")
BOUNDS = np.linspace(-5, 5, 41)  # of normal noise
SHARES = np.array([1e-4, 1e-3, 0.01, *np.linspace(0.05, 0.95, 19), 0.99, 0.999, 0.9999])

# By how much a chance is off, at most: of what is made of one word, and of a float32 that
# is compared with a bound.
ONE_WORD, FLOAT = 2.0**-32, 2.0**-20


@dataclass(frozen=True)
class Panel:
    """What is drawn with one key, the laws of it, and how many draws make a full run."""

    name: str
    draw: Callable[..., jax.Array]  # of a key and the operands
    laws: list[Law]
    decisions: int  # at random, in one draw
    operands: tuple[float, ...] = ()  # float32; panels that differ in them share a program
    weight: float = 1  # draws, of those asked for


def method_panels():
    for method in METHODS:
        if method.takes_traced_rate and "drop_block" not in method.name:
            yield _panel(method, 0.1, partial(_draw, method, 0.1), known=True)
            draw = partial(_draw_traced, method)
            for rate in TRACED_RATES:
                yield _panel(method, rate, draw, known=False)
        else:
            for rate in KNOWN_RATES:
                yield _panel(method, rate, partial(_draw, method, rate), known=True)


def _draw(method, rate, key, unit):
    """Where nothing was dropped; of noise, how large it is in the units of its law."""
    y = method.run(key, jnp.ones(method.shape), rate)
    if method.name in NORMAL:
        return (y - 1) / unit
    if method.name == "concrete_dropout":
        return y * unit
    return ~jnp.isclose(y, unit, rtol=1e-6, atol=0)


def _draw_traced(method, key, rate, unit):
    return _draw(method, rate, key, unit)


def _panel(method, rate, draw, known):
    name = f"{method.name} at rate {rate:.3g}{'' if known else ', traced'}"
    shape, chance = method.shape, keep_prob(rate)
    decisions, unit = math.prod(shape), method.at_dropped(rate)
    match method.name:
        case "gaussian_dropout" | "variational_dropout":
            chance = chance if method.name == "gaussian_dropout" else 1 - rate
            unit = math.sqrt((1 - chance) / chance)
            laws = _normal_noise(shape, unit)
        case "concrete_dropout":
            unit = 1 - rate
            laws = _concrete_noise(shape, unit)
        case "fixed_count_dropout":
            laws = _fixed_count(shape, 0, round(decisions * (1 - rate)))
        case "drop_tokens+restore_tokens":
            decisions = shape[0] * shape[1]
            laws = _shared((2,), _fixed_count(shape[:2], 1, round(shape[1] * (1 - rate))))
        case "drop_block":
            laws = _blocks(shape, 1, (2, 2), rate, exact=True)
        case "drop_block of the paper":
            laws = _blocks(shape, 0, (3, 1), rate, exact=False)
        case "drop_key+softmax":
            laws = _keys_left(shape, chance)
        case _:
            axes = SHARED.get(method.name, ())
            rest = tuple(n for i, n in enumerate(shape) if i not in axes)
            decisions, laws = math.prod(rest), _shared(axes, independent(rest, chance))
    return Panel(name, draw, laws, decisions, (unit,) if known else (rate, unit))


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

    Up to ties of words, which are decided by place.
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


def _blocks(shape, first, blocks, rate, exact):
    """Each position survives if no seed whose block covers it fell; so do pairs of them."""
    sizes = shape[first : first + len(blocks)]
    gamma = jaxdrop.drop_block_gamma(rate, sizes, blocks, exact=exact)
    rarer = round(min(gamma, 1 - gamma) * 2**32) / 2**32
    no_seed = 1 - rarer if gamma < 0.5 else rarer
    cover = _cover(sizes, blocks)
    alone = _over(shape, first, no_seed ** cover.sum(-1))
    laws = [by_place("each position", alone)]
    for axis in range(len(sizes)):
        for apart in range(1, min(sizes[axis], 4)):
            both = no_seed ** (cover | np.roll(cover, apart, axis)).sum(-1)
            name = f"each pair {apart} apart along axis {first + axis}"
            pairs = by_place(name, _over(shape, first, both))
            laws += viewed([pairs], _both_along(first + axis + 1, apart))
    for axis in (i for i in range(len(shape)) if not first <= i < first + len(blocks)):
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


def _keys_left(shape, chance):
    """Rows of keys that are independent, but that one is left where none would be."""
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


def cutout_panel():
    """The square covers a position from the centres that reach it, along each axis apart."""
    batch, *sizes, _ = CUTOUT.shape
    covered = []
    for n in sizes:
        behind = np.arange(n)[:, None] - (np.arange(n)[None] - 1)  # the first of an edge of 2
        covered.append(((behind >= 0) & (behind < 2)).mean(1))
    chance = 1 - np.multiply.outer(*covered)
    agree = np.broadcast_to(chance**2 + (1 - chance) ** 2, (batch - 1, *sizes))
    position = by_place("each position", np.broadcast_to(chance, (batch, *sizes)), 4 * ONE_WORD)
    pair = by_place("each position and the next sample", agree, 8 * ONE_WORD)
    laws = _shared((3,), [position, *viewed([pair], _agree_along(1))])
    return Panel("cutout", _draw_cutout, laws, 2 * batch)


def _draw_cutout(key):
    return CUTOUT.run(key, jnp.ones(CUTOUT.shape), 0.0) != 0
