"""What the fresh-key run draws: every method with a mask, and the laws that its draws obey."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from fresh_laws import Law, by_place, independent, never, of_words, viewed
from method_table import CUTOUT, METHODS
from numpy_reference import keep_units
from scipy import stats

import jaxdrop

RATES = (0.1, 0.5, 0.9)
TRACED = 1 / 3
LARGE_RATES = (1e-5, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 1 - 1e-5)
LARGE = 2**20

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
ONE_WORD = 2.0**-32  # by how much what is made of one word is off
FLOAT = 2.0**-20  # the same for a float32 that is compared with a bound


@dataclass(frozen=True)
class Panel:
    """What is drawn with one key, the laws of it, and how many draws make a full run."""

    name: str
    draw: Callable[[jax.Array], jax.Array]
    laws: list[Law]
    decisions: int  # at random, in one draw
    weight: float = 1  # draws, of those asked for


def keep_prob(rate):
    return keep_units(rate) / 2**32


def all_panels():
    panels = [*_methods(), *_odd_shapes(), *_large_masks(), *_families_of_keys(), _cutout()]
    assert len({panel.name for panel in panels}) == len(panels)
    return panels


def methods_with_a_panel():
    return {panel.name.partition(" at rate ")[0] for panel in all_panels()}


def _methods():
    for method in METHODS:
        rates = [(rate, "") for rate in RATES]
        if method.takes_traced_rate and "drop_block" not in method.name:
            rates += [(TRACED, ", traced")]
        for rate, how in rates:
            name = f"{method.name} at rate {rate:.3g}{how}"
            yield _panel_of(method, rate, bool(how), name)


def _panel_of(method, rate, traced, name):
    given = np.float32(rate) if traced else rate

    def output(key):
        return method.run(key, jnp.ones(method.shape), jnp.asarray(given) if traced else rate)

    def kept(key):
        return method.kept(output(key), rate)

    shape, chance = method.shape, keep_prob(rate)
    match method.name:
        case "gaussian_dropout":
            return Panel(name, output, _normal_noise(shape, chance), math.prod(shape))
        case "variational_dropout":
            return Panel(name, output, _normal_noise(shape, 1 - rate), math.prod(shape))
        case "concrete_dropout":
            return Panel(name, output, _concrete_noise(shape, rate), math.prod(shape))
        case "fixed_count_dropout":
            laws = _fixed_count((math.prod(shape),), round(math.prod(shape) * (1 - rate)))
            laws = viewed(laws, lambda kept: kept.reshape(len(kept), -1))
            return Panel(name, kept, laws, math.prod(shape))
        case "drop_tokens+restore_tokens":
            batch, tokens, _ = shape
            laws = _shared((2,), _fixed_count((batch, tokens), round(tokens * (1 - rate))))
            return Panel(name, kept, laws, batch * tokens)
        case "drop_block":
            laws = _blocks(shape, 1, (2, 2), rate, exact=True)
            return Panel(name, kept, laws, math.prod(shape))
        case "drop_block of the paper":
            laws = viewed(_blocks((1, *shape), 1, (3, 1), rate, exact=False), lambda k: k[:, None])
            return Panel(name, kept, laws, math.prod(shape))
        case "drop_key+softmax":
            return Panel(name, kept, _keys_left(shape, chance), math.prod(shape))
    axes = SHARED.get(method.name, ())
    rest = tuple(n for i, n in enumerate(shape) if i not in axes)
    laws = _shared(axes, independent(rest, chance))
    return Panel(name, kept, laws, math.prod(rest))


def _shared(axes, laws):
    """The laws of the first slice along `axes`, with which all others agree in every draw."""
    if not axes:
        return laws
    behind = tuple(axis + 1 for axis in axes)

    def first(drawn):
        return drawn[tuple(0 if i in behind else slice(None) for i in range(drawn.ndim))]

    def differs(drawn):
        return jnp.any(drawn != jnp.expand_dims(first(drawn), behind))

    return [*viewed(laws, first), never("shared along its axes", differs)]


def _fixed_count(shape, count):
    """Exactly `count` kept along the last axis, every set equally likely; others independent.

    Up to ties of words, which only decide between equally large ones.
    """
    size = shape[-1]
    once, twice = count / size, count * (count - 1) / (size * (size - 1))
    ties = size * ONE_WORD

    def both(apart):
        return lambda kept: kept & jnp.roll(kept, apart, axis=-1)

    laws = [never("exact count", lambda kept: jnp.any(jnp.sum(kept, axis=-1) != count))]
    laws += [by_place("each element", np.full(shape, once), ties)]
    for apart in sorted({1, 2, size // 2}):
        pairs = by_place(f"each pair {apart} apart", np.full(shape, twice), 2 * ties)
        laws += viewed([pairs], both(apart))
    for axis in range(len(shape) - 1):
        if shape[axis] > 1:
            agree = np.full((*shape[:axis], shape[axis] - 1, *shape[axis + 1 :]), 0.0)
            agree += once**2 + (1 - once) ** 2
            laws += viewed(
                [by_place(f"each element and the next along axis {axis}", agree, 4 * ties)],
                partial(_agree_along, axis=axis + 1),
            )
    return laws


def _agree_along(kept, axis):
    later = jax.lax.slice_in_dim(kept, 1, None, axis=axis)
    return later == jax.lax.slice_in_dim(kept, 0, -1, axis=axis)


def _blocks(shape, first, blocks, rate, exact):
    """Each position survives if no seed whose block covers it fell; so do pairs of them."""
    sizes = shape[first : first + len(blocks)]
    gamma = jaxdrop.drop_block_gamma(rate, sizes, blocks, exact=exact)
    seeds = [n - b + 1 for n, b in zip(sizes, blocks, strict=True)]
    rarer = round(min(gamma, 1 - gamma) * 2**32) / 2**32
    no_seed = 1 - rarer if gamma < 0.5 else rarer
    cover = np.zeros((*sizes, *seeds), bool)
    for seed in np.ndindex(*seeds):
        block = tuple(slice(s, s + b) for s, b in zip(seed, blocks, strict=True))
        cover[(*block, *seed)] = True
    cover = cover.reshape(*sizes, -1)
    laws = [by_place("each position", _over(shape, first, no_seed ** cover.sum(-1)))]
    for axis in range(len(sizes)):
        for apart in range(1, min(sizes[axis], 4)):
            both = cover | np.roll(cover, apart, axis)
            laws += viewed(
                [
                    by_place(
                        f"each pair {apart} apart along axis {axis}",
                        _over(shape, first, no_seed ** both.sum(-1)),
                    )
                ],
                partial(_both_kept, apart=apart, axis=first + axis + 1),
            )
    alone = _over(shape, first, no_seed ** cover.sum(-1))
    for axis in (i for i in range(len(shape)) if not first <= i < first + len(blocks)):
        if shape[axis] > 1:
            agree = np.take(alone**2 + (1 - alone) ** 2, range(1, shape[axis]), axis)
            laws += viewed(
                [by_place(f"each position and the next along axis {axis}", agree)],
                partial(_agree_along, axis=axis + 1),
            )
    return laws


def _over(shape, first, chance):
    """A chance of each position, for all samples and channels."""
    others = (1,) * first, (1,) * (len(shape) - first - chance.ndim)
    return np.broadcast_to(chance.reshape(others[0] + chance.shape + others[1]), shape)


def _both_kept(kept, apart, axis):
    return kept & jnp.roll(kept, apart, axis=axis)


def _keys_left(shape, chance):
    """Rows of keys that are independent, but that one is left where none would be."""
    rows, keys = shape
    lost = (1 - chance) ** keys
    laws = [never("a key is left", lambda kept: jnp.any(~jnp.any(kept, axis=-1)))]
    laws += [by_place("each key", np.full(shape, chance + lost / keys), ONE_WORD)]
    both = np.full((rows, keys - 1), chance**2)
    laws += viewed([by_place("each key and the next", both)], lambda k: k[..., 1:] & k[..., :-1])
    limits = np.unique(stats.binom.ppf((1e-4, 0.01, 0.1, 0.5, 0.9, 0.99), keys, chance))
    limits = limits[(limits >= 1) & (limits < keys)].astype(np.int32)
    number = np.broadcast_to(stats.binom.cdf(limits, keys, chance), (rows, limits.size))
    few = by_place("number kept in a row", number)
    laws += viewed([few], lambda k: jnp.sum(k, axis=-1, dtype=jnp.int32)[..., None] <= limits)
    single = np.full((rows - 1, keys), 0.0) + (chance + lost / keys) ** 2
    pair = by_place("each key in a row and the next", single, 2 * ONE_WORD)
    return laws + viewed([pair], lambda k: k[:, 1:] & k[:, :-1])


def _normal_noise(shape, chance):
    """The noise against the normal law at 41 bounds, its sign, and how large it is."""
    spread = math.sqrt((1 - chance) / chance)
    bounds = np.linspace(-5, 5, 41)
    below = stats.norm.cdf(bounds)
    slack = stats.norm.pdf(bounds) * (1 + np.abs(bounds) + 2 / spread) * FLOAT + 2.0**-25
    edges = (1 + spread * bounds).astype(np.float32)
    laws = [_at_bounds("bounds of the noise", shape, edges, (below - slack, below + slack))]
    middle = np.float32(spread * stats.norm.ppf(0.75))
    laws += viewed(independent(shape, 0.5, (1 + 1 / spread) * FLOAT), lambda y: y > 1, "signs: ")
    large = independent(shape, 0.5, (1 + 1 / spread) * FLOAT)
    return laws + viewed(large, lambda y: jnp.abs(y - 1) > middle, "sizes: ")


def _concrete_noise(shape, rate):
    """At temperature 1: z exceeds c with the probability sigmoid(-logit(rate) - logit(c))."""
    odds = math.log((1 - rate) / rate)
    kept = 1 / (1 + math.exp(-odds))
    z = np.array([1e-4, 1e-3, 0.01, *np.arange(0.05, 1, 0.05), 0.99, 0.999, 0.9999])
    below = 1 - 1 / (1 + np.exp(-(odds - np.log(z / (1 - z)))))
    edges = (z / kept).astype(np.float32)
    slack = 8 * FLOAT
    laws = [_at_bounds("bounds of the mask", shape, edges, (below - slack, below + slack))]
    half = np.float32(0.5 / kept)
    return laws + viewed(independent(shape, kept, slack), lambda y: y > half)


def _at_bounds(name, shape, edges, within):
    def count(y):
        flat = y.reshape(-1)
        return jax.lax.map(lambda edge: jnp.sum(flat <= edge, dtype=jnp.int32), jnp.asarray(edges))

    low, high = (np.clip(each, 0, 1) for each in within)
    return Law(name, count, (low, high), math.prod(shape))


def _odd_shapes():
    """Shapes that do not fill their words, at one key each."""
    for shape in ((1,), (33,), (5, 7), (3, 50), (1025,), (2, 3, 4, 5)):
        name = f"draw_mask of shape {shape} at rate 0.1"
        yield Panel(
            name,
            lambda key, shape=shape: jaxdrop.draw_mask(key, shape, 0.1).unpack(),
            independent(shape, keep_prob(0.1)),
            math.prod(shape),
        )


def _large_masks():
    for rate, traced in [*((rate, False) for rate in LARGE_RATES), (0.1, True), (1e-5, True)]:
        given = np.float32(rate) if traced else rate
        # A traced rate is the float32 number; on the fine grid that can be another one.
        units = keep_prob(float(given))

        def draw(key, given=given, traced=traced):
            rate = jnp.asarray(given) if traced else given
            return jaxdrop.draw_mask(key, LARGE, rate).words

        name = f"draw_mask of 2^20 at rate {rate:.6g}{', traced' if traced else ''}"
        yield Panel(name, draw, of_words(LARGE // 32, units), LARGE, weight=2.0**-6)


def _families_of_keys():
    """Masks under keys that are derived from one another are independent."""
    size, rate = 64, 0.1
    mask = lambda key: jaxdrop.draw_mask(key, size, rate).unpack()  # noqa: E731
    laws = independent((4, size), keep_prob(rate))
    fold = jax.random.fold_in

    def split(key):
        return jax.vmap(mask)(jax.random.split(key, 4))

    def folded(key):
        return jnp.stack([mask(jax.random.clone(key)), *(mask(fold(key, i)) for i in range(3))])

    def seeds(key):
        first = jax.random.bits(key, (), jnp.uint32)
        return jax.vmap(lambda i: mask(jax.random.key(first + i)))(jnp.arange(4, dtype=jnp.uint32))

    def samples(key):
        return (
            jaxdrop.monte_carlo(lambda key, x: jaxdrop.dropout(key, x, rate), 4)(
                key, jnp.ones(size)
            )
            > 0
        )

    def views(key):
        both = jaxdrop.two_views(lambda key, x: jaxdrop.dropout(key, x, rate))
        return jnp.stack(both(key, jnp.ones(size))) > 0

    def per_sample(key):
        drop = jaxdrop.per_sample(partial(jaxdrop.dropout, rate=rate))
        return drop(key, jnp.ones((4, size))) > 0

    def per_leaf(key):
        tree = {name: jnp.ones(size) for name in "abcd"}
        dropped = jaxdrop.per_leaf(partial(jaxdrop.dropout, rate=rate))(key, tree)
        return jnp.stack([dropped[name] for name in "abcd"]) > 0

    def chained(key):
        drop = partial(jaxdrop.dropout, rate=rate)
        return jaxdrop.chain(drop, drop)(key, jnp.ones(size)) > 0

    families = [("split keys", split), ("folded keys", folded), ("seeds in a row", seeds)]
    families += [("monte_carlo", samples), ("per_sample", per_sample), ("per_leaf", per_leaf)]
    families += [("plant: two sites in two steps", _planted(size, rate))]
    for name, draw in families:
        yield Panel(f"{name} at rate {rate}", draw, laws, 4 * size)
    yield Panel(
        f"two_views at rate {rate}", views, independent((2, size), keep_prob(rate)), 2 * size
    )
    both = independent((size,), keep_prob(rate) ** 2)
    yield Panel(f"chain of two at rate {rate}", chained, both, 2 * size)
    laws = independent((6, 40), keep_prob(rate))
    for kind in ("rbg", "unsafe_rbg"):

        def other(key, kind=kind):
            key = jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl=kind)
            return jaxdrop.draw_mask(key, (6, 40), rate).unpack()

        yield Panel(f"{kind} keys at rate {rate}", other, laws, 240)


def _planted(size, rate):
    """The masks of two sites in each of two steps of a `scan`."""

    def model(x):
        def step(state, _):
            one, two = jaxdrop.site(x, "one"), jaxdrop.site(x * 1, "two")
            return state, jnp.stack([one, two])

        return jax.lax.scan(step, jnp.float32(0), None, length=2)[1].reshape(4, size)

    drop = partial(jaxdrop.dropout, rate=rate)
    planted = jaxdrop.plant(model, {"one": drop, "two": drop})
    return lambda key: planted(key, jnp.ones(size)) > 0


def _cutout():
    """The square covers a position from the centres that reach it, along each axis apart."""
    batch, *sizes, _ = CUTOUT.shape
    covered = []
    for n in sizes:
        reach = np.arange(n)[:, None] - (np.arange(n)[None] - 1)  # from the first of an edge of 2
        covered.append(((reach >= 0) & (reach < 2)).mean(1))
    chance = 1 - np.multiply.outer(*covered)
    laws = [by_place("each position", np.broadcast_to(chance, (batch, *sizes)), 4 * ONE_WORD)]
    for first, second in itertools.pairwise(range(batch)):
        agree = by_place(
            f"samples {first} and {second}", chance**2 + (1 - chance) ** 2, 8 * ONE_WORD
        )
        laws += viewed([agree], lambda k, i=first, j=second: k[:, i] == k[:, j])
    draw = lambda key: CUTOUT.run(key, jnp.ones(CUTOUT.shape), 0.0) != 0  # noqa: E731
    return Panel("cutout", draw, _shared((3,), laws), 2 * batch)
