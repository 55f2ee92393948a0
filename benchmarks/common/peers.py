"""The candidates: the dropout of each library as one function `(key, x) -> y`.

A library is imported when it is first asked for, so that one that is not
installed leaves out its row and nothing else.
"""

import importlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import jax
from common.timing import Run
from jax import Array

import jaxdrop

Drop: TypeAlias = Callable[[Array, Array], Array]

OURS = "jaxdrop"
BASELINE = "x * 2"  # reads and writes what dropout must, and draws nothing
TORCH = "torch"
REFERENCE_PEER = "flax.linen"  # what dropout adds is compared with what this one adds
FORWARD, BOTH = "forward", "forward+backward"


_FUNCTIONS = {
    "flax.linen": "flax.linen.Dropout",
    "flax.nnx": "flax.nnx.Dropout",
    "equinox": "equinox.nn.Dropout",
    "haiku": "haiku.dropout",
    "keras": "keras.random.dropout",
}
_DISTRIBUTIONS = {
    "flax.linen": "flax",
    "flax.nnx": "flax",
    "equinox": "equinox",
    "haiku": "dm-haiku",
    "keras": "keras",
    TORCH: "torch",
}
PEERS = tuple(_DISTRIBUTIONS)
os.environ["KERAS_BACKEND"] = "jax"  # read when keras is first imported


def make_drop(name: str, rate: float) -> Drop:
    """The dropout of the library called `name`, with its rate set."""
    if name == OURS:
        return partial(jaxdrop.dropout, rate=rate)
    if name == BASELINE:
        return lambda key, x: x * 2
    return jax_drop(_FUNCTIONS[name], rate)


def jax_drop(peer: str, rate: Any, **options: Any) -> Drop:
    """The layer or function of this name, as each library on JAX wants to be called."""
    make = find(peer)
    match re.split(r"\W", peer)[:2]:
        case "flax", "nnx":
            layer = make(rate, deterministic=False, **options)
            return lambda key, x: layer(x, rngs=key)
        case "flax", _:
            layer = make(rate, deterministic=False, **options)
            return lambda key, x: layer.apply({}, x, rngs={"dropout": key})
        case "equinox", _:
            layer = make(rate, **options)
            return lambda key, x: layer(x, key=key)
        case "keras", "random":  # a key in the place of a seed makes it pure, as `jit` needs it
            return lambda key, x: make(x, rate, seed=key)
        case "keras", _:
            layer = make(rate, **options)
            return lambda key, x: layer(x, training=True)
        case "haiku", _:
            return lambda key, x: make(key, rate, x)
    raise ValueError(f"jax_drop: peer must be of a library on JAX; got {peer}.")


def find(name: str) -> Any:
    """What a dotted name means, up to the first character that belongs to none."""
    module, _, attribute = re.match(r"[\w.]+", name)[0].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def find_peers(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the peers that can be imported, and why the others cannot, which is printed."""
    versions, missing = {}, {}
    for name in names:
        try:
            torch_runs((1,), "float32", 0.5) if name == TORCH else make_drop(name, 0.5)
            versions[name] = importlib.metadata.version(_DISTRIBUTIONS[name])
        except (ImportError, AttributeError) as error:  # the latter: too old for this JAX
            missing[name] = f"{type(error).__name__}: {error}"
            print(f"{name} is left out: {missing[name]}")
    return versions, missing


def torch_runs(shape: tuple[int, ...], dtype: str, rate: float) -> dict[str, Run]:
    """PyTorch's eager dropout, forward and forward + backward, ready to be timed.

    Args:
      shape: shape of the input.
      dtype: name of its dtype.
      rate: probability of dropping.

    Returns:
      A run for each direction, on the GPU where both JAX and PyTorch have it.
    """
    import torch

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    x = torch.randn(shape, device=device).to(getattr(torch, dtype))
    cotangent, variable = torch.ones_like(x), x.clone().requires_grad_()

    def finished(result: object) -> object:
        if on_gpu:
            torch.cuda.synchronize()
        return result

    def forward() -> object:
        with torch.no_grad():
            return finished(torch.nn.functional.dropout(x, rate, training=True))

    def forward_backward() -> object:
        y = torch.nn.functional.dropout(variable, rate, training=True)
        return finished((y, torch.autograd.grad(y, variable, cotangent)))

    return {FORWARD: forward, BOTH: forward_backward}
