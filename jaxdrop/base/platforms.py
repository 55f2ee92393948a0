"""A computation in two forms: one for GPUs, one for other platforms."""

from collections.abc import Callable
from typing import Any, TypeVar

from jax import lax

Out = TypeVar("Out")


def by_platform(on_gpu: Callable[..., Out], elsewhere: Callable[..., Out], *operands: Any) -> Out:
    """Calls one of two functions with the same meaning, according to the platform.

    Both are traced, because a program may be traced on one platform and lowered for
    another. Only one is compiled.
    """
    return lax.platform_dependent(*operands, cuda=on_gpu, rocm=on_gpu, default=elsewhere)
