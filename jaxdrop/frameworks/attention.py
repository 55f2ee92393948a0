"""Attention with the arguments that the layers of flax pass, for linen and for nnx."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdrop.methods.attention.dot_product import Implementation, dot_product_attention


class Masking(NamedTuple):
    """What is added to the logits, and what hides keys from queries."""

    bias: Any
    mask: Any
    is_causal: bool = False


def attend(
    inputs: tuple[Array, ...],
    rng: Any,
    rate: Any,
    masking: Masking,
    broadcast_dropout: bool,
    precision: Any,
    sow: Callable[[Array], Any] | None,
    implementation: Implementation | None,
) -> Array:
    """Attention; `sow` takes the weights before anything is dropped."""
    query, key, value = inputs
    bias, mask, is_causal = masking
    options: Any = {
        "bias": None if bias is None else jnp.asarray(bias).astype(query.dtype),
        "mask": None if mask is None else jnp.asarray(mask).astype(bool),
        "is_causal": is_causal,
        "implementation": implementation,
    }
    # Flax shares a mask over the batch and over heads.
    shared = range(query.ndim - 2) if broadcast_dropout else ()
    with _precision(precision):
        if sow is not None:
            sow(_weights(query, key, options))
        return dot_product_attention(rng, query, key, value, rate, broadcast_dims=shared, **options)


def _weights(query: Array, key: Array, options: Any) -> Array:
    """All weights: what attention makes of one-hot values."""
    *batch, length, heads, _ = key.shape
    one_hot = jnp.eye(length, dtype=key.dtype)[:, None]
    one_hot = jnp.broadcast_to(one_hot, (*batch, length, heads, length))
    weights = dot_product_attention(None, query, key, one_hot, 0.0, **options)
    return jnp.moveaxis(weights, -2, -3)


def _precision(precision: Any) -> Any:
    if isinstance(precision, tuple) and len(set(precision)) == 1:
        precision = precision[0]
    if precision is None or precision is lax.DotAlgorithmPreset.DEFAULT:
        return nullcontext()
    if isinstance(precision, str) and precision not in lax.DotAlgorithmPreset.__members__:
        precision = lax.Precision(precision)  # knows names that the context manager does not
    if isinstance(precision, lax.Precision):
        precision = precision.name.lower()
    elif isinstance(precision, lax.DotAlgorithmPreset):
        precision = precision.name
    if not isinstance(precision, str):
        raise NotImplementedError(
            f"attention_fn: precision must be one for both operands, by name; got {precision}."
        )
    return jax.default_matmul_precision(precision)
