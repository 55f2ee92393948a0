"""The drawn mask: one bit per element, 32 bits per word."""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from jaxdrop.base.describe import describe
from jaxdrop.base.sharding import has_explicit_axes, with_spec
from jaxdrop.base.validate import Check
from jaxdrop.core.layout import Layout
from jaxdrop.core.words import Words


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Mask:
    """Which elements are kept, as one bit each, and the keep probability.

    A pytree, so it passes through `jit`, `vmap`, `scan` and `checkpoint`: draw
    it once and apply it as often as needed.

    Attributes:
      words: uint32 words of 32 decisions each.
      keep_prob: the keep probability that it was drawn with, in [0, 1]: a scalar, or one
        for each element, with the number of axes of the mask.
      layout: the static part: the mask's shape and how it is packed.
      split: how `unpack` splits the booleans over Explicit mesh axes, where the words
        cannot be split so; else None.

    Example:
      >>> mask = draw_mask(jax.random.key(0), (3, 4), 0.5)
      >>> mask
      Mask(shape=(3, 4), keep_prob=0.5)
      >>> mask.unpack().dtype, mask.words.shape
      (dtype('bool'), (1,))
    """

    words: Words
    keep_prob: Float[Array, "..."]
    layout: Layout = field(metadata={"static": True})
    split: PartitionSpec | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        register_with_flax(type(self))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sizes of the axes in front, along which masks were drawn under `vmap`."""
        return self.words.shape[: self.words.ndim - len(self.layout.words_shape)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the mask: 1 along axes where it is shared."""
        return (*self.batch_shape, *self.layout.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def unpack(self) -> Bool[Array, "..."]:
        """The mask as booleans, True where an element is kept.

        A mask that was drawn under `vmap` has the batch axis in front, so leave the
        `out_axes` of `vmap` at 0.
        """
        return _unpack(self.words, self.layout, self.split)

    @classmethod
    def pack(cls, keep: Bool[Array | np.ndarray, "..."], keep_prob: ArrayLike) -> "Mask":
        """A mask made of booleans that were drawn elsewhere.

        Args:
          keep: booleans, True where an element is kept.
          keep_prob: the probability with which each was kept: one number, or an array
            that broadcasts to `keep`.

        Returns:
          The mask whose `unpack()` gives `keep`.

        Raises:
          TypeError: `keep` is not boolean, or `keep_prob` not a number.
          ValueError: a known `keep_prob` lies outside [0, 1], or does not broadcast.

        Example:
          >>> Mask.pack(jnp.array([True, False, True]), 0.5).unpack()
          Array([ True, False,  True], dtype=bool)
        """
        check = Check("Mask.pack")
        if not hasattr(keep, "dtype") or keep.dtype != jnp.bool_:
            raise TypeError(
                f"{check}: keep must be boolean; got {describe(keep)}."
                " Compare first, as in keep > 0."
            )
        keep_prob = check.probabilities("keep_prob", keep_prob, keep.shape, "keep")
        layout = Layout(tuple(keep.shape))
        dtype = jnp.result_type(float)
        return cls(_pack(jnp.asarray(keep), layout), jnp.asarray(keep_prob, dtype), layout)

    def __invert__(self) -> "Mask":
        """The mask that keeps what this one drops, with 1 minus its keep probability."""
        return replace(self, words=~self.words, keep_prob=1 - self.keep_prob)

    def __and__(self, other: "Mask") -> "Mask":
        """The mask that keeps what both keep.

        Its keep probability is that of two independent draws, a product.
        """
        if not isinstance(other, Mask):
            return NotImplemented
        _check_alike(self, other)
        keep_prob = self.keep_prob * other.keep_prob
        return replace(self, words=self.words & other.words, keep_prob=keep_prob)

    def __or__(self, other: "Mask") -> "Mask":
        """The mask that keeps what one of the two keeps, or both.

        Its keep probability is that of two independent draws.
        """
        if not isinstance(other, Mask):
            return NotImplemented
        return ~(~self & ~other)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The booleans, for NumPy."""
        if copy is False:
            raise ValueError("Mask: copy must not be False; the booleans are unpacked.")
        return np.asarray(self.unpack(), dtype)

    def __repr__(self) -> str:
        known = self.keep_prob.ndim == 0 and not isinstance(self.keep_prob, Tracer)
        shown = f"{float(self.keep_prob):.9g}" if known else describe(self.keep_prob)
        return f"Mask(shape={self.shape}, keep_prob={shown})"


def _check_alike(mask: Mask, other: Mask) -> None:
    if mask.layout != other.layout or mask.batch_shape != other.batch_shape:
        raise ValueError(f"Mask: other must have the shape {mask.shape}; got {other.shape}.")


def _flax_state(mask: Mask) -> dict[str, Any]:
    return {
        "words": mask.words,
        "keep_prob": mask.keep_prob,
        "shape": np.asarray(mask.layout.shape, np.int64),
    }


def _from_flax_state(mask: Mask, state: dict[str, Any]) -> Mask:
    if tuple(state["shape"]) != mask.layout.shape:
        raise ValueError(
            f"Mask: state must be of a mask of shape {mask.layout.shape}; got"
            f" {tuple(map(int, state['shape']))}."
        )
    return replace(mask, words=state["words"], keep_prob=state["keep_prob"])


def register_with_flax(kind: type[Mask]) -> None:
    """Teaches `flax.serialization` masks, if the user has imported it, once."""
    serialization = sys.modules.get("flax.serialization")
    if serialization is not None and kind not in _known_to_flax:
        _known_to_flax.add(kind)
        serialization.register_serialization_state(
            kind, _flax_state, _from_flax_state, override=True
        )


_known_to_flax: set[type[Mask]] = set()


@partial(jax.jit, static_argnames=("layout", "split"))
def _unpack(words: Words, layout: Layout, split: PartitionSpec | None) -> Bool[Array, "..."]:
    sharding = jax.typeof(words).sharding
    # Inside of `shard_map` the axes are no longer Explicit.
    if split is None or not has_explicit_axes(sharding):
        return layout.unpack(words)
    return layout.unpack(words, layout.sharding(with_spec(sharding, tuple(split))))


@partial(jax.jit, static_argnames="layout")
def _pack(keep: Bool[Array, "..."], layout: Layout) -> Words:
    return layout.pack(keep)
