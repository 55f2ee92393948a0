"""Second table, rows on `drop_block`: gamma, borders, channels, counts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from comparisons.feeding import call_torch, fed, to_tensor
from comparisons.inputs import KEY
from comparisons.libraries import find
from comparisons.rows import Answers, Row, enters
from comparisons.verdicts import distinct
from peers import OURS

import jaxdrop

ROWS: list[Row] = []
asks = partial(enters, ROWS)
_BLOCKS = {"timm": "timm.layers.DropBlock2d", "torchvision": "torchvision.ops.DropBlock2d"}


def _ask_blocks(ours: Callable[[], str], theirs: Callable[[Callable[..., Any]], str]) -> Answers:
    """Asks both peers with a function that is given their layer `(rate, block_size) -> call`."""
    peers = {name: lambda peer=peer: theirs(find(peer)) for name, peer in _BLOCKS.items()}
    return {OURS: ours, **peers}


def _one_seed(shape: Sequence[int]) -> np.ndarray:
    """A seed in the middle of the first map; fit to be fed."""
    seeds = np.zeros(shape)
    seeds[0, 0, shape[2] // 2, shape[3] // 2] = 1
    return seeds


def _dropped_by_each_seed(layer: Callable[..., Any], rate: float) -> tuple[float, np.ndarray]:
    """Gamma, and for each seed alone what it drops, of 8 x 8 elements in blocks of 3."""

    def seeds(shape: Sequence[int]) -> np.ndarray:
        one_each = np.eye(shape[2] * shape[3]).reshape(-1, *shape[1:])
        return np.pad(one_each, [(0, shape[0] - len(one_each)), (0, 0), (0, 0), (0, 0)])

    with fed(seeds) as asked:
        y = layer(rate, 3)(to_tensor(np.ones((64, 1, 8, 8), np.float32)))
    ((_, _, height, width), gamma) = asked[0]
    return gamma, y.numpy()[: height * width, 0] == 0


@asks("drop_block", {"gamma at rate 0.5, blocks of 3 in 8 x 8": ()})
def block_gamma() -> Answers:
    """The probability that the peer asks for; ours from `drop_block_gamma`."""
    return _ask_blocks(
        lambda: f"{jaxdrop.drop_block_gamma(0.5, (8, 8), 3):.4f}",
        lambda layer: f"{_dropped_by_each_seed(layer, 0.5)[0]:.4f}",
    )


@asks(
    "drop_block",
    {
        "share kept at rate 0.5, the same blocks": (0.5,),
        "share kept at rate 1, the same blocks": (1.0,),
    },
)
def block_share(rate: float) -> Answers:
    """A position that c seeds drop is kept with probability (1 - gamma)^c.

    Both are the peer's own; of ours the mean of 2^18 maps is taken, with a
    standard error below 0.0005.
    """

    def ours() -> str:
        y = jaxdrop.drop_block(KEY, jnp.ones((2**18, 8, 8, 1)), rate, block_size=3)
        return f"{np.mean(y != 0):.3f}"

    def theirs(layer: Callable[..., Any]) -> str:
        gamma, dropped = _dropped_by_each_seed(layer, rate)
        return f"{np.mean((1 - gamma) ** dropped.sum(0)):.3f}"

    return _ask_blocks(ours, theirs)


@asks("drop_block", {"elements that a seed drops, the same blocks": ()})
def block_at_the_border() -> Answers:
    """Each seed alone; of ours the fewest that are dropped in any of 2^14 maps."""

    def ours() -> str:
        y = jaxdrop.drop_block(KEY, jnp.ones((2**14, 8, 8, 1)), 0.02, block_size=3)
        sizes = np.sum(np.asarray(y) == 0, (1, 2, 3))
        return str(sizes[sizes > 0].min())

    def theirs(layer: Callable[..., Any]) -> str:
        sizes = np.unique(_dropped_by_each_seed(layer, 0.5)[1].sum((1, 2)))
        return ", ".join(map(str, sizes))

    return _ask_blocks(ours, theirs)


@asks("drop_block", {"channels of a sample lose": ()})
def block_channels() -> Answers:
    """Whether the noise that is asked for has 3 channels; of ours whether they differ."""

    def told(apart: Any) -> str:
        return "blocks of their own" if apart else "the same blocks"

    def ours() -> str:
        y = np.asarray(jaxdrop.drop_block(KEY, jnp.ones((8, 9, 9, 3)), 0.3, block_size=3))
        return told(np.any(y != y[..., :1]))

    def theirs(layer: Callable[..., Any]) -> str:
        with fed(np.zeros) as asked:
            layer(0.3, 3)(to_tensor(np.ones((2, 3, 9, 9), np.float32)))
        return told(asked[0][0][1] == 3)

    return _ask_blocks(ours, theirs)


@asks("drop_block", {"factor of a map without blocks beside one with a block of 3 in 8 x 8": ()})
def block_counts() -> Answers:
    """Two samples of ones; a seed is fed to the first. Of ours all maps that lose nothing."""

    def ours() -> str:
        y = np.asarray(jaxdrop.drop_block(KEY, jnp.ones((64, 8, 8, 1)), 0.1, block_size=3))
        return distinct(y[np.all(y != 0, (1, 2, 3))])

    def theirs(layer: Callable[..., Any]) -> str:
        return distinct(call_torch(layer(0.1, 3), np.ones((2, 1, 8, 8), np.float32), _one_seed)[1])

    return _ask_blocks(ours, theirs)


@asks(
    "drop_block",
    {
        "block of 4 in 12 x 12 is": (4, 12, 12),
        "block of 7 in 5 x 9 is": (7, 5, 9),
        "block of 7 in 4 x 9 is": (7, 4, 9),
    },
)
def block_edges(block: int, height: int, width: int) -> Answers:
    """Height and width of what a seed in the middle drops; of ours the least in 2^12 maps."""

    def edges(dropped: np.ndarray) -> str:
        return f"{dropped.any(1).sum()} x {dropped.any(0).sum()}"

    def ours() -> str:
        x = jnp.ones((2**12, height, width, 1))
        dropped = np.asarray(jaxdrop.drop_block(KEY, x, 0.02, block_size=block))[..., 0] == 0
        return edges(min(dropped[dropped.any((1, 2))], key=np.sum))

    def theirs(layer: Callable[..., Any]) -> str:
        x = np.ones((1, 1, height, width), np.float32)
        return edges(call_torch(layer(0.3, block), x, _one_seed)[0, 0] == 0)

    return _ask_blocks(ours, theirs)


@asks("drop_block", {"factor in float16 where 66,560 elements are kept": ()})
def block_in_float16() -> Answers:
    """Ones, of which nothing is dropped; float16 reaches to 65,504."""
    x = np.ones((1, 1, 260, 256), np.float16)

    def ours() -> str:
        return distinct(jaxdrop.drop_block(KEY, x, 1e-9, block_size=3, channel_axis=1))

    return _ask_blocks(ours, lambda layer: distinct(call_torch(layer(1e-3, 3), x, np.zeros)))
