"""Laws that hold for every method of the table."""

import inspect
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from modes import (
    KEY_IMPLEMENTATIONS,
    assert_check_failed,
    enable_x64,
    make_key,
    make_keys,
    quick_jit,
)
from table.methods import METHODS, RECORDS
from table.record import Gallery, Timed

import jaxdrop
from jaxdrop.checks import assert_expectation_kept


def takes_key(name):
    """Whether a public name is a method: a function of a key in `jaxdrop.methods`."""
    value = getattr(jaxdrop, name)
    if not inspect.isfunction(value) or not value.__module__.startswith("jaxdrop.methods."):
        return False
    return next(iter(inspect.signature(value).parameters)) in ("key", "rng")


@pytest.mark.quick
@pytest.mark.parametrize("name", sorted(filter(takes_key, jaxdrop.__all__)))
def test_every_public_method_has_a_record(name):
    assert name in {record.function for record in RECORDS}, f"tests/support/table has no {name}"


@pytest.mark.quick
def test_each_record_has_a_name_of_its_own():
    names = [record.name for record in RECORDS]
    assert len(set(names)) == len(names)


@pytest.mark.quick
@pytest.mark.parametrize(("name", "kind"), [("gallery", Gallery), ("timed", Timed)])
def test_each_function_is_shown_once_and_other_records_say_why_they_are_not(name, kind):
    shown = set()
    for record in RECORDS:
        value = getattr(record, name)
        if isinstance(value, kind):
            again = f"{record.name}: {record.function} has a record with `{name}`"
            assert record.function not in shown, f"{again}; say why this one has none"
            shown.add(record.function)
        else:
            assert isinstance(value, str), f"{record.name}: `{name}` is a {kind.__name__} or a text"
            assert value, f"{record.name}: `{name}` must say why there is none"


def methods(holds=lambda method: True):
    """Runs a law over the methods of which something is true."""
    chosen = [method for method in METHODS if holds(method)]
    return pytest.mark.parametrize("method", chosen, ids=lambda method: method.name)


every_method = methods()
# All keys are turned into Threefry keys in one place, so one method tries them all,
# and the others the kind that JAX itself does not draw alike under `vmap`.
every_method_with_key = pytest.mark.parametrize(
    ("method", "implementation"),
    [(METHODS[0], implementation) for implementation in KEY_IMPLEMENTATIONS]
    + [(method, "rbg") for method in METHODS[1:]],
    ids=lambda value: getattr(value, "name", value),
)
with_traced_rate = methods(lambda method: method.takes_traced_rate)
with_probability = methods(lambda method: not method.rate_learns)
linear_methods = methods(lambda method: method.linear)
# All others draw a mask and multiply as `dropout` does, or only select.
OWN_ARITHMETIC = {
    "dropout",
    "gaussian_dropout",
    "alpha_dropout",
    "fixed_count_dropout",
    "concrete_dropout",
    "variational_dropout",
    "hard_concrete",
    "drop_block",
    "shake_drop",
    "drop_spans",
    "layer_drop",
    "mixout",
    "zoneout",
}


def inputs(shape, dtype=jnp.float32):
    values = np.random.default_rng(1).uniform(0.5, 2, shape)
    return jnp.asarray(values.astype(np.float32)).astype(dtype)


def close(method, a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=method.rounding)
    np.testing.assert_array_equal(np.asarray(a) == 0, np.asarray(b) == 0)


@pytest.mark.quick
@every_method
def test_jit_equals_eager(method):
    key = make_key("raw", 3)
    drop = partial(method.run, rate=0.3)
    x = inputs(method.shape)
    close(method, jax.jit(drop)(key, x), drop(key, x))


@every_method_with_key
def test_vmap_over_keys_equals_a_loop(method, implementation):
    xs = inputs((5, *method.shape))
    stacked = make_keys(implementation, 5)
    loop = [method.run(make_key(implementation, i), x, 0.3) for i, x in enumerate(xs)]
    close(method, jax.vmap(lambda k, x: method.run(k, x, 0.3))(stacked, xs), jnp.stack(loop))


@every_method
def test_vmap_with_one_key_shares_the_mask_over_the_batch(method):
    key, xs = make_key("raw"), inputs((5, *method.shape))
    shared = jax.vmap(lambda k, x: method.run(k, x, 0.3), in_axes=(None, 0))(key, xs)
    close(method, shared, jnp.stack([method.run(key, x, 0.3) for x in xs]))


@methods(lambda method: method.broadcasts)
def test_vmap_with_one_key_equals_broadcast_dims(method):
    key = make_key("raw")
    for shape in [(5, 3, 40), (3, 1, 9)]:
        xs = inputs(shape)
        shared = jax.vmap(lambda k, x: method.run(k, x, 0.3), in_axes=(None, 0))(key, xs)
        close(method, shared, method.run(key, xs, 0.3, broadcast_dims=(0,)))


@with_traced_rate
def test_vmap_over_rates_equals_a_loop(method):
    key, x, rates = make_key("raw"), inputs(method.shape), jnp.array([0.0, 0.2, 0.5, 1.0])
    batched = jax.vmap(lambda rate: method.run(key, x, rate))(rates)
    close(method, batched, jnp.stack([method.run(key, x, rate) for rate in rates]))


@every_method
def test_scan_equals_a_loop(method):
    x = inputs(method.shape)
    _, scanned = jax.lax.scan(lambda c, k: (c, method.run(k, x, 0.3)), 0, make_keys("raw", 4))
    close(method, scanned, jnp.stack([method.run(make_key("raw", i), x, 0.3) for i in range(4)]))


@every_method
def test_shape_and_dtype_are_those_of_the_input(method):
    @quick_jit  # one program for all
    def drop_all(*inputs):
        return [method.run(make_key("raw"), x, 0.3) for x in inputs]

    dropped = drop_all(*map(inputs, method.odd_shapes))
    assert [y.shape for y in dropped] == list(method.odd_shapes)
    assert {y.dtype for y in dropped} == {jnp.dtype(jnp.float32)}
    for dtype in [*method.floats, *(["complex64"] if method.takes_complex else [])]:
        x = inputs(method.shape).astype(dtype)
        y = jax.eval_shape(lambda x: method.run(make_key("raw"), x, 0.3), x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)


@every_method
def test_shape_and_dtype_are_those_of_the_input_in_double_precision(method):
    with enable_x64():
        for dtype in ["float32", "float64", *(["complex128"] if method.takes_complex else [])]:
            x = jax.ShapeDtypeStruct(method.shape, dtype)
            y = jax.eval_shape(lambda x: method.run(make_key("raw"), x, 0.3), x)
            assert (y.shape, y.dtype) == (x.shape, x.dtype)


@methods(lambda method: method.name in OWN_ARITHMETIC)
def test_low_precision_is_rounded_once_and_parts_of_complex_numbers_go_alike(method):
    @quick_jit  # one program for all
    def drop_all(narrow):
        x = narrow.astype(jnp.float32)
        both = [jax.lax.complex(x, -2 * x)] if method.takes_complex else []
        return [method.run(make_key("raw"), each, 0.3) for each in (narrow, x, *both)]

    narrow, y, *both = drop_all(inputs(method.shape, jnp.bfloat16))
    np.testing.assert_array_equal(narrow, y.astype(jnp.bfloat16))
    for z in both:
        np.testing.assert_array_equal(z, jax.lax.complex(y, -2 * y))


@methods(lambda method: method.name in OWN_ARITHMETIC and not method.rate_learns)
def test_rates_that_round_to_zero_or_one_do_as_these(method):
    x, key = inputs(method.shape), make_key("raw")
    close(method, method.run(key, x, 2**-34), method.at_zero(x))
    close(method, method.run(key, x, 1 - 2**-34), method.run(key, x, 1))


@pytest.mark.quick
@every_method
def test_rate_zero_keeps_everything(method):
    x = inputs(method.shape)
    close(method, method.run(make_key("raw"), x, 0), method.at_zero(x))
    close(method, method.run(make_key("raw"), x, jnp.float32(0)), method.at_zero(x))


@methods(lambda method: not method.rate_learns)
def test_no_key_is_needed_where_nothing_is_drawn(method):
    x = inputs(method.shape)
    close(method, method.run(None, x, 0), method.at_zero(x))
    if method.drops_all_at_one and method.function not in ("dot_product_attention", "drop_key"):
        close(method, method.run(None, x, 1), method.run(make_key("raw"), x, 1))


@methods(lambda method: method.function not in ("shake_drop", "zoneout"))  # they give the mean
def test_a_key_is_needed_where_something_is_drawn(method):
    with pytest.raises(TypeError, match=r"must be one key; got None\. Make one with"):
        method.run(None, inputs(method.shape), 0.3)


@methods(lambda method: method.drops_all_at_one)
@pytest.mark.parametrize("rate", [1, jnp.float32(1)])
def test_rate_one_drops_everything_with_zero_gradient(method, rate):
    x = inputs(method.shape)
    y, pull = jax.vjp(lambda x: method.run(make_key("raw"), x, rate), x)
    assert method.at_one(y)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], 0)


@pytest.mark.quick
@with_probability
@pytest.mark.parametrize("rate", [-0.1, 1.5, jnp.nan])
def test_bad_known_rate_raises(method, rate):
    with pytest.raises(ValueError, match=r"^\w+: rate must lie in \[0, 1\]; got .*\.$"):
        method.run(make_key("raw"), inputs(method.shape), rate)


@with_traced_rate
def test_bad_traced_rate_gives_nan_and_is_all_that_fails_under_checkify(method):
    """Of all checks: a NaN, a division by zero and an index out of bounds would fail too."""
    checks = checkify.user_checks | checkify.float_checks | checkify.index_checks
    checked = jax.jit(checkify.checkify(method.run, errors=checks))  # one program for all
    key, x = make_key("raw"), inputs(method.small)
    for rate in (-0.1, 1.5, jnp.nan):
        error, y = checked(key, x, jnp.float32(rate))
        assert jnp.isnan(y).all()
        if not method.rate_learns:
            assert_check_failed(error, r"rate must lie in \[0, 1\]; got")
    for rate in (0.0, 0.5, *([] if method.rate_learns else [1.0])):
        error, _ = checked(key, x, jnp.float32(rate))
        error.throw()


@methods(lambda method: not method.takes_traced_rate)
def test_rate_that_decides_a_shape_must_be_known(method):
    with pytest.raises(TypeError, match=r"^\w+: rate must be known while tracing; got float32"):
        jax.jit(method.run)(make_key("raw"), inputs(method.shape), 0.3)


@every_method
def test_nan_and_infinity_at_dropped_places_become_zero(method):
    plain = inputs(method.shape)
    keys = [make_key("raw", seed) for seed in range(8)]  # of a batch that is dropped whole too
    masks = [method.kept(method.run(key, plain, 0.5), 0.5) for key in keys]
    key, kept = min(zip(keys, masks, strict=True), key=lambda drawn: drawn[1].sum())
    assert kept.all() == (method.at_dropped(0.5) is None)
    x = jnp.where(kept, plain, jnp.nan)
    if not method.aggregates:
        y, pull = jax.vjp(lambda x: method.run(key, x, 0.5), x)
        close(method, y, method.run(key, plain, 0.5))
        assert jnp.isfinite(pull(jnp.ones_like(y))[0]).all()
    else:  # the sum or norm to be kept is NaN, and must not be hidden
        assert jnp.isnan(method.run(key, x, 0.5)[kept]).all()


@linear_methods
def test_gradient_is_the_forward_mask_times_the_factor(method):
    key, x = make_key("raw"), inputs(method.shape)
    factor = method.run(key, jnp.ones_like(x), 0.3)
    y, pull = jax.vjp(lambda x: method.run(key, x, 0.3), x)
    close(method, pull(x)[0], factor * x)
    close(method, jax.jvp(lambda x: method.run(key, x, 0.3), (x,), (x,))[1], y)


@every_method
def test_forward_and_reverse_jacobians_and_hessian_agree(method):
    key, x = make_key("raw"), inputs(method.small)

    def drop(x):
        return method.run(key, x, 0.4)

    def energy(x):
        return jnp.sum(drop(x) ** 3)

    @jax.jit  # one program for all
    def derivatives(x):
        second = jax.hessian(energy)(x), jax.jacrev(jax.jacrev(energy))(x)
        return (jax.jacfwd(drop)(x), jax.jacrev(drop)(x)), second

    first, second = derivatives(x)
    np.testing.assert_allclose(*first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*second, rtol=1e-4, atol=1e-5)


@every_method
def test_checkpoint_gives_the_gradient_of_the_forward_mask(method):
    def loss(x, rate=0.3):
        return jnp.sum(jnp.sin(method.run(make_key("raw"), x, rate)))

    @jax.jit  # one program for all
    def gradients(x, rate):
        rates = [(), (rate,)] if method.takes_traced_rate else [()]
        return [
            (jax.grad(jax.checkpoint(loss))(x, *rate), jax.grad(loss)(x, *rate)) for rate in rates
        ]

    for checkpointed, plain in gradients(inputs(method.shape), jnp.float32(0.3)):
        close(method, checkpointed, plain)


@methods(lambda method: method.monotone)
def test_higher_rate_only_drops_more(method):
    """Of known rates, which are compared in as many digits as they have."""
    key, x = make_key("raw"), inputs(method.shape)
    rates = (0, 2**-20, 0.1, 0.25, 0.3, 0.5 - 2**-18, 0.5, 0.5 + 2**-18, 0.75, 0.9, 1 - 2**-20, 1)
    kept = [method.kept(method.run(key, x, rate), rate) for rate in rates]
    for low, high in pairwise(kept):
        assert not jnp.any(high & ~low)


@every_method
def test_x64_changes_no_mask_and_no_value(method):
    x = np.asarray(inputs(method.shape))
    plain = np.asarray(method.run(make_key("raw"), x, 0.3))
    with enable_x64():
        wide = np.asarray(method.run(make_key("raw"), jnp.asarray(x, jnp.float32), 0.3))
    np.testing.assert_array_equal(plain, wide)


@pytest.mark.quick
@methods(lambda method: method.argument is not None)
@pytest.mark.parametrize(
    ("x", "error"),
    [
        (jnp.arange(3), r"must be floating or complex; got int32"),
        (jnp.array([True]), r"must be floating or complex; got bool"),
        (None, r"must be an array; got None"),
        ([1.0, 2.0], r"must be an array; got \[1\.0, 2\.0\]"),
        ({"a": jnp.ones(2)}, r"must be an array; got \{"),
    ],
)
def test_rejects_inputs_that_cannot_be_scaled(method, x, error):
    with pytest.raises(TypeError, match=rf"^\w+: {method.argument} {error}"):
        method.run(make_key("raw"), x, 0.3)


@methods(lambda method: method.keeps_mean)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_mean_is_kept(method, rate):
    drop = partial(method.run, rate=rate)
    x = inputs(method.shape)
    assert_expectation_kept(drop, jax.random.key(5), x, num_samples=4096)
