"""Assertions about distributions, with a stated false-alarm rate."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdrop.base.types import Drop, Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.checks.sampling import (
    Deviations,
    alarm_rate,
    arguments,
    outputs,
    radius_without_spread,
    real,
    reject,
    require_no_zeros,
    survivors,
    too_few,
)


def assert_expectation_kept(
    drop: Drop,
    key: Key,
    x: ArrayLike,
    *,
    num_samples: int = 16384,
    false_alarm_rate: float = 1e-9,
) -> None:
    """Asserts that E[y] = x, at every element and for the array as a whole.

    For the array as a whole, the projection of y on x must be 1 on average. This test
    can find a wrong scale that no single element shows. With the default number of
    draws, 1000 elements and rate .1, it notices a scale that is wrong by 0.44 %, or by
    3.2 % at one element. With more draws it notices smaller errors, down to the rounding
    of the dtype.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input of moderate size, since many outputs are drawn for it.
      num_samples: number of draws.
      false_alarm_rate: probability of rejecting a drop that is right, in (0, 1].

    Raises:
      AssertionError: a mean differs from the input by more than chance allows.
      TypeError: `drop` is no function, `key` is not one key, `x` is not floating or
        complex, or another argument is not a number.
      ValueError: nothing survived in any draw, `x` is empty or not finite, `num_samples` is
        below 2, `false_alarm_rate` lies outside [0, 1], or there are so few draws that
        chance may move a mean by as much as the input.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_expectation_kept(drop, jax.random.key(0), jnp.arange(8.0))
    """
    check = Check("assert_expectation_kept")
    key, x = arguments(check, drop, key, x)
    false_alarm_rate = alarm_rate(check, false_alarm_rate)
    elements, whole = _deviations(check, drop, key, x, num_samples)
    ratio, rounding = elements.ratio_span(), float(jnp.finfo(x.dtype).eps)
    size = np.abs(elements.expected)
    # Each of the two tests gets half of the false-alarm rate, and each element an equal
    # part of that half.
    rate = false_alarm_rate / 2
    allowed_of_whole = whole.radius(rate, ratio) + rounding
    if np.any(size):  # if x is zeros, there is no projection to test
        reject(check, "projection of the output on the input", whole, allowed_of_whole)
    allowed = elements.radius(rate / size.size, ratio * size) + rounding * size
    reject(check, "output", elements, allowed)
    # If so much is allowed, the range of a scale that is too large hides it, however large.
    most = np.max(allowed[size > 0] / size[size > 0], initial=float(allowed_of_whole))
    if most >= 1:
        why = f"Chance may move a mean by {most:.3g} times the input."
        raise too_few(check, elements.count, why)


def _deviations(
    check: Check, drop: Drop, key: Key, x: Array, num_samples: int
) -> tuple[Deviations, Deviations]:
    """How far elements are from those of `x`, and their projection on `x` from 1."""
    x64 = real(x)
    unit = np.max(np.abs(x64)) or 1.0  # keeps squares within range
    direction = x64 / unit / (np.sum((x64 / unit) ** 2) or 1.0)
    elements, whole, survived = Deviations(x64), Deviations(np.ones(())), not np.any(x64)
    for samples in outputs(check, drop, key, x, num_samples):
        y = real(samples)
        survived |= bool(np.any(y))
        elements.add(y)
        whole.add(np.sum((y / unit * direction).reshape(len(y), -1), axis=1))
    if not survived:
        raise ValueError(f"{check}: something must survive; got only zeros in {num_samples} draws.")
    return elements, whole


def assert_keep_rate(
    drop: Drop,
    key: Key,
    x: ArrayLike,
    rate: Rate,
    *,
    num_samples: int = 16384,
    false_alarm_rate: float = 1e-9,
) -> None:
    """Asserts that each element is dropped with probability `rate`.

    An element counts as dropped where the output is 0. With the default number of draws,
    1000 elements and rate .1, it notices a rate that is wrong by .0040, or by .031 at one
    element.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input without zeros.
      rate: the expected probability of dropping, in [0, 1].
      num_samples: number of draws.
      false_alarm_rate: probability of rejecting a drop that is right, in (0, 1].

    Raises:
      AssertionError: a share of survivors differs from 1 - rate by more than chance allows.
      TypeError: `drop` is no function, `key` is not one key, `x` is not floating or
        complex, or another argument is not a number.
      ValueError: `rate` or `false_alarm_rate` lies outside [0, 1], `x` is empty, not finite
        or has zeros, `num_samples` is below 2, or there are so few draws that an element
        that is always kept or always dropped would pass.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_keep_rate(drop, jax.random.key(0), jnp.ones(8), 0.1)
    """
    check = Check("assert_keep_rate")
    key, x = arguments(check, drop, key, x)
    rate = check.known_probability("rate", rate)
    false_alarm_rate = alarm_rate(check, false_alarm_rate)
    require_no_zeros(check, x)
    elements = Deviations(np.full(x.shape, 1 - rate))
    whole = Deviations(np.full((), 1 - rate))
    for samples in outputs(check, drop, key, x, num_samples):
        kept = samples != 0
        elements.add(kept)
        whole.add(kept.reshape(len(kept), -1).mean(axis=1))
    reject(check, "share kept overall", whole, whole.radius(false_alarm_rate / 2, 1))
    of_each = false_alarm_rate / 2 / x.size
    reject(check, "share kept", elements, elements.radius(of_each, 1))
    if radius_without_spread(of_each, elements.count) >= (min(rate, 1 - rate) or 1):
        raise too_few(
            check, elements.count, "Elements that are all kept or all dropped could pass."
        )


def assert_mask_shared_along(
    drop: Drop, key: Key, x: ArrayLike, axis: int, *, num_samples: int = 16
) -> None:
    """Asserts that the same elements are dropped at all positions along an axis.

    It never rejects a mask that is shared. It notices a mask that is not, even if this
    happens in a fourth of the draws only: if each shows it with probability s, it is
    overlooked with probability (1 - s)^num_samples.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input without zeros.
      axis: the axis along which the mask is shared.
      num_samples: number of draws.

    Raises:
      AssertionError: an element is dropped where another along the axis is not.
      TypeError: `drop` is no function, `key` is not one key, `x` is not floating or
        complex, or `axis` or `num_samples` is not an integer.
      ValueError: `axis` is out of range or has one position, `x` is empty, not finite or
        has zeros, `num_samples` is below 2, or the draws show nothing because all of them
        kept everything or all dropped everything.

    Example:
      >>> drop = partial(dropout, rate=0.5, broadcast_dims=(0,))
      >>> assert_mask_shared_along(drop, jax.random.key(0), jnp.ones((4, 8)), 0)
    """
    check = Check("assert_mask_shared_along")
    masks = survivors(check, drop, key, x, axis, num_samples)
    differs = masks != masks[:1]
    if differs.any():
        slice_, sample, *_ = np.argwhere(differs)[0]
        raise AssertionError(
            f"{check}: slices 0 and {slice_} along axis {axis} had different"
            f" masks in draw {sample}: {differs.mean():.3g} of all elements differ from slice 0."
        )
    if masks.all() or not masks.any():
        raise ValueError(
            f"{check}: the draws must keep some elements and drop others; got the same"
            f" everywhere in {num_samples} draws. Use a rate nearer to 0.5 or more draws."
        )


def assert_masks_differ_along(
    drop: Drop,
    key: Key,
    x: ArrayLike,
    axis: int,
    *,
    num_samples: int = 1024,
    false_alarm_rate: float = 1e-9,
) -> None:
    """Asserts that no two slices along an axis always have the same mask.

    It surely notices two slices that do, and no others: a single draw in which they
    differ is enough to pass. If masks are independent and drop all elements at one rate,
    the probability that any two of n slices agree in every draw is at most
    n (n - 1) / 2 * (q^2 + p^2)^num_samples, even if the mask is shared along other axes.
    The test needs this bound to be at most `false_alarm_rate`, with the share that was
    kept for q. So by default it needs a rate of at least .011 for 2 slices, or .015 for 128.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input without zeros.
      axis: the axis along which masks differ.
      num_samples: number of draws.
      false_alarm_rate: probability of rejecting a drop that is right, in (0, 1].

    Raises:
      AssertionError: two slices had the same mask in every draw.
      TypeError: `drop` is no function, `key` is not one key, `x` is not floating or
        complex, or another argument is not a number.
      ValueError: `axis` is out of range or has one position, `x` is empty, not finite or
        has zeros, `num_samples` is below 2, `false_alarm_rate` lies outside [0, 1], or
        there are too few draws for a decision.

    Example:
      >>> drop = partial(dropout, rate=0.5)
      >>> assert_masks_differ_along(drop, jax.random.key(0), jnp.ones((4, 8)), 0)
    """
    check = Check("assert_masks_differ_along")
    false_alarm_rate = alarm_rate(check, false_alarm_rate)
    masks = survivors(check, drop, key, x, axis, num_samples)
    count = len(masks)
    keep_prob = masks.mean()
    # Two independent decisions agree if both keep or both drop. A slice may share a
    # single decision, so one decision per draw is counted. Any two of the slices may
    # agree, so all pairs are counted. q may be taken from the same draws: by Chernoff's
    # bound, two slices agree while the share kept is that far off no more often.
    agree = keep_prob**2 + (1 - keep_prob) ** 2
    chance = count * (count - 1) / 2 * agree**num_samples
    if chance > false_alarm_rate:
        why = f"Independent masks may agree with probability {chance:.2g}."
        raise too_few(check, num_samples, f"{why} Use more draws or a rate nearer to 0.5.")
    for first, second in _twins(masks):
        raise AssertionError(
            f"{check}: slices {first} and {second} along axis {axis} had the same"
            f" mask in all {num_samples} draws; independent masks do so with"
            f" probability {chance:.2g}."
        )


def _twins(masks: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of slices whose masks are equal in all draws."""
    # Found by hashes: a comparison of all pairs would take one pass per slice.
    first_seen: dict[bytes, int] = {}
    for i, mask in enumerate(masks):
        twin = first_seen.setdefault(mask.tobytes(), i)
        if twin != i:
            yield twin, i
