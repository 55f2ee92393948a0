"""Gives a peer's real function our draws in the place of its random numbers.

Every probe that calls a peer calls it here: `call_torch` or `call_jax` on an
array, or `fed` around anything else.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@contextmanager
def fed(*draws: Any) -> Iterator[list[tuple[tuple[int, ...], Any]]]:
    """Serves `draws`, in order, wherever a peer would draw random numbers.

    A draw is an array of the shape that the peer asks for, or a function from
    that shape to one. The list yielded fills with what was asked for: shapes,
    and the probability of a one where there is one.
    """
    queue, asked = list(draws), []

    def serve(shape: Sequence[int], probability: Any = None) -> np.ndarray:
        shape = tuple(int(n) for n in shape)
        asked.append((shape, probability))
        draw = queue.pop(0)
        draw = np.asarray(draw(shape) if callable(draw) else draw)
        if draw.shape != shape:
            raise ValueError(f"The peer asked for {shape}; we have {draw.shape}.")
        return draw

    with _jax_fed(serve), _torch_fed(serve):
        yield asked
    if queue:
        raise ValueError(f"The peer left {len(queue)} draws.")


def _jax_fed(serve: Callable[..., np.ndarray]) -> AbstractContextManager[Any]:
    def bernoulli(key: Array, p: Any = 0.5, shape: Any = (), **options: Any) -> Array:
        return jnp.asarray(serve(shape, p), bool)

    def real(key: Array, shape: Any = (), dtype: Any = None, **options: Any) -> Array:
        return jnp.asarray(serve(shape), dtype)

    return mock.patch.multiple(jax.random, bernoulli=bernoulli, normal=real, uniform=real)


def _torch_fed(serve: Callable[..., np.ndarray]) -> AbstractContextManager[Any]:
    """Below torch's dispatcher, so that its C++ functions are fed too."""
    try:
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:
        return nullcontext()

    class Fed(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            match function._schema.name:
                case "aten::bernoulli_":
                    probability = (*args[1:], 0.5)[0]
                    return args[0].copy_(torch.tensor(serve(args[0].shape, probability)))
                case "aten::randn" | "prims::uniform":
                    return torch.tensor(serve(args[0]))
            return function(*args, **(kwargs or {}))

    return Fed()


def to_tensor(x: Any) -> Any:
    """A tensor of torch, which does not read bfloat16 from NumPy."""
    torch, x = importlib.import_module("torch"), np.asarray(x)
    if x.dtype == jnp.bfloat16:
        return torch.tensor(x.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(x)


def call_torch(call: Callable[[Any], Any], x: Any, *draws: Any) -> np.ndarray:
    """What torch makes of an array, given our draws."""
    tensor = to_tensor(x)
    with fed(*draws):
        y = call(tensor)
    return y.double().numpy()


def call_jax(call: Callable[[Any], Any], x: Any, *draws: Any) -> Array:
    """What a library on JAX makes of an array, given our draws."""
    with fed(*draws):
        return call(jnp.asarray(x))
