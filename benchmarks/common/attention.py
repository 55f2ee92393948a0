"""The candidates of attention: ours, flax's with dropout, and `jax.nn`'s without."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

import jaxdrop

Attention: TypeAlias = Callable[..., Array]
"""Of a key, query, key and value."""

RATE = 0.1
FLAX, FLAX_SHARED = "flax.linen, dropout", "flax.linen, mask shared over heads"
OURS_KERNEL = "jaxdrop, dropout, kernels"
PLAIN, OURS, OURS_PLAIN = "jax.nn, no dropout", "jaxdrop, dropout", "jaxdrop, rate 0"
WAYS = ("forward", "gradient")


def candidates(platform: str) -> dict[str, Attention]:
    """All that are compared, by name; kernels only where they are not interpreted."""
    kernels = {OURS_KERNEL: partial(attend, rate=RATE, implementation="kernel")}
    return {
        FLAX: partial(attend_flax, rate=RATE, broadcast_dropout=False),
        FLAX_SHARED: partial(attend_flax, rate=RATE, broadcast_dropout=True),
        PLAIN: attend_plain,
        OURS: partial(attend, rate=RATE),
        OURS_PLAIN: partial(attend, rate=0.0),
        **(kernels if platform in ("cuda", "gpu") else {}),
    }


def attend(rng: Array, *qkv: Array, rate: float, **options: Any) -> Array:
    """Ours, with the rate by keyword."""
    return jaxdrop.dot_product_attention(rng, *qkv, rate, **options)


def attend_flax(rng: Array, *qkv: Array, rate: float, **options: Any) -> Array:
    """That of flax.linen."""
    from flax import linen

    options |= {"dropout_rng": rng, "dropout_rate": rate, "deterministic": False}
    return linen.dot_product_attention(*qkv, **options)


def attend_plain(rng: Array, *qkv: Array, **options: Any) -> Array:
    """JAX's own, which has no dropout."""
    return jax.nn.dot_product_attention(*qkv, **options)


def types_of(way: str, shape: Sequence[int], dtype: str) -> list[jax.ShapeDtypeStruct]:
    """Types of query, key and value, and of the cotangent where the way needs one."""
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    return [x] * (3 if way == "forward" else 4)


def function_of(attention: Attention, way: str) -> Callable[..., Any]:
    """The output, or of a cotangent too the output and the cotangents of query, key and value."""
    if way == "forward":
        return attention

    def both(rng: Array, *arrays: Array) -> Any:
        *qkv, cotangent = arrays
        out, pull = jax.vjp(partial(attention, rng), *qkv)
        return out, pull(cotangent)

    return both
