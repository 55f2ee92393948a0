"""Checks the arrays of attention, and gives them all one batch axis."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxdrop.base.describe import describe
from jaxdrop.base.sharding import explicit_sharding, with_spec
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import compute_dtype
from jaxdrop.methods.attention.arguments import AXES, Offsets
from jaxdrop.methods.attention.operands import Inputs, Selection

_LEAST_BITS = 8  # XLA on a CPU does not compile products of narrower dtypes


class Given(NamedTuple):
    """The arrays that the caller gave, with all axes of the batch."""

    query: Float[Array, "*B T N H"]
    key: Float[Array, "*B S K H"]
    value: Float[Array, "*B S K V"]
    bias: Float[Array, "..."] | None
    scale: float | Float[Array, ""] | None

    @property
    def batch(self) -> tuple[int, ...]:
        """Sizes of the axes of the batch; one of size 1 if there is none."""
        return self.query.shape[:-3] or (1,)

    @property
    def weights(self) -> tuple[int, ...]:
        """Sizes of the weights, (*B, N, T, S)."""
        *batch, queries, heads, _ = self.query.shape
        return (*batch, heads, queries, self.key.shape[-3])


class Sight(NamedTuple):
    """What the caller gave to say which query sees which key."""

    mask: Bool[Array, "..."] | None
    query_lengths: Int[Array, "..."] | None
    key_lengths: Int[Array, "..."] | None
    segment_ids: tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None


def checked_given(check: Check, given: Given) -> Given:
    """Checks that queries, keys and values fit together."""
    query = check.real_array("query", given.query)
    key = check.real_array("key", given.key)
    value = check.real_array("value", given.value)
    _check_shapes(check, query, key, value)
    _check_dtypes(check, query, key, value)
    return Given(query, key, value, given.bias, given.scale)


def checked_inputs(check: Check, given: Given) -> Inputs[Array]:
    """The arguments that attention is differentiated by."""
    bias = given.bias
    if bias is not None:
        bias = _over_weights(check, "bias", check.real_array("bias", bias), given)
    query, key, value = (merged(x, 3) for x in given[:3])
    return Inputs(query, key, value, bias, _scale(check, given.scale, query))


def checked_mask(
    check: Check, given: Given, mask: Bool[Array, "..."] | None
) -> Bool[Array, "#B #N #T #S"] | None:
    """Checks the array that says which query sees which key."""
    if mask is None:
        return None
    mask = check.any_array("mask", mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"{check}: mask must be boolean; got {mask.dtype}. Cast ones and zeros, as in"
            " mask.astype(bool). To add an array to the logits, pass it as bias."
        )
    return _over_weights(check, "mask", mask, given)


def checked_selection(check: Check, given: Given, offsets: Offsets, sight: Sight) -> Selection:
    """Checks the arrays that say which query sees which key. Nothing is drawn yet."""
    queries, keys = (
        _lengths(check, name, each, given.batch, *place)
        for name, each, place in (
            ("query_seq_lengths", sight.query_lengths, (offsets.first_query, offsets.queries)),
            ("key_value_seq_lengths", sight.key_lengths, (offsets.first_key, offsets.keys)),
        )
    )
    shift = None if isinstance(offsets.shift, int) else offsets.shift
    mask = checked_mask(check, given, sight.mask)
    segments = _segments(check, given, sight.segment_ids)
    return Selection(mask, queries, keys, draw=None, shift=shift, segments=segments)


def merged(x: Array, rest: int) -> Array:
    """The array with one axis for all but the last `rest` axes."""
    batch, others = x.shape[: x.ndim - rest], x.shape[x.ndim - rest :]
    if len(batch) == 1:
        return x
    shape, sharding = (math.prod(batch), *others), explicit_sharding(x)
    if sharding is not None:
        spec = (*sharding.spec, *(None for _ in range(x.ndim)))[: x.ndim]
        first = spec[0] if batch else None
        sharding = with_spec(sharding, (first, *spec[len(batch) :]))
    return lax.reshape(x, shape, out_sharding=sharding)


def unmerged(x: Array, batch: tuple[int, ...]) -> Array:
    """The array with the axes of the caller's batch in place of the first one."""
    if len(batch) == 1:
        return x
    shape, sharding = (*batch, *x.shape[1:]), explicit_sharding(x)
    if sharding is not None:
        first, *rest = (*sharding.spec, *(None for _ in range(x.ndim)))[: x.ndim]
        none = (None for _ in batch[1:])
        sharding = with_spec(sharding, (*((first, *none) if batch else ()), *rest))
    return lax.reshape(x, shape, out_sharding=sharding)


def _check_shapes(check: Check, query: Array, key: Array, value: Array) -> None:
    if query.ndim < AXES - 1:
        raise ValueError(f"{check}: query must have shape (*B, T, N, H); got {query.shape}.")
    batch_and_features = (*query.shape[:-3], query.shape[-1])
    if key.ndim != query.ndim or (*key.shape[:-3], key.shape[-1]) != batch_and_features:
        raise ValueError(
            f"{check}: key must have the batch and features of query; got {key.shape}"
            f" for {query.shape}."
        )
    if value.ndim != key.ndim or value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"{check}: value must have the shape of key, except for its features;"
            f" got {value.shape} for {key.shape}."
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


def _over_weights(check: Check, name: str, x: Array, given: Given) -> Array:
    """An array that broadcasts to the weights, with one batch axis."""
    weights = (*given.batch, *given.weights[-3:])
    x = x.reshape((1,) * (len(weights) - x.ndim) + x.shape)
    if x.ndim != len(weights) or any(
        n not in (1, m) for n, m in zip(x.shape, weights, strict=True)
    ):
        raise ValueError(
            f"{check}: {name} must broadcast to (*B, N, T, S) = {weights}; got {x.shape}."
        )
    if any(n != 1 for n in x.shape[:-3]):
        x = jnp.broadcast_to(x, (*given.batch, *x.shape[-3:]))
    return merged(x, 3)


def _scale(check: Check, scale: float | Array | None, query: Array) -> Array:
    dtype = compute_dtype(query)
    if scale is None:
        features = max(query.shape[-1], 1)  # without features, products are 0 at any scale
        return jnp.asarray(features**-0.5, dtype)
    scale = check.any_array("scale", scale)
    if scale.shape != () or jnp.iscomplexobj(scale) or scale.dtype == jnp.bool_:
        raise ValueError(f"{check}: scale must be one real number; got {describe(scale)}.")
    return scale.astype(dtype)


def _lengths(
    check: Check,
    name: str,
    lengths: Array | None,
    batch: tuple[int, ...],
    first: int | Array,
    count: int,
) -> Array | None:
    """Checks how many positions of each sample are real; counts them from the first one here."""
    if lengths is None:
        return None
    lengths = check.integer_array(name, lengths)
    if lengths.shape not in ((), batch):
        raise ValueError(f"{check}: {name} must have shape {batch} or (); got {lengths.shape}.")
    # Clipped before the cast, because the cast could wrap a uint32 or int64. Narrower
    # integers cannot wrap, and might not hold the bound.
    if lengths.dtype.itemsize >= np.dtype(np.int32).itemsize:
        lengths = jnp.clip(lengths, 0, count)
    lengths = merged(jnp.broadcast_to(lengths.astype(jnp.int32), batch), 0)
    return lengths if isinstance(first, int) and first == 0 else lengths - first


def _segments(
    check: Check, given: Given, ids: tuple[Array, Array] | None
) -> tuple[Array, Array] | None:
    """Checks to which document each position of each sample belongs."""
    if ids is None:
        return None
    if not isinstance(ids, Sequence) or len(ids) != 2:
        raise TypeError(
            f"{check}: segment_ids must be a pair, those of queries and those of keys;"
            f" got {describe(ids)}."
        )
    shapes = given.query.shape[:-2], given.key.shape[:-2]
    pair = tuple(check.integer_array("segment_ids", each) for each in ids)
    if tuple(each.shape for each in pair) != shapes:
        found = " and ".join(str(each.shape) for each in pair)
        raise ValueError(
            f"{check}: segment_ids must have shapes {shapes[0]} and {shapes[1]}; got {found}."
        )
    return merged(pair[0], 1), merged(pair[1], 1)
