"""What families of methods share: one Bernoulli mask, drawn for an array and applied to it."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxdrop import rescale as rules
from jaxdrop.base import validate
from jaxdrop.base.sharding import explicit_sharding
from jaxdrop.base.types import Key, Rate
from jaxdrop.core.apply import Rescale, rescale_and_select, select
from jaxdrop.core.bernoulli import bernoulli_mask
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.threshold import Rounded, round_known


def drop(
    function: str,
    key: Key,
    x: Array,
    rate: Rate,
    shared: tuple[int, ...],
    rescale: Rescale = rules.expected,
) -> Array:
    """Zeroes elements of `x`, deciding once along the shared axes, and rescales the others."""
    key = validate.one_key(function, key)
    rate = validate.probability(function, "rate", rate)
    rescale = rules.checked(function, rescale)
    if not isinstance(rate, Array):
        if rate == 0:
            return x
        if rate == 1:
            return jnp.zeros_like(x)
    settings = (*round_known(rate), mask_layout(x.shape, shared))
    if rules.is_own(rescale):
        return _drop(key, x, *settings, rescale)
    return rescale_and_select(_draw_for(key, x, *settings), x, rescale)


def replace(function: str, key: Key, x: Array, other: Array, rate: Rate) -> Array:
    """Puts elements of `other` in the place of those of `x`, with probability `rate`."""
    key = validate.one_key(function, key)
    rate = validate.probability(function, "rate", rate)
    if not isinstance(rate, Array) and rate in (0, 1):
        return x if rate == 0 else other
    return _replace(key, x, other, *round_known(rate), mask_layout(x.shape, ()))


def draw_for(key: Key, x: Array, rate: Rounded, pairs: int, layout: Layout) -> Mask:
    """A mask that lies on devices as `x` does; for use under `jit`."""
    return bernoulli_mask(key, rate, pairs, layout, explicit_sharding(x))


_draw_for = partial(jax.jit, static_argnames=("pairs", "layout"))(draw_for)


@partial(jax.jit, static_argnames=("pairs", "layout", "rule"))
def _drop(key: Key, x: Array, rate: Rounded, pairs: int, layout: Layout, rule: Rescale) -> Array:
    return rescale_and_select(draw_for(key, x, rate, pairs, layout), x, rule)


@partial(jax.jit, static_argnames=("pairs", "layout"))
def _replace(key: Key, x: Array, other: Array, rate: Rounded, pairs: int, layout: Layout) -> Array:
    return select(draw_for(key, x, rate, pairs, layout), x, other)
