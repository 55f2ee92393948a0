"""Methods that drop connected blocks of feature maps."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Inexact

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.platforms import by_platform
from jaxdrop.base.sharding import explicit_sharding, with_spec, zeros_like
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import rescale_and_select
from jaxdrop.core.bernoulli import bernoulli_mask
from jaxdrop.core.layout import Layout
from jaxdrop.core.rate import GridRate
from jaxdrop.core.threshold import ALL_PAIRS, Threshold, checked_rate, fine_threshold
from jaxdrop.core.words import Words
from jaxdrop.rescale import realized

_NEWTON_STEPS = 64  # a rate of 1 - 2^-32 takes 22, in which t grows by about 1 each
_ONES = 0xFFFFFFFF
_LEAST_SLOPE = 1e-30  # a step divides by the slope, which is 0 where everything is dropped


def drop_block(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    block_size: int | Sequence[int],
    batch_axis: int | None = 0,
    channel_axis: int | None = -1,
    exact: bool = True,
) -> Inexact[Array, "*shape"]:
    """Drops contiguous blocks of each feature map, a share `rate` of it on average.

    A position is a seed with probability gamma, and each seed drops a block. Blocks may
    overlap, and each block lies wholly inside the map. Gamma is computed such that the
    expected share of dropped elements is `rate`. The paper's gamma misses that share:
    it drops .386 instead of .5 for blocks of 3 x 3 in 8 x 8. Elements near the border
    are covered by fewer blocks and dropped less often.

    Gamma is computed in float64 for a known rate and in float32 for a traced one, so
    their masks may differ at one seed in millions.

    In each sample and channel, survivors are multiplied by size / kept. So a constant
    feature map keeps its sum in every draw. If all of it is dropped, the result is
    zeros. The mean of a single element is not kept.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array, such as (batch, height, width, channels).
      rate: share to drop, in [0, 1]; may be traced.
      block_size: edge of a block, or one for each spatial axis; at least 1, and
        cut to the feature map where that is smaller.
      batch_axis: axis of the samples; None for one sample, as under `vmap`.
      channel_axis: axis of the channels; None if there is none. To drop the same blocks
        in all channels, treat the channels as a spatial axis that a block fills:
        `block_size=(b, b, channels), channel_axis=None`.
      exact: False for the paper's gamma.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` or `block_size` are not numbers.
      ValueError: a known `rate` lies outside [0, 1], `block_size` is below 1 or
        has another length than there are spatial axes, an axis is out of
        range, both are the same, or no axis is left.

    Example:
      >>> y = drop_block(jax.random.key(0), jnp.ones((1, 9, 9, 1)), 0.3, block_size=3)
      >>> round(float(y.sum()), 3)
      81.0

    References:
      Ghiasi, Lin and Le, "DropBlock: a regularization method for convolutional
      networks", arXiv:1810.12890 (2018).
    """
    check = Check("drop_block")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    spatial = check.spatial_axes(x, batch_axis, channel_axis)
    sizes = tuple(x.shape[axis] for axis in spatial)
    blocks = _block_sizes(check, block_size, sizes)
    if x.size == 0:
        return x
    if isinstance(rate, Array):
        return _drop_block(key, x, rate, spatial, blocks, exact)
    if rate == 0:
        return x
    if rate == 1:
        return zeros_like(x)
    seeds = fine_threshold(_known_gamma(rate, sizes, blocks, exact))
    return _drop_block(key, x, seeds, spatial, blocks, exact)


def drop_block_gamma(
    rate: Rate, shape: Sequence[int], block_size: int | Sequence[int], *, exact: bool = True
) -> Float[Array, ""] | float:
    """The seed probability gamma at which `drop_block` drops a share `rate`.

    A position that c seeds can cover is kept with probability (1 - gamma)^c. For the
    exact gamma, the mean of this over all positions is 1 - rate. The paper's gamma is
    rate / block^d * prod of f / (f - block + 1), which would be right if blocks never
    overlapped.

    Args:
      rate: share to drop, in [0, 1]; may be traced.
      shape: sizes of the feature map along its spatial axes.
      block_size: edge of a block, or one for each spatial axis.
      exact: False for the paper's gamma.

    Returns:
      Gamma, in [0, 1].

    Raises:
      TypeError: an argument is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `block_size` is below 1
        or has another length than `shape`.

    Example:
      >>> round(float(drop_block_gamma(0.5, (8, 8), 3)), 4)
      0.1421

    References:
      Ghiasi, Lin and Le, "DropBlock: a regularization method for convolutional
      networks", arXiv:1810.12890 (2018), equation 1.
    """
    check = Check("drop_block_gamma")
    rate = check.probability("rate", rate)
    sizes = check.shape(shape)
    blocks = _block_sizes(check, block_size, sizes)
    if isinstance(rate, Array):
        return _gamma(checked_rate(rate), sizes, blocks, exact)
    return _known_gamma(rate, sizes, blocks, exact)


@partial(jax.jit, static_argnames=("spatial", "blocks", "exact"))
def _drop_block(
    key: Key,
    x: Array,
    rate: Threshold | Array,
    spatial: tuple[int, ...],
    blocks: tuple[int, ...],
    exact: bool,
) -> Array:
    sizes = tuple(x.shape[axis] for axis in spatial)
    if not isinstance(rate, Threshold):
        rate = fine_threshold(_gamma(checked_rate(rate), sizes, blocks, exact))
    # The spatial axes are kept apart from the packed ones. So a block spreads by shifts
    # of whole words, 32 decisions at once.
    edges = dict(zip(spatial, blocks, strict=True))
    seeds = tuple(n - edges.get(axis, 1) + 1 for axis, n in enumerate(x.shape))
    sharding = explicit_sharding(x)
    if sharding is not None:
        spec = enumerate(sharding.spec)
        sharding = with_spec(sharding, tuple(None if i in edges else names for i, names in spec))
    mask = bernoulli_mask(key, GridRate(rate, ALL_PAIRS), Layout(seeds, apart=spatial), sharding)
    words = mask.words
    for axis, block in enumerate(blocks):
        words = _spread(words, axis, block)
    # Nothing uses the `keep_prob` of the seeds, except that NaN shows a bad rate.
    mask = replace(mask, words=words, layout=Layout(x.shape, apart=spatial))
    return rescale_and_select(mask, x, realized(spatial))


def _spread(words: Words, axis: int, block: int) -> Words:
    """Clears each element that follows a cleared one at a distance below `block`.

    The axis grows by `block - 1`. Each shift doubles the length that a seed clears, and
    the last one adds what is missing.
    """
    shifts: list[int] = []
    while sum(shifts) < block - 1:
        shifts.append(min(sum(shifts) + 1, block - 1 - sum(shifts)))
    ones = [(0, 0)] * words.ndim
    ones[axis] = (0, block - 1)
    words = jnp.pad(words, ones, constant_values=np.uint32(_ONES))
    return by_platform(
        partial(_shift_at_once, axis=axis, shifts=shifts),
        partial(_shift_in_a_loop, axis=axis, shifts=shifts),
        words,
    )


def _shift_at_once(words: Words, *, axis: int, shifts: Sequence[int]) -> Words:
    # One kernel, which reads the words of one axis from memory. Without the barrier XLA
    # would draw each word once for each place that it clears.
    words = lax.optimization_barrier(words)
    for shift in shifts:
        steps = [(0, 0, 0)] * words.ndim
        steps[axis] = (shift, -shift, 0)
        words = words & lax.pad(words, np.uint32(_ONES), steps)
    return words


def _shift_in_a_loop(words: Words, *, axis: int, shifts: Sequence[int]) -> Words:
    # A loop makes XLA compute the words of each trip only once. There are at least two
    # trips, since XLA inlines a loop of one; a shift by 0 changes nothing.
    trips = np.array([*shifts, 0, 0][: max(len(shifts), 2)])

    # `roll` wraps around, but it only brings in the ones that were put there. They clear nothing.
    def trip(i: Array, words: Words) -> Words:
        return words & jnp.roll(words, jnp.asarray(trips)[i], axis)

    return lax.fori_loop(0, len(trips), trip, words)


def _block_sizes(
    check: Check, block_size: int | Sequence[int], sizes: tuple[int, ...]
) -> tuple[int, ...]:
    """The edges of a block, none longer than the feature map."""
    edges = check.edges("block_size", block_size, len(sizes), least=1)
    return tuple(min(edge, max(size, 1)) for edge, size in zip(edges, sizes, strict=True))


@lru_cache(maxsize=1024)  # eager loops ask for the same few
def _known_gamma(
    rate: float, sizes: tuple[int, ...], blocks: tuple[int, ...], exact: bool
) -> float:
    """The probability of a seed for a known rate.

    It is computed in NumPy's float64, so that masks of known rates are the same everywhere.
    """
    if rate == 1:
        return 1.0
    if not exact:
        return rate * _disjoint_share(sizes, blocks)
    t, (cover, share) = 0.0, _coverage(sizes, blocks)
    for _ in range(_NEWTON_STEPS):
        t = _newton_step(t, rate, cover, share, np)
    return float(-np.expm1(-t))


def _gamma(rate: Array, sizes: tuple[int, ...], blocks: tuple[int, ...], exact: bool) -> Array:
    """The probability of a seed for a traced rate in [0, 1], or NaN."""
    if not exact:
        return jnp.where(rate == 1, 1, rate * _disjoint_share(sizes, blocks))
    cover, share = (jnp.asarray(each, rate.dtype) for each in _coverage(sizes, blocks))

    def step(i: Array, t: Array) -> Array:
        return _newton_step(t, rate, cover, share, jnp)

    t = lax.fori_loop(0, _NEWTON_STEPS, step, jnp.zeros_like(rate))
    return jnp.where(rate == 1, 1, -jnp.expm1(-t))


def _disjoint_share(sizes: tuple[int, ...], blocks: tuple[int, ...]) -> float:
    """The paper's gamma for a rate of 1."""
    pairs = zip(sizes, blocks, strict=True)
    return math.prod(f / (b * max(f - b + 1, 1)) for f, b in pairs)


def _newton_step(t: Any, rate: Any, cover: Any, share: Any, xp: ModuleType) -> Any:
    """One step towards the t = -log(1 - gamma) at which a share `rate` is dropped.

    The share dropped, 1 - mean of exp(-c t), is a concave function of t that rises. So
    Newton's steps from 0 approach the root from below and need no bracket.
    """
    dropped = -xp.sum(share * xp.expm1(-cover * t))
    slope = xp.sum(share * cover * xp.exp(-cover * t))
    return t + xp.maximum(rate - dropped, 0) / xp.maximum(slope, _LEAST_SLOPE)


def _coverage(sizes: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """How many seeds can cover a position: the numbers, and the share of positions with each."""
    axes = []
    for f, b in zip(sizes, blocks, strict=True):
        i = np.arange(f)  # covered by seeds i - b + 1 to i, of those from 0 to f - b
        counts = np.minimum.reduce([i + 1, f - i, np.full(f, b), np.full(f, f - b + 1)])
        axes.append(np.unique(counts, return_counts=True))
    # Axes are independent, so numbers and shares multiply. Along each axis, positions
    # with equal numbers are counted together, which keeps the lists short.
    cover = [math.prod(numbers) for numbers in itertools.product(*[values for values, _ in axes])]
    share = [math.prod(numbers) for numbers in itertools.product(*[c / c.sum() for _, c in axes])]
    return np.array(cover, float), np.array(share)
