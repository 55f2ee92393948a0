"""What kernels take: arrays with the axis of samples first, which `vmap` only makes longer.

The axes have letters: b samples, n heads of queries, k heads of keys, t queries, s keys, h
features of queries and keys, v features of values, c blocks, w some numbers. A size with
# may be 1, if the array is the same for all; those of n, t and s may be 1 where the letter
is large.
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
    value: Float[Array, "#b s k v"]
    factors: Float[Array, "#b 2"]  # of the logits, and of the weights that are kept
    words: UInt32[Array, "#b 2"] | None = None  # the key of the mask; None for no mask
    threshold: UInt32[Array, "#b 2"] | None = None  # where the fold starts, and the digits
    bias: Float[Array, "#b #n #t #s"] | None = None
    mask: Bool[Array, "#b #n #t #s"] | None = None
    query_lengths: Int[Array, "#b"] | None = None
    key_lengths: Int[Array, "#b"] | None = None
    query_segments: Int[Array, "#b t"] | None = None
    key_segments: Int[Array, "#b s"] | None = None
    spans: Int[Array, "#b c 2"] | None = None  # of blocks that a block may see
    place: UInt32[Array, "#b axes"] | None = None  # of the weights in the mask of all weights
    shift: Int[Array, "#b"] | None = None  # of windows
    d_out: Float[Array, "#b t n v"] | None = None
    highest: Float[Array, "#b n t"] | None = None
    log_total: Float[Array, "#b n t"] | None = None
    inner: Float[Array, "#b n t"] | None = None
    origin: UInt32[Array, "2"] | None = None  # the first sample and head of keys; None for 0


LETTERS = {
    "query": "btnh",
    "key": "bskh",
    "value": "bskv",
    "factors": "bw",
    "words": "bw",
    "threshold": "bw",
    "bias": "bNTS",
    "mask": "bNTS",
    "query_lengths": "b",
    "key_lengths": "b",
    "query_segments": "bt",
    "key_segments": "bs",
    "spans": "bcw",
    "place": "bw",
    "shift": "b",
    "d_out": "btnv",
    "highest": "bnt",
    "log_total": "bnt",
    "inner": "bnt",
    "origin": "w",
}


def operands_of(inputs: Inputs[Array], selection: Selection) -> Operands:
    """The operands of a forward pass."""
    words = threshold = place = None
    if selection.draw is not None:
        words = jnp.stack(selection.draw.key)[None]
        drawn = selection.draw.rate.threshold
        threshold = jnp.stack([jnp.asarray(x) for x in (drawn.start, drawn.digits)])[None]
        if selection.draw.start is not None:
            known = (jnp.uint32(0) if x is None else x for x in selection.draw.start)
            place = jnp.stack(list(known))[None]
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
        query_segments=None if selection.segments is None else selection.segments[0],
        key_segments=None if selection.segments is None else selection.segments[1],
        place=place,
        shift=None if selection.shift is None else selection.shift[None],
    )
