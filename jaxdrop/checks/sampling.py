"""What the assertions share: outputs for many keys, and bounds on their means.

Take the mean over N independent draws with sample variance V and range R. With
probability at most `rate` it is off by more than sqrt(2 V L / N) + 7 R L / (3 (N - 1)),
where L = ln(4 / rate). This is the empirical Bernstein bound, which does not assume a
normal distribution.

References:
  Maurer and Pontil, "Empirical Bernstein bounds and sample variance
  penalization", COLT 2009.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdrop.base.describe import describe
from jaxdrop.base.types import Drop, Key
from jaxdrop.base.validate import Check
from jaxdrop.core.words import unconsumed

_ELEMENTS_AT_ONCE = 2**22  # 32 MB in double precision


class Deviations:
    """Sums of deviations from an expected value, over draws."""

    def __init__(self, expected: np.ndarray) -> None:
        self.expected = expected
        self.count = 0
        self.total = np.zeros(expected.shape)
        self.squares = np.zeros(expected.shape)
        # The range includes x and 0; 0 because elements may be dropped that no draw has
        # dropped yet.
        self.low = np.minimum(0.0, -expected)
        self.high = np.maximum(0.0, -expected)

    def add(self, samples: np.ndarray) -> None:
        """Adds draws, which lie along the first axis."""
        deviations = samples - self.expected
        self.count += len(samples)
        self.total += deviations.sum(axis=0)
        self.squares += (deviations**2).sum(axis=0)
        self.low = np.minimum(self.low, deviations.min(axis=0))
        self.high = np.maximum(self.high, deviations.max(axis=0))

    @property
    def bias(self) -> np.ndarray:
        """How far the mean is above the expected value."""
        return self.total / self.count

    @property
    def variance(self) -> np.ndarray:
        """The sample variance."""
        # The sums are over deviations from the expected value, not over values, so little cancels.
        return np.maximum(self.squares - self.count * self.bias**2, 0) / (self.count - 1)

    def ratio_span(self) -> float:
        """The range of y / x over all draws and elements; it always includes 0 and 1.

        If survivors are rare, not every element has shown one. The range over all
        elements bounds the range at each element. It also bounds the range of the
        projection on x, which is an average.
        """
        # Where x is 0, y must be 0 as well, and its ratio counts as 0.
        x = np.where(self.expected == 0, 1, self.expected)
        ends = np.stack([(self.expected + end) / x for end in (self.low, self.high)])
        ends = np.where(self.expected == 0, 0, ends)
        return float(max(1, np.max(ends)) - min(0, np.min(ends)))

    def radius(self, false_alarm_rate: float, span: Any) -> np.ndarray:
        """How far the mean may be off: the empirical Bernstein bound."""
        log = np.log(4 / false_alarm_rate)
        # The bound needs the possible range, which is `span`. A draw may have shown a larger range.
        span = np.maximum(span, self.high - self.low)
        spread = np.sqrt(2 * self.variance * log / self.count)
        return spread + span * radius_without_spread(false_alarm_rate, self.count)


def radius_without_spread(false_alarm_rate: float, count: int) -> float:
    """How far the mean may be off, of a range of 1, where all draws are equal."""
    return 7 * float(np.log(4 / false_alarm_rate)) / (3 * (count - 1))


def reject(check: Check, what: str, deviations: Deviations, allowed: np.ndarray) -> None:
    """Raises where a mean is off by more than is allowed, naming the worst place."""
    off = np.abs(deviations.bias)
    if np.all(off <= allowed):
        return
    at = np.unravel_index(np.argmax(off - allowed), off.shape)
    error = float(np.sqrt(deviations.variance[at] / deviations.count))
    expected = float(deviations.expected[at])
    mean = expected + float(deviations.bias[at])
    place = f" at {tuple(int(i) for i in at)}" if at else ""
    in_errors = f": {off[at] / error:.3g} standard errors" if error else ""
    raise AssertionError(
        f"{check}: the mean {what}{place} over {deviations.count} draws is"
        f" {mean:.6g}, expected {expected:.6g}: off by {off[at]:.3g}"
        f" where {allowed[at]:.3g} is allowed{in_errors}."
    )


def too_few(check: Check, num_samples: int, why: str) -> ValueError:
    """The error where no defect of the kind that an assertion looks for could be found."""
    return ValueError(
        f"{check}: num_samples must be large enough for a decision; got {num_samples}. {why}"
    )


def alarm_rate(check: Check, false_alarm_rate: Any) -> float:
    """The false-alarm rate as a float above 0: at 0 nothing could ever be rejected."""
    rate = check.known_probability("false_alarm_rate", false_alarm_rate)
    if rate == 0:
        raise ValueError(f"{check}: false_alarm_rate must be above 0; got {rate}.")
    return rate


def arguments(check: Check, drop: Drop, key: Key, x: ArrayLike) -> tuple[Key, Array]:
    """The key and the input, if they and the drop are such and there is something to see."""
    check.function_of("drop", drop, "(key, x)")
    key, x = check.one_key(key), check.inexact_array("x", x)
    if x.size == 0:
        raise ValueError(f"{check}: x must not be empty; got shape {x.shape}.")
    if not np.all(np.isfinite(wide(x))):
        raise ValueError(f"{check}: x must be finite; got a NaN or an infinity.")
    return key, x


def outputs(check: Check, drop: Drop, key: Key, x: Array, num_samples: int) -> Iterator[np.ndarray]:
    """Outputs for `num_samples` keys split from `key`, a batch of them at a time."""
    num_samples = check.whole_number("num_samples", num_samples, 2)
    keys = jax.random.split(unconsumed(check.one_key(key)), num_samples)
    batch = max(1, min(num_samples, _ELEMENTS_AT_ONCE // x.size))
    run = jax.jit(lambda keys: jax.lax.map(lambda k: drop(k, x), keys))
    for start in range(0, num_samples, batch):
        samples = np.asarray(run(keys[start : start + batch]))
        if samples.shape[1:] != x.shape:
            raise AssertionError(
                f"{check}: the output has shape {samples.shape[1:]}, the input {x.shape}."
            )
        require_finite(check, samples)
        yield samples


def survivors(
    check: Check, drop: Drop, key: Key, x: ArrayLike, axis: int, num_samples: int
) -> np.ndarray:
    """Which elements survive, as an array of (slice along `axis`, draw, all other axes)."""
    key, x = arguments(check, drop, key, x)
    (axis,) = check.axes("axis", axis, x.ndim)
    require_no_zeros(check, x)
    draws = outputs(check, drop, key, x, num_samples)
    if x.shape[axis] == 1:
        raise ValueError(f"{check}: x must have several slices along {axis}; got {x.shape}.")
    kept = np.concatenate([samples != 0 for samples in draws])
    return np.ascontiguousarray(np.moveaxis(kept, axis + 1, 0))


def require_no_zeros(check: Check, x: Array) -> None:
    """Raises if an element of the input would look dropped."""
    if not np.all(np.asarray(x) != 0):
        raise ValueError(f"{check}: x must have no zeros; got some. Use jnp.ones.")


def require_array(check: Check, output: Any) -> None:
    """Raises if a drop gave something else than one array."""
    if not hasattr(output, "shape"):
        raise AssertionError(f"{check}: the output must be one array; got {describe(output)}.")


def require_finite(check: Check, output: np.ndarray) -> None:
    """Raises if an output has a NaN or an infinity, since no mean can be compared then."""
    if not np.all(np.isfinite(wide(output))):
        raise AssertionError(f"{check}: the output is not finite.")


def wide(values: Any) -> np.ndarray:
    """The values in double precision."""
    values = np.asarray(values)
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def real(values: Any) -> np.ndarray:
    """The values as real numbers; a complex one becomes an axis of two."""
    values = wide(values)
    return np.stack([values.real, values.imag], -1) if np.iscomplexobj(values) else values
