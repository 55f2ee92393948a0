"""Types that all modules share, such as a key, a rate and a drop."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from jax import Array
from jaxtyping import Float, Key as TypedKey, UInt32

Key: TypeAlias = TypedKey[Array, ""] | UInt32[Array, "words"]
"""One random key: typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)."""

Rate: TypeAlias = float | Float[Array, ""]
"""Probability of dropping, known while tracing (a Python float) or not."""

# A size of `jax.export.symbolic_shape` counts as an integer, but its class is not public.
if TYPE_CHECKING:
    Size: TypeAlias = int
    """The size of an axis."""
else:
    Size: TypeAlias = Any

Drop: TypeAlias = Callable[[Key, Array], Array]
"""The one protocol: any function `(key, x) -> y`."""

Axes: TypeAlias = int | Sequence[int] | None
"""Axes to reduce over; None stands for all of them."""

Where: TypeAlias = Callable[[tuple[Any, ...], Any], bool]
"""A predicate over a leaf's path, as `jax.tree_util` gives it, and the leaf."""
