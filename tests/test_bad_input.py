"""Bad input gets the error that says what is wrong, from every public function."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from good_calls import GOOD, call

import jaxdrop
from jaxdrop import per_sample, rescale

pytestmark = pytest.mark.quick

KEY = np.zeros(2, np.uint32)
X = jnp.ones((2, 3))

AXES = {
    "axis", "batch_axis", "channel_axis", "feature_axis", "time_axis", "head_axis",
    "broadcast_dims",
}  # fmt: skip
CALLS = {
    "dropout": lambda key=KEY, rate=0.5, **kw: jaxdrop.dropout(key, X, rate, **kw),
    "draw_mask": lambda key=KEY, rate=0.5, **kw: jaxdrop.draw_mask(key, X.shape, rate, **kw),
    "draw_fixed_count_mask": lambda key=KEY, **kw: jaxdrop.draw_fixed_count_mask(
        key, X.shape, 1, **kw
    ),
}
every_call = pytest.mark.parametrize("name", CALLS)
calls_with_rate = pytest.mark.parametrize("name", ["dropout", "draw_mask"])


def raises(kind, message, call, *args, **options):
    with pytest.raises(kind) as raised:
        call(*args, **options)
    assert type(raised.value) is kind
    assert str(raised.value).split("\n")[0] == message


@calls_with_rate
@pytest.mark.parametrize(
    ("rate", "shown"),
    [(-0.1, "-0.1"), (1.5, "1.5"), (float("nan"), "nan"), (2, "2.0"), (float("inf"), "inf")],
)
def test_rates_outside_the_unit_interval(name, rate, shown):
    message = f"{name}: rate must lie in [0, 1]; got {shown}."
    for form in (rate, np.float32(rate), np.float64(rate), np.array(rate)):
        if float(form) == rate or rate != rate:
            raises(ValueError, message, CALLS[name], rate=form)


@calls_with_rate
@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (None, "None"),
        ("0.5", "'0.5'"),
        (True, "True"),
        ([0.5], "[0.5]"),
        (0.5j, "0.5j"),
        (jnp.ones((), bool), "bool[]"),
        (jnp.ones((), jnp.complex64), "complex64[]"),
    ],
)
def test_rates_that_are_no_real_numbers(name, rate, shown):
    message = f"{name}: rate must be a real number; got {shown}."
    raises(TypeError, message, CALLS[name], rate=rate)


@pytest.mark.parametrize("name", ["dropout"])
def test_batch_of_rates(name):
    message = (
        f"{name}: rate must be a scalar; got shape (3,). Use jax.vmap, or draw_mask and"
        " apply_mask for a rate per element."
    )
    raises(ValueError, message, CALLS[name], rate=jnp.ones(3) / 2)


@every_call
@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (lambda: jax.random.split(jax.random.key(0), 4), "(4,)"),
        (lambda: jax.random.split(jax.random.key(0, impl="rbg"), (2, 3)), "(2, 3)"),
        (lambda: jax.random.split(jax.random.PRNGKey(0), 4), "(4,)"),
        (lambda: np.zeros((5, 4), np.uint32), "(5,)"),
    ],
)
def test_batches_of_keys(name, key, shape):
    message = f"{name}: key must be one key; got a batch of shape {shape}. Use jax.vmap."
    raises(TypeError, message, CALLS[name], key())


@every_call
@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (None, "None"),
        (0, "0"),
        (jnp.zeros(2, jnp.int32), "int32[2]"),
        (jnp.zeros(2), "float32[2]"),
        (jnp.zeros(3, jnp.uint32), "uint32[3]"),
        (jnp.zeros((), jnp.uint32), "uint32[]"),
    ],
)
def test_keys_that_are_none(name, key, shown):
    message = f"{name}: key must be one key; got {shown}. Make one with jax.random.key."
    raises(TypeError, message, CALLS[name], key)


@every_call
@pytest.mark.parametrize("axis", [2, -3, 10])
def test_axes_out_of_range(name, axis):
    message = f"{name}: broadcast_dims must lie in [-2, 2) for 2 axes; got {axis}."
    raises(ValueError, message, CALLS[name], broadcast_dims=(axis,))


@pytest.mark.parametrize("axis", [9, -9])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, arguments in GOOD.items()
        for argument in arguments
        if argument in AXES and getattr(jaxdrop, name, per_sample) is not per_sample
    ],
)
def test_axes_out_of_range_in_every_function(name, argument, axis):
    with pytest.raises(ValueError, match=rf"^{name}: {argument} must lie in \[-\d, \d\) for \d"):
        call(name, GOOD[name] | {argument: axis})


@every_call
@pytest.mark.parametrize("axes", [(0, 0), (0, -2), (1, -1)])
def test_repeated_axes(name, axes):
    message = f"{name}: broadcast_dims must name each axis once; got {axes}."
    raises(ValueError, message, CALLS[name], broadcast_dims=axes)


@every_call
def test_axes_that_are_no_integers(name):
    message = f"{name}: broadcast_dims must be integers; got (0.5,)."
    raises(TypeError, message, CALLS[name], broadcast_dims=(0.5,))


@pytest.mark.parametrize("draw", [jaxdrop.draw_mask, jaxdrop.draw_fixed_count_mask])
def test_shapes(draw):
    name = draw.__name__
    draw = partial(draw, KEY)
    raises(ValueError, f"{name}: shape must have no negative sizes; got (2, -1).", draw, (2, -1), 0)
    raises(TypeError, f"{name}: shape must be integers; got (2.0,).", draw, (2.0,), 0)
    raises(TypeError, f"{name}: shape must be integers; got None.", draw, None, 0)


@pytest.mark.parametrize("x", [jnp.arange(3), jnp.ones(3, bool), np.arange(3, dtype=np.int8)])
def test_inputs_without_fractions(x):
    message = (
        f"dropout: x must be floating or complex; got {x.dtype}."
        " Cast it, as in x.astype(jnp.float32)."
    )
    raises(TypeError, message, jaxdrop.dropout, KEY, x, 0.5)
    raises(TypeError, message, jaxdrop.dropout, KEY, x, 0)


@pytest.mark.parametrize("rule", [None, 1.0, "expected"])
def test_rules_that_are_no_functions(rule):
    message = f"dropout: rescale must be a function of (mask, x); got {rule!r}."
    for rate in (0, 0.5, 1):
        raises(TypeError, message, jaxdrop.dropout, KEY, X, rate, rescale=rule)


def test_rule_that_was_not_made_yet():
    message = (
        "dropout: rescale must be a function of (mask, x); got realized."
        " If it makes a rule, call it, as in realized()."
    )
    for rate in (0, 0.5):
        raises(TypeError, message, jaxdrop.dropout, KEY, X, rate, rescale=rescale.realized)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (None, "rescale: the rule's factor must be an array; got None."),
        ("a", "rescale: the rule's factor must be an array; got 'a'."),
        (2j, "rescale: the rule's factor must be real for float32; got complex64."),
    ],
)
def test_factors_that_cannot_multiply(factor, message):
    raises(TypeError, message, jaxdrop.dropout, KEY, X, 0.5, rescale=lambda mask, x: factor)


@pytest.mark.parametrize("tolerance", [-1.0, 2.0, float("nan")])
def test_tolerance_outside_the_unit_interval(tolerance):
    message = f"preserve_sum: tolerance must lie in [0, 1]; got {tolerance}."
    raises(ValueError, message, rescale.preserve_sum, tolerance=tolerance)


@pytest.mark.parametrize("keep_prob", [-1, 2.0, float("nan")])
def test_packed_mask_with_an_impossible_probability(keep_prob):
    message = f"Mask.pack: keep_prob must lie in [0, 1]; got {float(keep_prob)}."
    raises(ValueError, message, jaxdrop.Mask.pack, jnp.ones(2, bool), keep_prob)


def test_dtype_that_has_no_zero():
    x = jnp.ones(3, jnp.float8_e8m0fnu)
    message = "dropout: x must have a dtype with a zero; got float8_e8m0fnu."
    raises(TypeError, message, jaxdrop.dropout, KEY, x, 0.5)


def test_rates_of_every_real_dtype_are_taken():
    for rate in (0, jnp.int32(0), np.int8(0), jnp.bfloat16.dtype.type(0), jnp.float16(0)):
        assert jnp.all(jaxdrop.dropout(KEY, X, rate) == X)
    assert jnp.all(jax.jit(jaxdrop.dropout)(KEY, X, 0) == X)
    assert not jnp.any(jax.jit(jaxdrop.dropout)(KEY, X, 1))


def test_numpy_arrays_and_scalars_are_taken():
    for x in (np.ones((2, 3), np.float32), 1.0, np.float32(1), 1j):
        assert jnp.shape(jaxdrop.dropout(KEY, x, 0.5)) == np.shape(x)


def test_errors_are_raised_while_tracing_too():
    with pytest.raises(ValueError, match="rate must lie in"):
        jax.jit(lambda x: jaxdrop.dropout(KEY, x, 1.5))(X)
