"""What kernels take: arrays with the axis of samples first, which `vmap` only makes longer.

The axes have letters: b samples, k heads of keys, g heads of queries that share one, t
queries, s keys, h features, and n for what a program takes whole. A size with # may be
1, if the array is the same for all; of t and s it may be where the letter is large.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt32

from jaxdrop.methods.attention.operands import Inputs, Selection, split_heads


class Operands(NamedTuple):
    """The operands of a forward pass, and those of a backward pass; None for what is not given."""

    query: Float[Array, "#b t k g h"]
    key: Float[Array, "#b s k h"]
    value: Float[Array, "#b s k h"]
    factors: Float[Array, "#b 2"]  # of the logits, and of the weights that are kept
    words: UInt32[Array, "#b 2"] | None = None  # the key of the mask; None for no mask
    threshold: UInt32[Array, "#b 2"] | None = None  # where the fold starts, and the digits
    bias: Float[Array, "#b #t #k #g #s"] | None = None
    mask: Bool[Array, "#b #t #k #g #s"] | None = None
    query_lengths: Int[Array, "#b"] | None = None
    key_lengths: Int[Array, "#b"] | None = None
    d_out: Float[Array, "#b t k g h"] | None = None
    highest: Float[Array, "#b k g t"] | None = None
    log_total: Float[Array, "#b k g t"] | None = None
    inner: Float[Array, "#b k g t"] | None = None
    origin: UInt32[Array, "2"] | None = None  # the first sample and head of keys; None for 0


LETTERS = {
    "query": "btkgh",
    "key": "bskh",
    "value": "bskh",
    "factors": "bn",
    "words": "bn",
    "threshold": "bn",
    "bias": "bkgTS",
    "mask": "bkgTS",
    "query_lengths": "b",
    "key_lengths": "b",
    "d_out": "btkgh",
    "highest": "bkgt",
    "log_total": "bkgt",
    "inner": "bkgt",
    "origin": "n",
}


def operands_of(inputs: Inputs[Array], selection: Selection) -> Operands:
    """The operands of a forward pass."""
    batch, queries, heads, features = inputs.query.shape
    key_heads = inputs.key.shape[2]
    group = partial(split_heads, key_heads=key_heads)
    mask, draw = selection.mask, selection.draw
    words = threshold = None
    if draw is not None:
        words = jnp.stack(draw.key)[None]
        drawn = draw.rate.threshold
        threshold = jnp.stack([jnp.asarray(x) for x in (drawn.start, drawn.digits)])[None]
    return Operands(
        query=inputs.query.reshape(batch, queries, key_heads, heads // key_heads, features),
        key=inputs.key,
        value=inputs.value,
        factors=jnp.stack([inputs.scale, selection.factor(inputs.scale.dtype)])[None],
        words=words,
        threshold=threshold,
        bias=None if inputs.bias is None else group(inputs.bias),
        mask=None if mask is None else group(mask),
        query_lengths=selection.query_lengths,
        key_lengths=selection.key_lengths,
    )
