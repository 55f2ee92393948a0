"""Checks the arguments of attention, group by group, and brings them into one form."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Int

from jaxdrop.base.arguments import key_unless
from jaxdrop.base.compat import decided
from jaxdrop.base.describe import describe
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.part import Part, Within, checked_part
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.methods.attention.operands import Inputs, Selection

AXES = 4  # of the weights of one batch, (B, N, T, S)


class Offsets(NamedTuple):
    """Where the weights lie in a larger matrix.

    Attributes:
      first_query: the position of the first query; an integer if it is known.
      first_key: that of the first key.
      queries: how many positions of queries there are.
      keys: those of keys.
      within: the same for masks; None if these are all weights.
    """

    first_query: int | Int[Array, ""]
    first_key: int | Int[Array, ""]
    queries: int
    keys: int
    within: Within | None

    @property
    def shift(self) -> int | Int[Array, ""]:
        """How far the first query is behind the first key."""
        return self.first_query - self.first_key


class Dropping(NamedTuple):
    """How weights are dropped."""

    rng: Key | None  # None if the rate is known to be 0
    rate: GridRate
    shared: tuple[int, ...]  # axes of the weights along which the mask is shared
    within: Within | None = None  # of the mask of which larger matrix theirs is a part


class Window(NamedTuple):
    """How many keys before and after its own number a query sees; None for all of them.

    Numbers count from the first query and the first key here. So these may be negative,
    if the weights are a part of a larger matrix.
    """

    before: int | None
    after: int | None


class Blocks(NamedTuple):
    """Sizes of a tile that the caller gave; None if jaxdrop chooses."""

    queries: int | None
    keys: int | None


class Drops(NamedTuple):
    """What the caller gave to say how weights are dropped."""

    rng: Key | None
    rate: Rate
    broadcast_dims: int | Sequence[int]
    part: Part | None


class Form(NamedTuple):
    """What the caller gave to say in which form attention is computed."""

    query_block: int | None
    key_block: int | None
    soft_cap: float | None
    residual: bool


class Arguments(NamedTuple):
    """Checked arguments that fit together. All arrays have one batch axis.

    Attributes:
      batch: sizes of the axes that were merged into the batch axis.
      soft_cap: the number below which logits stay; None for any.
      residual: whether the log-sum-exp is asked for.
    """

    inputs: Inputs[Array]
    selection: Selection
    window: Window
    dropping: Dropping
    batch: tuple[int, ...]
    blocks: Blocks
    soft_cap: float | None
    residual: bool

    @property
    def weights_shape(self) -> tuple[int, int, int, int]:
        """Sizes (B, N, T, S)."""
        batch, queries, heads, _ = self.inputs.query.shape
        return batch, heads, queries, self.inputs.key.shape[1]

    @property
    def all_axes(self) -> tuple[int, ...]:
        """The same, with all axes of the batch: the shape that the mask is for."""
        return (*self.batch, *self.weights_shape[1:])

    @property
    def layout(self) -> Layout:
        """The layout of the mask of all weights, of which these may be a part."""
        within = self.dropping.within
        return mask_layout(self.all_axes, self.dropping.shared) if within is None else within.whole

    @property
    def has_no_weights(self) -> bool:
        """Whether there is no weight at all."""
        return 0 in self.weights_shape

    @property
    def gives_zeros(self) -> bool:
        """Whether the output is known to be zeros, or to be empty."""
        no_features = self.inputs.value.shape[-1] == 0
        return self.dropping.rate.is_one or self.has_no_weights or no_features


def checked_offsets(
    check: Check, part: Part | None, weights: tuple[int, ...], shared: tuple[int, ...]
) -> Offsets:
    """Checks of which matrix the caller's weights are a part."""
    within, (queries, keys) = checked_part(check, part, weights, shared), weights[-2:]
    if part is None or within is None:
        return Offsets(0, 0, queries, keys, None)
    # A sample without a batch axis is a batch of one.
    missing = (AXES - len(weights)) * (1,)
    starts = *(None for _ in missing), *within.start
    of_one = Within(starts, Layout((*missing, *within.whole.shape)))
    first_query, first_key = map(_position, part.start[-2:])
    queries, keys = part.shape[-2:]
    return Offsets(first_query, first_key, queries, keys, of_one)


def _position(start: int | Array) -> int | Array:
    return jnp.asarray(start).astype(jnp.int32) if isinstance(start, Tracer) else int(start)


def checked_window(
    check: Check,
    inputs: Inputs[Array],
    offsets: Offsets,
    is_causal: bool,
    size: int | tuple[int, int] | None,
) -> Window:
    """Checks the arguments that say by position which query sees which key.

    A known shift becomes part of the window. One that is traced does not.
    """
    is_causal = _checked_flag(check, "is_causal", is_causal)
    before = after = None
    if size is not None:
        given = check.integers("local_window_size", size)
        if len(given) not in (1, 2) or min(given) < 0:
            raise ValueError(
                f"{check}: local_window_size must be one number of at least 0, or two (before,"
                f" after); got {size}."
            )
        before, after = given[0], given[-1]
    if is_causal:
        after = 0
    shift, queries, keys = offsets.shift, offsets.queries, offsets.keys
    if isinstance(shift, int):
        before = None if before is None else before - shift
        after = None if after is None else after + shift
        queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    # The last query has the most keys before it, and the first query has the most keys
    # after it. If a window covers these too, it hides nothing, and is then dropped.
    return Window(_hiding(before, queries), _hiding(after, keys))


def _hiding(reach: int | None, size: int) -> int | None:
    return None if reach is None or decided(lambda: reach >= size - 1) else reach


def checked_form(check: Check, form: Form) -> tuple[Blocks, float | None, bool]:
    """Checks the sizes of a tile, the number below which logits stay, and a flag."""
    sizes = (
        None if size is None else check.whole_number(f"{name}_block_size", size, 1)
        for name, size in (("query", form.query_block), ("key", form.key_block))
    )
    residual = _checked_flag(check, "return_residual", form.residual)
    return Blocks(*sizes), _checked_soft_cap(check, form.soft_cap), residual


def _checked_soft_cap(check: Check, soft_cap: float | None) -> float | None:
    """Checks the number below which logits stay."""
    if soft_cap is None:
        return None
    known = check.amount("logits_soft_cap", soft_cap, positive=True)
    if isinstance(known, Array):
        raise TypeError(f"{check}: logits_soft_cap must be a known number; got {describe(known)}.")
    return known


def _checked_flag(check: Check, name: str, flag: bool) -> bool:
    """Checks an option that is True or False."""
    if not isinstance(flag, bool | np.bool_):
        raise TypeError(f"{check}: {name} must be True or False; got {describe(flag)}.")
    return bool(flag)


def checked_dropping(
    check: Check, drops: Drops, shared: tuple[int, ...], offsets: Offsets, *, axes: int
) -> Dropping:
    """Checks how weights are dropped; `axes` is the number of axes of the caller's weights."""
    rng, on_grid = drops.rng, grid_rate(check.probability("rate", drops.rate))
    if rng is not None or not on_grid.is_zero:
        rng = key_unless(check, rng, idle=on_grid.is_one, name="rng")
    # Without a batch, the caller's axis 0 is the axis of heads.
    shared = tuple(axis + max(AXES - axes, 0) for axis in shared)
    return Dropping(None if on_grid.is_zero else rng, on_grid, shared, offsets.within)
