"""The candidates: the dropout of each library as one function `(key, x) -> y`.

A library is imported when it is first asked for, so that one that is not
installed leaves out its row and nothing else.
"""

import importlib.metadata
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

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


def _jaxdrop(rate: float) -> Drop:
    return partial(jaxdrop.dropout, rate=rate)


def _flax_linen(rate: float) -> Drop:
    from flax import linen

    layer = linen.Dropout(rate, deterministic=False)
    return lambda key, x: layer.apply({}, x, rngs={"dropout": key})


def _flax_nnx(rate: float) -> Drop:
    from flax import nnx

    layer = nnx.Dropout(rate, deterministic=False)
    return lambda key, x: layer(x, rngs=key)


def _equinox(rate: float) -> Drop:
    import equinox

    layer = equinox.nn.Dropout(rate)
    return lambda key, x: layer(x, key=key)


def _haiku(rate: float) -> Drop:
    import haiku

    return lambda key, x: haiku.dropout(key, rate, x)


def _keras(rate: float) -> Drop:
    os.environ["KERAS_BACKEND"] = "jax"  # read when keras is first imported
    import keras

    # A key in the place of a seed makes the function pure, as `jit` needs it.
    return lambda key, x: keras.random.dropout(x, rate, seed=key)


_DROPS: dict[str, Callable[[float], Drop]] = {
    OURS: _jaxdrop,
    "flax.linen": _flax_linen,
    "flax.nnx": _flax_nnx,
    "equinox": _equinox,
    "haiku": _haiku,
    "keras": _keras,
    BASELINE: lambda rate: lambda key, x: x * 2,
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


def make_drop(name: str, rate: float) -> Drop:
    """The dropout of the library called `name`, with its rate set."""
    return _DROPS[name](rate)


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
