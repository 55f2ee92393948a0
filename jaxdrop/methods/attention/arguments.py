"""Checks the arguments of attention, group by group, and brings them into one form."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check, describe
from jaxdrop.core.apply import compute_dtype
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.methods.attention.operands import Inputs, Selection

_AXES = 4  # of the weights, (B, N, T, S)
_LEAST_BITS = 8  # XLA on a CPU does not compile products of narrower dtypes


class Dropping(NamedTuple):
    """How weights are dropped."""

    rng: Key | None  # None if the rate is known to be 0
    rate: GridRate
    shared: tuple[int, ...]  # axes of the weights along which the mask is shared


class Window(NamedTuple):
    """How many keys before and after its own position a query sees; None for all of them."""

    before: int | None
    after: int | None


class Blocks(NamedTuple):
    """Sizes of a tile that the caller gave; None if jaxdrop chooses."""

    queries: int | None
    keys: int | None


class Arguments(NamedTuple):
    """Checked arguments that fit together. All arrays have a batch axis."""

    inputs: Inputs[Array]
    selection: Selection
    window: Window
    dropping: Dropping
    blocks: Blocks

    @property
    def weights_shape(self) -> tuple[int, int, int, int]:
        """Sizes (B, N, T, S)."""
        return _weights_shape(self.inputs.query, self.inputs.key)

    @property
    def gives_zeros(self) -> bool:
        """Whether the output is known to be zeros, or to be empty."""
        return self.dropping.rate.is_one or 0 in (*self.weights_shape, self.inputs.query.size)


def checked_inputs(
    check: Check,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None,
    scale: float | Float[Array, ""] | None,
) -> Inputs[Array]:
    """Checks the arguments that attention is differentiated by."""
    query = check.real_array("query", query)
    key = check.real_array("key", key)
    value = check.real_array("value", value)
    _check_shapes(check, query, key, value)
    _check_dtypes(check, query, key, value)
    if query.ndim < _AXES:
        query, key, value = query[None], key[None], value[None]
    if bias is not None:
        bias = check.real_array("bias", bias)
        bias = _over_weights(check, "bias", bias, _weights_shape(query, key))
    return Inputs(query, key, value, bias, _scale(check, scale, query))


def checked_selection(
    check: Check,
    inputs: Inputs[Array],
    mask: Bool[Array, "..."] | None,
    query_seq_lengths: Int[Array, "..."] | None,
    key_value_seq_lengths: Int[Array, "..."] | None,
) -> Selection:
    """Checks the arrays that say which query sees which key. Nothing is drawn yet."""
    query, key = inputs.query, inputs.key
    if mask is not None:
        mask = check.any_array("mask", mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"{check}: mask must be boolean; got {mask.dtype}. Cast ones and zeros, as in"
                " mask.astype(bool). To add an array to the logits, pass it as bias."
            )
        mask = _over_weights(check, "mask", mask, _weights_shape(query, key))
    query_lengths = _lengths(check, "query_seq_lengths", query_seq_lengths, query)
    key_lengths = _lengths(check, "key_value_seq_lengths", key_value_seq_lengths, key)
    return Selection(mask, query_lengths, key_lengths, draw=None)


def checked_window(
    check: Check,
    inputs: Inputs[Array],
    is_causal: bool,
    size: int | tuple[int, int] | None,
) -> Window:
    """Checks the arguments that say by position which query sees which key."""
    if not isinstance(is_causal, bool | np.bool_):
        raise TypeError(f"{check}: is_causal must be True or False; got {describe(is_causal)}.")
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    before, after = queries, keys
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
    # The last query has the most keys before it, and the first query has the most keys
    # after it. If a window covers these too, it hides nothing, and is then dropped.
    return Window(before if before < queries - 1 else None, after if after < keys - 1 else None)


def checked_dropping(
    check: Check, rng: Key | None, rate: Rate, broadcast_dims: int | Sequence[int], axes: int
) -> Dropping:
    """Checks how weights are dropped; `axes` is the number of axes of the caller's weights."""
    on_grid = grid_rate(check.probability("rate", rate))
    if rng is not None or not on_grid.is_zero:
        rng = check.one_key(rng, "rng")
    shared = check.axes("broadcast_dims", broadcast_dims, axes)
    # Without a batch, the caller's axis 0 is the axis of heads.
    shared = tuple(axis + _AXES - axes for axis in shared)
    return Dropping(None if on_grid.is_zero else rng, on_grid, shared)


def checked_blocks(check: Check, query_block: int | None, key_block: int | None) -> Blocks:
    """Checks the sizes of a tile."""
    if query_block is not None:
        query_block = check.whole_number("query_block_size", query_block, 1)
    if key_block is not None:
        key_block = check.whole_number("key_block_size", key_block, 1)
    return Blocks(query_block, key_block)


def _weights_shape(query: Array, key: Array) -> tuple[int, int, int, int]:
    batch, queries, heads, _ = query.shape
    return batch, heads, queries, key.shape[1]


def _check_shapes(check: Check, query: Array, key: Array, value: Array) -> None:
    if query.ndim not in (_AXES - 1, _AXES):
        raise ValueError(
            f"{check}: query must have shape (B, T, N, H) or (T, N, H); got {query.shape}."
        )
    batch_and_features = (*query.shape[:-3], query.shape[-1])
    if key.ndim != query.ndim or (*key.shape[:-3], key.shape[-1]) != batch_and_features:
        raise ValueError(
            f"{check}: key must have the batch and features of query; got {key.shape}"
            f" for {query.shape}."
        )
    if value.shape != key.shape:
        raise ValueError(
            f"{check}: value must have the shape of key; got {value.shape} for {key.shape}."
        )
    heads, key_heads = query.shape[-2], key.shape[-2]
    if heads % key_heads if key_heads else heads:
        raise ValueError(
            f"{check}: key must have a number of heads that divides that of query;"
            f" got {key_heads} for {heads}."
        )


def _check_dtypes(check: Check, query: Array, key: Array, value: Array) -> None:
    for name, x in (("key", key), ("value", value)):
        if x.dtype != query.dtype:
            raise TypeError(
                f"{check}: {name} must have the dtype of query; got {x.dtype} for {query.dtype}."
            )
    if jnp.finfo(query.dtype).bits < _LEAST_BITS:
        raise TypeError(
            f"{check}: query must have a dtype of at least {_LEAST_BITS} bits; got {query.dtype}."
        )


def _over_weights(check: Check, name: str, x: Array, weights: tuple[int, ...]) -> Array:
    """An array that broadcasts to the weights, with the same number of axes."""
    x = x.reshape((1,) * (_AXES - x.ndim) + x.shape)
    if x.ndim != _AXES or any(n not in (1, m) for n, m in zip(x.shape, weights, strict=True)):
        raise ValueError(
            f"{check}: {name} must broadcast to (B, N, T, S) = {weights}; got {x.shape}."
        )
    return x


def _scale(check: Check, scale: float | Array | None, query: Array) -> Array:
    dtype = compute_dtype(query)
    if scale is None:
        features = max(query.shape[-1], 1)  # without features, products are 0 at any scale
        return jnp.asarray(features**-0.5, dtype)
    scale = check.any_array("scale", scale)
    if scale.shape != () or jnp.iscomplexobj(scale) or scale.dtype == jnp.bool_:
        raise ValueError(f"{check}: scale must be one real number; got {describe(scale)}.")
    return scale.astype(dtype)


def _lengths(check: Check, name: str, lengths: Array | None, x: Array) -> Array | None:
    """Checks how many positions on the time axis of each sample are real."""
    if lengths is None:
        return None
    lengths = check.integer_array(name, lengths)
    if lengths.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{check}: {name} must have shape {x.shape[:1]} or (); got {lengths.shape}."
        )
    # Clipped before the cast, because the cast could wrap a uint32 or int64. Narrower
    # integers cannot wrap, and might not hold the bound.
    if lengths.dtype.itemsize >= np.dtype(np.int32).itemsize:
        lengths = jnp.clip(lengths, 0, x.shape[1])
    return jnp.broadcast_to(lengths.astype(jnp.int32), x.shape[:1])
