"""All that the fresh-key run draws: methods, masks of many shapes, and families of keys."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from fresh.laws import independent, of_words
from fresh.methods import Panel, method_panels
from reference.masks import keep_prob

import jaxdrop

LARGE_RATES = (1e-5, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 1 - 1e-5)
LARGE = 2**20


def all_panels():
    panels = [*method_panels(), *_odd_shapes(), *_large_masks()]
    return [*panels, *_families_of_keys(), *_other_keys()]


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
    fold, drop = jax.random.fold_in, partial(jaxdrop.dropout, rate=rate)

    def split(key):
        return jax.vmap(mask)(jax.random.split(key, 4))

    def folded(key):
        return jnp.stack([mask(jax.random.clone(key)), *(mask(fold(key, i)) for i in range(3))])

    def next_data(key):
        first = jax.random.bits(key, (2,), jnp.uint32)
        data = [first + np.array([0, i], np.uint32) for i in range(4)]
        return jnp.stack([mask(jax.random.wrap_key_data(d, impl="threefry2x32")) for d in data])

    def samples(key):
        return jaxdrop.monte_carlo(drop, 4)(key, jnp.ones(size)) > 0

    def views(key):
        return jnp.stack(jaxdrop.two_views(drop)(key, jnp.ones(size))) > 0

    def per_sample(key):
        return jaxdrop.per_sample(drop)(key, jnp.ones((4, size))) > 0

    def per_leaf(key):
        tree = {name: jnp.ones(size) for name in "abcd"}
        dropped = jaxdrop.per_leaf(drop)(key, tree)
        return jnp.stack([dropped[name] for name in "abcd"]) > 0

    def chained(key):
        return jaxdrop.chain(drop, drop)(key, jnp.ones(size)) > 0

    families = [
        ("split keys", split),
        ("folded keys", folded),
        ("keys of data in a row", next_data),
    ]
    families += [("monte_carlo", samples), ("per_sample", per_sample), ("per_leaf", per_leaf)]
    families += [("plant: two sites in two steps", _planted(size, rate))]
    for name, draw in families:
        yield Panel(f"{name} at rate {rate}", draw, laws, 4 * size)
    yield Panel(
        f"two_views at rate {rate}", views, independent((2, size), keep_prob(rate)), 2 * size
    )
    both = independent((size,), keep_prob(rate) ** 2)
    yield Panel(f"chain of two at rate {rate}", chained, both, 2 * size)


def _other_keys():
    """Keys of other implementations, with four words of data."""
    rate = 0.1
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
