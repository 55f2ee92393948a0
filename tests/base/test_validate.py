"""Each check of an argument: what it lets through, in which form, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64

from jaxdrop.base.validate import Check

pytestmark = pytest.mark.quick

X = jnp.ones((2, 3))
F = Check("f")


def refuses(error, match, check, *arguments, **options):
    with pytest.raises(error, match=rf"^f: {match}"):
        check(F, *arguments, **options)


def assert_array(y, expected, dtype):
    assert isinstance(y, jax.Array)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)


def test_four_raw_words_are_a_key_of_rbg():
    key = F.one_key(np.arange(4, dtype=np.uint32))
    assert str(jax.random.key_impl(key)) == "rbg"
    assert F.one_key(np.arange(2, dtype=np.uint32)).dtype == jnp.uint32
    refuses(TypeError, r"key must be one key; got uint32\[3\]", Check.one_key, np.zeros(3, "u4"))
    batch = jnp.zeros((5, 2), jnp.uint32)
    refuses(TypeError, r"k must be one key; got a batch of shape \(5,\)", Check.one_key, batch, "k")


@pytest.mark.parametrize("check", [Check.inexact_array, Check.real_array])
def test_floating_arrays_are_those_of_any_library(check):
    for value in (1.5, np.float32(1.5), np.full((), 1.5, np.float16), jnp.bfloat16(1.5)):
        assert check(F, "x", value) == 1.5
    for value in (None, [1.0], "1"):
        refuses(TypeError, "x must be an array", check, "x", value)
    refuses(TypeError, "x must be floating or complex; got int32", check, "x", jnp.arange(2))


def test_complex_arrays_are_not_real():
    assert F.inexact_array("x", 1j) == 1j
    refuses(TypeError, "x must be real; got complex64", Check.real_array, "x", 1j)


def test_arrays_of_numbers_are_no_keys():
    for value in (3, True, 1.5, 1j, np.int8(3), np.arange(2), X):
        assert isinstance(F.any_array("x", value), jax.Array)
    for value in ("3", [3], None, jax.random.key(0)):
        refuses(TypeError, "x must be an array of numbers", Check.any_array, "x", value)
    refuses(TypeError, "x must be integers; got float32", Check.integer_array, "x", 1.5)
    assert_array(F.integer_array("x", np.int8(3)), 3, jnp.int8)


def like(value, x=X, dtype=None):
    return F.like("value", value, x, "x", dtype)


def test_value_is_laid_out_as_the_array():
    assert_array(like(0), np.zeros((2, 3)), jnp.float32)
    assert_array(like(np.float64(0.5)), np.full((2, 3), 0.5), jnp.float32)
    assert_array(like(jnp.arange(3)), [[0, 1, 2]] * 2, jnp.float32)
    assert_array(like(jnp.array([[4], [5]])), [[4] * 3, [5] * 3], jnp.float32)
    assert_array(like(2, X.astype(jnp.int8), jnp.int16), np.full((2, 3), 2), jnp.int16)


def test_value_may_be_of_no_wider_kind_but_zero_and_one_may_be_flags():
    flags = X > 0
    for flag in (0, 1, False, True):
        assert_array(like(flag, flags), np.full((2, 3), bool(flag)), jnp.bool_)
    refused = partial(refuses, TypeError, "value must be of the kind of x", Check.like, "value")
    for value, x in ((2, flags), (0.0, flags), (0.5, jnp.arange(3)), (1j, X), (np.int8(1), flags)):
        refused(value, x, "x")


@pytest.mark.parametrize(
    ("value", "dtype"), [(-128, "int8"), (127, "int8"), (0, "uint8"), (255, "uint8")]
)
def test_integers_must_fit_into_the_dtype(value, dtype):
    x = jnp.zeros(2, dtype)
    beyond = value + (1 if value > 0 else -1)
    for make in (int, np.int64, lambda n: np.array([1, n])):
        assert_array(like(make(value), x)[-1], value, dtype)
        refuses(
            ValueError,
            rf"value must fit into {dtype}",
            Check.like,
            "value",
            make(beyond),
            x,
            "x",
        )
    assert_array(like(np.zeros(0, np.int64), x[:0]), [], dtype)
    refuses(ValueError, "value must fit into float32", Check.like, "value", 2**63, X, "x")
    refuses(ValueError, "value must fit into float32", Check.like, "value", -(2**63), X, "x")


@pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 2, 3), (2, 3, 1)])
def test_value_must_broadcast_to_the_array(shape):
    value = jnp.ones(shape)
    refuses(ValueError, r"value must broadcast to x; got \(", Check.like, "value", value, X, "x")
    refuses(ValueError, r"p must broadcast to x; got \(", Check.parameter, "p", value, X)
    flags = value > 0
    refuses(ValueError, r"m must broadcast to x; got \(", Check.flags, "m", flags, X, "x")


def test_flags_are_booleans():
    assert_array(F.flags("m", np.array([True, False, True]), X, "x"), [[1, 0, 1]] * 2, bool)
    refuses(TypeError, "m must be boolean; got int32", Check.flags, "m", 1, X, "x")


def test_parameter_has_as_many_axes_as_the_array():
    assert_array(F.parameter("p", 2, X), [[2]], jnp.float32)
    assert_array(F.parameter("p", jnp.array([1.0, 2, 3]), X), [[1, 2, 3]], jnp.float32)
    assert_array(F.floating("p", np.int64(3)), 3, jnp.float32)
    refuses(TypeError, "p must be an array; got True", Check.floating, "p", True)


@pytest.mark.parametrize("value", [0, 2, 0.5, np.float32(0.5), np.array(0.5), jnp.bfloat16(0.5)])
def test_amount_is_any_finite_number_from_zero(value):
    given = F.amount("a", value)
    assert given == value
    assert isinstance(given, jax.Array if isinstance(value, jax.Array) else float)


def test_amounts_that_are_refused():
    refused = partial(refuses, ValueError)
    for value in (-1, -1e-30, float("inf"), float("nan")):
        refused("a must be at least 0 and finite", Check.amount, "a", value)
    for value in (0, 0.0, -1, float("inf")):
        refused("a must be positive and finite", Check.amount, "a", value, positive=True)
    refused(r"a must be a scalar; got shape \(2,\)", Check.amount, "a", jnp.ones(2))
    for value in (True, 1j, "1", None, np.ones(1), jnp.array(True)):
        refuses(TypeError, "a must be a real number", Check.amount, "a", value)
    assert F.amount("a", 1e-30, positive=True) == 1e-30


def test_probabilities_are_floats_or_scalar_arrays():
    for rate in (0, 1, 0.25, np.float16(0.25), np.array(0.25), np.array(1)):
        assert F.probability("rate", rate) == rate
        assert isinstance(F.probability("rate", rate), float)
    assert_array(F.probability("rate", jnp.int32(1)), 1, jnp.float32)
    assert_array(F.probability("rate", jnp.bfloat16(0.5)), 0.5, jnp.bfloat16)
    assert F.known_probability("rate", jnp.float32(0.5)) == 0.5
    refuses(ValueError, "rate must lie in", Check.known_probability, "rate", jnp.float32(1.5))
    for rate in (-1e-30, 1 + 1e-15, float("nan")):
        refuses(ValueError, r"rate must lie in \[0, 1\]", Check.probability, "rate", rate)
    for rate in (np.array([0.5]), True, 0.5j, "0.5", None, jnp.array(True)):
        refuses(TypeError, "rate must be a real number", Check.probability, "rate", rate)
    refuses(ValueError, "rate must be a scalar", Check.probability, "rate", jnp.ones(1))


def test_objects_that_become_arrays_are_arrays():
    class Wrapped:
        def __jax_array__(self):
            return X

    assert F.inexact_array("x", Wrapped()) is X
    assert F.any_array("x", Wrapped()) is X


@pytest.mark.parametrize("check", [Check.known_probability, Check.known_amount])
def test_what_must_be_known_is_refused_while_tracing(check):
    assert check(F, "p", jnp.float32(0.5)) == check(F, "p", np.array(0.5)) == 0.5
    message = (
        r"p must be known while tracing; got float32\[\]\. Close over a Python number, or make"
    )

    def traced(p):
        refuses(TypeError, message, check, "p", p)
        return p

    jax.eval_shape(traced, jnp.float32(0.5))
    kind = "lie in" if check is Check.known_probability else "be at least 0"
    refuses(ValueError, f"p must {kind}", check, "p", jnp.float32(-1))


def test_probabilities_broadcast_to_a_shape_and_those_of_numpy_lie_in_the_unit_interval():
    take = partial(F.probabilities, "rate", shape=(2, 3), other="x")
    assert isinstance(take(np.array(0.5)), float)
    assert_array(take(np.array([0, 1, 0])), [[0, 1, 0]], jnp.float32)
    assert_array(take(jnp.array([[0.5], [7.0]])), [[0.5], [7]], jnp.float32)
    assert_array(take(jnp.ones(3, jnp.bfloat16)), np.ones((1, 3)), jnp.bfloat16)
    refused = partial(refuses, ValueError, check=Check.probabilities, shape=(2, 3), other="x")
    for bad in (-1e-9, 1.001, np.nan):
        refused(r"rate must lie in \[0, 1\]; got \[", name="rate", rate=np.array([0.5, bad, 1]))
    refused(r"rate must broadcast to x; got \(2,\) for \(2, 3\)", name="rate", rate=np.ones(2))
    refuses(
        TypeError, "rate must be real; got bool", Check.probabilities, "rate", X > 0, (2, 3), "x"
    )


def test_axes_are_sorted_and_not_negative():
    assert F.axes("axis", (-1, 0), 3) == (0, 2)
    assert F.axes("axis", np.int64(-3), 3) == (0,)
    assert F.axes("axis", (), 0) == ()
    assert F.axis("axis", -1, 3) == 2
    for axis in (3, -4):
        refuses(ValueError, r"axis must lie in \[-3, 3\) for 3 axes", Check.axes, "axis", axis, 3)
    refuses(ValueError, "axis must name each axis once", Check.axes, "axis", (0, -3), 3)
    for several in ((), (0, 1)):
        refuses(ValueError, "axis must be one axis", Check.axis, "axis", several, 3)


def test_named_axes_must_differ_and_leave_a_spatial_one():
    assert F.distinct_axes(X, a=0, b=-1) == (0, 1)
    assert F.distinct_axes(X, a=None, b=1) == (1,)
    refuses(ValueError, "a and b must differ; got 0 and -2", Check.distinct_axes, X, a=0, b=-2)
    image = jnp.ones((2, 3, 4))
    assert F.spatial_axes(image, 0, -1) == (1,)
    assert F.spatial_axes(image, None, 1) == (0, 2)
    refuses(ValueError, "x must have a spatial axis", Check.spatial_axes, X, 0, 1)


def test_whole_numbers_and_edges_have_a_least_value():
    assert F.whole_number("n", 1, 1) == 1
    refuses(ValueError, "n must be at least 1; got 0", Check.whole_number, "n", 0, 1)
    assert F.edges("e", 3, 2, 0) == (3, 3)
    assert F.edges("e", (0, 5), 2, 0) == (0, 5)
    for several in ((1,), (1, 2, 3)):
        refuses(
            ValueError,
            "e must be one number, or one for each of 2",
            Check.edges,
            "e",
            several,
            2,
            0,
        )
    refuses(ValueError, "e must be at least 0", Check.edges, "e", (3, -1), 2, 0)
    refuses(TypeError, "e must be integers", Check.edges, "e", 1.5, 2, 0)


def test_shapes_have_no_negative_sizes():
    assert F.shape((0, 3)) == (0, 3)
    assert F.shape(5) == (5,)
    refuses(ValueError, r"shape must have no negative sizes; got \(3, -1\)", Check.shape, (3, -1))


def test_wide_integers_fit_in_double_precision_too():
    with enable_x64():
        x = jnp.zeros(1, jnp.int64)
        assert_array(like(2**63 - 1, x), [2**63 - 1], jnp.int64)
