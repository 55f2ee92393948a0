"""Second table, rows on all methods that have peers: bad rates and traced ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from comparisons.feeding import to_tensor
from comparisons.inputs import KEY, RATE
from comparisons.libraries import find, jax_drop
from comparisons.rows import Answers, Row, enters
from jax import Array
from peers import OURS
from probing import attempt, refused

import jaxdrop

ROWS: list[Row] = []
asks = partial(enters, ROWS)


@asks("all with peers", {"rates -0.1, 1.5, NaN are": ()})
def bad_rates() -> Answers:
    """Whether making a layer of that rate, or calling it, raises."""
    x = np.ones((4, 3, 8, 8), np.float32)

    def block(key: Array, x: np.ndarray, rate: float) -> Array:
        return jaxdrop.drop_block(key, x, rate, block_size=3)

    methods = [
        jaxdrop.alpha_dropout,
        jaxdrop.gaussian_dropout,
        jaxdrop.spatial_dropout,
        jaxdrop.drop_path,
        jaxdrop.drop_tokens,
        block,
    ]
    layers = {
        "torch": ("torch.nn.AlphaDropout",),
        "torchvision StochasticDepth": ("torchvision.ops.StochasticDepth", "row"),
        "torchvision DropBlock2d": ("torchvision.ops.DropBlock2d", 3),
        "timm DropPath": ("timm.layers.DropPath",),
        "timm PatchDropout": ("timm.layers.PatchDropout",),
        "timm DropBlock2d": ("timm.layers.DropBlock2d", 3),
    }

    def ours() -> str:
        return ", ".join({_refusals(lambda rate, m=m: m(KEY, x, rate)) for m in methods})

    def theirs(peer: str, *options: Any) -> str:
        tokens = x[0] if peer.endswith("PatchDropout") else x
        return _refusals(lambda rate: find(peer)(rate, *options)(to_tensor(tokens)))

    def keras() -> str:
        return _refusals(lambda rate: jax_drop("keras.layers.AlphaDropout", rate)(x))

    return {
        OURS: ours,
        **{name: partial(theirs, *layer) for name, layer in layers.items()},
        "keras": keras,
    }


@asks("all with peers but drop_tokens", {"traced rate under jit": ()})
def traced_rates() -> Answers:
    """Rate 0.25 as an argument of `jit`; keras's layers are made inside."""
    x = np.ones((4, 5, 6), np.float32)
    methods = [
        jaxdrop.dropout,
        jaxdrop.alpha_dropout,
        jaxdrop.gaussian_dropout,
        jaxdrop.spatial_dropout,
        jaxdrop.drop_path,
        partial(jaxdrop.drop_block, block_size=2),
    ]
    layers = ["Dropout", "AlphaDropout", "GaussianDropout", "SpatialDropout1D"]

    def works(*drops: Callable[[Array], Any]) -> str:
        jax.jit(lambda rate: [drop(rate) for drop in drops])(RATE)
        return "works"

    def keras(layer: str) -> str:
        return works(lambda rate: jax_drop(f"keras.layers.{layer}", rate)(x))

    return {
        OURS: lambda: works(*[lambda rate, m=m: m(KEY, x, rate) for m in methods]),
        "keras": lambda: ", ".join({attempt(partial(keras, layer)) for layer in layers}),
    }


def _refusals(call: Callable[[float], Any]) -> str:
    """What becomes of rates -0.1, 1.5 and NaN, in one word where it is the same."""
    call(RATE)  # raises where something else than the rate is wrong
    found = [refused(call, rate) for rate in (-0.1, 1.5, float("nan"))]
    return found[0] if len(set(found)) == 1 else ", ".join(found)
