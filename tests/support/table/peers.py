"""Each method beside the functions of peers that do the same, given the same decisions.

`tests/test_peers.py` compares our methods with the formulas below, in float64
and without the peers. `benchmarks/definitions.py` feeds the decisions to the
peers' real functions, and compares these with our methods and with the formulas.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import jaxdrop
from jaxdrop import rescale

RATE = 0.25  # on jaxdrop's grid of rates, so that all divide by the same number
SELU_LIMIT = -1.6732632423543772 * 1.0507009873554805  # of SELU for minus infinity


def kept(x, noise, keep_prob):
    """Survivors over `keep_prob`, of each form in which peers write it."""
    return (x * noise / keep_prob).reshape(x.shape)


def alpha(x, noise, keep_prob, sign=-1):
    """What is dropped is set to the limit of SELU; `sign` is that of the shift b."""
    rate = 1 - keep_prob
    a = 1 / np.sqrt((SELU_LIMIT**2 * rate + 1) * keep_prob)
    return a * (x * noise + SELU_LIMIT * (1 - noise)) + sign * a * SELU_LIMIT * rate


def gaussian(x, noise, keep_prob):
    return x * (noise * np.sqrt((1 - keep_prob) / keep_prob) + 1)


def blocks(x, seeds, keep_prob, block=3, margins=False):
    """A seed drops a block; what is kept is scaled by its share of the whole array.

    Args:
      x: the input.
      seeds: 1 where a block is dropped.
      keep_prob: not used, for the factor comes from what is kept.
      block: edge of a block.
      margins: whether `seeds` have a place for each element, as timm's have, and
        not one for each block, as torchvision's.
    """
    axes = tuple(range(2, x.ndim))
    inner = slice(block // 2, -((block - 1) // 2)) if margins else slice(None)
    seeds = seeds[(slice(None), slice(None), *[inner] * len(axes))]
    padded = np.pad(seeds, [(0, 0), (0, 0), *[(block - 1, block - 1)] * len(axes)])
    windows = sliding_window_view(padded, (block,) * len(axes), axes)
    noise = 1.0 - windows.any(tuple(range(x.ndim, windows.ndim)))
    return x * noise * (noise.size / noise.sum())


def tokens(x, noise, keep_prob):
    """The first token, and in order those of least noise; with positions as a last feature."""
    count = int(noise.shape[1] * keep_prob)
    chosen = np.sort(np.argsort(noise, axis=1, kind="stable")[:, :count])
    positions = np.pad(chosen + 1, [(0, 0), (1, 0)])[:, :, None]
    return np.concatenate([np.take_along_axis(x, positions, axis=1), positions], axis=2)


def squares(x, centres, keep_prob, before, behind):
    """Zeroes from `c - before` to `c + behind`, clipped; the authors take length // 2 for both."""
    cut = np.array(x)
    for image, centre in zip(cut, centres, strict=True):
        image[tuple(slice(max(c - before, 0), c + behind) for c in centre)] = 0
    return cut


def spans(x, starts_and_widths, keep_prob):
    """Zeroes `width` steps from `start` on in each sample, for each pair of the two."""
    cut = np.array(x)
    for sample, pairs in zip(cut, starts_and_widths, strict=True):
        for start, width in pairs:
            sample[start : start + width] = 0
    return cut


def rectangles(x, found, keep_prob):
    """Sets `x[..., i : i + h, j : j + w]` to 0 for the i, j, h, w of each sample."""
    cut = np.array(x)
    for image, (i, j, h, w) in zip(cut, found, strict=True):
        image[..., i : i + h, j : j + w] = 0
    return cut


def weights_of(query):
    """Attention weights of `query` (heads before positions) with itself for keys."""
    logits = query @ np.swapaxes(query, -1, -2) / np.sqrt(query.shape[-1])
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def mask(*shared):
    """From our output for ones to a mask of size 1 along the shared axes.

    Ones that are kept stay positive, and only those.
    """

    def of(ones):
        return (ones > 0)[tuple(slice(1 if i in shared else None) for i in range(ones.ndim))]

    return of


def _seeds(ones, block=3, margins=False):
    """Seeds that make the blocks of which what is 0 is made, in the form that `blocks` takes."""
    axes = tuple(range(2, ones.ndim))
    windows = sliding_window_view(ones == 0, (block,) * len(axes), axes)
    seeds = windows.all(tuple(range(ones.ndim, windows.ndim)))
    before, behind = (block // 2, (block - 1) // 2) if margins else (0, 0)
    return np.pad(seeds, [(0, 0), (0, 0), *[(before, behind)] * len(axes)])


def _normal_noise(ones):
    return (ones - 1) / np.sqrt(RATE / (1 - RATE))


def _noise_of_tokens(tokens):
    """Least at the tokens that we keep, whose positions are the last feature; less the prefix."""
    positions = tokens[:, 1:, -1].astype(int) - 1
    noise = np.ones((len(tokens), 16))
    np.put_along_axis(noise, positions, 0, axis=1)
    return noise


def _centres(ones, size):
    """The centres of the squares; where one is clipped at the start, from its end."""

    def centre(zeros):
        return zeros[0] + size // 2 if zeros[0] else zeros[-1] + 1 + size // 2 - size

    return [[centre(np.flatnonzero((image == 0).any(axis))) for axis in (1, 0)] for image in ones]


def _one_span(ones):
    """Where the only span of each sample begins, and its width."""
    zeros = [np.flatnonzero(one == 0) for one in ones[..., 0]]
    return [[(each[0] if len(each) else 0, len(each))] for each in zeros]


def _starts(ones, width):
    """Starts of spans of one width that make all that is 0; the first is repeated as padding."""
    windows = sliding_window_view(ones[..., 0] == 0, width, axis=1).all(-1)
    starts = [np.flatnonzero(one) for one in windows]
    most = max(map(len, starts))
    padded = [np.concatenate([each, np.repeat(each[:1], most - len(each))]) for each in starts]
    return [[(start, width) for start in each] for each in padded]


def _spans(key, x, rate, **options):
    del rate
    return jaxdrop.drop_spans(key, x, **options)


def _rectangles(ones):
    """The i, j, h, w of what is 0 in each sample; h and w are 0 where nothing is."""
    zero = ones[:, 0] == 0
    sides = [zero.any(2), zero.any(1)]
    starts, lengths = ([f(side) for side in sides] for f in (lambda s: s.argmax(1), _count))
    return np.stack([*starts, *lengths], axis=1)


def _count(side):
    return side.sum(1)


def _weights(key, query, rate, **options):
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, query) / np.sqrt(query.shape[-1])
    return jaxdrop.dropout(key, jax.nn.softmax(logits), rate, **options)


def _drop_block(key, x, rate, block_size=3, channel_axis=1):
    return jaxdrop.drop_block(key, x, rate, block_size=block_size, channel_axis=channel_axis)


def _drop_tokens(key, x, rate):
    y, positions = jaxdrop.drop_tokens(key, x, rate, prefix=1)
    return jnp.concatenate([y, positions[:, :, None].astype(y.dtype)], axis=2)


_MASK = mask()


@dataclass(frozen=True)
class Comparison:
    """A method of ours beside functions of peers.

    Attributes:
      ours: what tables call our method.
      peers: what tables call the peers' functions, each with its options. The name
        ends at the first character that belongs to none.
      method: ours, of a key, an input and the rate.
      shape: the input's.
      decisions: from our output for ones to what peers get for their random numbers.
      formula: theirs in NumPy, of the input, the decisions and the keep probability.
      how: how `decisions` are found, for the tables.
      rate: the probability of dropping.
      keys: how many keys are tried.
      reason: why the results differ; None where they are the same.
    """

    ours: str
    peers: Mapping[str, Mapping[str, Any]]
    method: Callable[..., Any]
    shape: tuple[int, ...] = (4, 3, 5)
    decisions: Callable[[np.ndarray], Any] = _MASK
    formula: Callable[..., np.ndarray] = kept
    how: str = "Our mask"
    rate: float = RATE
    keys: int = 1
    reason: str | None = None


_TORCH = "torch.nn.functional"
_PER_MAP = "A mask of one for each sample and channel"
_PER_SAMPLE = "A mask of one for each sample"
_SEEDS = "Seeds found from our output"
_BATCH = {"shape": (4, 3, 12, 10), "rate": 0.3, "how": _SEEDS}
_OVER_THE_BATCH = "the peer counts survivors over the whole array"
_SHIFT = 2 * SELU_LIMIT * RATE / np.sqrt((SELU_LIMIT**2 * RATE + 1) * (1 - RATE))
_TORCHAUDIO = "the rule of torchaudio.functional.mask_along_axis_iid"
_TRANSFORMERS = "the rule of _compute_mask_indices of transformers"
_AUTHORS = "the authors' y - length // 2 to y + length // 2"

COMPARISONS = (
    Comparison(
        "dropout",
        {
            f"{_TORCH}.dropout": {},
            "keras.layers.Dropout": {},
            "flax.linen.Dropout": {},
            "flax.nnx.Dropout": {},
            "equinox.nn.Dropout": {},
            "haiku.dropout": {},
        },
        jaxdrop.dropout,
    ),
    Comparison(
        "dropout, rate 0.1",
        {f"{_TORCH}.dropout": {}},
        jaxdrop.dropout,
        rate=0.1,
        reason="jaxdrop divides by the probability it draws with, 0.899994, torch by 0.9",
    ),
    Comparison(
        "dropout(broadcast_dims=1)",
        {
            "keras.layers.Dropout(noise_shape=(None, 1, None))": {"noise_shape": (None, 1, None)},
            "flax.linen.Dropout(broadcast_dims=(1,))": {"broadcast_dims": (1,)},
        },
        partial(jaxdrop.dropout, broadcast_dims=1),
        decisions=mask(1),
        how="Our mask, of size 1 along the shared axis",
    ),
    Comparison(
        "dropout of attention weights",
        {f"{_TORCH}.scaled_dot_product_attention": {}},
        _weights,
        shape=(2, 3, 5, 4),
        formula=lambda x, *rest: kept(weights_of(x), *rest),
        how="The identity for values, so that the weights come out; our mask",
    ),
    Comparison(
        "dropout(broadcast_dims=(0, 1)) of attention weights",
        {"flax.linen.dot_product_attention_weights": {}},
        partial(_weights, broadcast_dims=(0, 1)),
        shape=(2, 3, 5, 4),
        decisions=mask(0, 1),
        formula=lambda x, *rest: kept(weights_of(x), *rest),
        how="One mask for the batch and the heads, flax's default",
    ),
    *(
        Comparison(
            "spatial_dropout(channel_axis=1)",
            {f"{_TORCH}.dropout{n}d": {}},
            partial(jaxdrop.spatial_dropout, channel_axis=1),
            shape=(4, 6, 5, 2, 3)[: n + 2],
            decisions=mask(2, 3, 4),
            how=_PER_MAP,
        )
        for n in (1, 2, 3)
    ),
    Comparison(
        "spatial_dropout(batch_axis=None, channel_axis=0)",
        {f"{_TORCH}.dropout1d of (channels, length)": {}},
        partial(jaxdrop.spatial_dropout, batch_axis=None, channel_axis=0),
        shape=(24, 5),
        decisions=lambda ones: mask(1)(ones)[None],
        how="A mask of one for each channel",
    ),
    *(
        Comparison(
            "spatial_dropout",
            {f"keras.layers.SpatialDropout{n}D": {}},
            jaxdrop.spatial_dropout,
            shape=(4, *(5, 2, 3)[:n], 6),
            decisions=mask(*range(1, n + 1)),
            how=_PER_MAP,
        )
        for n in (1, 2, 3)
    ),
    Comparison(
        "alpha_dropout",
        {f"{_TORCH}.alpha_dropout": {}, "keras.layers.AlphaDropout": {}},
        jaxdrop.alpha_dropout,
        formula=alpha,
    ),
    Comparison(
        "alpha_dropout",
        {"torch._refs.nn.functional.alpha_dropout": {}},
        jaxdrop.alpha_dropout,
        decisions=lambda ones: 1.0 - mask()(ones),  # torch drops what is above the rate
        formula=lambda x, uniform, keep_prob: alpha(x, 1 - uniform, keep_prob, sign=1),
        how="Torch's reference, from which it decomposes; numbers that our mask makes",
        reason=f"a wrong sign of b shifts all by {_SHIFT:.3f}",
    ),
    Comparison(
        "alpha_dropout(broadcast_dims=(2, 3))",
        {
            f"{_TORCH}.feature_alpha_dropout": {},
            "keras.layers.AlphaDropout(noise_shape=(None, None, 1, 1))": {
                "noise_shape": (None, None, 1, 1)
            },
        },
        partial(jaxdrop.alpha_dropout, broadcast_dims=(2, 3)),
        shape=(4, 6, 5, 2),
        decisions=mask(2, 3),
        formula=alpha,
        how=_PER_MAP,
    ),
    Comparison(
        "gaussian_dropout",
        {"keras.layers.GaussianDropout": {}},
        jaxdrop.gaussian_dropout,
        decisions=_normal_noise,
        formula=gaussian,
        how="Our noise, found from our output for ones",
    ),
    Comparison(
        "drop_path",
        {
            "timm.layers.DropPath": {},
            'torchvision.ops.StochasticDepth(mode="row")': {"mode": "row"},
        },
        jaxdrop.drop_path,
        shape=(16, 3, 5),
        decisions=mask(1, 2),
        how=_PER_SAMPLE,
    ),
    Comparison(
        "drop_path(rescale=rescale.none)",
        {"timm.layers.DropPath(scale_by_keep=False)": {"scale_by_keep": False}},
        partial(jaxdrop.drop_path, rescale=rescale.none),
        shape=(16, 3, 5),
        decisions=mask(1, 2),
        formula=lambda x, noise, keep_prob: x * noise,
        how=_PER_SAMPLE,
    ),
    Comparison(
        "drop_path(batch_axis=None)",
        {'torchvision.ops.StochasticDepth(mode="batch")': {"mode": "batch"}},
        partial(jaxdrop.drop_path, batch_axis=None),
        shape=(16, 3, 5),
        decisions=mask(0, 1, 2),
        how="One decision, for each of 16 keys, so that both occur",
        keys=16,
    ),
    *(
        Comparison(
            "drop_block of one map",
            {f"{name}{title}": {"block_size": block}},
            partial(_drop_block, block_size=block),
            shape=(1, 1, *shape),
            decisions=partial(_seeds, block=block, margins=margins),
            formula=partial(blocks, block=block, margins=margins),
            how=_SEEDS,
            rate=0.3,
        )
        for name, title, shape, block, margins in (
            ("torchvision.ops.DropBlock2d", "", (12, 10), 3, False),
            ("torchvision.ops.DropBlock3d", "", (6, 7, 5), 3, False),
            ("timm.layers.DropBlock2d", "", (12, 10), 3, True),
            ("timm.layers.DropBlock2d", ", block of 4", (12, 10), 4, True),
        )
    ),
    Comparison(
        "drop_block(block_size=(5, 3, 3), channel_axis=None) of one sample, 5 channels",
        {"timm.layers.DropBlock2d": {"block_size": 3}},
        partial(_drop_block, block_size=(5, 3, 3), channel_axis=None),
        shape=(1, 5, 12, 10),
        decisions=lambda ones: _seeds(ones[:, :1], margins=True),
        formula=partial(blocks, margins=True),
        how="Blocks as deep as the sample, so that all channels share them, timm's default; seeds",
        rate=0.3,
    ),
    Comparison(
        "drop_block of 4 samples, 3 channels",
        {"torchvision.ops.DropBlock2d": {"block_size": 3}},
        _drop_block,
        decisions=_seeds,
        formula=blocks,
        reason=_OVER_THE_BATCH,
        **_BATCH,
    ),
    Comparison(
        "drop_block of 4 samples, 3 channels",
        {
            "timm.layers.DropBlock2d(couple_channels=False)": {
                "block_size": 3,
                "couple_channels": False,
            }
        },
        _drop_block,
        decisions=partial(_seeds, margins=True),
        formula=partial(blocks, margins=True),
        reason=_OVER_THE_BATCH,
        **_BATCH,
    ),
    Comparison(
        "random_erasing(channel_axis=1)",
        {"the rule of erase of torchvision.transforms.v2.functional": {}},
        partial(jaxdrop.random_erasing, channel_axis=1),
        shape=(32, 3, 12, 10),
        decisions=_rectangles,
        formula=rectangles,
        how="Its rule, restated in NumPy, for the rectangles that we erase",
        rate=0.75,
    ),
    Comparison(
        "drop_spans(num_spans=1, width=(0, 9))",
        {_TORCHAUDIO: {}},
        partial(_spans, num_spans=1, width=(0, 9)),
        shape=(32, 30, 4),
        decisions=_one_span,
        formula=spans,
        how="Its rule, restated in NumPy, for the start and width of our span",
    ),
    Comparison(
        "drop_spans(num_spans=3, width=5)",
        {_TRANSFORMERS: {}},
        partial(_spans, num_spans=3, width=5),
        shape=(32, 30, 4),
        decisions=partial(_starts, width=5),
        formula=spans,
        how="Its rule, restated in NumPy, for starts that make our mask",
    ),
    Comparison(
        "drop_tokens(prefix=1)",
        {"timm.layers.PatchDropoutWithIndices(ordered=True)": {"ordered": True}},
        _drop_tokens,
        shape=(4, 17, 3),
        decisions=_noise_of_tokens,
        formula=tokens,
        how="Noise that is least at our tokens",
    ),
    Comparison(
        "locked_dropout(time_axis=1)",
        {"keras.layers.SimpleRNN(dropout=...), of its input": {}},
        partial(jaxdrop.locked_dropout, time_axis=1),
        shape=(4, 6, 5),
        decisions=lambda ones: mask()(ones[:, 0]),
        formula=lambda x, noise, keep_prob: x * noise[:, None] / keep_prob,
        how="A cell that returns its input; our mask of one step",
    ),
    *(
        Comparison(
            f"cutout of size {size}",
            {_AUTHORS: {}},
            lambda key, x, rate, size=size: jaxdrop.cutout(key, x, size, channel_axis=None),
            shape=(64, 8, 8),
            decisions=partial(_centres, size=size),
            formula=partial(squares, before=size // 2, behind=size // 2),
            how="Their clipped square, restated in NumPy, at the centres of ours",
            reason=reason,
        )
        for size, reason in (
            (4, None),
            (3, "zeroes 4 elements, not 9: the last row and column stay"),
        )
    ),
)
