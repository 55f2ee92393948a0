"""What attention works on, and how heads are laid out while it does.

Shapes: B batch, T queries, S keys, N heads of queries, K heads of keys, G = N / K
heads of queries that share one of keys, H features.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxdrop.core.rate import GridRate
from jaxdrop.core.words import ThreefryKey


class Inputs(NamedTuple):
    """What attention has derivatives by; None where there is nothing."""

    query: Float[Array, "B T N H"] | Any
    key: Float[Array, "B S K H"] | Any
    value: Float[Array, "B S K H"] | Any
    bias: Float[Array, "#B #N #T #S"] | Any
    scale: Float[Array, ""] | Any


class Draw(NamedTuple):
    """The mask of the weights, still to be drawn."""

    key: ThreefryKey
    rate: GridRate  # on the grid
    factor: Float[Array, ""]  # of the survivors


class Fixed(NamedTuple):
    """What attention has no derivatives by; None where there is nothing."""

    mask: Bool[Array, "#B #N #T #S"] | None
    query_lengths: Int[Array, "B"] | None
    key_lengths: Int[Array, "B"] | None
    draw: Draw | None

    def factor(self, dtype: jnp.dtype) -> Array:
        """What the weights that are kept are multiplied by."""
        return jnp.ones((), dtype) if self.draw is None else self.draw.factor.astype(dtype)


class Result(NamedTuple):
    """What the passes back need of the forward pass, beside its inputs.

    The log-sum-exp of a row is `highest + log_total`, kept apart since a sum
    would lose the latter where all logits are far from 0. Only their sum has a
    meaning, so derivatives are those of `log_total`, with `highest` a constant.
    """

    out: Float[Array, "B T N H"]  # in float32 or wider
    highest: Float[Array, "B K G T 1"]
    log_total: Float[Array, "B K G T 1"]


def grouped(inputs: Inputs, fixed: Fixed) -> tuple[Inputs, Fixed]:
    """The arrays with heads ahead of time, those of queries in groups that share a head of keys."""
    key_heads = inputs.key.shape[2]
    mask = None if fixed.mask is None else _split_heads(fixed.mask, key_heads)
    return by_heads(inputs, key_heads), fixed._replace(mask=mask)


def by_heads(x: Inputs, key_heads: int) -> Inputs:
    """The same of inputs some of which may be missing, as those of tangents."""
    return x._replace(
        query=None if x.query is None else by_group(x.query, key_heads),
        key=None if x.key is None else jnp.swapaxes(x.key, 1, 2),
        value=None if x.value is None else jnp.swapaxes(x.value, 1, 2),
        bias=None if x.bias is None else _split_heads(x.bias, key_heads),
    )


def as_given(x: Inputs, inputs: Inputs) -> Inputs:
    """Undoes `by_heads`, in the dtypes of the inputs."""
    given = x._replace(
        query=None if x.query is None else by_head(x.query),
        key=None if x.key is None else jnp.swapaxes(x.key, 1, 2),
        value=None if x.value is None else jnp.swapaxes(x.value, 1, 2),
        bias=None if x.bias is None else x.bias.reshape(inputs.bias.shape),
    )
    pairs = zip(given, inputs, strict=True)
    return Inputs(*(None if leaf is None else leaf.astype(like.dtype) for leaf, like in pairs))


def by_group(x: Array, key_heads: int) -> Array:
    """(B, T, N, H) as (B, K, G, T, H)."""
    return _split_heads(jnp.swapaxes(x, 1, 2), key_heads)


def by_head(x: Array) -> Array:
    """(B, K, G, T, H) as (B, T, N, H)."""
    batch, key_heads, groups, *rest = x.shape
    return jnp.swapaxes(x.reshape(batch, key_heads * groups, *rest), 1, 2)


def _split_heads(x: Array, key_heads: int) -> Array:
    """(B, N, ...) as (B, K, G, ...), and (B, 1, ...) as (B, 1, 1, ...)."""
    batch, heads, *rest = x.shape
    key_heads = key_heads if heads != 1 else 1
    return x.reshape(batch, key_heads, heads // key_heads, *rest)
