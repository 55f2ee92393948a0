"""The parts of applying a mask, by what each stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrop import Mask
from jaxdrop.core.apply import (
    _checked_factor,
    count_flags,
    inverse_keep_prob,
    poisoned,
    times,
    widen,
)

pytestmark = pytest.mark.quick

X = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 255), (1,)),
        ((3, 256), (1,)),
        ((65536, 2), (0,)),
        ((4, 300, 5), (0, 1, 2)),
        ((300, 250), (0, 1)),  # one axis fits in 8 bits, both do not fit in 16
        ((0, 3), (0,)),
        ((3,), ()),
    ],
)
def test_counts_are_exact_at_the_bounds_of_narrow_types(shape, axes):
    counted = count_flags(jnp.ones(shape, bool), axes)
    assert counted.dtype == jnp.uint32
    np.testing.assert_array_equal(counted, np.ones(shape, bool).sum(axes, keepdims=True))


def test_inverse_of_a_keep_probability_is_zero_where_nothing_is_kept():
    inverse = inverse_keep_prob(jnp.array([0.0, 0.25, 1.0]), jnp.dtype(jnp.float32))
    np.testing.assert_array_equal(inverse, [0, 4, 1])
    with jax.debug_nans(True):  # not even on the way
        assert jax.grad(lambda q: inverse_keep_prob(q, jnp.dtype(jnp.float32)))(0.0) == 0


@pytest.mark.parametrize(
    ("value", "poison"),
    [
        (jnp.float32(1), jnp.nan),
        (jnp.bfloat16(1), jnp.nan),
        (jnp.complex64(1), jnp.nan),
        (jnp.int32(1), -(2**31)),
        (jnp.uint8(1), 255),
        (jnp.bool_(True), False),
    ],
)
def test_result_of_a_bad_rate_is_what_nobody_takes_for_one(value, poison):
    good, bad = (Mask.pack(jnp.array(True), jnp.float32(q)) for q in (0.5, jnp.nan))
    assert poisoned(good, value) == value
    assert poisoned(bad, value).dtype == value.dtype
    np.testing.assert_array_equal(np.asarray(poisoned(bad, value).real, np.float64), poison)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_values_are_widened_to_float32_or_stay_complex(dtype):
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    assert widen(jnp.ones(2, dtype)).dtype == wide
    product = times(jnp.array([3, -2], dtype), jnp.float16(0.5))
    assert product.dtype == wide
    np.testing.assert_array_equal(product, [1.5, -1])


def test_complex_values_are_scaled_by_parts():
    x = jnp.array([complex(2, -4), complex(jnp.inf, 1)], jnp.complex64)
    np.testing.assert_array_equal(times(x, jnp.float32(0.5)).real, [1, jnp.inf])
    np.testing.assert_array_equal(times(x, jnp.float32(0.5)).imag, [-2, 0.5])
    turned = times(jnp.array([2 + 1j], jnp.complex64), jnp.complex64(1j))
    np.testing.assert_array_equal(turned, [-1 + 2j])


def assert_factor(factor, expected, dtype):
    checked = _checked_factor(factor, X)
    assert isinstance(checked, jax.Array)
    assert checked.dtype == dtype
    np.testing.assert_array_equal(checked, expected)


def test_factor_has_as_many_axes_as_the_array_or_none():
    assert_factor(2, 2, jnp.int32)
    assert_factor(np.array([1.0, 2, 3], "f4"), [[1, 2, 3]], jnp.float32)
    assert _checked_factor(1j, X.astype(jnp.complex64)) == 1j


def test_factor_that_is_refused():
    with pytest.raises(TypeError, match=r"^rescale: .*factor must be real for float32; got compl"):
        _checked_factor(1j, X)
    with pytest.raises(TypeError, match=r"^rescale: .*factor must be an array; got None"):
        _checked_factor(None, X)
    for shape in [(2,), (3, 3), (1, 2, 3), (2, 3, 1)]:
        with pytest.raises(ValueError, match=r"^rescale: .*factor must broadcast to \(2, 3\); got"):
            _checked_factor(jnp.ones(shape), X)
