"""Types that all modules share, such as a key, a rate and a drop."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Float, Key as TypedKey, UInt32

Key: TypeAlias = TypedKey[Array, ""] | UInt32[Array, "words"]
"""One random key: typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)."""

KnownOrTraced: TypeAlias = float | Float[Array, ""]
"""A number that is known while tracing (a Python float), or one that is not."""

Rate: TypeAlias = KnownOrTraced | np.number[Any] | Float[np.ndarray, ""]
"""Probability of dropping, known while tracing or not, as users pass it."""

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
