"""A computation in two forms: one for GPUs, one for other platforms."""

from collections.abc import Callable
from typing import Any, TypeVar

from jax import lax

Out = TypeVar("Out")


def by_platform(on_gpu: Callable[..., Out], elsewhere: Callable[..., Out], *operands: Any) -> Out:
    """Calls the one of two functions of equal meaning that suits the platform.

    Both are traced, since a program may be lowered for another platform than it is traced
    on. Only one is compiled.
    """
    return lax.platform_dependent(*operands, cuda=on_gpu, rocm=on_gpu, default=elsewhere)
