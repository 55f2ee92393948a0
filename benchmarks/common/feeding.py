"""Calls peers' real functions, with our draws in the place of their random numbers."""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from common.peers import find, jax_drop
from jax import Array

RATE = 0.25  # on jaxdrop's grid of rates, so that all divide by the same number
jax.config.update("jax_platforms", "cpu")  # before the key, which starts the backend
KEY = jax.random.key(0)
_DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "keras": "keras",
    "flax": "flax",
    "equinox": "equinox",
    "haiku": "dm-haiku",
}
_NEEDED = {"torchvision.ops.StochasticDepth": {"mode": "row"}}  # what has no default


class Asked(NamedTuple):
    """What a peer asked for: by which function, of what shape, and with what probability."""

    function: str
    shape: tuple[int, ...]
    probability: Any = None


def find_libraries() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the libraries that can be imported, and why the others cannot."""
    versions, missing = {}, {}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            importlib.import_module(name)
            versions[name] = importlib.metadata.version(distribution)
        except Exception as error:  # builds that do not fit each other raise RuntimeError
            missing[name] = f"{type(error).__name__}: {error}"
    return versions, missing


def library_of(peer: str) -> str:
    """The library of `timm.layers.DropPath`, or of `timm DropPath`."""
    return peer.replace(".", " ").split()[0]


def layer(peer: str, rate: Any = RATE, **options: Any) -> Callable[[Any], Any]:
    """The layer or function of this name, of an array, as its library wants to be called."""
    options = {**_NEEDED.get(peer, {}), **options}
    if library_of(peer) in ("keras", "flax", "equinox", "haiku"):
        drop = jax_drop(peer, rate, **options)
        return lambda x: drop(KEY, jnp.asarray(x))
    make = find(peer)
    if ".functional." in peer:
        return lambda x: make(to_tensor(x), rate, True)  # alpha_dropout is off by default
    module = make(rate, **options)
    return lambda x: module(to_tensor(x))


def call(peer: str, x: Any, *draws: Any, rate: Any = RATE, **options: Any) -> Any:
    """What a peer makes of an array, given our draws, or with its own where there are none."""
    apply = layer(peer, rate, **options)
    with fed(*draws) if draws else nullcontext():
        return apply(x)


@contextmanager
def fed(*draws: Any) -> Iterator[list[Asked]]:
    """Serves `draws`, in order, wherever a peer would draw random numbers.

    A draw is an array of the shape that the peer asks for; or the only draw is a
    function from that shape to one, which serves as often as it is asked. The list
    yielded fills with what was asked for.
    """
    queue, asked = list(draws), []

    def serve(function: str, shape: Sequence[int], probability: Any = None) -> np.ndarray:
        shape = tuple(int(n) for n in shape)
        asked.append(Asked(function, shape, probability))
        draw = np.asarray(queue[0](shape) if callable(queue[0]) else queue.pop(0))
        if draw.shape != shape:
            raise ValueError(f"The peer asked for {shape}; we have {draw.shape}.")
        return draw

    with _jax_fed(serve), _torch_fed(serve):
        yield asked
    if queue and not callable(queue[0]):
        raise ValueError(f"The peer left {len(queue)} draws.")


def _jax_fed(serve: Callable[..., np.ndarray]) -> AbstractContextManager[Any]:
    def bernoulli(key: Array, p: Any = 0.5, shape: Any = (), **options: Any) -> Array:
        return jnp.asarray(serve("jax.random.bernoulli", shape, p), bool)

    def real(name: str, key: Array, shape: Any = (), dtype: Any = None, **options: Any) -> Array:
        return jnp.asarray(serve(f"jax.random.{name}", shape), dtype)

    reals = {name: partial(real, name) for name in ("normal", "uniform")}
    return mock.patch.multiple(jax.random, bernoulli=bernoulli, **reals)


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
            match name := function._schema.name:
                case "aten::bernoulli_":
                    probability = (*args[1:], 0.5)[0]
                    return args[0].copy_(torch.tensor(serve(name, args[0].shape, probability)))
                case "aten::randn" | "prims::uniform":
                    return torch.tensor(serve(name, args[0]))
            return function(*args, **(kwargs or {}))

    return Fed()


def to_tensor(x: Any) -> Any:
    """A tensor of torch, which does not read bfloat16 from NumPy."""
    torch, x = importlib.import_module("torch"), np.asarray(x)
    if x.dtype == jnp.bfloat16:
        return torch.tensor(x.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(x)


def to_numpy(y: Any) -> np.ndarray:
    """An array of any library in float64."""
    return y.double().numpy() if hasattr(y, "double") else np.asarray(y, np.float64)
