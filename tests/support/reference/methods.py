"""Every method rebuilt in NumPy from its definition, with how far rounding may take it.

Shares no code with the package: masks come from `reference.masks`, values are computed
in float64. A function of this file returns the map `x -> y` that one key draws, as its
`value` and its derivative along (`tangent`) or against (`cotangent`) an array. Each
comes with a bound on what is lost on the way, counted in roundings: an operation that
is rounded correctly loses at most `unit` (2^-24 in float32) of its result.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from reference import masks as reference

SELU_LIMIT = -1.0507009873554805 * 1.6732632423543772
FIRST = 0x80000000  # the counter's second word for the first pair of words


class Key(NamedTuple):
    """A key by its data; how keys are folded is JAX's own business."""

    implementation: str
    data: tuple[int, ...]

    @property
    def words(self):
        """Two words as they are, others by a chain of Threefry blocks."""
        if len(self.data) == 2:
            return self.data
        state = (len(self.data), 0)
        for i in range(0, len(self.data), 2):
            state = reference.threefry_2x32(state, (self.data[i], (*self.data, 0)[i + 1]))
        return state

    def fold_in(self, number):
        key = jax.random.wrap_key_data(np.array(self.data, np.uint32), impl=self.implementation)
        folded = jax.random.fold_in(key, np.uint32(number))
        return Key(self.implementation, tuple(map(int, jax.random.key_data(folded))))

    def fold_in_name(self, name):
        digest = hashlib.blake2s(name.encode(), digest_size=8).digest()
        for half in (digest[:4], digest[4:]):
            self = self.fold_in(int.from_bytes(half, "little"))
        return self

    def split(self, number):
        key = jax.random.wrap_key_data(np.array(self.data, np.uint32), impl=self.implementation)
        data = jax.random.key_data(jax.random.split(key, number))
        return [Key(self.implementation, tuple(map(int, row))) for row in data]

    def pair(self, shape, number=0):
        """The two words of a pair that stand at each position of an array of this shape."""
        position = np.arange(math.prod(shape), dtype=np.uint32)
        first, second = reference.threefry_2x32_wrapping(
            self.words, position, np.full(position.shape, np.uint32(FIRST + number))
        )
        return first.reshape(shape), second.reshape(shape)


class Unclear(Exception):  # noqa: N818 (no error)
    """Rounding decides which way a comparison goes, so there is no one answer."""


@dataclass
class Diagonal:
    """`factor * x + offset` where kept, `fill` elsewhere.

    `error` bounds what the product loses, as a share of |x|, and `sum_error` what
    the sum does, as a share of its terms; `fill_error` is absolute.
    """

    keep: Any
    factor: Any = 1.0
    error: Any = 0.0
    offset: Any = 0.0
    sum_error: float = 0.0
    fill: Any = 0.0
    fill_error: Any = 0.0

    def value(self, x):
        product = times(self.factor, x)
        value = product + self.offset if self.sum_error else product
        bound = self.error * np.abs(x) + self.sum_error * (np.abs(product) + np.abs(self.offset))
        return np.where(self.keep, value, self.fill), np.where(self.keep, bound, self.fill_error)

    def tangent(self, x, t):
        bound = self.error * np.abs(t) + self.sum_error * np.abs(self.factor * t)
        return np.where(self.keep, self.factor * t, 0), np.where(self.keep, bound, 0)

    cotangent = tangent


def times(factor, x):
    """By parts: a complex product would turn an infinite part into NaN."""
    if not np.iscomplexobj(x):
        return factor * x
    product = np.empty(np.broadcast_shapes(np.shape(factor), x.shape), complex)
    product.real, product.imag = factor * x.real, factor * x.imag
    return product


def kept_of(key, shape, rate, shared):
    """Which elements are kept, of size 1 along shared axes, and the probability drawn with."""
    ones = only(shape, shared)
    return reference.mask(key.words, ones, rate), reference.keep_prob(rate)


def only(shape, shared):
    """The shape with 1 along the shared axes."""
    shared = [axis % len(shape) for axis in shared]
    return tuple(1 if axis in shared else n for axis, n in enumerate(shape))


def all_but(shape, axes):
    kept = [axis % len(shape) for axis in axes if axis is not None]
    return tuple(axis for axis in range(len(shape)) if axis not in kept)


def scaled(keep, factor, unit, roundings):
    """Survivors times a factor, after so many roundings of it; one more is the product's."""
    return Diagonal(keep, factor, (roundings + 1) * unit * np.abs(factor))


def expected(key, rate, shape, unit, shared=()):
    keep, q = kept_of(key, shape, rate, shared)
    return scaled(keep, 1 / q if q else 0.0, unit, 2)  # q and 1 / q are rounded


def along(shared_by):
    """`expected` with a mask that is shared along `shared_by(ndim, axis)`."""

    def rebuilt(key, rate, shape, unit, axis):
        return expected(key, rate, shape, unit, shared_by(len(shape), axis % len(shape)))

    return rebuilt


def itself_shared(ndim, axis):
    return (axis,)


def later_shared(ndim, axis):
    return tuple(range(axis + 1, ndim))


def others_shared(ndim, axis):
    return tuple(i for i in range(ndim) if i != axis)


def spatial(key, rate, shape, unit, batch_axis, channel_axis):
    return expected(key, rate, shape, unit, all_but(shape, (batch_axis, channel_axis)))


def path(key, rate, shape, unit, batch_axis):
    return expected(key, rate, shape, unit, all_but(shape, (batch_axis,)))


class Shaken(Diagonal):
    """A map with a derivative of its own: the factor `back`."""

    def __init__(self, keep, ahead, back, unit):
        factors = [np.where(keep, 1.0, factor) for factor in (ahead, back)]
        # The word, the sum with 1/2 and the product are rounded; what is kept is exact.
        error, self.error_back = (np.where(keep, 0, 3 * unit) * np.abs(f) for f in factors)
        super().__init__(True, factors[0], error)
        self.back = factors[1]

    def tangent(self, x, t):
        return self.back * t, self.error_back * np.abs(t)

    cotangent = tangent


def shaken(key, rate, shape, unit, batch_axis):
    shared = all_but(shape, (batch_axis,))
    keep, _ = kept_of(key, shape, rate, shared)
    if rate == 0:
        return Diagonal(True)
    first, second = key.fold_in_name("factors").pair(keep.shape)
    ahead = (first.view(np.int32).astype(float) + 0.5) * 2.0**-31
    return Shaken(keep, ahead, (second.astype(float) + 0.5) * 2.0**-32, unit)


def unscaled(key, rate, shape, unit, shared=()):
    return Diagonal(kept_of(key, shape, rate, shared)[0])


def realized(key, rate, shape, unit, shared=(), axis=None):
    return over_kept(kept_of(key, shape, rate, shared)[0], axis, unit)


def over_kept(keep, axis, unit):
    axes = tuple(range(keep.ndim)) if axis is None else axis
    size, count = math.prod(keep.shape[i] for i in axes), keep.sum(axes, keepdims=True)
    return scaled(keep, np.where(count == 0, 0, size / np.maximum(count, 1)), unit, 1)


def alpha(key, rate, shape, unit, shared=()):
    keep, q = kept_of(key, shape, rate, shared)
    if q == 0:
        return Diagonal(np.zeros(shape, bool))
    p = 1 - q
    a = (q * (1 + SELU_LIMIT**2 * p)) ** -0.5
    # Below the root: p, q, c^2 and four operations, halved by the root, which counts twice.
    error = 6 * unit * a
    fill = a * q * SELU_LIMIT
    return Diagonal(
        keep,
        a,
        error + unit * a,
        offset=-a * p * SELU_LIMIT,
        sum_error=10 * unit,  # a, p, c and the products in the offset, and the sum
        fill=fill,
        fill_error=10 * unit * abs(fill),
    )


def fixed_count(key, rate, shape, unit, shared=(), axis=None):
    ones = only(shape, shared)
    axes = tuple(range(len(shape))) if axis is None else tuple(i % len(shape) for i in axis)
    size = math.prod(ones[i] for i in axes)
    count = nearest_count(size, rate)
    keep = reference.fixed_count_mask(key.words, ones, count, axes)
    return scaled(keep, size / count if count else 0.0, unit, 1)


def nearest_count(size, rate):
    """How many of `size` survive; what is within 2^-11 of a half goes to the even number."""
    share = reference.Fraction(rate)
    return round(reference.Fraction(round(size * (1 - share) * 1024), 1024))


def tokens(key, rate, shape, unit, axis, prefix):
    behind = axis % len(shape) + 1
    drawn = (*shape[: behind - 1], shape[behind - 1] - prefix)
    count = nearest_count(drawn[-1], rate)
    keep = reference.fixed_count_mask(key.words, drawn, count, (behind - 1,))
    keep = np.concatenate([np.ones((*drawn[:-1], prefix), bool), keep], -1)
    return Diagonal(keep.reshape(keep.shape + (1,) * (len(shape) - behind)))


def other_numbers(shape):
    """What the fuzz puts in the place of dropped elements."""
    return (np.arange(math.prod(shape)) % 7 - 3.0).reshape(shape) / 2


def with_other(rebuilt):
    """A reference with these numbers where something is dropped."""

    def run(key, rate, shape, unit, **options):
        return rebuilt(key, rate, shape, unit, other=other_numbers(shape), **options)

    return run


def replaced(key, rate, shape, unit, other, where=None):
    keep, _ = kept_of(key, shape, rate, ())
    return Diagonal(keep if where is None else keep | ~where, fill=other)


def condition(key, rate, shape, unit, other, batch_axis):
    samples = 1 if batch_axis is None else shape[batch_axis]
    keep, _ = kept_of(key, (samples,), rate, ())
    return Diagonal(keep.reshape(only(shape, all_but(shape, (batch_axis,)))), fill=other)


def connect(key, rate, shape, unit):
    return expected(key.fold_in_name("['kernel']"), rate, shape, unit)


def mixed(key, rate, shape, unit, other):
    keep, q = kept_of(key.fold_in_name("[0]"), shape, rate, ())
    if q == 0:
        return Diagonal(np.zeros(shape, bool), fill=other)
    # W + (W - U) p / q: p, q, their quotient, the difference, the product and the sum.
    offset = -other * (1 - q) / q
    return Diagonal(keep, 1 / q, offset=offset, sum_error=6 * unit, fill=other)


def heads(key, rate, shape, unit, head_axis, batch_axis):
    shared = all_but(shape, (head_axis, batch_axis))
    return realized(key, rate, shape, unit, shared, (head_axis % len(shape),))


@dataclass
class Keys:
    """Logits, minus infinity where the key is dropped."""

    keep: Any
    words: Any
    lowest: float

    def value(self, x):
        kept = self.kept(x)
        return np.where(kept, x, -np.inf), 0 * kept

    def tangent(self, x, t):
        kept = self.kept(x)
        return np.where(kept, t, 0), 0 * kept

    cotangent = tangent

    def kept(self, x):
        """One live key, by its rank, where the mask would leave none; all where none is live."""
        kept = np.broadcast_to(self.keep, x.shape).copy()
        words = np.broadcast_to(self.words, (*x.shape[:-1], 1))
        for row in np.ndindex(x.shape[:-1]):
            live = np.flatnonzero(~(x[row] < self.lowest / 2))
            if not live.size:
                kept[row] = True
            elif not kept[row][live].any():
                kept[row][live[int(words[row][0]) * live.size >> 32]] = True
        return kept


def keys(key, rate, shape, unit, shared, lowest):
    keep, _ = kept_of(key, shape, rate, shared)
    if 0 in shape or rate == 0:
        return Diagonal(np.ones(shape, bool))
    words, _ = key.fold_in_name("left").pair((*keep.shape[:-1], 1))
    return Keys(keep, words, lowest)
