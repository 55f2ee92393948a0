"""Assertions that anybody can run on their own dropout.

Each takes a drop, any function `(key, x) -> y`, one key and an input, and
raises AssertionError with what was seen, as chex's assertions do. They run the
drop, so call them in tests and not under `jit`.

The statistical ones reject a correct drop with at most the probability
`false_alarm_rate`. They use the empirical Bernstein bound, which needs no
normality: for N independent draws with sample variance V and range R, the mean
is off by more than sqrt(2 V L / N) + 7 R L / (3 (N - 1)), with L = ln(4 / rate),
with no more than that probability. For the range, y_i / x_i is taken to reach
the same extremes at every element, so that survivors seen anywhere tell how
large they may be; a drop of which nothing survives cannot be judged.

References:
  Maurer and Pontil, "Empirical Bernstein bounds and sample variance
  penalization", COLT 2009.
"""

from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdrop.core import validate
from jaxdrop.core.types import Drop, Key, Rate

__all__ = [
    "assert_expectation_kept",
    "assert_gradient_uses_same_mask",
    "assert_keep_rate",
    "assert_key_determines_output",
    "assert_mask_shared_along",
    "assert_masks_differ_along",
    "assert_same_under_jit",
    "assert_shape_and_dtype_kept",
]

_ELEMENTS_AT_ONCE = 2**22
_ROWS_PROBED = 256


def assert_shape_and_dtype_kept(drop: Drop, key: Key, x: Array) -> None:
    """Asserts that the output has the shape and dtype of the input.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key.
      x: an input.

    Raises:
      AssertionError: the shape or the dtype differs.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_shape_and_dtype_kept(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    y = jax.eval_shape(drop, key, x)
    chex.assert_shape(y, x.shape, custom_message="assert_shape_and_dtype_kept")
    if y.dtype != x.dtype:
        raise AssertionError(
            f"assert_shape_and_dtype_kept: the output is {y.dtype}, the input {x.dtype}."
        )


def assert_expectation_kept(
    drop: Drop,
    key: Key,
    x: Array,
    *,
    num_samples: int = 16384,
    false_alarm_rate: float = 1e-9,
) -> None:
    """Asserts that E[y] = x, at every element and for the array as a whole.

    The whole is tested by the projection of y on x, which must be 1 on average
    and shows a wrong scale that no single element could. With the default
    number of draws, 1000 independent elements and rate 0.1 a scale wrong by
    0.6 % is noticed; more draws notice less, down to the rounding of the dtype.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input; of moderate size, since it is dropped from many times.
      num_samples: number of draws.
      false_alarm_rate: probability of rejecting a drop that is right.

    Raises:
      AssertionError: some mean is too far from the input to be chance.
      ValueError: nothing survived in any draw, or `x` is empty.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_expectation_kept(drop, jax.random.key(0), jnp.arange(8.0))
    """
    name = "assert_expectation_kept"
    x = validate.inexact_array(name, "x", x)
    x64 = _real(x)
    energy = np.sum(x64**2) or 1.0
    elements, whole, survived = _Moments(x64), _Moments(np.ones(())), not np.any(x64)
    for samples in _draws(name, drop, key, x, num_samples):
        y = _real(samples)
        survived |= bool(np.any(y))
        elements.add(y)
        whole.add(np.sum((y * x64 / energy).reshape(len(y), -1), axis=1))
    if not survived:
        raise ValueError(
            f"{name}: something must survive to be judged; got zeros in {num_samples} draws."
        )
    ratio = elements.ratio_span()
    rounding = float(jnp.finfo(x.dtype).eps)
    if np.any(x64):
        allowed = whole.radius(false_alarm_rate / 2, ratio) + rounding
        _reject(name, "projection of the output on the input", whole, allowed)
    allowed = elements.radius(false_alarm_rate / 2 / x64.size, ratio * np.abs(x64))
    _reject(name, "output", elements, allowed + rounding * np.abs(x64))


def assert_keep_rate(
    drop: Drop,
    key: Key,
    x: Array,
    rate: Rate,
    *,
    num_samples: int = 16384,
    false_alarm_rate: float = 1e-9,
) -> None:
    """Asserts that each element is dropped with probability `rate`.

    An element counts as dropped where the output is 0.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input without zeros.
      rate: the probability of dropping that is expected, in [0, 1].
      num_samples: number of draws.
      false_alarm_rate: probability of rejecting a drop that is right.

    Raises:
      AssertionError: some share of survivors is too far off to be chance.
      ValueError: `rate` lies outside [0, 1], or `x` has zeros.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_keep_rate(drop, jax.random.key(0), jnp.ones(8), 0.1)
    """
    rate = float(validate.probability("assert_keep_rate", "rate", rate))
    _require_no_zeros("assert_keep_rate", x)
    elements = _Moments(np.full(x.shape, 1 - rate))
    whole = _Moments(np.full((), 1 - rate))
    for samples in _draws("assert_keep_rate", drop, key, x, num_samples):
        kept = (samples != 0).astype(np.float64)
        elements.add(kept)
        whole.add(kept.reshape(len(kept), -1).mean(axis=1))
    _reject("assert_keep_rate", "share kept overall", whole, whole.radius(false_alarm_rate / 2, 1))
    allowed = elements.radius(false_alarm_rate / 2 / x.size, 1)
    _reject("assert_keep_rate", "share kept", elements, allowed)


def assert_mask_shared_along(
    drop: Drop, key: Key, x: Array, axis: int, *, num_samples: int = 16
) -> None:
    """Asserts that what is dropped does not change along an axis.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input without zeros.
      axis: the axis along which the mask is shared.
      num_samples: number of draws.

    Raises:
      AssertionError: an element is dropped where another along the axis is not.
      ValueError: `axis` is out of range, `x` has zeros, or no draw could tell,
        since everything was kept or everything dropped.

    Example:
      >>> drop = partial(dropout, rate=0.5, broadcast_dims=(0,))
      >>> assert_mask_shared_along(drop, jax.random.key(0), jnp.ones((4, 8)), 0)
    """
    masks = _masks("assert_mask_shared_along", drop, key, x, axis, num_samples)
    differs = masks != masks[:1]
    if differs.any():
        slice_, sample, *_ = np.argwhere(differs)[0]
        raise AssertionError(
            f"assert_mask_shared_along: slices 0 and {slice_} along axis {axis} had different"
            f" masks in draw {sample}: {differs.mean():.3g} of all elements differ from slice 0."
        )
    if masks.all() or not masks.any():
        raise ValueError(
            f"assert_mask_shared_along: the mask must vary to be tested; got the same everywhere"
            f" in {num_samples} draws. Use a rate nearer to 0.5 or more draws."
        )


def assert_masks_differ_along(
    drop: Drop,
    key: Key,
    x: Array,
    axis: int,
    *,
    num_samples: int = 1024,
    false_alarm_rate: float = 1e-9,
) -> None:
    """Asserts that no two slices along an axis always have the same mask.

    Slices with independent masks agree in every draw with a probability of at
    most n (n - 1) / 2 * (q^2 + p^2)^num_samples, whatever else is shared; it
    must be below `false_alarm_rate` for the test to be able to tell.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input without zeros.
      axis: the axis along which masks differ.
      num_samples: number of draws.
      false_alarm_rate: probability of rejecting a drop that is right.

    Raises:
      AssertionError: two slices had the same mask in every draw.
      ValueError: `axis` is out of range, `x` has zeros, or the number of draws
        is too small to tell.

    Example:
      >>> drop = partial(dropout, rate=0.5)
      >>> assert_masks_differ_along(drop, jax.random.key(0), jnp.ones((4, 8)), 0)
    """
    masks = _masks("assert_masks_differ_along", drop, key, x, axis, num_samples)
    count = len(masks)
    keep_prob = masks.mean()
    agree = keep_prob**2 + (1 - keep_prob) ** 2
    chance = count * (count - 1) / 2 * agree**num_samples
    if chance > false_alarm_rate:
        raise ValueError(
            f"assert_masks_differ_along: num_samples must be large enough to tell; got"
            f" {num_samples}, with which independent masks agree with probability {chance:.2g}."
            " Use more draws or a rate nearer to 0.5."
        )
    first_seen: dict[bytes, int] = {}
    for i, mask in enumerate(masks):
        twin = first_seen.setdefault(mask.tobytes(), i)
        if twin != i:
            raise AssertionError(
                f"assert_masks_differ_along: slices {twin} and {i} along axis {axis} had the same"
                f" mask in all {num_samples} draws; the chance is {chance:.2g} if independent."
            )


def assert_same_under_jit(drop: Drop, key: Key, x: Array) -> None:
    """Asserts that `jit` changes neither the mask nor, beyond rounding, the values.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key.
      x: an input.

    Raises:
      AssertionError: the outputs differ.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_same_under_jit(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    key = validate.one_key("assert_same_under_jit", key)
    eager = np.asarray(drop(_reusable(key), x))
    jitted = np.asarray(jax.jit(drop)(_reusable(key), x))
    _require_finite("assert_same_under_jit", "output", eager)
    if np.any((eager == 0) != (jitted == 0)):
        share = np.mean((eager == 0) != (jitted == 0))
        raise AssertionError(
            f"assert_same_under_jit: {share:.3g} of the elements are dropped eagerly or under"
            " jit, but not both."
        )
    tolerance = 4 * float(jnp.finfo(x.dtype).eps)
    chex.assert_trees_all_close(
        _wide(eager), _wide(jitted), rtol=tolerance, custom_message="assert_same_under_jit"
    )


def assert_gradient_uses_same_mask(drop: Drop, key: Key, x: Array) -> None:
    """Asserts that reverse mode differentiates the forward pass of the same key.

    Compares rows of the Jacobian, from `jax.vjp`, with central differences of
    the forward pass under one key: a backward pass that draws a fresh mask
    differs. All rows are compared up to 256 elements, evenly spread ones beyond.

    Args:
      drop: a function `(key, x) -> y`, differentiable in x.
      key: one random key.
      x: a floating input; float32 or wider gives a sharper test.

    Raises:
      AssertionError: a derivative differs from the central difference.

    Example:
      >>> drop = partial(dropout, rate=0.5)
      >>> assert_gradient_uses_same_mask(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    key = validate.one_key("assert_gradient_uses_same_mask", key)

    def forward(x: Array) -> Array:
        return drop(_reusable(key), x)

    eps = float(jnp.finfo(x.dtype).eps)
    step = eps ** (1 / 3) * max(1.0, float(np.max(np.abs(_wide(x)), initial=0.0)))
    direction = np.random.default_rng(0).uniform(0.5, 1.0, x.shape)
    moved = [np.asarray(_wide(x) + sign * step * direction).astype(x.dtype) for sign in (1, -1)]
    travelled = _wide(moved[0]) - _wide(moved[1])
    difference = _wide(forward(jnp.asarray(moved[0]))) - _wide(forward(jnp.asarray(moved[1])))
    y, pull = jax.vjp(forward, x)
    probed = np.unique(np.linspace(0, max(y.size - 1, 0), min(y.size, _ROWS_PROBED)).astype(int))
    scale = np.max(np.abs(difference), initial=0.0)
    for row in probed:
        cotangent = jnp.zeros(y.size, y.dtype).at[row].set(1).reshape(y.shape)
        slope = np.sum(_wide(pull(cotangent)[0]) * travelled)
        if not abs(slope - difference.ravel()[row]) <= min(0.1, 50 * eps ** (2 / 3)) * scale:
            raise AssertionError(
                f"assert_gradient_uses_same_mask: at output {np.unravel_index(row, y.shape)} the"
                f" gradient predicts a change of {slope:.6g}, the forward pass with the same key"
                f" changes by {difference.ravel()[row]:.6g}."
            )


def assert_key_determines_output(drop: Drop, key: Key, x: Array, *, num_samples: int = 64) -> None:
    """Asserts that equal keys give equal outputs, and that the key matters.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input, large enough that two draws rarely agree.
      num_samples: number of different keys.

    Raises:
      AssertionError: one key gave two outputs, or all keys the same output. A
        right drop fails with the probability that all draws agree: (1 - p)^(n
        num_samples) for n independent elements, if all are kept.

    Example:
      >>> drop = partial(dropout, rate=0.5)
      >>> assert_key_determines_output(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    key = validate.one_key("assert_key_determines_output", key)
    first, again = (np.asarray(drop(_reusable(key), x)) for _ in range(2))
    _require_finite("assert_key_determines_output", "output", first)
    chex.assert_trees_all_equal(
        _wide(first),
        _wide(again),
        custom_message="assert_key_determines_output: one key gave two outputs",
    )
    draws = _draws("assert_key_determines_output", drop, key, x, num_samples)
    samples = np.concatenate([_wide(outputs) for outputs in draws])
    if np.all(samples == samples[:1]):
        raise AssertionError(
            f"assert_key_determines_output: {num_samples} different keys gave the same output."
        )


class _Moments:
    """Sums of deviations from an expected value, over draws."""

    def __init__(self, expected: np.ndarray) -> None:
        self.expected = expected
        self.count = 0
        self.total = np.zeros(expected.shape)
        self.squares = np.zeros(expected.shape)
        self.low = np.minimum(0.0, -expected)  # so that the range spans 0 and what is expected
        self.high = np.maximum(0.0, -expected)

    def add(self, samples: np.ndarray) -> None:
        deviations = samples - self.expected
        self.count += len(samples)
        self.total += deviations.sum(axis=0)
        self.squares += (deviations**2).sum(axis=0)
        self.low = np.minimum(self.low, deviations.min(axis=0))
        self.high = np.maximum(self.high, deviations.max(axis=0))

    @property
    def bias(self) -> np.ndarray:
        return self.total / self.count

    @property
    def variance(self) -> np.ndarray:
        return np.maximum(self.squares - self.count * self.bias**2, 0) / (self.count - 1)

    def ratio_span(self) -> float:
        """The range of y / x over all draws and elements, with 0 and 1 in it."""
        x = np.where(self.expected == 0, 1, self.expected)
        ends = np.stack([(self.expected + end) / x for end in (self.low, self.high)])
        ends = np.where(self.expected == 0, 0, ends)
        return float(max(1, np.max(ends)) - min(0, np.min(ends)))

    def radius(self, false_alarm_rate: float, span: Any) -> np.ndarray:
        """How far the mean may be off: the empirical Bernstein bound."""
        log = np.log(4 / false_alarm_rate)
        span = np.maximum(span, self.high - self.low)
        return np.sqrt(2 * self.variance * log / self.count) + 7 * span * log / (
            3 * (self.count - 1)
        )


def _reject(assertion: str, what: str, moments: _Moments, allowed: np.ndarray) -> None:
    """Raises where a mean is off by more than is allowed, naming the worst place."""
    off = np.abs(moments.bias)
    if np.all(off <= allowed):
        return
    at = np.unravel_index(np.argmax(off - allowed), off.shape)
    error = float(np.sqrt(moments.variance[at] / moments.count))
    expected = float(moments.expected[at])
    place = f" at {tuple(int(i) for i in at)}" if at else ""
    errors, most = (float(v) / error if error else np.inf for v in (off[at], allowed[at]))
    raise AssertionError(
        f"{assertion}: the mean {what}{place} over {moments.count} draws is"
        f" {expected + float(moments.bias[at]):.6g}, expected {expected:.6g}: off by {errors:.3g}"
        f" standard errors, where {most:.3g} are allowed."
    )


def _draws(
    assertion: str, drop: Drop, key: Key, x: Array, num_samples: int
) -> Iterator[np.ndarray]:
    """Outputs for `num_samples` keys split from `key`, a batch of them at a time."""
    if num_samples < 2:
        raise ValueError(f"{assertion}: num_samples must be at least 2; got {num_samples}.")
    if x.size == 0:
        raise ValueError(f"{assertion}: x must have elements to be judged; got shape {x.shape}.")
    keys = jax.random.split(_reusable(validate.one_key(assertion, key)), num_samples)
    batch = max(1, min(num_samples, _ELEMENTS_AT_ONCE // x.size))
    run = jax.jit(lambda keys: jax.lax.map(lambda k: drop(k, x), keys))
    for start in range(0, num_samples, batch):
        samples = np.asarray(run(keys[start : start + batch]))
        if samples.shape[1:] != x.shape:
            raise AssertionError(
                f"{assertion}: the output has shape {samples.shape[1:]}, the input {x.shape}."
            )
        _require_finite(assertion, "output", samples)
        yield samples


def _masks(
    assertion: str, drop: Drop, key: Key, x: Array, axis: int, num_samples: int
) -> np.ndarray:
    """Which elements survive, with axes (slice along `axis`, draw, the rest)."""
    (axis,) = validate.axes(assertion, "axis", axis, x.ndim)
    _require_no_zeros(assertion, x)
    draws = _draws(assertion, drop, key, x, num_samples)
    if x.shape[axis] == 1:
        raise ValueError(f"{assertion}: x must have several slices along {axis}; got {x.shape}.")
    kept = np.concatenate([samples != 0 for samples in draws])
    return np.ascontiguousarray(np.moveaxis(kept, axis + 1, 0))


def _require_no_zeros(assertion: str, x: Array) -> None:
    if not np.all(np.asarray(x) != 0):
        raise ValueError(f"{assertion}: x must have no zeros; got some. Use jnp.ones.")


def _require_finite(assertion: str, what: str, values: np.ndarray) -> None:
    if not np.all(np.isfinite(_wide(values))):
        raise AssertionError(f"{assertion}: the {what} is not finite.")


def _reusable(key: Key) -> Key:
    """A copy of the key, so that the key reuse checker allows another use."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.clone(key) if typed else key


def _wide(values: Any) -> np.ndarray:
    """The values in double precision."""
    values = np.asarray(values)
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def _real(values: Any) -> np.ndarray:
    """The values as real numbers; a complex one becomes an axis of two."""
    values = _wide(values)
    return np.stack([values.real, values.imag], -1) if np.iscomplexobj(values) else values
