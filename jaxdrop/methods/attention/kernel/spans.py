"""Which blocks a block may see, if rows and columns belong to different documents."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from jaxdrop.methods.attention.kernel.operands import Operands
from jaxdrop.methods.attention.kernel.tiles import KernelTiles
from jaxdrop.methods.attention.skipping import ranges_of_ids


def spans_of_documents(
    operands: Operands, tiles: KernelTiles, *, over_queries: bool
) -> Int[Array, "b c 2"] | None:
    """For each block of queries, the first block of keys with one of its documents and the
    end of these blocks; or the same for each block of keys.

    None if there are no documents.
    """
    if operands.query_segments is None or operands.key_segments is None:
        return None
    own = ranges_of_ids(operands.query_segments, tiles.rows)
    others = ranges_of_ids(operands.key_segments, tiles.columns)
    if over_queries:
        own, others = others, own
    (least, most), (other_least, other_most) = own, others
    meet = (least[:, :, None] <= other_most[:, None]) & (other_least[:, None] <= most[:, :, None])
    number = lax.broadcasted_iota(jnp.int32, meet.shape, 2)
    first = jnp.min(jnp.where(meet, number, meet.shape[2]), axis=2)
    end = jnp.max(jnp.where(meet, number + 1, 0), axis=2)
    return jnp.stack([first, end], axis=2)
