"""First table, rows on what falls together: paths, blocks, tokens, steps and squares."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from comparisons.feeding import call_jax, call_torch, fed, to_tensor
from comparisons.inputs import KEY, RATE, first, numbers
from comparisons.libraries import find
from comparisons.rows import Row, enters
from comparisons.verdicts import verdict
from numpy.lib.stride_tricks import sliding_window_view

import jaxdrop
from jaxdrop import rescale

ROWS: list[Row] = []
compares = partial(enters, ROWS)


@compares(
    "drop_path",
    {"timm.layers.DropPath": ((),), 'torchvision.ops.StochasticDepth(mode="row")': (("row",),)},
)
def torch_paths(peer: str, options: tuple[Any, ...]) -> str:
    """A mask of one for each sample in the place of `bernoulli_`."""
    x = numbers(16, 3, 5)
    y = np.asarray(jaxdrop.drop_path(KEY, x, RATE))
    return verdict(y, call_torch(find(peer)(RATE, *options), x, first(y != 0, 1)))


@compares("drop_path(rescale=rescale.none)", {"timm.layers.DropPath(scale_by_keep=False)": ()})
def timm_unscaled_path(peer: str) -> str:
    """A mask of one for each sample in the place of `bernoulli_`."""
    x = numbers(16, 3, 5)
    y = np.asarray(jaxdrop.drop_path(KEY, x, RATE, rescale=rescale.none))
    return verdict(y, call_torch(find(peer)(RATE, scale_by_keep=False), x, first(y != 0, 1)))


@compares("drop_path(batch_axis=None)", {'torchvision.ops.StochasticDepth(mode="batch")': ()})
def torchvision_batch_path(peer: str) -> str:
    """One decision in the place of `bernoulli_`; 16 keys, so that both occur."""
    x, drop = numbers(16, 3, 5), find(peer)(RATE, "batch")
    ours = [jaxdrop.drop_path(key, x, RATE, batch_axis=None) for key in jax.random.split(KEY, 16)]
    return verdict(ours, [call_torch(drop, x, first(np.asarray(y) != 0, 0)) for y in ours])


def _blocks(shape: Sequence[int], block: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Input and output of our `drop_block` at rate 0.3, with the channels in second place."""
    x = numbers(*shape)
    options = {"channel_axis": 1, "block_size": block, **options}
    return x, np.asarray(jaxdrop.drop_block(KEY, x, 0.3, **options))


def _seeds(y: np.ndarray, block: int, peer: str) -> np.ndarray:
    """Seeds that make the blocks of which what is 0 is made, as the peer wants them.

    Torchvision's noise has a place for each block, timm's for each element.
    """
    axes = tuple(range(2, y.ndim))
    windows = sliding_window_view(y == 0, (block,) * len(axes), axes)
    seeds = windows.all(tuple(range(y.ndim, windows.ndim)))
    if not peer.startswith("timm"):
        return seeds
    return np.pad(seeds, [(0, 0), (0, 0), *[(block // 2, (block - 1) // 2)] * len(axes)])


@compares(
    "drop_block of one map",
    {
        "torchvision.ops.DropBlock2d": ((12, 10), 3),
        "torchvision.ops.DropBlock3d": ((6, 7, 5), 3),
        "timm.layers.DropBlock2d": ((12, 10), 3),
        "timm.layers.DropBlock2d, block of 4": ((12, 10), 4),
    },
)
def blocks_of_one_map(peer: str, shape: tuple[int, ...], block: int) -> str:
    """Seeds found from our output in the place of `bernoulli_`; blocks of 3 or 4."""
    x, y = _blocks((1, 1, *shape), block)
    return verdict(y, call_torch(find(peer)(0.3, block), x, _seeds(y, block, peer)))


@compares(
    "drop_block(block_size=(5, 3, 3), channel_axis=None) of one sample, 5 channels",
    {"timm.layers.DropBlock2d": ()},
)
def coupled_channels(peer: str) -> str:
    """Blocks as deep as the sample, so that all channels share them, as timm's do by default."""
    x, y = _blocks((1, 5, 12, 10), 3, block_size=(5, 3, 3), channel_axis=None)
    return verdict(y, call_torch(find(peer)(0.3, 3), x, _seeds(y[:, :1], 3, peer)))


@compares(
    "drop_block of 4 samples, 3 channels",
    {
        "torchvision.ops.DropBlock2d": ({},),
        "timm.layers.DropBlock2d(couple_channels=False)": ({"couple_channels": False},),
    },
)
def blocks_of_a_batch(peer: str, options: Mapping[str, Any]) -> str:
    """As for one map; the reason is checked by counting as the peer does."""
    x, y = _blocks((4, 3, 12, 10), 3)
    theirs = call_torch(find(peer)(0.3, 3, **options), x, _seeds(y, 3, peer))
    counted = np.where(y == 0, 0, x * (y.size / np.sum(y != 0)))
    return verdict(y, theirs, counted, "the peer counts survivors over the whole array")


@compares("drop_tokens(prefix=1)", {"timm.layers.PatchDropoutWithIndices(ordered=True)": ()})
def timm_tokens(peer: str) -> str:
    """Noise that is least at our tokens in the place of `randn`; positions less the prefix."""
    x = numbers(4, 17, 3)
    y, positions = jaxdrop.drop_tokens(KEY, x, RATE, prefix=1)
    chosen, noise = np.asarray(positions)[:, 1:] - 1, np.ones((4, 16))
    np.put_along_axis(noise, chosen, 0, axis=1)
    with fed(noise):
        theirs, indices = find(peer)(RATE, ordered=True)(to_tensor(x))
    return verdict(y, theirs) if np.array_equal(indices, chosen) else "other positions"


@compares("locked_dropout(time_axis=1)", {"keras.layers.SimpleRNN(dropout=...), of its input": ()})
def keras_rnn(peer: str) -> str:
    """A cell that returns its input; our mask of one step for `jax.random.bernoulli`."""
    x = numbers(4, 6, 5)
    y = np.asarray(jaxdrop.locked_dropout(KEY, x, RATE, time_axis=1))
    layer = find(peer)(
        5,
        activation=None,
        kernel_initializer="identity",
        recurrent_initializer="zeros",
        dropout=RATE,
        return_sequences=True,
    )
    layer.build(x.shape)
    return verdict(y, call_jax(lambda x: layer(x, training=True), x, y[:, 0] != 0))


def _cut(image: np.ndarray, before: int, behind: int, centre: Sequence[int]) -> np.ndarray:
    """Zeroes from `c - before` to `c + behind`, clipped; the authors take length // 2 for both."""
    image = image.copy()
    image[tuple(slice(max(c - before, 0), c + behind) for c in centre)] = 0
    return image


@compares("cutout of size 3", {"the authors' y - length // 2 to y + length // 2": (3,)})
@compares("cutout of size 4", {"the authors' y - length // 2 to y + length // 2": (4,)})
def authors_cutout(peer: str, size: int) -> str:
    """Their clipped square, restated in NumPy, at 64 centres that are found from our output.

    For an odd size the reason is checked by adding a row and a column to theirs.
    """
    x, half = numbers(64, 8, 8), size // 2
    ours = np.asarray(jaxdrop.cutout(KEY, x, size, channel_axis=None))
    theirs, longer = [], []
    for image, cut in zip(x, ours, strict=True):
        edges = [np.flatnonzero((cut == 0).any(axis)) for axis in (1, 0)]
        centre = [edge[0] + half if edge[0] else edge[-1] + 1 + half - size for edge in edges]
        theirs.append(_cut(image, half, half, centre))
        longer.append(_cut(image, half, half + 1, centre))
    if np.array_equal(ours, theirs):
        return "same"
    most = [int(np.sum(np.asarray(y) == 0, (1, 2)).max()) for y in (theirs, ours)]
    reason = f"zeroes {most[0]} elements, not {most[1]}: the last row and column stay"
    return verdict(theirs, ours, np.stack(longer), reason)
