"""The arrays of attention, and the layout of heads during the computation.

Shapes: B batch, T queries, S keys, N heads of queries, K heads of keys, G = N / K heads
of queries that share one head of keys, H features of queries and keys, V features of
values. A size with # may be 1.
"""

from functools import partial
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from jaxdrop.base.sharding import mesh_axes
from jaxdrop.core.apply import compute_dtype
from jaxdrop.core.rate import GridRate
from jaxdrop.core.words import ThreefryKey, Words

Leaf = TypeVar("Leaf")

# Products of a tile, named by their results. The letters: b batch, k heads of keys, r
# rows (queries of all groups), s columns (keys), h features of any kind.
TO_WEIGHTS = "bkrh,bksh->bkrs"
TO_QUERIES = "bkrs,bksh->bkrh"
TO_KEYS = "bkrs,bkrh->bksh"


class Inputs(NamedTuple, Generic[Leaf]):
    """The inputs that attention is differentiated by, or one value for each, such as a
    tangent or a flag.

    None stands for what is missing: a bias that was not given, or a tangent that is zero.
    """

    query: Leaf  # (B, T, N, H)
    key: Leaf  # (B, S, K, H)
    value: Leaf  # (B, S, K, V)
    bias: Leaf | None  # (#B, #N, #T, #S)
    scale: Leaf  # ()


Slopes: TypeAlias = Inputs[Array | None]
"""Tangents or cotangents of the inputs; None for those that are zero or not asked for."""


Result: TypeAlias = Array | tuple[Array, Array]
"""The output, or the output and the log-sum-exp of each row."""


class Draw(NamedTuple):
    """What is needed to draw the mask of the weights, under `jit`."""

    key: ThreefryKey
    rate: GridRate  # on the grid
    factor: Float[Array, ""]  # of the survivors, 1 / q
    start: tuple[Words | None, ...] | None = None  # in a larger mask; None for 0


class Selection(NamedTuple):
    """Which weights count: those that are seen and kept.

    Attention is not differentiated by these arrays. Windows are not here, because they
    are known while tracing and each implementation uses them differently.
    """

    mask: Bool[Array, "#B #N #T #S"] | None
    query_lengths: Int[Array, "B"] | None
    key_lengths: Int[Array, "B"] | None
    draw: Draw | None  # None where nothing is dropped
    shift: Int[Array, ""] | None = None  # of windows: the position of a query less its number
    segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None  # documents

    def factor(self, dtype: jnp.dtype) -> Array:
        """The factor of the weights that are kept."""
        return jnp.ones((), dtype) if self.draw is None else self.draw.factor.astype(dtype)


# As `log_total`. No other row has it: their sums are exp(0) and more. And it is finite, so
# that what is computed with it is never NaN.
NOTHING_SEEN = -1.0


class Attended(NamedTuple):
    """The result of a forward pass: the output, and what the other passes need from it.

    The log-sum-exp of a row is `highest + log_total`. They are two arrays, since the
    sum would round `log_total` away if all logits are far from 0. Only their sum has a
    meaning. So `highest` is a constant for derivatives, and `log_total` has the whole
    derivative. A row that sees nothing has 0 and `NOTHING_SEEN`.
    """

    out: Float[Array, "B T N V"]  # in float32 or wider
    highest: Float[Array, "B K G T 1"]
    log_total: Float[Array, "B K G T 1"]

    def residual(self) -> Float[Array, "B T N"]:
        """The log-sum-exp of each row."""
        batch, key_heads, groups, queries, _ = self.log_total.shape
        nothing = self.log_total == NOTHING_SEEN
        total = jnp.where(nothing, -jnp.inf, self.highest + self.log_total)
        return _heads_first(total.reshape(batch, key_heads * groups, queries))


def output_specs(inputs: Inputs[Array]) -> tuple[PartitionSpec, PartitionSpec]:
    """How the output and the log-sum-exp are split on Explicit axes: like the query, and
    along the batch like the first input that is split there.
    """
    query, *others = (jax.typeof(x).sharding.spec for x in inputs[:4] if x is not None)
    batch, *rest = (*query, *(None for _ in range(inputs.query.ndim - len(query))))
    if inputs.value.shape[-1] != inputs.query.shape[-1]:
        rest[-1] = None
    used = {name for part in rest for name in mesh_axes(part)}
    parts = (batch, *(spec[0] for spec in others if spec))
    free = (part for part in parts if part is not None and used.isdisjoint(mesh_axes(part)))
    first = next(free, None)
    return PartitionSpec(first, *rest), PartitionSpec(first, *rest[:-1])


def grouped(inputs: Inputs[Array], selection: Selection) -> tuple[Inputs[Array], Selection]:
    """Puts the axis of heads before the axis of time, and groups heads of queries that
    share a head of keys.
    """
    key_heads = inputs.key.shape[2]
    mask = None if selection.mask is None else split_heads(selection.mask, key_heads)
    return by_heads(inputs, key_heads), selection._replace(mask=mask)


def by_heads(x: Inputs[Leaf], key_heads: int) -> Inputs[Leaf]:
    """The same for the inputs only, or for their tangents."""
    group = partial(by_group, key_heads=key_heads)
    split = partial(split_heads, key_heads=key_heads)
    # For `tree.map` a missing leaf is an empty tree, which does not change.
    return x._replace(
        query=jax.tree.map(group, x.query),
        key=jax.tree.map(_heads_first, x.key),
        value=jax.tree.map(_heads_first, x.value),
        bias=jax.tree.map(split, x.bias),
    )


def as_given(x: Slopes, inputs: Inputs[Array]) -> Slopes:
    """Undoes `by_heads` for cotangents, and gives each the dtype of its input."""
    shape = None if inputs.bias is None else inputs.bias.shape
    given = x._replace(
        query=jax.tree.map(by_head, x.query),
        key=jax.tree.map(_heads_first, x.key),
        value=jax.tree.map(_heads_first, x.value),
        bias=jax.tree.map(lambda bias: bias.reshape(shape), x.bias),
    )
    pairs = zip(given, inputs, strict=True)
    return Inputs(
        *(None if x is None or like is None else x.astype(like.dtype) for x, like in pairs)
    )


def by_group(x: Array, key_heads: int) -> Array:
    """(B, T, N, H) as (B, K, G, T, H)."""
    return split_heads(_heads_first(x), key_heads)


def by_head(x: Array) -> Array:
    """(B, K, G, T, H) as (B, T, N, H)."""
    batch, key_heads, groups, *rest = x.shape
    return _heads_first(x.reshape(batch, key_heads * groups, *rest))


def product(subscripts: str, a: Array, b: Array) -> Array:
    """A product in the narrower of two dtypes, summed in float32 or wider."""
    # As in flash attention, weights are rounded to the dtype of the values, because
    # hardware multiplies matrices of narrow dtypes faster.
    narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    groups, rows = a.shape[2:4]
    a, b = a.astype(narrow), b.astype(narrow)
    # Groups and rows become one axis, because XLA on a CPU would transpose the tiles
    # before a sum over two axes. Keys and values, of 4 axes, have no groups.
    a, b = (lax.collapse(x, 2, 4) if x.ndim == 5 else x for x in (a, b))
    out = jnp.einsum(subscripts, a, b, preferred_element_type=compute_dtype(a))
    return out if subscripts == TO_KEYS else out.reshape(*out.shape[:2], groups, rows, -1)


def _heads_first(x: Array) -> Array:
    """(B, T, N, H) as (B, N, T, H), and back."""
    return jnp.swapaxes(x, 1, 2)


def split_heads(x: Array, key_heads: int) -> Array:
    """(B, N, ...) as (B, K, G, ...), and (B, 1, ...) as (B, 1, 1, ...)."""
    batch, heads, *rest = x.shape
    key_heads = key_heads if heads != 1 else 1
    return x.reshape(batch, key_heads, heads // key_heads, *rest)
