"""The drawn mask: one bit per element, 32 bits per word."""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from jaxdrop.base.sharding import has_explicit_axes, with_spec
from jaxdrop.base.validate import Check, describe
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
      keep_prob: scalar, the keep probability that it was drawn with, in [0, 1].
      layout: the static part: the mask's shape and how it is packed.
      split: how `unpack` splits the booleans over Explicit mesh axes, where the words
        cannot be split so; else None.

    Example:
      >>> mask = draw_mask(jax.random.key(0), (3, 4), 0.5)
      >>> mask
      Mask(shape=(3, 4))
      >>> mask.unpack().dtype, mask.words.shape
      (dtype('bool'), (1,))
    """

    words: Words
    keep_prob: Float[Array, "..."]
    layout: Layout = field(metadata={"static": True})
    split: PartitionSpec | None = field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the mask: 1 along axes where it is shared."""
        batch = self.words.ndim - len(self.layout.words_shape)
        return (*self.words.shape[:batch], *self.layout.shape)

    def unpack(self) -> Bool[Array, "..."]:
        """The mask as booleans, True where an element is kept.

        A mask that was drawn under `vmap` has the batch axis in front, so leave the
        `out_axes` of `vmap` at 0.
        """
        return _unpack(self.words, self.layout, self.split)

    @classmethod
    def pack(cls, keep: Bool[Array, "..."], keep_prob: Float[Array, ""] | float) -> "Mask":
        """A mask made of booleans that were drawn elsewhere.

        Args:
          keep: booleans, True where an element is kept.
          keep_prob: the probability with which each was kept.

        Returns:
          The mask whose `unpack()` gives `keep`.

        Raises:
          TypeError: `keep` is not boolean, or `keep_prob` not a number.
          ValueError: a known `keep_prob` lies outside [0, 1].

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
        keep_prob = check.probability("keep_prob", keep_prob)
        layout = Layout(tuple(keep.shape))
        return cls(_pack(keep, layout), jnp.asarray(keep_prob, jnp.result_type(float)), layout)

    def __repr__(self) -> str:
        return f"Mask(shape={self.layout.shape})"


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
