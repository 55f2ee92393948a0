"""The experimental parts of JAX, each behind one name."""

from typing import Any

import jax
from jax.experimental import checkify

# Before 0.8 `jax.checkpoint` refused to differentiate what has a check in it.
CHECKS_LEAVE_CHECKPOINT_WORKING = jax.__version_info__ >= (0, 8)


def debug_check(predicate: Any, message: str, **values: Any) -> None:
    """An assertion that fails under `checkify` and is nothing elsewhere, nor before JAX 0.8."""
    if CHECKS_LEAVE_CHECKPOINT_WORKING:
        checkify.debug_check(predicate, message, **values)
