"""The three arguments that most methods begin with: a key, what to drop from, and a rate.

Other libraries have them in another order, so a wrong order gets an error of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdrop.base.describe import describe
from jaxdrop.base.types import Key, KnownOrTraced
from jaxdrop.base.validate import RAW_KEY_SHAPES, Check


def key_and_rate(
    check: Check, key: Any, x: Any, rate: Any, *, name: str = "x", idle: tuple[float, ...] = (0, 1)
) -> tuple[Key, KnownOrTraced]:
    """The key and the rate in canonical form.

    Args:
      check: the checks of the function that the user called.
      key: the key; None will do if nothing is drawn.
      x: what the user passed to drop from. Only its place in the order is checked.
      rate: the probability.
      name: the name of `x`.
      idle: the known rates at which nothing is drawn.

    Returns:
      The key and the rate.
    """
    refuse_swapped(check, key, x, name)
    refuse_rate_first(check, x, rate, name)
    rate = check.probability("rate", rate)
    return key_unless(check, key, idle=not isinstance(rate, jax.Array) and rate in idle), rate


def key_unless(check: Check, key: Any, *, idle: bool, name: str = "key") -> Key:
    """Returns the key, or any key for None if nothing is drawn with it."""
    return jax.random.key(0) if key is None and idle else check.one_key(key, name)


def refuse_swapped(check: Check, key: Any, x: Any, name: str) -> None:
    """Refuses a key in the place of `x`."""
    if _is_key(x) and not _is_key(key):
        raise TypeError(
            f"{check}: key must come before {name}; got {describe(key)} before {describe(x)}."
        )


def refuse_rate_first(check: Check, x: Any, rate: Any, name: str) -> None:
    """Refuses a rate in the place of `x`, as Haiku has it."""
    is_number = isinstance(x, int | float) and not isinstance(x, np.generic)
    if is_number and isinstance(rate, jax.Array | np.ndarray) and not _is_key(rate):
        raise TypeError(
            f"{check}: {name} must come before rate; got {describe(x)} before {describe(rate)}."
        )


def _is_key(value: Any) -> bool:
    """Whether a value can be nothing but a key."""
    if not isinstance(value, jax.Array | np.ndarray):
        return False
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or (
        value.dtype == np.uint32 and value.shape in RAW_KEY_SHAPES
    )
