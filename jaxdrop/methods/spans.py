"""Spans: runs of neighbouring positions along one axis, such as time, frequency or tokens."""

from collections.abc import Sequence
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int32, Shaped

from jaxdrop.base.arguments import key_and_rate, key_unless, refuse_swapped
from jaxdrop.base.describe import describe
from jaxdrop.base.sharding import explicit_sharding, spread_to, with_spec
from jaxdrop.base.types import Key, KnownOrTraced, Rate, Size
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, poisoned, rescale_and_select, select
from jaxdrop.core.layout import Layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.threshold import Threshold, checked_rate, fine_threshold
from jaxdrop.core.words import Words, below, draw_pair, grid_address, threefry_key
from jaxdrop.rescale import checked_rule, is_own_rule, none

_NEWTON_STEPS = 10  # 8 reach the last digit, for widths of 1 to 100,000 and rates of 1e-9 to 1


class Spans(NamedTuple):
    """Where spans may lie in an array.

    Attributes:
      widths: the least and the most positions of one.
      axis: along which they run.
      samples: the axes along which each index has spans of its own.
    """

    widths: tuple[int, int]
    axis: int
    samples: tuple[int, ...]


class SpanStarts(NamedTuple):
    """How likely a span is to begin at a position.

    Attributes:
      threshold: no span begins where a uniform number is below it.
      keep_prob: the probability that no span covers a position.
    """

    threshold: Threshold
    keep_prob: Float[Array, ""] | float


def drop_spans(
    key: Key | None,
    x: Shaped[ArrayLike, "*shape"],
    rate: Rate | None = None,
    *,
    width: int | Sequence[int],
    num_spans: int | None = None,
    axis: int = 1,
    batch_axis: int | Sequence[int] | None = 0,
    fill: Any = 0,
    where: Bool[ArrayLike, "..."] | None = None,
    rescale: Rescale = none,
) -> Shaped[Array, "*shape"]:
    """Drops spans: runs of neighbouring positions along an axis, of random width.

    Each sample has spans of its own, alike along all axes that are not named. Spans may
    overlap. Widths are uniform from the least to the most. Either the rate is given, or
    the number of spans:

    `rate` is the probability that a position is dropped, exactly and the same at every
    position, at the borders too. At each position, and at those in front of the axis
    from which a span reaches into it, a span begins with probability gamma. The axis
    cuts off what lies outside. Gamma solves prod_d (1 - gamma s_d) = 1 - rate, where s_d
    is the probability that a span is wider than d, and is rounded to a multiple of
    2^-32. Two positions at a distance k are both kept with the probability
    (1 - rate) prod_{d<k} (1 - gamma s_d).

    `num_spans` spans, each wholly inside of the axis, with all places equally likely, as
    in SpecAugment and wav2vec 2.0. A position near a border is dropped less often. A
    position i that c_w(i) of the n - w + 1 spans of width w cover is kept with the
    probability (1 - E_w[c_w(i) / (n - w + 1)])^num_spans. Both ends of `width` are cut
    to the length of the axis.

    Nothing is scaled by default. With `rescale.expected` and a fill of 0, each position
    is divided by its own probability of being kept, and E[y] = x.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1, and for
        no spans.
      x: array of any numbers, such as (batch, time, features), or token ids (batch, time).
      rate: probability that a position is dropped, in [0, 1]; may be traced.
      width: positions in a span: one number, or the least and the most. At least 1 with
        `rate`, and 0 with `num_spans`.
      num_spans: how many spans each sample loses, instead of `rate`.
      axis: axis along which the spans run.
      batch_axis: axis, or axes, of samples with spans of their own; None for one sample,
        as under `vmap`.
      fill: what stands in the place of what is dropped: a number such as the id of the
        mask token, or an array that broadcasts to `x`, such as one learned vector.
      where: booleans that broadcast to `x`; False where an element must stay, such as
        padding. The others keep their probability. None for everywhere.
      rescale: rule for the factor of the survivors, for floating or complex `x`.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not an array, or not floating or complex and to be rescaled,
        `key` is not one key, `fill` is of a wider kind, such as a float for integers,
        `where` is not boolean, or another argument is no number.
      ValueError: both or none of `rate` and `num_spans` are given, a known `rate` lies
        outside [0, 1], `width` is too small or falls, `num_spans` is negative, an axis
        is out of range, `axis` is a batch axis too, or `fill` or `where` does not
        broadcast to `x`.

    Example:
      Words of one to three tokens, of which a fifth is dropped in all:

      >>> ids = jnp.arange(1, 11).reshape(1, 10)
      >>> y = drop_spans(jax.random.key(1), ids, 0.2, width=(1, 3), fill=0)
      >>> bool(jnp.all((y == ids) | (y == 0)))
      True

      SpecAugment, of (batch, time, frequency):

      >>> frequencies = partial(drop_spans, num_spans=2, width=(0, 27), axis=2)
      >>> times = partial(drop_spans, num_spans=2, width=(0, 100), axis=1)
      >>> spec_augment = jaxdrop.chain(frequencies, times)
      >>> spec_augment(jax.random.key(0), jnp.ones((4, 500, 80))).shape
      (4, 500, 80)

    References:
      Park et al., "SpecAugment: a simple data augmentation method for automatic speech
      recognition", arXiv:1904.08779 (2019); Baevski et al., "wav2vec 2.0: a framework
      for self-supervised learning of speech representations", arXiv:2006.11477 (2020);
      Joshi et al., "SpanBERT: improving pre-training by representing and predicting
      spans", arXiv:1907.10529 (2019).
    """
    check = Check("drop_spans")
    key, rate, number = _amount(check, key, x, rate, num_spans)
    rule = checked_rule(check, rescale)
    x = check.any_array("x", x) if rule is none else check.inexact_array("x", x)
    least = 1 if num_spans is None else 0
    spans = _spans(check, x, width, least, axis, batch_axis)
    fill = check.like("fill", fill, x, "x")
    flags = None if where is None else check.flags("where", where, x, "x")
    if number == 0 or x.size == 0:
        return x
    if isinstance(rate, float) and rate == 1.0:
        return fill if flags is None else jnp.where(flags, fill, x)
    # A rule of the user is not part of a cached program, as in `masked.drop_on_grid`.
    apply = _apply if is_own_rule(rule) else _applied
    return apply(_mask(key, x, rate, number, spans), x, fill, flags, rule)


def _amount(
    check: Check, key: Any, x: Any, rate: Any, num_spans: Any
) -> tuple[Key, KnownOrTraced | None, int | None]:
    """The key, and a rate or a number of spans, which is 0 for a known rate of 0."""
    number = None if num_spans is None else check.whole_number("num_spans", num_spans, least=0)
    if number is None and rate is not None:
        key, rate = key_and_rate(check, key, x, rate)
        return key, rate, 0 if isinstance(rate, float) and rate == 0.0 else None
    if number is None or rate is not None:
        given = "none of them" if number is None else f"{describe(rate)} and {number}"
        raise ValueError(f"{check}: rate or num_spans must be given, and not both; got {given}.")
    refuse_swapped(check, key, x, "x")
    return key_unless(check, key, idle=number == 0), None, number


def _spans(
    check: Check,
    x: Array,
    width: Any,
    least: int,
    axis: Any,
    batch_axis: Any,
) -> Spans:
    """The widths and axes in canonical form."""
    given = check.integers("width", width)
    low, high = given * 2 if len(given) == 1 else given if len(given) == 2 else (1, 0)
    if low > high:
        raise ValueError(
            f"{check}: width must be one number, or the least and the most; got {width}."
        )
    if low < least:
        raise ValueError(f"{check}: width must be at least {least}; got {width}.")
    line = check.axis("axis", axis, x.ndim)
    samples = () if batch_axis is None else check.axes("batch_axis", batch_axis, x.ndim)
    if line in samples:
        raise ValueError(
            f"{check}: axis and batch_axis must differ; got {axis} and {batch_axis} for"
            f" {x.ndim} axes."
        )
    return Spans((low, high), line, samples)


def _mask(key: Key, x: Array, rate: Any, number: int | None, spans: Spans) -> Mask:
    if number is not None:
        return _mask_of_number(key, x, number, spans)
    starts = rate if isinstance(rate, Array) else _known_starts(rate, spans.widths)
    return _mask_of_rate(key, x, starts, spans)


@partial(jax.jit, static_argnames="spans")
def _mask_of_rate(key: Key, x: Array, starts: SpanStarts | Array, spans: Spans) -> Mask:
    if not isinstance(starts, SpanStarts):
        starts = _starts(checked_rate(starts), spans.widths, jnp)
    most = spans.widths[1]
    word, width = _drawn(key, x, spans, x.shape[spans.axis] + most - 1)
    begins = (word >= starts.threshold.digits) & (starts.threshold.start == 0)
    # How far a span that begins here reaches, itself included; 0 if none does. Without the
    # barrier XLA would draw the words again for each position that they cover.
    reach = lax.optimization_barrier(jnp.where(begins, width, 0))
    covered = _spread(reach, most)[..., most - 1 :] > 0
    return _packed(~covered, x, starts.keep_prob, spans)


@partial(jax.jit, static_argnames=("number", "spans"))
def _mask_of_number(key: Key, x: Array, number: int, spans: Spans) -> Mask:
    size = x.shape[spans.axis]
    spans = spans._replace(widths=tuple(min(width, size) for width in spans.widths))
    word, width = _drawn(key, x, spans, number)
    start = below(word, (size - width + 1).astype(jnp.uint32)).astype(jnp.int32)
    start, width = lax.optimization_barrier((start[..., None], width[..., None]))
    behind = lax.broadcasted_iota(jnp.int32, (1,) * word.ndim + (size,), word.ndim) - start
    covered = jnp.any((behind >= 0) & (behind < width), axis=-2)
    line = tuple(size if axis == spans.axis else 1 for axis in range(x.ndim))
    kept = _kept_of_number(size, spans.widths, number).reshape(line)
    return _packed(~covered, x, spread_to(jnp.asarray(kept, jnp.result_type(float)), x), spans)


def _drawn(
    key: Key, x: Array, spans: Spans, places: Size
) -> tuple[Words, Int32[Array, "*samples places"]]:
    """A word and the width of a span for each of so many places in each sample."""
    sharding = explicit_sharding(x)
    if sharding is not None:
        spec = (*sharding.spec, *[None] * (x.ndim - len(sharding.spec)))
        sharding = with_spec(sharding, (*[spec[axis] for axis in spans.samples], None))
    shape = (*(x.shape[axis] for axis in spans.samples), places)
    word, other = draw_pair(threefry_key(key), grid_address(shape, sharding), jnp.uint32(0))
    least, most = spans.widths
    return word, least + below(other, np.uint32(most - least + 1)).astype(jnp.int32)


def _spread(reach: Int32[Array, "..."], most: int) -> Int32[Array, "..."]:
    """The most that is left, at each position, of what begins there or less than `most` before.

    It falls by 1 at each step. Each shift doubles the distance that is seen. What `roll`
    brings around the border is seen by the first `most - 1` positions only.
    """
    seen = 1
    while seen < most:
        shift = min(seen, most - seen)
        reach = jnp.maximum(reach, jnp.roll(reach, shift, axis=-1) - shift)
        seen += shift
    return reach


def _packed(
    keep: Bool[Array, "*samples n"], x: Array, keep_prob: float | Array, spans: Spans
) -> Mask:
    """The mask for `x`. Words do not reach from one sample into the next."""
    own = (*spans.samples, spans.axis)
    shape = tuple(n if axis in own else 1 for axis, n in enumerate(x.shape))
    words = Layout(keep.shape, apart=tuple(range(keep.ndim - 1))).pack(keep)
    keep_prob = jnp.asarray(keep_prob, jnp.result_type(float))
    layout = Layout(shape, apart=spans.samples)
    return Mask(words, keep_prob, layout, layout.unsplit(explicit_sharding(x)))


def _applied(mask: Mask, x: Array, fill: Array, where: Array | None, rule: Rescale) -> Array:
    y = select(mask, x if rule is none else rescale_and_select(mask, x, rule), fill)
    return y if where is None else poisoned(mask, jnp.where(where, y, x))


_apply = partial(jax.jit, static_argnames="rule")(_applied)


@lru_cache(maxsize=1024)  # eager loops ask for the same few
def _known_starts(rate: float, widths: tuple[int, int]) -> SpanStarts:
    """In NumPy's float64, so that masks of known rates are the same everywhere."""
    threshold, keep_prob = _starts(np.float64(rate), widths, np)
    return SpanStarts(threshold, float(keep_prob))


def _starts(rate: Any, widths: tuple[int, int], xp: ModuleType) -> SpanStarts:
    """The starts at which a share `rate` is dropped.

    They are found by t = -log(1 - gamma). The sum of -log(1 - gamma s_d) over d, which must
    be -log(1 - rate), is a concave function of t that rises at least as fast as t. So
    Newton's steps from 0 approach the root from below and need no bracket.
    """
    least, _ = widths
    wider = xp.asarray(_wider(widths)[least:], rate.dtype)
    narrower = 1 - wider
    # At a rate of 1 the goal is infinite, and a step towards it NaN. It is not used there.
    goal, t = -xp.log1p(-xp.where(rate == 1, 0, rate)), xp.zeros_like(rate)
    for _ in range(_NEWTON_STEPS):
        kept = narrower + wider * xp.exp(-t)  # 1 - gamma s_d
        found = least * t - xp.sum(xp.log1p(wider * xp.expm1(-t)))
        slope = least + xp.sum(wider * xp.exp(-t) / kept)
        t = t + xp.maximum(goal - found, 0) / slope
    gamma = xp.where(rate == 1, 1, -xp.expm1(-t))
    threshold = fine_threshold(float(gamma) if xp is np else gamma)
    spared = 1 - (1 - xp.asarray(threshold.keep_prob)) * xp.asarray(_wider(widths))
    return SpanStarts(threshold, xp.prod(spared))


def _wider(widths: tuple[int, int]) -> np.ndarray:
    """The probability that a span is wider than 0, 1, ... positions."""
    least, most = widths
    return np.minimum(1, np.arange(most, 0, -1) / (most - least + 1))


@lru_cache(maxsize=1024)
def _kept_of_number(size: int, widths: tuple[int, int], number: int) -> np.ndarray:
    """The probability of each position to be covered by none of so many spans."""
    position, covered = np.arange(size), np.zeros(size)
    least, most = widths
    for width in range(max(least, 1), most + 1):
        first, last = np.maximum(position - width + 1, 0), np.minimum(position, size - width)
        covered += (last - first + 1) / (size - width + 1)
    return (1 - covered / (most - least + 1)) ** number
