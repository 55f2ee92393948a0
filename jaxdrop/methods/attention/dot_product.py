"""Dot-product attention with dropped weights: the public function and its implementations."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim
from jaxtyping import Bool, Float, Int

from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.part import Part
from jaxdrop.methods.attention.arguments import (
    Arguments,
    Drops,
    Form,
    checked_dropping,
    checked_form,
    checked_offsets,
    checked_window,
)
from jaxdrop.methods.attention.arrays import (
    Given,
    Sight,
    checked_given,
    checked_inputs,
    checked_selection,
    unmerged,
)
from jaxdrop.methods.attention.operands import Result
from jaxdrop.methods.attention.tiled import tiled
from jaxdrop.methods.attention.whole import whole

Implementation: TypeAlias = Literal["tiled", "whole", "kernel"]


def _kernel(check: Check, arguments: Arguments) -> Result:
    # Imported here, so that Pallas is loaded only by those who use it.
    from jaxdrop.methods.attention.kernel.passes import kernel

    return kernel(check, arguments)


# Each takes checked arguments, and refuses those that it cannot use.
_IMPLEMENTATIONS: dict[Implementation, Callable[[Check, Arguments], Result]] = {
    "tiled": tiled,
    "whole": whole,
    "kernel": _kernel,
}
_DEFAULT: Implementation = "tiled"


class _Options(TypedDict, total=False):
    """The options that do not change what is returned, for type checkers."""

    bias: Float[Array, "..."] | None
    mask: Bool[Array, "..."] | None
    scale: float | Float[Array, ""] | None
    is_causal: bool
    query_seq_lengths: Int[Array, "..."] | None
    key_value_seq_lengths: Int[Array, "..."] | None
    local_window_size: int | tuple[int, int] | None
    segment_ids: tuple[Int[Array, "..."], Int[Array, "..."]] | None
    logits_soft_cap: float | None
    part: Part | None
    broadcast_dims: int | Sequence[int]
    query_block_size: int | None
    key_block_size: int | None
    implementation: Implementation | None


@overload
def dot_product_attention(
    rng: Key | None,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    rate: Rate,
    *,
    return_residual: Literal[False] = False,
    **options: Unpack[_Options],
) -> Float[Array, "*B T N V"]: ...


@overload
def dot_product_attention(
    rng: Key | None,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    rate: Rate,
    *,
    return_residual: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]: ...


def dot_product_attention(
    rng: Key | None,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    rate: Rate,
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    segment_ids: tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None = None,
    logits_soft_cap: float | None = None,
    return_residual: bool = False,
    part: Part | None = None,
    broadcast_dims: int | Sequence[int] = (),
    query_block_size: int | None = None,
    key_block_size: int | None = None,
    implementation: Implementation | None = None,
) -> Result:
    """Attention in which each weight is dropped with probability `rate`.

    This is `jax.nn.dot_product_attention` with a key and a rate. If m is the mask and
    q = 1 - rate, the output is (m softmax(logits) / q) value, so its mean is the output
    without dropout. All arguments of the function in `jax.nn` have the same meaning
    here. It takes bias and mask by position, and here they are keywords:

      jax.nn.dot_product_attention(query, key, value, bias, mask, ...)
      dot_product_attention(rng, query, key, value, rate, bias=bias, mask=mask, ...)

    The weights and their mask are computed tile by tile, in the forward and in the
    backward pass. So memory grows with T + S, not with T S. Tiles in which `is_causal`
    or `local_window_size` hides everything are skipped, and so are those that lie
    between the documents of all samples. Under `vmap`, one tile of every element is in
    memory at once. If that is too much, pass the batch as an axis instead of `vmap`, or
    pass smaller block sizes.

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

    The mask is that of `dropout(rng, weights, rate)` for weights of shape (*B, N, T, S),
    bit for bit. It does not depend on the implementation, on block sizes, or on how
    arrays are split over devices. If arrays are split over batch and heads, devices
    need no communication, except to agree on the tiles that segment ids skip. A kernel
    needs some if K heads of keys are split unequally.

    If queries and keys are split along T and S in `shard_map`, each device says by
    `part` which weights it computes, and all devices pass the same key. Then masks,
    windows and lengths are those of the whole sequence. With `return_residual`, results
    for some of the keys can be merged into those for all of them: they are averaged
    with exp(residual) as weights. `examples/ring_attention.py` does so in a ring.

    Args:
      rng: one random key, consumed here. May be None if `rate` is a known 0 or 1, since
        then no key is needed.
      query: real floating array of shape (*B, T, N, H), with any number of batch axes.
      key: real floating array of shape (*B, S, K, H). K divides N: each head of keys is
        used by N / K consecutive heads of queries.
      value: real floating array of shape (*B, S, K, V).
      rate: probability of dropping a weight, in [0, 1]; may be traced. A traced rate
        that is out of range by more than rounding turns the result into NaN.
      bias: added to the logits; broadcasts to (*B, N, T, S). Minus infinity
        hides a key from a query.
      mask: True where a query sees a key; broadcasts to (*B, N, T, S).
      scale: factor of the logits; None for 1 / sqrt(H). May be traced.
      is_causal: whether query t sees no key after key t.
      query_seq_lengths: integers of shape B or (): how many queries of each sample
        are real. The others give zeros.
      key_value_seq_lengths: integers of shape B or (): how many keys of each sample are seen.
      local_window_size: how many keys before and after its own position a query
        sees; one number for both.
      segment_ids: pair of integers of shapes (*B, T) and (*B, S): the document of each
        query and of each key, where several documents are packed into one sequence. A
        query sees the keys of its own document.
      logits_soft_cap: number c > 0, known while tracing; scaled products x of queries
        and keys become c tanh(x / c). The bias is added after that.
      return_residual: whether to return the log-sum-exp of the logits too.
      part: which part of larger weights these are. The mask is this part of the mask of
        the larger weights, and `is_causal`, `local_window_size` and both lengths count
        from where the larger weights start. Other arrays are those of the part.
      broadcast_dims: axes of the weights, (*B, N, T, S), along which the mask is shared.
      query_block_size: queries per tile; None for a choice by shape, which is larger on
        a GPU. It changes memory and time, and the result only by rounding.
      key_block_size: keys per tile; None for a choice by shape.
      implementation: "tiled" computes tile by tile, as above. "whole" computes softmax,
        `dropout` and product with all weights in memory; it has no block sizes.
        "kernel" is for NVIDIA GPUs, as above. None lets jaxdrop choose; it takes
        "tiled" today.

    Returns:
      An array of shape (*B, T, N, V) with the dtype of `query`. Queries that see no key
      give zeros. On Explicit mesh axes it is split as `query` is, and along the first
      axis of the batch as the first of the inputs that is split there. If
      `return_residual`, a pair of it and of the log-sum-exp of all logits, before
      anything is dropped: float32 (float64 for 64-bit inputs) of shape (*B, T, N), and
      minus infinity for queries that see no key. Both have derivatives.

    Raises:
      TypeError: an array is not of the kind stated, `query`, `key` and `value`
        differ in dtype or have one that "kernel" does not take, `rng` is not one key,
        `rate` is not a number, `part` is not a `Part`, or `segment_ids` is not a pair.
      ValueError: a known `rate` lies outside [0, 1], shapes do not agree, a
        block size is below 1 or given with "whole", "kernel" takes no such block size
        or number of features, `logits_soft_cap` is not positive, `broadcast_dims` are
        out of range or repeated, `part` does not fit, or the implementation is unknown.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 4, 16))
      >>> attend = partial(dot_product_attention, jax.random.key(1), q, k, v, 0.1)
      >>> y = attend(is_causal=True)
      >>> y.shape
      (2, 128, 4, 16)
      >>> whole = attend(is_causal=True, implementation="whole")
      >>> bool(jnp.allclose(y, whole, atol=1e-5))
      True

      The last 64 queries alone, as a device of two would compute them:

      >>> last = partial(dot_product_attention, jax.random.key(1), q[:, 64:], k, v, 0.1)
      >>> part = Part((0, 0, 64, 0), (2, 4, 128, 128))
      >>> bool(jnp.allclose(last(is_causal=True, part=part), y[:, 64:], atol=1e-5))
      True

    References:
      Vaswani et al., "Attention is all you need", arXiv:1706.03762 (2017), for
      dropped weights in the code that came with it; Dao et al.,
      "FlashAttention", arXiv:2205.14135 (2022).
    """
    given = Given(query, key, value, bias, scale)
    sight = Sight(mask, query_seq_lengths, key_value_seq_lengths, segment_ids)
    drops = Drops(rng, rate, broadcast_dims, part)
    form = Form(query_block_size, key_block_size, logits_soft_cap, return_residual)
    check = Check("dot_product_attention")
    arguments = _checked(check, given, sight, (is_causal, local_window_size), drops, form)
    return _attention(check, arguments, implementation, jnp.shape(query)[:-3])


def _checked(
    check: Check, given: Given, sight: Sight, window: tuple[Any, Any], drops: Drops, form: Form
) -> Arguments:
    given = checked_given(check, given)
    inputs = checked_inputs(check, given)
    shared = check.axes("broadcast_dims", drops.broadcast_dims, len(given.weights))
    offsets = checked_offsets(check, drops.part, given.weights, shared)
    return Arguments(
        inputs,
        checked_selection(check, given, offsets, sight),
        checked_window(check, inputs, offsets, *window),
        checked_dropping(check, drops, shared, offsets, axes=len(given.weights)),
        given.batch,
        *checked_form(check, form),
    )


def _attention(
    check: Check,
    arguments: Arguments,
    implementation: Implementation | None,
    batch: tuple[int, ...],
) -> Result:
    result = _named(check, arguments, implementation)(check, arguments)
    if isinstance(result, tuple):
        return unmerged(result[0], batch), unmerged(result[1], batch)
    return unmerged(result, batch)


def _named(
    check: Check, arguments: Arguments, implementation: Implementation | None
) -> Callable[[Check, Arguments], Result]:
    if implementation is None:
        # Tiles need lengths that are known while tracing.
        by_length = any(map(is_symbolic_dim, arguments.weights_shape[2:]))
        return _IMPLEMENTATIONS["whole" if by_length else _DEFAULT]
    # A list, because a search in a `dict` fails for values without a hash.
    if implementation not in list(_IMPLEMENTATIONS):
        names = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ValueError(
            f"{check}: implementation must be None or one of {names}; got {implementation!r}."
        )
    return _IMPLEMENTATIONS[implementation]
