"""Methods for attention that drop heads, or keys before the softmax."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Inexact

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.axes import other_axes
from jaxdrop.base.names import fold_in_name
from jaxdrop.base.sharding import whole_along
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, count_flags, poisoned, unpack_for
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.words import Words, below, draw_words
from jaxdrop.methods.masked import draw_for, drop
from jaxdrop.rescale import realized

# In the place of the position of a key that stays: the query has the mask as it was drawn,
# or is returned unchanged.
_AS_DRAWN, _UNTOUCHED = -2, -1
_BLOCK = 32  # keys that are counted together


def drop_heads(
    key: Key | None,
    x: Inexact[Array, "*shape"],
    rate: Rate,
    *,
    head_axis: int = -2,
    batch_axis: int | None = 0,
    rescale: Rescale | None = None,
) -> Inexact[Array, "*shape"]:
    """Drops whole attention heads, with one decision per sample and head.

    In each sample the survivors are multiplied by heads / survivors. So if all heads
    are equal, their sum is kept in every draw, and E[y] = x under the condition that a
    head survives. If no head of a sample survives, the sample is zero, never NaN.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array with the outputs of the heads, such as (batch, time,
        heads, features).
      rate: probability of dropping a head, in [0, 1]; may be traced.
      head_axis: axis of the heads.
      batch_axis: axis of the samples; None for one sample, as under `vmap`.
      rescale: rule for the factor of the survivors; None for
        `rescale.realized(head_axis)`.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], an axis is out of range,
        or both are the same.

    Example:
      >>> y = drop_heads(jax.random.key(0), jnp.ones((2, 5, 8, 4)), 0.5)
      >>> y[:, 0, :, 0].sum(axis=1).tolist()
      [8.0, 8.0]

    References:
      Zhou et al., "Scheduled DropHead: a regularization method for transformer
      models", arXiv:2004.13342 (2020).
    """
    check = Check("drop_heads")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    head = check.axis("head_axis", head_axis, x.ndim)
    named = check.distinct_axes(x, head_axis=head_axis, batch_axis=batch_axis)
    shared = other_axes(x.ndim, named)
    rule = realized(head) if rescale is None else rescale
    return drop(check, key, x, rate, shared, rule)


def drop_key(
    key: Key | None,
    logits: Float[Array, "*shape"],
    rate: Rate,
    *,
    where: Bool[Array, "..."] | None = None,
    broadcast_dims: int | Sequence[int] = (),
) -> Float[Array, "*shape"]:
    """Drops keys of attention before the softmax, by setting their logits to -inf.

    The softmax then gives weights that add up to 1, so nothing is rescaled. A query
    never loses all its keys: if all n would be dropped, one of them stays, and each of
    the n is equally likely. So a key is kept with probability q + p^n / n, where p is
    the rate and q = 1 - p; at rate 1 each query keeps one key.

    The key that stays must be one that the query may see. Pass these keys by `where`,
    or mask the logits first. A logit below half of the lowest number of the dtype
    counts as masked, so -inf does and -1e9 does not. A query that may see no key is
    returned unchanged.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0.
      logits: real floating array, with the keys along its last axis.
      rate: probability of dropping, in [0, 1]; may be traced.
      where: booleans that broadcast to `logits`, True where a query may see a key; None
        if only the logits say it. This function does not mask the other keys; it only
        never lets one of them stay as the last key.
      broadcast_dims: axes along which the mask is shared, such as the axis of heads.
        The last axis is not allowed.

    Returns:
      An array with the shape and dtype of `logits`.

    Raises:
      TypeError: `logits` is not real floating or cannot be infinite, `where` is
        not boolean, `key` is not one key, or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], `logits` has no axes, `where` does
        not broadcast to it, or `broadcast_dims` are out of range, repeated or name the
        last axis.

    Example:
      >>> weights = jax.nn.softmax(drop_key(jax.random.key(0), jnp.zeros((4, 9)), 0.7))
      >>> jnp.round(weights.sum(axis=-1), 4).tolist()
      [1.0, 1.0, 1.0, 1.0]

    References:
      Li et al., "DropKey", arXiv:2208.02646 (2022).
    """
    check = Check("drop_key")
    key, rate = key_and_rate(check, key, logits, rate, name="logits", idle=(0,))
    logits = _checked_logits(check, logits)
    on_grid = grid_rate(rate)
    shared = check.axes("broadcast_dims", broadcast_dims, logits.ndim)
    if logits.ndim - 1 in shared:
        raise ValueError(
            f"{check}: broadcast_dims must not name the keys' axis; got {broadcast_dims}."
        )
    if where is not None:
        where = check.flags("where", where, logits, "logits")
    if logits.size == 0 or on_grid.is_zero:
        return logits
    return _drop_key(key, logits, where, on_grid, mask_layout(logits.shape, shared))


def _checked_logits(check: Check, logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    logits = check.real_array("logits", logits)
    if not np.isinf(np.asarray(-np.inf).astype(logits.dtype)):
        raise TypeError(
            f"{check}: logits must have a dtype with an infinity; got {logits.dtype}."
            " Cast it, as in logits.astype(jnp.float32)."
        )
    if logits.ndim == 0:
        raise ValueError(f"{check}: logits must have an axis of keys; got shape ().")
    return logits


@partial(jax.jit, static_argnames="layout")
def _drop_key(
    key: Key, logits: Array, where: Array | None, rate: GridRate, layout: Layout
) -> Array:
    mask = draw_for(key, logits, rate, layout)
    # Half of the lowest number, so that a logit plus the lowest number counts as masked
    # too. The comparison is negated, so that NaN counts as a seen key.
    live = ~(lax.stop_gradient(logits) < float(jnp.finfo(logits.dtype).min) / 2)
    left = _left(fold_in_name(key, "left"), mask, live if where is None else live & where)

    # Under `checkpoint`, so that the backward pass keeps packed words, and not one
    # boolean per logit.
    @partial(jax.checkpoint, prevent_cse=False)
    def lower(mask: Mask, left: Array, logits: Array) -> Array:
        line = (1,) * (logits.ndim - 1) + logits.shape[-1:]
        position = lax.broadcasted_iota(jnp.int32, line, logits.ndim - 1)
        keep = unpack_for(mask, logits) | (position == left) | (left == _UNTOUCHED)
        return poisoned(mask, jnp.where(keep, logits, jnp.full_like(logits, -jnp.inf)))

    return lower(mask, left, logits)


def _left(key: Key, mask: Mask, live: Array) -> Array:
    """For each query: the position of the key that stays, `_AS_DRAWN` or `_UNTOUCHED`."""
    live = whole_along(live, live.ndim - 1)  # a row of keys must lie on one device
    # In two steps, over short axes and then over a long one; `_blocks` says why.
    some_kept = jnp.any(jnp.any(_blocks(live & unpack_for(mask, live)), -1), -1, keepdims=True)
    # Rows that share a mask share the word. So the same key stays in those that see the same keys.
    rows = tuple(1 if n == 1 else m for n, m in zip(mask.shape[:-1], live.shape, strict=False))
    words = jnp.broadcast_to(draw_words(key, (*rows, 1)), some_kept.shape)
    # Drawn for every row, because it is not known while tracing which rows need it.
    chosen, number = _any_one(_blocks(live), words)
    return jnp.where(number == 0, _UNTOUCHED, jnp.where(some_kept, _AS_DRAWN, chosen))


def _blocks(flags: Array) -> Array:
    """Cuts the last axis into blocks. The last block is filled up with False.

    Sums over short axes are faster than over long ones (XLA on a CPU, measured), and
    cumulative counts over all elements would take longer than everything else.
    """
    block = min(_BLOCK, flags.shape[-1])
    blocks = -(-flags.shape[-1] // block)
    spare = [(0, 0)] * (flags.ndim - 1) + [(0, blocks * block - flags.shape[-1])]
    return jnp.pad(flags, spare).reshape(*flags.shape[:-1], blocks, block)


def _any_one(blocks: Array, words: Words) -> tuple[Array, Array]:
    """The position of a random True in each row of blocks, and the number of all True
    in the row.
    """
    inside = count_flags(blocks, (blocks.ndim - 1,))[..., 0]
    number = jnp.sum(inside, -1, jnp.uint32, keepdims=True)
    # `rank` other Trues come before the one to find. Its block comes after all blocks
    # at whose end the count is at most the rank.
    rank = below(words, number)
    ends = jnp.cumsum(inside, -1)
    block = jnp.sum(ends <= rank, -1, jnp.int32, keepdims=True)
    # `before` Trues come before this block, so the rank within it is `rank - before`.
    is_block = lax.broadcasted_iota(jnp.int32, ends.shape, ends.ndim - 1) == block
    before = jnp.sum(jnp.where(is_block, ends - inside, 0), -1, jnp.uint32, keepdims=True)
    # A count at each element is cheap here, because it is only one block per row.
    # In a row without a True no block is the one; any that exists will do.
    there = jnp.minimum(block, blocks.shape[-2] - 1)[..., None]
    flags = jnp.take_along_axis(blocks, there, axis=-2)[..., 0, :]
    place = jnp.sum(
        jnp.cumsum(flags, -1, jnp.uint32) <= rank - before, -1, jnp.int32, keepdims=True
    )
    return block * blocks.shape[-1] + place, number
