"""Attention where numbers are large, narrow or many: derivatives stay right and memory linear."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from modes import make_key

from jaxdrop import dot_product_attention

whole = partial(dot_product_attention, implementation="whole")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def gradients(attend, arrays, **options):
    """By query, key and value, of a sum with weights."""
    weights = normal(9, *arrays[0].shape)

    def loss(*arrays):
        y = attend(make_key("raw"), *arrays, 0.3, **options)
        return jnp.sum(y.astype(jnp.float32) * weights)

    return jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)


@pytest.mark.parametrize("offset", [-1e9, 1e9, float(jnp.finfo(jnp.float32).min) / 2])
def test_gradients_hold_where_logits_share_an_offset(offset):
    # float32 has no room for such an offset and a logit beside it: all weights are equal.
    arrays = [normal(i, 1, 40, 1, 4) for i in range(3)]
    bias = jnp.full((1, 1, 1, 40), offset)
    found = gradients(dot_product_attention, arrays, bias=bias, key_block_size=16)
    expected = gradients(whole, arrays, bias=bias)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_hold_for_keys_that_are_masked_by_a_finite_bias():
    # Left padding and a causal mask: the first queries see padded keys only.
    arrays = [normal(i, 1, 64, 2, 8) for i in range(3)]
    bias = jnp.where(jnp.arange(64) < 8, jnp.float32(-1e9), 0).reshape(1, 1, 1, 64)
    options = {"bias": bias, "is_causal": True}
    found = gradients(dot_product_attention, arrays, **options, query_block_size=16)
    expected = gradients(whole, arrays, **options)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_in_low_precision_hold_where_values_share_an_offset(dtype):
    # rowsum(dO O) is large and cancels, so the output must not be rounded in it.
    arrays = [normal(i, 1, 128, 2, 16).astype(dtype) for i in range(3)]
    arrays[2] = arrays[2] + jnp.asarray(10, dtype)
    bias, weights = normal(3, 1, 2, 128, 128), normal(4, 1, 128, 2, 16)

    def loss(scale, query, key, value):
        y = dot_product_attention(None, query, key, value, 0, bias=bias, scale=scale)
        return jnp.sum(y.astype(jnp.float32) * weights)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    found = gradient(jnp.float32(0.2), *arrays)
    expected = gradient(jnp.float32(0.2), *(x.astype(jnp.float32) for x in arrays))
    for ours, theirs in zip(found, expected, strict=True):
        error = jnp.max(jnp.abs(ours.astype(jnp.float32) - theirs)) / jnp.max(jnp.abs(theirs))
        assert error < 4 * float(jnp.finfo(dtype).eps)


def test_no_traced_value_outlives_its_trace():
    x = normal(0, 1, 8, 1, 4)

    def loss(x):
        return dot_product_attention(make_key("raw"), x, x, x, 0.25).sum()

    with jax.checking_leaks():
        jax.jvp(loss, (x,), (x,))
        jax.grad(loss)(x)


def layers(attend, x):
    step = lambda x, rng: (attend(rng, x), None)  # noqa: E731
    return jnp.sum(lax.scan(step, x, jax.random.split(make_key("raw"), 3))[0])


def attend_itself(rng, x, **options):
    blocks = {"query_block_size": 64, "key_block_size": 64}
    return dot_product_attention(rng, x, x, x, 0.1, **blocks, **options)


def one_key(rng, x):
    del rng
    return attend_itself(make_key("raw", 1), x)


def some_keys(rng, x):
    return attend_itself(rng, x, key_value_seq_lengths=jnp.array([300]))


CASES = {
    "causal": partial(attend_itself, is_causal=True),
    "one key for all layers": one_key,
    "constant lengths": some_keys,
}


def temporaries(fn, length):
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    return jax.jit(fn).lower(x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("attend", CASES.values(), ids=CASES)
def test_gradient_of_a_scan_over_layers_takes_memory_linear_in_length(attend):
    # Partial evaluation of the outer scan would keep what does not depend on its carry.
    loss = jax.grad(partial(layers, jax.checkpoint(attend)))
    assert temporaries(loss, 1024) < 2.2 * temporaries(loss, 512)


def test_second_derivatives_take_memory_linear_in_length():
    def loss(x):
        return jnp.sum(attend_itself(make_key("raw"), x) ** 2)

    def curvature(x):
        return jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), x))(x)

    assert temporaries(curvature, 1024) < 2.2 * temporaries(curvature, 512)


@pytest.mark.parametrize("size", [2**31 - 1, 2**40, (2**31 - 1, 39)])
def test_windows_wider_than_the_sequence_hide_nothing(size):
    x = normal(0, 1, 40, 1, 4)
    arguments = (make_key("raw"), x, x, x, 0.3)
    y = dot_product_attention(*arguments, local_window_size=size)
    np.testing.assert_array_equal(y, dot_product_attention(*arguments))


@pytest.mark.parametrize("implementation", ["tiled", "kernel"])
def test_log_sum_exp_of_rows_that_see_something_is_finite_at_every_value(implementation):
    """Passes mark a row that sees nothing by a number that no other row may have."""
    rows, zeros = np.arange(-20, 20, dtype=np.float32), jnp.zeros((1, 40, 1, 1))
    third = np.log(np.e - 2) + 1e-7 * rows  # of three logits, so that the sum is e
    bias = jnp.stack([jnp.zeros(40), jnp.zeros(40), jnp.asarray(third, jnp.float32)], 1)
    attend = partial(dot_product_attention, None, zeros, zeros[:, :3], zeros[:, :3], 0)
    _, found = attend(bias=bias, return_residual=True, implementation=implementation)
    np.testing.assert_allclose(found, jnp.ones((1, 40, 1)), rtol=1e-6)
    assert np.any(found == 1)
