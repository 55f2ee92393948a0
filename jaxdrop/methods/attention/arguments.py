"""What callers of attention pass, checked and brought into one form."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check, describe
from jaxdrop.core.apply import compute_dtype
from jaxdrop.core.layout import WORD_BITS
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.methods.attention.operands import Fixed, Inputs


class Budget(NamedTuple):
    """How many elements a tile may have."""

    all_heads: int
    least: int  # of each head, if it is no more than `query` has
    most: int


# Smaller tiles cost time and larger ones memory. On a CPU, 4 MiB of float32 were
# measured to do. A GPU starts some 20 kernels a tile, whatever its size, so there
# it is the largest power of two with which 64 heads of 4096 queries and keys take
# less than a tenth of the temporaries of attention that keeps all its weights
# (benchmarks/programs.py).
GPU_BUDGET = Budget(2**25, 2**14, 2**22)
BUDGET = Budget(2**20, 2**14, 2**19)


class Arguments(NamedTuple):
    """Arguments with a batch axis, and with the window as what is seen before and after."""

    rng: Key | None  # None where the rate is known to be 0
    rate: GridRate
    inputs: Inputs
    fixed: Fixed
    before: int | None
    after: int | None
    shared: tuple[int, ...]  # axes of the weights (B, N, T, S)

    @property
    def weights_shape(self) -> tuple[int, int, int, int]:
        """Sizes (B, N, T, S)."""
        batch, queries, heads, _ = self.inputs.query.shape
        return batch, heads, queries, self.inputs.key.shape[1]

    @property
    def drops_all(self) -> bool:
        """Whether the rate is known to be 1."""
        return self.rate.is_one


def checked(
    check: Check,
    rng: Any,
    query: Any,
    key: Any,
    value: Any,
    rate: Any,
    *,
    bias: Any,
    mask: Any,
    scale: Any,
    is_causal: Any,
    query_seq_lengths: Any,
    key_value_seq_lengths: Any,
    local_window_size: Any,
    broadcast_dims: Any,
) -> Arguments:
    """Returns the arguments of attention if they fit together."""
    rate = grid_rate(check.probability("rate", rate))
    if rng is not None or not rate.is_zero:
        rng = check.one_key(rng, "rng")
    query, key, value = _arrays(check, query, key, value)
    axes = query.ndim
    shared = check.axes("broadcast_dims", broadcast_dims, axes)
    if axes == 3:
        query, key, value = query[None], key[None], value[None]
    weights = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    if bias is not None:
        bias = check.real_array("bias", bias)
        bias = _over_weights(check, "bias", bias, weights)
    if mask is not None:
        mask = check.any_array("mask", mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"{check}: mask must be boolean; got {mask.dtype}. Cast ones and zeros, as in"
                " mask.astype(bool); what is added to the logits is the bias."
            )
        mask = _over_weights(check, "mask", mask, weights)
    scale = _scale(check, scale, query)
    lengths = (
        _lengths(check, "query_seq_lengths", query_seq_lengths, query),
        _lengths(check, "key_value_seq_lengths", key_value_seq_lengths, key),
    )
    return Arguments(
        None if rate.is_zero else rng,
        rate,
        Inputs(query, key, value, bias, scale),
        Fixed(mask, *lengths, draw=None),
        *_window(check, is_causal, local_window_size, weights[2:]),
        tuple(axis + 4 - axes for axis in shared),
    )


def _arrays(check: Check, query: Any, key: Any, value: Any) -> tuple[Array, Array, Array]:
    query = check.real_array("query", query)
    key = check.real_array("key", key)
    value = check.real_array("value", value)
    if query.ndim not in (3, 4):
        raise ValueError(
            f"{check}: query must have shape (B, T, N, H) or (T, N, H); got {query.shape}."
        )
    fits = key.ndim == query.ndim and (key.shape[:-3], key.shape[-1]) == (
        query.shape[:-3],
        query.shape[-1],
    )
    if not fits:
        raise ValueError(
            f"{check}: key must have the batch and features of query; got {key.shape}"
            f" for {query.shape}."
        )
    if value.shape != key.shape:
        raise ValueError(
            f"{check}: value must have the shape of key; got {value.shape} for {key.shape}."
        )
    for name, x in (("key", key), ("value", value)):
        if x.dtype != query.dtype:
            raise TypeError(
                f"{check}: {name} must have the dtype of query; got {x.dtype} for {query.dtype}."
            )
    if jnp.finfo(query.dtype).bits < 8:
        raise TypeError(f"{check}: query must have a dtype of at least 8 bits; got {query.dtype}.")
    heads, key_heads = query.shape[-2], key.shape[-2]
    if heads % key_heads if key_heads else heads:
        raise ValueError(
            f"{check}: key must have a number of heads that divides that of query;"
            f" got {key_heads} for {heads}."
        )
    return query, key, value


def _over_weights(check: Check, name: str, x: Array, weights: tuple[int, ...]) -> Array:
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    if x.ndim != 4 or any(n not in (1, m) for n, m in zip(x.shape, weights, strict=True)):
        raise ValueError(
            f"{check}: {name} must broadcast to (B, N, T, S) = {weights}; got {x.shape}."
        )
    return x


def _scale(check: Check, scale: Any, query: Array) -> Array:
    dtype = compute_dtype(query)
    if scale is None:
        return jnp.asarray(max(query.shape[-1], 1) ** -0.5, dtype)
    scale = check.any_array("scale", scale)
    if scale.shape != () or jnp.iscomplexobj(scale) or scale.dtype == jnp.bool_:
        raise ValueError(f"{check}: scale must be one real number; got {describe(scale)}.")
    return scale.astype(dtype)


def _lengths(check: Check, name: str, lengths: Any, x: Array) -> Array | None:
    """How much of the time axis of each sample is real."""
    if lengths is None:
        return None
    lengths = check.integer_array(name, lengths)
    if lengths.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{check}: {name} must have shape {x.shape[:1]} or (); got {lengths.shape}."
        )
    if lengths.dtype.itemsize >= 4:  # so that no larger one wraps
        lengths = jnp.clip(lengths, 0, x.shape[1])
    return jnp.broadcast_to(lengths.astype(jnp.int32), x.shape[:1])


def _window(
    check: Check, is_causal: Any, size: Any, weights: tuple[int, int]
) -> tuple[int | None, int | None]:
    """How many keys before and after its own position a query sees; None where that is all."""
    if not isinstance(is_causal, bool | np.bool_):
        raise TypeError(f"{check}: is_causal must be True or False; got {describe(is_causal)}.")
    queries, keys = weights
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
    return before if before < queries - 1 else None, after if after < keys - 1 else None


def blocks(
    check: Check, query: Array, key: Array, query_block: Any, key_block: Any, budget: Budget
) -> tuple[int, int]:
    """Returns rows and columns of a tile, as asked for or else chosen by the arrays' shapes."""
    batch, queries, heads, features = query.shape
    keys = key.shape[1]
    least = min(budget.least, max(queries * features, WORD_BITS**2))
    area = min(max(budget.all_heads // max(batch * heads, 1), least), budget.most)
    if query_block is None:
        rows = _even(queries, 1 << (area.bit_length() - 1) // 2)
    else:
        rows = min(check.whole_number("query_block_size", query_block, 1), queries)
    if key_block is None:
        return rows, _even(keys, area // max(rows, 1))
    return rows, min(check.whole_number("key_block_size", key_block, 1), keys)


def _even(size: int, block: int) -> int:
    """A block no larger than asked for but for whole words, of which few parts are left over."""
    count = -(-size // max(block, 1))
    even = -(-size // max(count, 1))
    return min(size, -(-even // WORD_BITS) * WORD_BITS)
