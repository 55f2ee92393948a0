"""What families of methods share: a Bernoulli mask is drawn for an array and applied to it.

Those whose rate is learned share the checks of their arguments.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import Array

from jaxdrop.base.arguments import refuse_swapped
from jaxdrop.base.sharding import explicit_sharding, zeros_like
from jaxdrop.base.types import Key, KnownOrTraced
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, compute_dtype, rescale_and_select, select
from jaxdrop.core.bernoulli import bernoulli_mask
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.part import Part, Within, checked_part
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.rescale import checked_rule, expected, is_own_rule


def drop(
    check: Check,
    key: Key,
    x: Array,
    rate: KnownOrTraced,
    shared: tuple[int, ...],
    rescale: Rescale = expected,
    part: Part | None = None,
) -> Array:
    """Zeroes elements of `x` and rescales the others; shared axes share a decision."""
    within = checked_part(check, part, x.shape, shared)
    return drop_on_grid(key, x, grid_rate(rate), shared, checked_rule(check, rescale), within)


def drop_on_grid(
    key: Key,
    x: Array,
    rate: GridRate,
    shared: tuple[int, ...],
    rescale: Rescale,
    within: Within | None = None,
) -> Array:
    """`drop` with arguments that are checked already."""
    if rate.is_zero:
        return x
    if rate.is_one:
        return zeros_like(x)
    settings = rate, mask_layout(x.shape, shared), within
    # A rule of the user may change between calls or hold traced values. So it is not
    # part of the cached program, which then only draws the mask.
    if is_own_rule(rescale):
        return _drop(key, x, *settings, rule=rescale)
    return rescale_and_select(_draw_for(key, x, *settings), x, rescale)


def replace_with(key: Key, x: Array, other: Array, rate: KnownOrTraced) -> Array:
    """Replaces elements of `x` by those of `other`, each with probability `rate`."""
    on_grid = grid_rate(rate)
    if on_grid.is_zero:
        return x
    if on_grid.is_one:
        return other
    return _replace(key, x, other, on_grid, mask_layout(x.shape, ()))


def draw_for(
    key: Key, x: Array, rate: GridRate, layout: Layout, within: Within | None = None
) -> Mask:
    """A mask that lies on devices as `x` does; for use under `jit`."""
    return bernoulli_mask(key, rate, layout, explicit_sharding(x), within)


_draw_for = partial(jax.jit, static_argnames="layout")(draw_for)


@partial(jax.jit, static_argnames=("layout", "rule"))
def _drop(
    key: Key, x: Array, rate: GridRate, layout: Layout, within: Within | None, rule: Rescale
) -> Array:
    return rescale_and_select(draw_for(key, x, rate, layout, within), x, rule)


@partial(jax.jit, static_argnames="layout")
def _replace(key: Key, x: Array, other: Array, rate: GridRate, layout: Layout) -> Array:
    return select(draw_for(key, x, rate, layout), x, other)


def key_and_parameter(
    check: Check, key: Any, x: Any, name: str, parameter: Any, broadcast_dims: int | Sequence[int]
) -> tuple[Key, Array, Array, Layout]:
    """The arguments of a method whose rate is learned, and the layout of its noise."""
    refuse_swapped(check, key, x, "x")
    key = check.one_key(key)
    x = check.inexact_array("x", x)
    parameter = check.parameter(name, parameter, x).astype(compute_dtype(x))
    shared = check.axes("broadcast_dims", broadcast_dims, x.ndim)
    return key, x, parameter, mask_layout(x.shape, shared)
