"""NaN that exists only where a result is NaN, so that `jax.debug_nans` stops nowhere else.

A constant NaN in a `where` would stop it, because eager operations, such as those under
`jax.disable_jit`, are checked one by one. So NaN is always computed from what is bad.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def nan_unless(valid: Bool[Array, "..."], value: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value where it is valid, and NaN elsewhere."""
    return jnp.where(valid, value, jnp.zeros_like(value) / valid.astype(value.dtype))
