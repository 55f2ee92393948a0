"""Which form of a computation a program has, by the platform that it is lowered for."""

from collections.abc import Callable
from typing import Any, TypeVar

from jax import lax

Out = TypeVar("Out")


def by_platform(on_gpu: Callable[..., Out], elsewhere: Callable[..., Out], *operands: Any) -> Out:
    """What one of two functions that mean the same returns; only that one is compiled.

    Both are traced, since what is traced on one platform may be lowered for another.
    """
    return lax.platform_dependent(*operands, cuda=on_gpu, rocm=on_gpu, default=elsewhere)
