"""How a mask is stored in words: which element is which bit.

Some of the last axes are merged: the smallest group that wastes at most 4 % of the
bits. 32 consecutive elements of the merged axis share a word: element e is bit e mod 32
of word e div 32. Axes of size 1, such as shared ones, do not change the words.
"""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Shaped, UInt32

from jaxdrop.base.axes import other_axes
from jaxdrop.base.compat import decided
from jaxdrop.base.platforms import by_platform
from jaxdrop.base.sharding import shard_count, with_spec
from jaxdrop.base.types import Size
from jaxdrop.core.by_rows import are_known, unpack_by_rows
from jaxdrop.core.words import Words

WORD_BITS = 32
_LANE_WORDS = 4  # 128 elements, one for each lane of a TPU
_LONGEST_AXIS = 2**31  # so that an index fits in 32 bits
_LARGE = 25 * (WORD_BITS - 1)  # enough elements to waste at most 4 % of the bits, however many


@dataclass(frozen=True)
class Layout:
    """The static part of a mask.

    Attributes:
      shape: sizes of the mask, 1 along axes where it is shared.
      apart: axes that come first in the words and are never merged, so that whole
        words can be shifted along them.
    """

    shape: tuple[Size, ...]
    apart: tuple[int, ...] = ()

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The axes in the order in which the words store them; the last one changes fastest."""
        return (*self.apart, *other_axes(len(self.shape), self.apart))

    @cached_property
    def stored(self) -> tuple[Size, ...]:
        """The sizes in that order."""
        return tuple(self.shape[axis] for axis in self.order)

    @cached_property
    def leading(self) -> int:
        """How many axes are not merged."""
        # Tries the last axis alone, then more axes, and takes the first group that
        # wastes at most one bit in 25 (4 %). If there is none, all axes are merged,
        # with one incomplete word.
        for leading in reversed(range(len(self.apart), len(self.shape))):
            size = math.prod(self.stored[leading:])
            fits = decided(lambda size=size: (-size % WORD_BITS) * 25 <= size)
            # All axes are merged if they fit, and also if they do not. So a symbolic
            # first axis, such as the batch, decides nothing.
            if fits is None and leading > len(self.apart):
                raise ValueError(
                    f"draw_mask: shape must tell how many of its last axes are merged; got"
                    f" {self.shape}. Add a constraint to the symbolic shape, as in"
                    f" jax.export.symbolic_shape(..., constraints=['{size} >= {_LARGE}'])."
                )
            if fits:
                return leading
        return len(self.apart)

    @cached_property
    def merged(self) -> Size:
        """Elements along the merged axis."""
        return math.prod(self.stored[self.leading :])

    @cached_property
    def words_shape(self) -> tuple[Size, ...]:
        """Sizes of the words; a very long merged axis is folded in two."""
        words = -(-self.merged // WORD_BITS)
        # A symbolic axis is not folded, since it is that long in no program.
        if decided(lambda: words <= _LONGEST_AXIS) is not False:
            return (*self.stored[: self.leading], words)
        return (*self.stored[: self.leading], -(-words // _LONGEST_AXIS), _LONGEST_AXIS)

    def unpack(self, words: Words, sharding: NamedSharding | None = None) -> Bool[Array, "..."]:
        """One boolean per element; axes before those of the layout are kept."""
        by_columns = partial(self._unpack, sharding=sharding)
        # With Explicit axes the groups of rows may not be cut as the rows are. Words that are
        # folded in two are of more elements than any TPU holds.
        is_folded = len(self.words_shape) > self.leading + 1
        if sharding is not None or is_folded or not are_known(words.shape):
            return by_columns(words)
        return by_platform(None, by_columns, words, on_tpu=self._unpack_by_rows)

    def _unpack(self, words: Words, *, sharding: NamedSharding | None) -> Bool[Array, "..."]:
        batch = words.shape[: words.ndim - len(self.words_shape)]
        # Each of 32 lanes shifts its own bit to the lowest place.
        bits = split_lanes(words)
        packed = WORD_BITS * math.prod(self.words_shape[self.leading :])
        if packed != self.merged:  # the last word of a row has spare bits
            rows = (*batch, *self.stored[: self.leading])
            bits = bits.reshape(*rows, packed)[..., : self.merged]
        return self._in_place(bits, batch, sharding) != 0

    def _unpack_by_rows(self, words: Words) -> Bool[Array, "..."]:
        batch = words.shape[: words.ndim - len(self.words_shape)]
        if not self.leading:
            words = jnp.pad(words, [(0, 0)] * len(batch) + [(0, -words.shape[-1] % _LANE_WORDS)])
            words = words.reshape(*batch, -1, _LANE_WORDS)
            bits = unpack_by_rows(words, _LANE_WORDS * WORD_BITS)
            bits = bits.reshape(*batch, -1)[..., : self.merged]
        else:
            bits = unpack_by_rows(words, self.merged)
        return self._in_place(bits, batch, None)

    def _in_place(
        self, bits: Array, batch: tuple[int, ...], sharding: NamedSharding | None
    ) -> Array:
        """The bits with the axes of the mask."""
        if sharding is not None:
            sharding = with_spec(sharding, self._stored_spec(sharding))
        bits = lax.reshape(bits, (*batch, *self.stored), out_sharding=sharding)
        # Axes that come first in the words return to their places in the array.
        places = [len(batch) + self.order.index(axis) for axis in range(len(self.shape))]
        return jnp.transpose(bits, (*range(len(batch)), *places))

    def pack(self, keep: Bool[Array, "..."]) -> Words:
        """The inverse of `unpack`; bits beyond the last element are 0."""
        return join_lanes(self.by_lanes(keep).astype(jnp.uint32))

    def by_lanes(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The elements in the order of the bits, with those of a word along a last axis."""
        rows = jnp.transpose(x, self.order).reshape(*self.stored[: self.leading], self.merged)
        spare = WORD_BITS * math.prod(self.words_shape[self.leading :]) - self.merged
        rows = jnp.pad(rows, [(0, 0)] * self.leading + [(0, spare)])
        return rows.reshape(*self.words_shape, WORD_BITS)

    def sharding(self, x_sharding: NamedSharding | None) -> NamedSharding | None:
        """The sharding of a mask for an array sharded as given."""
        if x_sharding is None:
            return None
        mesh_axes = (*x_sharding.spec, *[None] * (len(self.shape) - len(x_sharding.spec)))
        shared_nowhere = zip(mesh_axes, self.shape, strict=True)
        return with_spec(x_sharding, tuple(axes if n != 1 else None for axes, n in shared_nowhere))

    def words_sharding(self, sharding: NamedSharding | None) -> NamedSharding | None:
        """The sharding of the words of a mask that is sharded as given.

        The merged axis is split as its first axis is, if each part is a whole number of
        words. Otherwise each device draws all of it.
        """
        if sharding is None:
            return None
        spec = self._stored_spec(sharding)
        first, *rest = spec[self.leading :] or [None]
        # Only the first of the merged axes may be split. If another one were split, the
        # elements of a device would be scattered over the words.
        merged: list[Any] = [None] * (len(self.words_shape) - self.leading)
        part = WORD_BITS * shard_count(sharding.mesh, first)
        if len(merged) == 1 and not any(rest) and self.merged % part == 0:
            merged = [first]
        return with_spec(sharding, (*spec[: self.leading], *merged))

    def unsplit(self, sharding: NamedSharding | None) -> PartitionSpec | None:
        """How a mask is split that is sharded as given, if its words do not say it."""
        mask = self.sharding(sharding)
        words = self.words_sharding(mask)
        if mask is None or words is None:
            return None
        # Words that are split as the mask is have its mesh axes in the same order.
        named = [[axes for axes in spec if axes] for spec in (self._stored_spec(mask), words.spec)]
        return mask.spec if named[0] != named[1] else None

    def _stored_spec(self, sharding: NamedSharding) -> tuple[Any, ...]:
        """How the axes of the mask are split, in the order in which the words store them."""
        return tuple(sharding.spec[axis] for axis in self.order)


def mask_layout(shape: tuple[Size, ...], shared: tuple[int, ...]) -> Layout:
    """The layout of a mask for an array, of size 1 along the shared axes."""
    return Layout(tuple(1 if i in shared else n for i, n in enumerate(shape)))


def join_lanes(bits: UInt32[Array, "..."]) -> Words:
    """Words of the bits, 0 or 1, along the last axis."""
    # No two lanes share a bit, so their sum is their union.
    return jnp.sum(bits << lanes(bits.ndim - 1), axis=-1, dtype=jnp.uint32)


def split_lanes(words: Words) -> UInt32[Array, "..."]:
    """The bits of words along one more axis, the inverse of `join_lanes`."""
    return (words[..., None] >> lanes(words.ndim)) & np.uint32(1)


def lanes(words_ndim: int) -> UInt32[Array, "..."]:
    """The numbers of the bits in a word, along one axis after those of the words."""
    return lax.broadcasted_iota(jnp.uint32, (1,) * words_ndim + (WORD_BITS,), words_ndim)
