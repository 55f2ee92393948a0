"""Any part of a large mask, drawn by itself: its words are addressed as those of the whole."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jaxtyping import Int

from jaxdrop.base.compat import debug_check
from jaxdrop.base.describe import describe
from jaxdrop.base.validate import Check
from jaxdrop.core.layout import WORD_BITS, Layout, mask_layout, split_lanes
from jaxdrop.core.words import Fold, Words, flat_address

_MOST_INDICES = 2**32  # that a word can count


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """Says which part of a larger array an array is: where it starts, and how large the whole is.

    A function that is given a `part` draws this part of the mask of the whole. So in
    `shard_map`, all devices use one key, and the mask does not depend on the number of
    devices. A pytree: starts may be traced, and the shape is static.

    Attributes:
      start: index of the first element along each axis of the whole; may be traced. The
        part must lie within the whole, which is checked for known starts, and for traced ones
        under `checkify` from JAX 0.8 on.
      shape: sizes of the whole.

    Example:
      >>> key, whole = jax.random.key(0), jnp.ones((4, 64))
      >>> half = jaxdrop.dropout(key, whole[:, 32:], 0.5, part=Part((0, 32), whole.shape))
      >>> bool(jnp.all(half == jaxdrop.dropout(key, whole, 0.5)[:, 32:]))
      True

      In `shard_map`, each device says where its rows start:

      >>> mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> rows = jax.sharding.PartitionSpec("data")
      >>> @partial(jax.shard_map, mesh=mesh, in_specs=rows, out_specs=rows)
      ... def drop(x):
      ...     first = jax.lax.axis_index("data") * x.shape[0]
      ...     return jaxdrop.dropout(key, x, 0.5, part=Part((first, 0), (4, 64)))
      >>> bool(jnp.all(drop(whole) == jaxdrop.dropout(key, whole, 0.5)))
      True
    """

    start: tuple[int | Int[Array, ""], ...]
    shape: tuple[int, ...] = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Within:
    """A checked part, for use under `jit`.

    Attributes:
      start: uint32 index of the first element along each axis; None where the part has
        all of the axis, so that 0 is known.
      whole: the layout of the mask of the whole.
    """

    start: tuple[Words | None, ...]
    whole: Layout = field(metadata={"static": True})


def checked_part(
    check: Check, part: Part | None, sizes: tuple[int, ...], shared: tuple[int, ...]
) -> Within | None:
    """Checks of which whole an array of the given sizes is a part; None if it is the whole,
    or if its mask has no elements.
    """
    if part is None:
        return None
    if not isinstance(part, Part):
        raise TypeError(f"{check}: part must be a Part; got {describe(part)}.")
    whole = check.integers("part.shape", part.shape)
    if len(whole) != len(sizes) or any(n > m for n, m in zip(sizes, whole, strict=False)):
        raise ValueError(
            f"{check}: part.shape must be the sizes of an array that has {sizes} as a part;"
            f" got {whole}."
        )
    if max(whole, default=0) >= _MOST_INDICES:
        raise ValueError(f"{check}: part.shape must have sizes below 2^32; got {whole}.")
    starts = part.start if isinstance(part.start, Sequence) else (part.start,)
    if len(starts) != len(sizes):
        raise ValueError(
            f"{check}: part.start must have one entry for each of {len(sizes)} axes;"
            f" got {len(starts)}."
        )
    start = tuple(_start(check, *each) for each in zip(starts, sizes, whole, strict=True))
    is_empty = 0 in mask_layout(sizes, shared).shape
    if is_empty or all(index is None for index in start):
        return None
    return Within(start, mask_layout(whole, shared))


def _start(check: Check, start: Any, size: int, whole: int) -> Words | None:
    start = check.integer_array("part.start", start)
    if start.shape != ():
        raise ValueError(f"{check}: part.start must be scalars; got shape {start.shape}.")
    last = whole - size
    if isinstance(start, Tracer):
        debug_check(
            (start >= 0) & (start <= last),
            f"part.start must lie in [0, {last}]; got {{start}}",
            start=start,
        )
    elif not 0 <= int(start) <= last:
        raise ValueError(
            f"{check}: part.start must lie in [0, {last}] for {size} of {whole} elements;"
            f" got {int(start)}."
        )
    return None if size == whole else start.astype(jnp.uint32)


def part_words(fold: Fold, within: Within, layout: Layout) -> Words:
    """The words of a part, packed as `layout` says."""
    sizes, whole = layout.shape, within.whole
    # Along a run, consecutive elements of the part are consecutive in the whole: the
    # part has all of each axis but the first.
    covered = next(
        (axis for axis in range(whole.leading, len(sizes)) if _is_run(axis, within)), len(sizes) - 1
    )
    run = max(covered, layout.leading)
    indices = [_index(within, sizes, axis, run) for axis in range(len(sizes))]
    aligned = run == whole.leading and within.start[run] is None
    words = draw_rows(fold, whole, indices, math.prod(sizes[run:]), aligned=aligned)
    words = jnp.broadcast_to(words, (*sizes[:run], words.shape[-1]))
    if run == layout.leading:
        return words.reshape(layout.words_shape)
    return layout.pack(bits_of(words, math.prod(sizes[run:])).reshape(sizes))


def _is_run(axis: int, within: Within) -> bool:
    return all(start is None for start in within.start[axis + 1 :])


def _index(within: Within, sizes: tuple[int, ...], axis: int, run: int) -> Words:
    """The index along an axis of the first element of each row of a part."""
    start = within.start[axis]
    first = jnp.uint32(0) if start is None or within.whole.shape[axis] == 1 else start
    if axis >= run or sizes[axis] == 1:
        return first
    shape = [sizes[axis] if i == axis else 1 for i in range(run + 1)]  # and an axis of words
    return first + lax.broadcasted_iota(jnp.uint32, shape, axis)


def draw_rows(
    fold: Fold, layout: Layout, indices: Sequence[Words], length: int, *, aligned: bool
) -> Words:
    """The bits of rows of consecutive elements of a mask, as words along a last axis.

    Args:
      fold: draws the words of the mask.
      layout: the layout of the mask.
      indices: the index along each axis of the first element of each row. They broadcast
        to each other, and their last axis is that of the words, of size 1.
      length: elements of a row.
      aligned: whether each row starts at the first bit of a word.
    """
    apart, merged = indices[: layout.leading], indices[layout.leading :]
    first, offset = place_of_bit(merged, layout.shape[layout.leading :])
    # A row that starts within a word needs one more word. The last word may lie beyond
    # the mask: it is drawn like any other, and its bits are not used.
    count = -(-length // WORD_BITS) + (not aligned)
    ndim = max((index.ndim for index in indices), default=0) or 1
    place = first + lax.broadcasted_iota(jnp.uint32, (1,) * (ndim - 1) + (count,), ndim - 1)
    words = fold(flat_address([*apart, place], layout.words_shape))
    return words if aligned else _from_bit(words, offset)


def bits_of(words: Words, length: int) -> Array:
    """The first bits of each row of words, as booleans."""
    return split_lanes(words).reshape(*words.shape[:-1], -1)[..., :length] != 0


def _from_bit(words: Words, offset: Words) -> Words:
    """Words that start at bit `offset` of the given words; each is made from two neighbours."""
    # Two shifts to the left, because at offset 0 the second word must vanish, and one
    # shift by 32 is undefined.
    after = words[..., 1:] << np.uint32(1) << (np.uint32(WORD_BITS - 1) - offset)
    return (words[..., :-1] >> offset) | after


def place_of_bit(indices: Sequence[Words], shape: Sequence[int]) -> tuple[Words, Words]:
    """For an element of merged axes: the index of its word, and its bit in the word."""
    # Strides are split into words and bits, because the index of an element may have
    # more than 32 bits. The index of a word has at most 32.
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    bits = words = jnp.uint32(0)
    for index, stride in zip(indices, strides, strict=True):
        words = words + index * np.uint32(stride // WORD_BITS)
        bits = bits + index * np.uint32(stride % WORD_BITS)
    return words + bits // np.uint32(WORD_BITS), bits % np.uint32(WORD_BITS)
