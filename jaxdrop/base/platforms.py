"""A computation in several forms: for GPUs, perhaps for TPUs, and for other platforms."""

from collections.abc import Callable
from typing import Any, TypeVar

from jax import lax

Out = TypeVar("Out")


def by_platform(
    on_gpu: Callable[..., Out] | None,
    elsewhere: Callable[..., Out],
    *operands: Any,
    on_tpu: Callable[..., Out] | None = None,
) -> Out:
    """Calls one of the functions, which have the same meaning, according to the platform.

    A platform that has none of its own gets that for elsewhere. All are traced, because a
    program may be traced on one platform and lowered for another. Only one is compiled.
    """
    tpu = {} if on_tpu is None else {"tpu": on_tpu}
    gpu = {} if on_gpu is None else {"cuda": on_gpu, "rocm": on_gpu}
    return lax.platform_dependent(*operands, **gpu, **tpu, default=elsewhere)
