"""The experimental parts of JAX, each behind one name."""

from typing import Any

from jax.experimental import checkify


def debug_check(predicate: Any, message: str, **values: Any) -> None:
    """An assertion that fails under `checkify` and is nothing elsewhere."""
    checkify.debug_check(predicate, message, **values)
