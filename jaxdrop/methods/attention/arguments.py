"""What callers of attention pass, checked and brought into one form."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdrop.base import validate
from jaxdrop.base.types import Key, Rate
from jaxdrop.core.apply import compute_dtype
from jaxdrop.core.layout import WORD_BITS
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
    rate: Rate
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
        return not isinstance(self.rate, Array) and self.rate == 1


def checked(
    function: str,
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
    rate = validate.probability(function, "rate", rate)
    keeps_all = not isinstance(rate, Array) and rate == 0
    if rng is not None or not keeps_all:
        rng = validate.one_key(function, rng, "rng")
    query, key, value = _arrays(function, query, key, value)
    axes = query.ndim
    shared = validate.axes(function, "broadcast_dims", broadcast_dims, axes)
    if axes == 3:
        query, key, value = query[None], key[None], value[None]
    weights = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    if bias is not None:
        bias = validate.real_array(function, "bias", bias)
        bias = _over_weights(function, "bias", bias, weights)
    if mask is not None:
        mask = validate.any_array(function, "mask", mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"{function}: mask must be boolean; got {mask.dtype}. Cast ones and zeros, as in"
                " mask.astype(bool); what is added to the logits is the bias."
            )
        mask = _over_weights(function, "mask", mask, weights)
    scale = _scale(function, scale, query)
    lengths = (
        _lengths(function, "query_seq_lengths", query_seq_lengths, query),
        _lengths(function, "key_value_seq_lengths", key_value_seq_lengths, key),
    )
    return Arguments(
        None if keeps_all else rng,
        rate,
        Inputs(query, key, value, bias, scale),
        Fixed(mask, *lengths, draw=None),
        *_window(function, is_causal, local_window_size, weights[2:]),
        tuple(axis + 4 - axes for axis in shared),
    )


def _arrays(function: str, query: Any, key: Any, value: Any) -> tuple[Array, Array, Array]:
    query = validate.real_array(function, "query", query)
    key = validate.real_array(function, "key", key)
    value = validate.real_array(function, "value", value)
    if query.ndim not in (3, 4):
        raise ValueError(
            f"{function}: query must have shape (B, T, N, H) or (T, N, H); got {query.shape}."
        )
    fits = key.ndim == query.ndim and (key.shape[:-3], key.shape[-1]) == (
        query.shape[:-3],
        query.shape[-1],
    )
    if not fits:
        raise ValueError(
            f"{function}: key must have the batch and features of query; got {key.shape}"
            f" for {query.shape}."
        )
    if value.shape != key.shape:
        raise ValueError(
            f"{function}: value must have the shape of key; got {value.shape} for {key.shape}."
        )
    for name, x in (("key", key), ("value", value)):
        if x.dtype != query.dtype:
            raise TypeError(
                f"{function}: {name} must have the dtype of query; got {x.dtype} for {query.dtype}."
            )
    if jnp.finfo(query.dtype).bits < 8:
        raise TypeError(
            f"{function}: query must have a dtype of at least 8 bits; got {query.dtype}."
        )
    heads, key_heads = query.shape[-2], key.shape[-2]
    if heads % key_heads if key_heads else heads:
        raise ValueError(
            f"{function}: key must have a number of heads that divides that of query;"
            f" got {key_heads} for {heads}."
        )
    return query, key, value


def _over_weights(function: str, name: str, x: Array, weights: tuple[int, ...]) -> Array:
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    if x.ndim != 4 or any(n not in (1, m) for n, m in zip(x.shape, weights, strict=True)):
        raise ValueError(
            f"{function}: {name} must broadcast to (B, N, T, S) = {weights}; got {x.shape}."
        )
    return x


def _scale(function: str, scale: Any, query: Array) -> Array:
    dtype = compute_dtype(query)
    if scale is None:
        return jnp.asarray(max(query.shape[-1], 1) ** -0.5, dtype)
    scale = validate.any_array(function, "scale", scale)
    if scale.shape != () or jnp.iscomplexobj(scale) or scale.dtype == jnp.bool_:
        raise ValueError(
            f"{function}: scale must be one real number; got {validate.describe(scale)}."
        )
    return scale.astype(dtype)


def _lengths(function: str, name: str, lengths: Any, x: Array) -> Array | None:
    """How much of the time axis of each sample is real."""
    if lengths is None:
        return None
    lengths = validate.integer_array(function, name, lengths)
    if lengths.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{function}: {name} must have shape {x.shape[:1]} or (); got {lengths.shape}."
        )
    if lengths.dtype.itemsize >= 4:  # so that no larger one wraps
        lengths = jnp.clip(lengths, 0, x.shape[1])
    return jnp.broadcast_to(lengths.astype(jnp.int32), x.shape[:1])


def _window(
    function: str, is_causal: Any, size: Any, weights: tuple[int, int]
) -> tuple[int | None, int | None]:
    """How many keys before and after its own position a query sees; None where that is all."""
    if not isinstance(is_causal, bool | np.bool_):
        raise TypeError(
            f"{function}: is_causal must be True or False; got {validate.describe(is_causal)}."
        )
    queries, keys = weights
    before, after = queries, keys
    if size is not None:
        given = validate.integers(function, "local_window_size", size)
        if len(given) not in (1, 2) or min(given) < 0:
            raise ValueError(
                f"{function}: local_window_size must be one number of at least 0, or two (before,"
                f" after); got {size}."
            )
        before, after = given[0], given[-1]
    if is_causal:
        after = 0
    return before if before < queries - 1 else None, after if after < keys - 1 else None


def blocks(
    function: str, query: Array, key: Array, query_block: Any, key_block: Any, budget: Budget
) -> tuple[int, int]:
    """Returns rows and columns of a tile, as asked for or else chosen by the arrays' shapes."""
    batch, queries, heads, features = query.shape
    keys = key.shape[1]
    least = min(budget.least, max(queries * features, WORD_BITS**2))
    area = min(max(budget.all_heads // max(batch * heads, 1), least), budget.most)
    if query_block is None:
        rows = _even(queries, 1 << (area.bit_length() - 1) // 2)
    else:
        rows = min(validate.whole_number(function, "query_block_size", query_block, 1), queries)
    if key_block is None:
        return rows, _even(keys, area // max(rows, 1))
    return rows, min(validate.whole_number(function, "key_block_size", key_block, 1), keys)


def _even(size: int, block: int) -> int:
    """A block no larger than asked for but for whole words, of which few parts are left over."""
    count = -(-size // max(block, 1))
    even = -(-size // max(count, 1))
    return min(size, -(-even // WORD_BITS) * WORD_BITS)
