"""Second table, rows on what is cut out: `drop_tokens` and `cutout`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from comparisons.feeding import fed, to_tensor
from comparisons.inputs import KEY
from comparisons.libraries import find
from comparisons.rows import Answers, Row, enters
from jax import Array
from peers import OURS

import jaxdrop

ROWS: list[Row] = []
asks = partial(enters, ROWS)


@asks(
    "drop_tokens",
    {
        "tokens kept of 10 at rate 0.25": (10, 0.25),
        "tokens kept of 20 at rate 0.9": (20, 0.9),
        "tokens kept of 4 at rate 0.9": (4, 0.9),
        "tokens kept of 4 at rate 1": (4, 1),
    },
)
def kept_tokens(length: int, rate: float) -> Answers:
    """Length of the output, without a prefix."""
    x = np.ones((1, length, 1), np.float32)

    def theirs() -> str:
        layer = find("timm.layers.PatchDropout")(rate, num_prefix_tokens=0)
        return str(layer(to_tensor(x)).shape[1])

    return {OURS: lambda: str(jaxdrop.drop_tokens(KEY, x, rate)[0].shape[1]), "timm": theirs}


@asks("drop_tokens", {"order by default": ()})
def order_of_tokens() -> Answers:
    """Of 64 tokens at rate 0.5."""
    x = np.arange(64, dtype=np.float32).reshape(1, 64, 1)

    def order(tokens: Any) -> str:
        return "kept" if np.all(np.diff(np.asarray(tokens)[0, :, 0]) > 0) else "random"

    return {
        OURS: lambda: order(jaxdrop.drop_tokens(KEY, x, 0.5)[0]),
        "timm": lambda: order(find("timm.layers.PatchDropout")(0.5)(to_tensor(x))),
    }


@asks("drop_tokens", {"prefix by default": ()})
def default_prefix() -> Answers:
    """How many first tokens survive 64 calls at rate 0.75."""
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    keys = jax.random.split(KEY, 64)

    def prefix(drop: Callable[[Array], Any]) -> str:
        tokens = [{int(token) for token in np.asarray(drop(key)).ravel()} for key in keys]
        return str(len(set.intersection(*tokens)))

    return {
        OURS: lambda: prefix(lambda key: jaxdrop.drop_tokens(key, x, 0.75)[0]),
        "timm": lambda: prefix(lambda key: find("timm.layers.PatchDropout")(0.75)(to_tensor(x))),
    }


@asks("drop_tokens", {"positions of a prefix and the last of 2 tokens; at rate 0": ()})
def positions_of_tokens() -> Answers:
    """At rate 0.5 one of the two is kept; the noise that is fed, or our key, makes it the last."""
    x = np.ones((1, 3, 1), np.float32)

    def ours(rate: float) -> str:
        keys = jax.random.split(KEY, 16)
        return str(max(jaxdrop.drop_tokens(k, x, rate, prefix=1)[1][0].tolist() for k in keys))

    def theirs(rate: float, *draws: Any) -> str:
        with fed(*draws):
            positions = find("timm.layers.PatchDropoutWithIndices")(rate)(to_tensor(x))[1]
        return str(positions if positions is None else positions[0].tolist())

    return {
        OURS: lambda: f"{ours(0.5)}; {ours(0)}",
        "timm": lambda: f"{theirs(0.5, [[1.0, 0.0]])}; {theirs(0)}",
    }


def _elements(erased: np.ndarray) -> str:
    counts = erased.sum((2, 3))
    return " to ".join(map(str, sorted({counts.min(), counts.max()})))


def _samples(erased: np.ndarray) -> str:
    return "one square" if np.all(erased == erased[:, :1]) else "squares of their own"


@asks(
    "cutout, as to RandomErasing",
    {"elements that 3 x 3 zeroes in 8 x 8": (_elements,), "4 samples lose": (_samples,)},
)
def erased_squares(tell: Callable[[np.ndarray], str]) -> Answers:
    """64 batches of 4 samples; the peers' RandomErasing is set to squares of 9 / 64 of the area."""
    x, share = np.ones((4, 1, 8, 8), np.float32), 9 / 64
    keys = jax.random.split(KEY, 64)

    def told(cut: Callable[[Array], Any]) -> str:
        return tell(np.stack([np.asarray(cut(key))[:, 0] == 0 for key in keys]))

    def torchvision() -> str:
        erase = find("torchvision.transforms.v2.RandomErasing")(1, (share, share), (1, 1))
        return told(lambda key: erase(to_tensor(x)))

    def timm() -> str:
        eraser = find("timm.data.random_erasing.RandomErasing")
        erase = eraser(1, share, share, 1, 1, device="cpu")
        return told(lambda key: erase(to_tensor(x)))

    def keras() -> str:
        options = {"fill_value": 0.0, "data_format": "channels_first"}
        erase = find("keras.layers.RandomErasing")((1.0, 1.0), (share, share), **options)
        return told(lambda key: erase(x, training=True))

    return {
        OURS: lambda: told(lambda key: jaxdrop.cutout(key, x, 3, channel_axis=1)),
        "torchvision": torchvision,
        "timm": timm,
        "keras": keras,
    }
