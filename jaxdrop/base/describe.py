"""What error messages say of the values that they refuse."""

from typing import Any

import jax
import numpy as np

_LONGEST = 200  # characters of a text


def describe(value: Any) -> str:
    """A short text for `value` in an error message."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        text = f"{value.dtype}{list(value.shape)}"
        # A sparse array has a shape and a dtype too.
        known = isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
        return text if known else f"{type(value).__name__}({text})"
    text = repr(value)  # of the parameters of a model it would fill many screens
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({type(value).__name__})"


def way_out(x: Any) -> str:
    """What to do with a pytree in the place of an array."""
    leaves = jax.tree.leaves(x)
    if len(leaves) == 1 and leaves[0] is x:
        return ""
    if any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        return " For the floating arrays of a pytree, use drop_connect."
    return " Use jnp.asarray." if leaves else ""
