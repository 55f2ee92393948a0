"""A drawn call of a method under a stack of transforms, run by JAX and by NumPy."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fuzzing.methods import FUZZED, TABLE
from fuzzing.stacks import KINDS, Transform, sizes_of, stacks
from hypothesis import strategies as st
from modes import enable_x64, quick_jit
from reference.methods import Key

RATES = (0.3, 0.5, 0.25, 0.9, 1, 0, 1 / 3, 2**-16, 2**-17, 1e-5, 1 - 1e-5, 2**-32, 2**-33)
RATES += (1 - 2**-24, 1 - 2**-32, 1e-30, 0.999)
rates = st.sampled_from(RATES) | st.floats(0, 1)
IMPLEMENTATIONS = {"threefry2x32": 2, "raw": 2, "rbg": 4, "unsafe_rbg": 4}  # words of a key
SIZES = (5, 2, 3, 1, 0, 7, 4, 8, 32, 33, 31, 64)
MOST = 300  # elements of one input, so that NumPy keeps up


@dataclass(frozen=True)
class Drawing:
    """Hypothesis' `draw` for the table, which does not import it."""

    of: Callable[..., Any]

    def one_of(self, values):
        return self.of(st.sampled_from(list(values)))

    def integer(self, least, most):
        return self.of(st.integers(least, most))

    def order(self, values):
        return self.of(st.permutations(values))


@dataclass(frozen=True)
class Call:
    method: str
    shape: tuple[int, ...]
    options: dict[str, Any]
    dtype: str
    x64: bool
    stack: tuple[Transform, ...]
    compiled: bool  # or each primitive by itself
    implementation: str
    rates: tuple[float, ...]
    traced: str | None  # the dtype of the rate
    values: str
    seed: int

    def mode(self):
        """The context to run in."""
        return enable_x64() if self.x64 else nullcontext()

    @property
    def is_wide(self):
        return self.dtype in ("float64", "complex128")

    @property
    def numpy_dtype(self):
        return np.dtype(jnp.dtype(self.dtype))

    def random(self, stream):
        return np.random.default_rng((self.seed, stream))

    def axes_of(self, name):
        return sizes_of(self.stack, lambda transform: getattr(transform, name))

    def inputs(self):
        """`x`, of a random kind, and `t`, of small numbers that every dtype holds."""
        shape = (*sizes_of(self.stack), *self.shape)
        x = self.numbers(self.random(0), shape, self.values != "dyadic")
        specials = FUZZED[self.method].specials
        if self.values == "special" and specials:
            chosen = self.random(1).choice(specials, shape)
            x = np.where(self.random(2).random(shape) < 0.1, chosen, x)
        t = self.numbers(self.random(3), shape, False)
        return x.astype(self.numpy_dtype), t.astype(self.numpy_dtype)

    def numbers(self, random, shape, normal):
        def one():
            if normal:
                return random.normal(size=shape)
            return random.integers(-16, 17, shape) / 4

        return one() + 1j * one() if np.issubdtype(self.numpy_dtype, np.complexfloating) else one()

    def flags(self):
        return self.random(4).random(sizes_of(self.stack)) < 0.5

    def key_data(self):
        words = IMPLEMENTATIONS[self.implementation]
        shape = (*self.axes_of("each_key"), words)
        return self.random(5).integers(0, 2**32, shape, dtype=np.uint32)

    def given_rates(self):
        """What stands for the rate of each item: itself, or its logit, in its dtype."""
        size = math.prod(self.axes_of("each_rate"))
        given = np.array([self.rates[i % len(self.rates)] for i in range(size)])
        if TABLE[self.method].rate_learns:
            with np.errstate(divide="ignore"):
                given = np.log(given) - np.log1p(-given)
            given = given.astype(np.float32)
        if self.traced:
            given = given.astype(jnp.dtype(self.traced))
        return given.reshape(self.axes_of("each_rate"))


def program_of(call):
    """The method under the transforms; calls that differ in their data have it in common."""
    method, known = FUZZED[call.method], None if call.traced else float(call.given_rates())

    def program(a):
        return method.run(a["key"], a["x"], a.get("rate", known), **call.options)

    for transform in call.stack:
        program = transform.program(program)
    return quick_jit(program) if call.compiled else program


def run(program, call):
    """What JAX makes of it."""
    with call.mode():
        data = jnp.asarray(call.key_data())
        raw = call.implementation == "raw"
        x, t = map(jnp.asarray, call.inputs())
        arguments = {
            "key": data if raw else jax.random.wrap_key_data(data, impl=call.implementation),
            "x": x,
            "t": t,
            "flag": jnp.asarray(call.flags()),
        }
        if call.traced:
            arguments["rate"] = jnp.asarray(call.given_rates())
        y = program(arguments)
        # JAX cannot gather an array without elements from several devices.
        return np.asarray(y) if y.size else np.zeros(y.shape, y.dtype)


def rebuild(call):
    """What NumPy makes of it: values, and bounds on what may be lost."""
    method = FUZZED[call.method]
    unit = 2.0**-53 if call.is_wide else 2.0**-24
    given = {**call.options, **method.told(call.traced is not None, jnp.dtype(call.dtype))}

    def compute(key, x, t, rate, flag):
        drawn = method.reference(key, float(rate), call.shape, unit, **given)
        form = call.stack[-1].gives
        of = drawn.value(x) if form == "value" else getattr(drawn, form)(x, t)
        return tuple(np.broadcast_to(part, call.shape) for part in of)

    for transform in call.stack:
        compute = transform.reference(compute)
    wide = np.complex128 if np.issubdtype(call.numpy_dtype, np.complexfloating) else np.float64
    x, t = (array.astype(wide) for array in call.inputs())
    with np.errstate(all="ignore"), call.mode():
        return compute(nested_keys(call), x, t, call.given_rates(), call.flags())


def nested_keys(call):
    implementation = "threefry2x32" if call.implementation == "raw" else call.implementation

    def nest(data):
        if data.ndim > 1:
            return [nest(part) for part in data]
        return Key(implementation, tuple(map(int, data)))

    return nest(call.key_data())


def assert_rounds(call, actual, expected, bound):
    """Each number is the rounding, in its dtype, of one that lies within the bound.

    Both ends are rounded as the package rounds: to the dtype to compute in, then to
    the dtype of the result. A bound of 0 asks for equality.
    """
    assert (actual.shape, actual.dtype) == (expected.shape, call.numpy_dtype)
    if np.iscomplexobj(actual):
        for part in (np.real, np.imag):
            _assert_rounds(call, part(actual), part(expected), bound)
    else:
        _assert_rounds(call, actual, expected, bound)


def _assert_rounds(call, actual, expected, bound):
    compute = np.float64 if call.is_wide else np.float32
    # The reference itself loses as much where it has no more digits than the package.
    finite = np.isfinite(expected) & np.isfinite(bound)
    bound = np.where(finite, bound * (2 if call.is_wide else 1), 0)
    # Numbers below the smallest normal one may be flushed to 0.
    bound = bound + np.where(bound > 0, np.finfo(compute).tiny, 0)
    with np.errstate(all="ignore"):
        low, high = (
            _no_overflow((expected + sign * bound).astype(compute).astype(actual.dtype), expected)
            for sign in (-1, 1)
        )
        number = _no_overflow(actual, expected)
    inside = (low <= number) & (number <= high)
    both_nan = np.isnan(expected) & np.isnan(number)
    wrong = ~(inside | both_nan)
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} differ, first at"
        f" {tuple(int(i) for i in np.argwhere(wrong)[0])}:"
        f" {number[wrong][0]}, and not in [{low[wrong][0]}, {high[wrong][0]}]"
    )


def _no_overflow(numbers, expected):
    """In float64; NaN where a dtype without infinities overflowed is an infinity again."""
    numbers = numbers.astype(np.float64)
    overflowed = np.isnan(numbers) & ~np.isnan(expected)
    return np.where(overflowed, np.copysign(np.inf, expected), numbers)


@st.composite
def calls(draw, name):
    """A call of a method; which transforms come first in the draw depends on the method."""
    method, fuzz = TABLE[name], FUZZED[name]
    shape = draw(shapes(fuzz.least, fuzz.most))
    x64 = draw(st.integers(0, 4)) == 4
    dtypes = [*fuzz.floats, *["complex64"] * method.takes_complex]
    dtypes += [*["float64"] * x64, *["complex128"] * (x64 and method.takes_complex)]
    dtype = draw(st.sampled_from(dtypes))
    traced = None
    if method.takes_traced_rate and draw(st.booleans()):
        wide = ["float64"] if x64 and not method.rate_learns else []
        low = [] if method.rate_learns else ["bfloat16"]
        traced = draw(st.sampled_from(["float32", *low, *wide]))
    implementation = draw(st.sampled_from(list(IMPLEMENTATIONS)))
    is_threefry = IMPLEMENTATIONS[implementation] == 2
    real_and_wide = dtype in ("float32", "float64")
    first = list(TABLE).index(name) % len(KINDS)
    stack = draw(stacks(first, is_threefry, traced is not None, real_and_wide))
    return Call(
        method=name,
        shape=shape,
        options=fuzz.options(Drawing(draw), shape),
        dtype=dtype,
        x64=x64,
        stack=stack,
        compiled=draw(st.sampled_from([True] * 15 + [False])),
        implementation=implementation,
        rates=(draw(rates),),
        traced=traced,
        values="normal",
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def other_data(draw, call):
    """The same call on other data: keys, inputs, and rates if they are traced."""
    several = 3 if any(transform.each_rate for transform in call.stack) else 1
    drawn = st.lists(rates, min_size=several, max_size=several).map(tuple)
    return replace(
        call,
        rates=draw(drawn) if call.traced else call.rates,
        values=draw(st.sampled_from(["normal", "dyadic", "special"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def shapes(draw, least, most):
    """A shape of so many axes; what stands first is drawn more often."""
    shape = ()
    for _ in range(draw(st.sampled_from([n for n in (2, 3, 1, 4, 0) if least <= n <= most]))):
        left = MOST // max(math.prod(shape), 1)
        usual = st.sampled_from([size for size in SIZES if size <= left])
        shape = (*shape, draw(usual | st.integers(0, left)))
    return shape
