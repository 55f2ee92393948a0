from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from modes import enable_x64
from reference import masks as reference

from jaxdrop.core.rate import grid_rate
from jaxdrop.core.threshold import (
    ALL_PAIRS,
    checked_rate,
    fine_threshold,
    known_threshold,
    traced_threshold,
)

pytestmark = pytest.mark.quick

FLOAT32 = jnp.dtype(jnp.float32)
RATES = st.one_of(
    st.floats(0, 1),
    st.floats(0, 1, width=32),
    st.floats(0, 1e-3),
    st.floats(0, 1e-3).map(lambda rate: 1 - rate),
    st.integers(0, 2**17).map(lambda n: n / 2**17),
)


def units(threshold):
    """The keep probability in units of 2^-32, from the digits."""
    if int(threshold.start):
        assert int(threshold.digits) == 0xFFFFFFFF
        return 2**32
    return int(threshold.digits)


@given(rate=RATES)
@example(rate=0.0)
@example(rate=1.0)
@example(rate=2**-17)
@example(rate=1 - 2**-24)
@example(rate=1 - 2**-30)  # 1 in float32
@example(rate=1e-300)
@example(rate=0.9999694472595215)  # whose complement is off by .08 % in float32
@example(rate=0.9999846999649048)  # by .12 %
def test_known_threshold_is_the_nearest_on_the_grid(rate):
    threshold = grid_rate(rate).threshold
    assert units(threshold) == reference.keep_units(rate)
    assert threshold.keep_prob * 2**32 == reference.keep_units(rate)


@given(rate=RATES)
def test_keep_prob_is_within_one_percent_or_one_grid_step(rate):
    threshold = grid_rate(rate).threshold
    asked = min(rate, 1 - rate)
    off = abs(threshold.keep_prob - (1 - rate))
    assert off <= 2**-17 + 2**-53
    assert off <= 0.0101 * asked + 2**-33 + 2**-53


@given(rate=st.floats(0, 1, width=32))
@example(rate=float(np.float32(1e-6)))
@example(rate=float(np.float32(1 - 1e-6)))
def test_traced_threshold_equals_the_known_one(rate):
    known = grid_rate(rate).threshold
    traced = grid_rate(jnp.float32(rate))
    settled = jax.jit(lambda rate: rate.threshold)(traced)
    assert traced.pairs == ALL_PAIRS
    assert (int(settled.digits), int(settled.start)) == (int(known.digits), int(known.start))
    assert settled.keep_prob == jnp.float32(known.keep_prob)


@given(rate=st.floats(0, 1))
@example(rate=1 - 1e-6)
def test_traced_threshold_equals_the_known_one_in_double_precision(rate):
    with enable_x64():
        settled = jax.jit(traced_threshold)(jnp.float64(rate))
        known = grid_rate(rate).threshold
        assert (int(settled.digits), int(settled.start)) == (int(known.digits), int(known.start))
        assert float(settled.keep_prob) == known.keep_prob


@given(rate=RATES)
def test_skipped_digits_are_all_zero(rate):
    threshold, pairs = known_threshold(rate)
    assert pairs in (2, 4, 8, 16)
    if not int(threshold.start):
        assert int(threshold.digits) % 2 ** (32 - 2 * pairs) == 0


def test_every_digit_up_to_the_last_one_is_compared():
    for place in range(1, 33):
        threshold, pairs = known_threshold(1 - 2.0**-place)
        assert int(threshold.digits) == 2 ** (32 - place)
        assert pairs == next(count for count in (2, 4, 8, 16) if 2 * count >= place)


@pytest.mark.parametrize(
    ("rate", "pairs"), [(0.5, 2), (0.25, 2), (0.75, 2), (0.125, 2), (0.1, 8), (1e-5, 16), (0.0, 2)]
)
def test_round_rates_need_few_digits(rate, pairs):
    assert grid_rate(rate).pairs == pairs


@pytest.mark.parametrize(
    ("rate", "keep_prob"), [(-5e-9, 1), (-7e-6, 1), (1 + 5e-7, 0), (1 + 7e-6, 0)]
)
def test_traced_rate_outside_by_rounding_is_rounded(rate, keep_prob):
    assert traced_threshold(jnp.float32(rate)).keep_prob == keep_prob
    further = jnp.float32(rate + (2e-5 if keep_prob == 0 else -2e-5))
    assert jnp.isnan(traced_threshold(further).keep_prob)


@pytest.mark.parametrize("rate", [-0.1, 1.5, jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_bad_traced_rate_keeps_everything_and_poisons_keep_prob(rate, dtype):
    threshold = traced_threshold(jnp.asarray(rate, dtype))
    assert int(threshold.start) == int(threshold.digits) == 0xFFFFFFFF
    assert jnp.isnan(threshold.keep_prob)


def test_threshold_has_no_gradient_to_the_rate():
    slope = jax.grad(lambda rate: traced_threshold(rate).keep_prob)(jnp.float32(0.3))
    assert slope == 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_rate_of_low_precision_is_rounded_as_the_float32_that_it_equals(dtype):
    for rate in np.array([0.3, 0.7, 1e-4, 0.996], dtype):
        known = grid_rate(float(rate)).threshold
        settled = traced_threshold(jnp.asarray(rate))
        assert (int(settled.digits), int(settled.start)) == (int(known.digits), int(known.start))


@pytest.mark.parametrize(
    ("rate", "checked"),
    [
        (-(2.0**-17), 0),
        (1 + 2.0**-17, 1),
        (-(2.0**-17) - 2.0**-30, jnp.nan),
        (1 + 2.0**-17 + 2.0**-23, jnp.nan),
    ],
)
def test_traced_rate_may_lie_outside_by_half_a_step_of_the_grid(rate, checked):
    np.testing.assert_array_equal(checked_rate(jnp.float32(rate)), np.float32(checked))


def fractions_of_one(units):
    """A number of units of 2^-32, and what is left of 1, as float32."""
    return np.float32(units / 2**32), np.float32(1 - units / 2**32)


@given(rate=RATES)
@example(rate=0.0)
@example(rate=1.0)
@example(rate=1e-6)
@example(rate=1 - 1e-6)
def test_probabilities_of_keeping_and_of_dropping_are_exact_near_zero_too(rate):
    threshold = grid_rate(rate).threshold
    assert threshold.probabilities(FLOAT32) == fractions_of_one(reference.keep_units(rate))


def test_bad_rate_has_no_probabilities():
    bad = traced_threshold(jnp.float32(1.5))
    assert all(jnp.isnan(probability) for probability in bad.probabilities(FLOAT32))


@given(rate=st.floats(0, 1, width=32))
@example(rate=0.0)
@example(rate=1.0)
@example(rate=2.0**-33)
@example(rate=float(np.float32(0.3)))
@example(rate=float(np.float32(0.7)))
def test_fine_threshold_is_the_nearest_multiple_of_a_unit(rate):
    share = round(Fraction(min(rate, 1 - rate)) * 2**32)
    expected = 2**32 - share if rate < 0.5 else share
    known, traced = fine_threshold(rate), jax.jit(fine_threshold)(jnp.float32(rate))
    assert units(known) == units(traced) == expected
    assert known.keep_prob * 2**32 == expected
    assert traced.keep_prob == np.float32(expected / 2**32)


def test_fine_threshold_of_a_bad_rate_poisons_keep_prob():
    threshold = fine_threshold(checked_rate(jnp.float32(jnp.nan)))
    assert int(threshold.start) == int(threshold.digits) == 0xFFFFFFFF
    assert jnp.isnan(threshold.keep_prob)
