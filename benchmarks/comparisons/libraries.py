"""Finds the peers: which libraries are here, what a name means, how a layer is called."""

import importlib
import importlib.metadata
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from comparisons.inputs import KEY, RATE
from jax import Array

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is first imported
_DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "keras": "keras",
    "flax": "flax",
    "equinox": "equinox",
    "haiku": "dm-haiku",
}


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


def find(name: str) -> Any:
    """What a dotted name means, up to the first character that belongs to none."""
    module, _, attribute = re.match(r"[\w.]+", name)[0].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def jax_drop(peer: str, rate: Any = RATE, **options: Any) -> Callable[[Any], Array]:
    """The layer or function of this name, as each library wants to be called."""
    make = find(peer)
    match re.split(r"\W", peer)[:2]:
        case "keras", _:
            return partial(make(rate, **options), training=True)
        case "flax", "nnx":
            return partial(make(rate, deterministic=False, **options), rngs=KEY)
        case "flax", _:
            layer = make(rate, deterministic=False, **options)
            return lambda x: layer.apply({}, x, rngs={"dropout": KEY})
        case "equinox", _:
            return partial(make(rate, **options), key=KEY)
    return partial(make, KEY, rate)
