"""What kernels take: arrays with the axis of samples first, which `vmap` only makes longer.

The axes have letters: b samples, n heads of queries, k heads of keys, t queries, s keys, h
features, w two words. A size with # may be 1, if the array is the same for all; those of
n, t and s may be 1 where the letter is large.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt32

from jaxdrop.methods.attention.operands import Inputs, Selection


class Operands(NamedTuple):
    """The operands of a forward pass, and those of a backward pass; None for what is not given."""

    query: Float[Array, "#b t n h"]
    key: Float[Array, "#b s k h"]
    value: Float[Array, "#b s k h"]
    factors: Float[Array, "#b 2"]  # of the logits, and of the weights that are kept
    words: UInt32[Array, "#b 2"] | None = None  # the key of the mask; None for no mask
    threshold: UInt32[Array, "#b 2"] | None = None  # where the fold starts, and the digits
    bias: Float[Array, "#b #n #t #s"] | None = None
    mask: Bool[Array, "#b #n #t #s"] | None = None
    query_lengths: Int[Array, "#b"] | None = None
    key_lengths: Int[Array, "#b"] | None = None
    d_out: Float[Array, "#b t n h"] | None = None
    highest: Float[Array, "#b n t"] | None = None
    log_total: Float[Array, "#b n t"] | None = None
    inner: Float[Array, "#b n t"] | None = None
    origin: UInt32[Array, "2"] | None = None  # the first sample and head of keys; None for 0


LETTERS = {
    "query": "btnh",
    "key": "bskh",
    "value": "bskh",
    "factors": "bw",
    "words": "bw",
    "threshold": "bw",
    "bias": "bNTS",
    "mask": "bNTS",
    "query_lengths": "b",
    "key_lengths": "b",
    "d_out": "btnh",
    "highest": "bnt",
    "log_total": "bnt",
    "inner": "bnt",
    "origin": "w",
}


def operands_of(inputs: Inputs[Array], selection: Selection) -> Operands:
    """The operands of a forward pass."""
    words = threshold = None
    if selection.draw is not None:
        words = jnp.stack(selection.draw.key)[None]
        drawn = selection.draw.rate.threshold
        threshold = jnp.stack([jnp.asarray(x) for x in (drawn.start, drawn.digits)])[None]
    return Operands(
        query=inputs.query,
        key=inputs.key,
        value=inputs.value,
        factors=jnp.stack([inputs.scale, selection.factor(inputs.scale.dtype)])[None],
        words=words,
        threshold=threshold,
        bias=inputs.bias,
        mask=selection.mask,
        query_lengths=selection.query_lengths,
        key_lengths=selection.key_lengths,
    )
