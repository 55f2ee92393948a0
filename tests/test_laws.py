"""Laws that hold for every method of the table."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax.experimental import checkify
from method_table import METHODS
from modes import KEY_IMPLEMENTATIONS, enable_x64, make_key, make_keys

from jaxdrop.checks import assert_expectation_kept

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
linear_methods = pytest.mark.parametrize(
    "method", [m for m in METHODS if m.linear], ids=lambda method: method.name
)
FLOATS = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]


def inputs(shape=(6, 40), dtype=jnp.float32):
    values = np.random.default_rng(1).uniform(0.5, 2, shape)
    return jnp.asarray(values.astype(np.float32)).astype(dtype)


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(a) == 0, np.asarray(b) == 0)


@every_method
def test_jit_equals_eager(method):
    key = make_key("raw", 3)
    drop = partial(method.run, rate=0.3)
    close(jax.jit(drop)(key, inputs()), drop(key, inputs()))


@every_method
@pytest.mark.parametrize("implementation", KEY_IMPLEMENTATIONS)
def test_vmap_over_keys_equals_a_loop(method, implementation):
    xs = inputs((5, 3, 40))
    stacked = make_keys(implementation, 5)
    loop = [method.run(make_key(implementation, i), x, 0.3) for i, x in enumerate(xs)]
    close(jax.vmap(lambda k, x: method.run(k, x, 0.3))(stacked, xs), jnp.stack(loop))


@every_method
def test_vmap_with_one_key_shares_the_mask_over_the_batch(method):
    key, xs = make_key("raw"), inputs((5, 3, 40))
    shared = jax.vmap(lambda k, x: method.run(k, x, 0.3), in_axes=(None, 0))(key, xs)
    close(shared, jnp.stack([method.run(key, x, 0.3) for x in xs]))


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.elementwise], ids=lambda method: method.name
)
def test_vmap_with_one_key_equals_broadcast_dims(method):
    key = make_key("raw")
    for shape in [(5, 3, 40), (5, 7), (4, 32), (3, 1, 9), (2, 2, 100)]:
        xs = inputs(shape)
        shared = jax.vmap(lambda k, x: method.run(k, x, 0.3), in_axes=(None, 0))(key, xs)
        np.testing.assert_array_equal(shared, method.run(key, xs, 0.3, broadcast_dims=(0,)))


@every_method
def test_vmap_over_rates_equals_a_loop(method):
    key, x, rates = make_key("raw"), inputs(), jnp.array([0.0, 0.2, 0.5, 1.0])
    batched = jax.vmap(lambda rate: method.run(key, x, rate))(rates)
    close(batched, jnp.stack([method.run(key, x, rate) for rate in rates]))


@every_method
def test_scan_equals_a_loop(method):
    x = inputs((3, 40))
    _, scanned = jax.lax.scan(lambda c, k: (c, method.run(k, x, 0.3)), 0, make_keys("raw", 4))
    close(scanned, jnp.stack([method.run(make_key("raw", i), x, 0.3) for i in range(4)]))


@every_method
@pytest.mark.parametrize("dtype", [*FLOATS, "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5, 1), (2, 3, 33)])
def test_shape_and_dtype_are_those_of_the_input(method, dtype, shape):
    x = inputs(shape).astype(dtype)
    y = method.run(make_key("raw"), x, 0.3)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@every_method
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_shape_and_dtype_are_those_of_the_input_in_double_precision(method, dtype):
    with enable_x64():
        x = jnp.ones((3, 5), dtype)
        assert method.run(make_key("raw"), x, 0.3).dtype == x.dtype


@every_method
def test_known_rate_zero_keeps_everything(method):
    x = inputs()
    close(method.run(make_key("raw"), x, 0), x)
    close(method.run(make_key("raw"), x, jnp.float32(0)), x)


@every_method
@pytest.mark.parametrize("rate", [1, 1.0, jnp.float32(1)])
def test_rate_one_gives_zeros_with_zero_gradient(method, rate):
    y, pull = jax.vjp(lambda x: method.run(make_key("raw"), x, rate), inputs())
    assert not y.any()
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], 0)


@every_method
@pytest.mark.parametrize("rate", [-0.1, 1.5, jnp.nan])
def test_bad_known_rate_raises(method, rate):
    with pytest.raises(ValueError, match=r"^\w+: rate must lie in \[0, 1\]; got .*\.$"):
        method.run(make_key("raw"), inputs(), rate)


@every_method
@pytest.mark.parametrize("rate", [-0.1, 1.5, jnp.nan])
def test_bad_traced_rate_turns_everything_into_nan(method, rate):
    y = jax.jit(method.run)(make_key("raw"), inputs(), jnp.float32(rate))
    assert jnp.isnan(y).all()


@every_method
@pytest.mark.parametrize("rate", [-0.1, 1.5, jnp.nan])
def test_bad_traced_rate_fails_under_checkify(method, rate):
    checked = checkify.checkify(jax.jit(method.run))
    error, _ = checked(make_key("raw"), inputs(), jnp.float32(rate))
    with pytest.raises(checkify.JaxRuntimeError, match=r"rate must lie in \[0, 1\]; got"):
        error.throw()
    error, _ = checked(make_key("raw"), inputs(), jnp.float32(0.5))
    error.throw()


@every_method
@pytest.mark.parametrize("implementation", [k for k in KEY_IMPLEMENTATIONS if k != "raw"])
@pytest.mark.parametrize("jit", [False, True])
def test_key_is_consumed(method, implementation, jit):
    def drop(key):
        return method.run(key, inputs(), 0.3)

    key = make_key(implementation)
    run = jax.jit(drop) if jit else drop
    run(key)
    with pytest.raises(jax.errors.KeyReuseError):
        run(key)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: drop(key) + drop(key))(make_key(implementation))


@every_method
def test_nan_and_infinity_at_dropped_places_become_zero(method):
    key = make_key("raw")
    kept = method.run(key, inputs(), 0.5) != 0
    x = jnp.where(kept, inputs(), jnp.nan)
    if method.linear:
        y, pull = jax.vjp(lambda x: method.run(key, x, 0.5), x)
        close(y, method.run(key, inputs(), 0.5))
        assert jnp.isfinite(pull(jnp.ones_like(y))[0]).all()
    else:  # the sum or norm to be kept is NaN, and must not be hidden
        assert jnp.isnan(method.run(key, x, 0.5)[kept]).all()


@linear_methods
def test_gradient_is_the_forward_mask_times_the_factor(method):
    key, x = make_key("raw"), inputs()
    factor = method.run(key, jnp.ones_like(x), 0.3)
    y, pull = jax.vjp(lambda x: method.run(key, x, 0.3), x)
    close(pull(x)[0], factor * x)
    close(jax.jvp(lambda x: method.run(key, x, 0.3), (x,), (x,))[1], y)


@every_method
def test_forward_and_reverse_jacobians_and_hessian_agree(method):
    key, x = make_key("raw"), inputs((5,))

    def drop(x):
        return method.run(key, x, 0.4)

    np.testing.assert_allclose(jax.jacfwd(drop)(x), jax.jacrev(drop)(x), rtol=1e-5, atol=1e-6)

    def energy(x):
        return jnp.sum(drop(x) ** 3)

    np.testing.assert_allclose(
        jax.hessian(energy)(x), jax.jacrev(jax.jacrev(energy))(x), rtol=1e-4, atol=1e-5
    )


@every_method
def test_checkpoint_gives_the_gradient_of_the_forward_mask(method):
    key, x = make_key("raw"), inputs()

    def loss(x):
        return jnp.sum(jnp.sin(method.run(key, x, 0.3)))

    close(jax.jit(jax.grad(jax.checkpoint(loss)))(x), jax.jit(jax.grad(loss))(x))


@every_method
def test_rate_has_no_gradient(method):
    slope = jax.grad(lambda rate: method.run(make_key("raw"), inputs(), rate).sum())(0.3)
    assert slope == 0


@every_method
@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_higher_rate_only_drops_more(method, low, high):
    low, high = sorted([low, high])
    key, x = make_key("raw"), inputs()
    kept_low = method.run(key, x, low) != 0
    kept_high = method.run(key, x, high) != 0
    assert not jnp.any(kept_high & ~kept_low)


@every_method
def test_x64_changes_no_mask_and_no_value(method):
    x = np.asarray(inputs())
    plain = np.asarray(method.run(make_key("raw"), x, 0.3))
    with enable_x64():
        wide = np.asarray(method.run(make_key("raw"), jnp.asarray(x, jnp.float32), 0.3))
    np.testing.assert_array_equal(plain, wide)


@every_method
@pytest.mark.parametrize(
    ("x", "error"),
    [
        (jnp.arange(3), r"x must be floating or complex; got int32"),
        (jnp.array([True]), r"x must be floating or complex; got bool"),
        (None, r"x must be an array; got None"),
        ([1.0, 2.0], r"x must be an array; got \[1\.0, 2\.0\]"),
        ({"a": jnp.ones(2)}, r"x must be an array; got \{"),
    ],
)
def test_rejects_inputs_that_cannot_be_scaled(method, x, error):
    with pytest.raises(TypeError, match=rf"^\w+: {error}"):
        method.run(make_key("raw"), x, 0.3)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.keeps_mean], ids=lambda method: method.name
)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_mean_is_kept(method, rate):
    drop = partial(method.run, rate=rate)
    assert_expectation_kept(drop, jax.random.key(5), inputs((4, 9)), num_samples=4096)
