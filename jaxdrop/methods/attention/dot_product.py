"""Dot-product attention with dropped weights: the public function and its implementations."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.methods.attention.arguments import (
    Arguments,
    checked_blocks,
    checked_dropping,
    checked_inputs,
    checked_selection,
    checked_window,
)
from jaxdrop.methods.attention.tiled import tiled
from jaxdrop.methods.attention.whole import whole

Implementation: TypeAlias = Literal["tiled", "whole", "kernel"]


def _kernel(check: Check, arguments: Arguments) -> Array:
    # Imported here, so that Pallas is loaded only by those who use it.
    from jaxdrop.methods.attention.kernel.passes import kernel

    return kernel(check, arguments)


# Each takes checked arguments, and refuses those that it cannot use.
_IMPLEMENTATIONS: dict[Implementation, Callable[[Check, Arguments], Array]] = {
    "tiled": tiled,
    "whole": whole,
    "kernel": _kernel,
}
_DEFAULT: Implementation = "tiled"


def dot_product_attention(
    rng: Key | None,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K H"],
    rate: Rate,
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    broadcast_dims: int | Sequence[int] = (),
    query_block_size: int | None = None,
    key_block_size: int | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "*B T N H"]:
    """Attention in which each weight is dropped with probability `rate`.

    This is `jax.nn.dot_product_attention` with a key and a rate. If m is the mask and
    q = 1 - rate, the output is (m softmax(logits) / q) value, so its mean is the output
    without dropout. All arguments of the function in `jax.nn` have the same meaning
    here.

    The weights and their mask are computed tile by tile, in the forward and in the
    backward pass. So memory grows with T + S, not with T S. Tiles in which `is_causal`
    or `local_window_size` hides everything are skipped. Under `vmap`, one tile of every
    element is in memory at once. If that is too much, pass the batch as an axis instead
    of `vmap`, or pass smaller block sizes.

    On an NVIDIA GPU, `implementation="kernel"` computes the output in one kernel, and
    the cotangents of query, key and value in three (one is a sum of rows). They keep
    nothing larger than their results, and skip blocks of keys that nothing sees. All
    options are served, but tiles compute what no kernel does: cotangents if those of
    the bias or the scale are asked for, tangents, derivatives of higher order, programs
    of `jax.export`, and calls inside of a `shard_map` over only some axes of a mesh. It
    takes float32, bfloat16 and float16, up to 256 features, and block sizes that are
    powers of two from 32 on. In 16 bits the backward pass uses the rounded output. On
    other platforms the same kernels run in Pallas's interpreter, which is slow and for
    tests. The kernels were compiled for an H200 and never timed. They use the Triton
    part of Pallas, which JAX deprecates from 0.12 on.

    The mask is that of `dropout(rng, weights, rate)` for weights of shape (B, N, T, S),
    bit for bit. It does not depend on the implementation, on block sizes, or on how
    arrays are split over devices. If arrays are split over batch and heads, devices
    need no communication. A kernel needs some if K heads of keys are split unequally.

    Args:
      rng: one random key, consumed here. May be None if `rate` is a known 0, since then
        no key is needed.
      query: real floating array of shape (B, T, N, H) or (T, N, H).
      key: real floating array of shape (B, S, K, H) or (S, K, H). K divides N: each
        head of keys is used by N / K consecutive heads of queries.
      value: array of the shape of `key`.
      rate: probability of dropping a weight, in [0, 1]; may be traced. A traced rate
        that is out of range by more than rounding turns the result into NaN.
      bias: added to the logits; broadcasts to (B, N, T, S). Minus infinity
        hides a key from a query.
      mask: True where a query sees a key; broadcasts to (B, N, T, S).
      scale: factor of the logits; None for 1 / sqrt(H). May be traced.
      is_causal: whether query t sees no key after key t.
      query_seq_lengths: integers of shape (B,) or (): how many queries of each sample
        are real. The others give zeros.
      key_value_seq_lengths: integers of shape (B,) or (): how many keys of each sample are seen.
      local_window_size: how many keys before and after its own position a query
        sees; one number for both.
      broadcast_dims: axes of the weights, (B, N, T, S) or (N, T, S), along
        which the mask is shared.
      query_block_size: queries per tile; None for a choice by shape, which is larger on
        a GPU. It changes memory and time, and the result only by rounding.
      key_block_size: keys per tile; None for a choice by shape.
      implementation: "tiled" computes tile by tile, as above. "whole" computes softmax,
        `dropout` and product with all weights in memory; it has no block sizes.
        "kernel" is for NVIDIA GPUs, as above. None lets jaxdrop choose; it takes
        "tiled" today.

    Returns:
      An array with the shape and dtype of `query`. Queries that see no key give
      zeros. On Explicit mesh axes it is split as `query` is, and along the batch as the
      first of the inputs that is split there.

    Raises:
      TypeError: an array is not of the kind stated, `query`, `key` and `value`
        differ in dtype or have one that "kernel" does not take, `rng` is not one key,
        or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], shapes do not agree, a
        block size is below 1 or given with "whole", "kernel" takes no such block size
        or number of features, `broadcast_dims` are out of range or repeated, or the
        implementation is unknown.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 4, 16))
      >>> attend = partial(dot_product_attention, jax.random.key(1), q, k, v, 0.1)
      >>> y = attend(is_causal=True)
      >>> y.shape
      (2, 128, 4, 16)
      >>> whole = attend(is_causal=True, implementation="whole")
      >>> bool(jnp.allclose(y, whole, atol=1e-5))
      True

    References:
      Vaswani et al., "Attention is all you need", arXiv:1706.03762 (2017), for
      dropped weights in the code that came with it; Dao et al.,
      "FlashAttention", arXiv:2205.14135 (2022).
    """
    check = Check("dot_product_attention")
    inputs = checked_inputs(check, query, key, value, bias, scale)
    arguments = Arguments(
        inputs,
        checked_selection(check, inputs, mask, query_seq_lengths, key_value_seq_lengths),
        checked_window(check, inputs, is_causal, local_window_size),
        checked_dropping(check, rng, rate, broadcast_dims, axes=jnp.ndim(query)),
        checked_blocks(check, query_block_size, key_block_size),
    )
    return _named(check, implementation)(check, arguments).reshape(jnp.shape(query))


def _named(
    check: Check, implementation: Implementation | None
) -> Callable[[Check, Arguments], Array]:
    if implementation is None:
        return _IMPLEMENTATIONS[_DEFAULT]
    # A list, because a search in a `dict` fails for values without a hash.
    if implementation not in list(_IMPLEMENTATIONS):
        names = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ValueError(
            f"{check}: implementation must be None or one of {names}; got {implementation!r}."
        )
    return _IMPLEMENTATIONS[implementation]
