"""Rows that see nothing, narrow dtypes, and the rates 0, 1 and those that are none."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from modes import assert_check_failed, enable_x64, make_key, quick_jit

from jaxdrop import dot_product_attention
from jaxdrop.base.validate import Check
from jaxdrop.methods.attention.arrays import _lengths

tiled = partial(dot_product_attention, query_block_size=4, key_block_size=3)
whole = partial(dot_product_attention, implementation="whole")
both = pytest.mark.parametrize("attend", [tiled, whole], ids=["tiled", "whole"])


def assert_finite(tree):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def inputs(batch=2, queries=9, keys=7, heads=2, key_heads=1, features=3, dtype=jnp.float32):
    return (
        normal(batch, queries, heads, features, seed=1, dtype=dtype),
        normal(batch, keys, key_heads, features, seed=2, dtype=dtype),
        normal(batch, keys, key_heads, features, seed=3, dtype=dtype),
    )


@pytest.mark.quick
@both
def test_queries_that_see_nothing_give_zeros_with_zero_gradient(attend):
    # One way to be hidden for each sample; the last sees all keys but from too far away.
    query, key, value = inputs(batch=5)
    real_queries, real_keys = jnp.array([9, 4, 9, 9, 9]), jnp.array([0, 7, 7, 7, 7])
    mask = jnp.ones((5, 1, 9, 7), bool).at[2, :, 5].set(False)
    bias = normal(5, 1, 9, 7).at[3].set(-jnp.inf)
    hidden = np.zeros((5, 9), bool)
    hidden[0] = hidden[1, 4:] = hidden[2, 5] = hidden[3] = True
    hidden[:, 8] = True  # with a window of one key before

    @quick_jit
    def derivatives(*moving):
        def run(query, key, value, bias):
            return attend(
                make_key("raw"),
                query,
                key,
                value,
                0.5,
                bias=bias,
                mask=mask,
                query_seq_lengths=real_queries,
                key_value_seq_lengths=real_keys,
                local_window_size=(1, 7),
            )

        out, along = jax.linearize(run, *moving)
        return out, along(*map(jnp.ones_like, moving)), jax.linear_transpose(along, *moving)(out)

    out, tangent, slopes = derivatives(query, key, value, bias)
    assert_finite((out, tangent, slopes))
    for rows in (out, tangent, slopes[0]):
        np.testing.assert_array_equal(np.asarray(rows)[hidden], 0)
    np.testing.assert_array_equal(np.asarray(slopes[3][:, 0])[hidden], 0)
    for unseen in (slopes[1], slopes[2]):
        np.testing.assert_array_equal(unseen[np.array([0, 3])], 0)
    assert np.mean(np.asarray(out)[~hidden] != 0) > 0.5


def test_second_derivatives_of_queries_that_see_nothing_are_finite():
    query, key, value = inputs(batch=1, queries=3, keys=2, features=2)
    lengths = jnp.array([1])

    def loss(query):
        out = dot_product_attention(
            None, query, key, value, 0, key_value_seq_lengths=lengths, local_window_size=(1, 0)
        )
        return jnp.sum(jnp.sin(out))

    curvature = quick_jit(jax.jacrev(jax.jacrev(loss)))(query)
    assert_finite(curvature)
    np.testing.assert_array_equal(curvature[:, 2], 0)  # which no key is near enough to


def bounds(query, key, value, cotangent, rate, unit):
    """How far rounding may take the output, and the gradients by query, key and value.

    Scores, softmax and sums are in float32 or wider. What is rounded to a unit
    are the weights, or their gradients, ahead of each product, and the result.
    The gradient of the logits, A (O' V^T) - P rowsum(O' O), also has the output
    in it, with its own two units. Absolute values of all factors bound the sums.
    """
    query, key, value, cotangent = (
        np.asarray(x, np.float64).swapaxes(1, 2) for x in (query, key, value, cotangent)
    )
    scale = query.shape[-1] ** -0.5
    logits = scale * query @ key.swapaxes(2, 3)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    query, key, value, cotangent = map(np.abs, (query, key, value, cotangent))
    kept = weights / (1 - rate)  # at most; dropping makes it smaller
    out = kept @ value
    inner = (cotangent * out).sum(-1, keepdims=True)
    by_logits = 2 * (kept * (cotangent @ value.swapaxes(2, 3)) + weights * inner)
    by_logits = scale * (by_logits + 2 * weights * inner)
    by_query, by_key = by_logits @ key, by_logits.swapaxes(2, 3) @ query
    by_value = 2 * kept.swapaxes(2, 3) @ cotangent
    return [1.01 * unit * x.swapaxes(1, 2) for x in (2 * out, by_query, by_key, by_value)]


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_narrow_dtypes_are_rounded_where_stated_only(dtype, unit):
    narrow = (*inputs(key_heads=2, dtype=dtype), normal(2, 9, 2, 3, seed=4, dtype=dtype))

    def run(attend, *operands):
        *arrays, cotangent = operands
        out, pull = jax.vjp(lambda *xs: attend(make_key("raw"), *xs, 0.25), *arrays)
        return out, *pull(cotangent)

    found = quick_jit(partial(run, tiled))(*narrow)
    assert {x.dtype for x in found} == {jnp.dtype(dtype)}
    with enable_x64():
        exact = [x.astype(jnp.float64) for x in narrow]
        expected = quick_jit(partial(run, whole))(*exact)
    for ours, theirs, bound in zip(found, expected, bounds(*exact, 0.25, unit), strict=True):
        error = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs))
        assert np.all(error <= bound)
        assert np.max(error) > unit / 100  # so the bound is of something


of_each_width = pytest.mark.parametrize(
    ("implementation", "dtype"),
    [*itertools.product(("tiled", "whole"), ("bfloat16", "float64")), ("kernel", "bfloat16")],
)


@of_each_width
def test_results_have_the_dtype_of_the_query_and_gradients_of_what_they_are_by(
    implementation, dtype
):
    with enable_x64(dtype == "float64"):
        query, key, value = inputs(dtype=dtype)
        bias, scale = normal(9, 7, dtype=jnp.bfloat16), jnp.float32(0.5)
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        options = {"implementation": implementation, "return_residual": True}

        def run(query, key, value, bias, scale):
            attend = partial(dot_product_attention, make_key("raw"), rate=0.5, **options)
            return attend(query, key, value, bias=bias, scale=scale)

        moving = (query, key, value, bias, scale)
        rows = jnp.ones(query.shape[:-1], wide)
        (out, residual), slopes = jax.eval_shape(
            lambda *xs: (run(*xs), jax.vjp(run, *xs)[1]((xs[0], rows))), *moving
        )
    assert (out.shape, out.dtype, out.weak_type) == (query.shape, dtype, False)
    assert (residual.shape, residual.dtype) == (rows.shape, wide)
    for slope, x in zip(slopes, moving, strict=True):
        assert (slope.shape, slope.dtype) == (x.shape, x.dtype)


@of_each_width
def test_logits_are_not_rounded_to_the_dtype_of_the_query(implementation, dtype):
    """Of one key, the log-sum-exp is the logit."""
    with enable_x64(dtype == "float64"):
        x = jnp.asarray([16.0, 1.0], dtype).reshape(1, 1, 2)
        bias = jnp.full((1, 1), 0.3, jnp.float64 if dtype == "float64" else jnp.float32)
        options = {"scale": 1.1, "bias": bias, "logits_soft_cap": 1000.0}
        options |= {"return_residual": True, "implementation": implementation}
        _, residual = dot_product_attention(None, x, x, x, 0, **options)
    expected = 1000 * np.tanh(1.1 * 257 / 1000) + 0.3
    rtol = 1e-15 if dtype == "float64" else 3e-7
    np.testing.assert_allclose(residual[0, 0], expected, rtol=rtol)


@pytest.mark.quick
@pytest.mark.parametrize("features", [1, 4])
def test_products_are_divided_by_the_root_of_the_features(features):
    x = jnp.ones((1, 1, features))
    _, residual = dot_product_attention(None, x, x, x, 0, return_residual=True)
    np.testing.assert_allclose(residual[0, 0], features**0.5, rtol=1e-6)


@pytest.mark.quick
@both
def test_rate_zero_draws_nothing_and_needs_no_key(attend):
    def jaxpr(rng, derivative):
        return str(jax.make_jaxpr(derivative(partial(attend, rng, rate=0)))(*inputs()))

    for derivative in (lambda f: f, lambda f: lambda *xs: jax.vjp(f, *xs)[1](xs[0])):
        without = jaxpr(None, derivative)
        for drawing in ("shift_right_logical", "shift_left", "while", "random", "threefry", "u32"):
            assert drawing not in without
        for rng in (make_key("raw"), make_key("rbg")):
            assert jaxpr(rng, derivative) == without


@pytest.mark.quick
@pytest.mark.parametrize("rate", [1, jnp.float32(1)])
def test_rate_one_gives_zeros_with_zero_derivatives(rate):
    @quick_jit
    def derivatives(*moving):
        out, along = jax.linearize(partial(tiled, make_key("raw"), rate=rate), *moving)
        return out, along(*moving), jax.linear_transpose(along, *moving)(moving[0])

    for zeros in jax.tree.leaves(derivatives(*inputs())):
        np.testing.assert_array_equal(zeros, 0)


@both
def test_bad_traced_rates_turn_gradients_into_nan_too(attend):
    """And what queries give that see nothing, those of the first sample."""

    @quick_jit
    @checkify.checkify
    def derivatives(rate, *moving):
        run = partial(attend, make_key("raw"), rate=rate, key_value_seq_lengths=jnp.array([0, 7]))
        out, pull = jax.vjp(run, *moving)
        return out, pull(jnp.ones_like(out))

    for rate in (-0.1, 1.5, jnp.nan):
        error, (out, slopes) = derivatives(jnp.float32(rate), *inputs())
        assert_check_failed(error, r"rate must lie in \[0, 1\]; got")
        assert all(jnp.isnan(x).all() for x in (out, *(slope[1] for slope in slopes)))
    error, found = derivatives(jnp.float32(0.5), *inputs())
    error.throw()
    assert_finite(found)


@pytest.mark.quick
@both
@pytest.mark.parametrize(
    "empty",
    [{"batch": 0}, {"queries": 0}, {"keys": 0}, {"features": 0}, {"heads": 0, "key_heads": 0}],
    ids=str,
)
def test_empty_arrays_give_zeros(attend, empty):
    moving = inputs(**empty)

    @quick_jit
    def derivatives(*moving):
        out, pull = jax.vjp(partial(attend, make_key("raw"), rate=0.5), *moving)
        return out, *pull(jnp.ones_like(out))

    zeros = tuple(map(jnp.zeros_like, (moving[0], *moving)))
    chex.assert_trees_all_equal(derivatives(*moving), zeros)


@pytest.mark.quick
@pytest.mark.parametrize("batch", [(3,), (1, 3), (2, 1)], ids=str)
def test_bias_and_mask_may_vary_along_some_axes_of_the_batch(batch):
    query, pair = normal(2, 3, 4, 1, 2), normal(2, 3, 5, 1, 2, seed=1)
    bias, shape = normal(*batch, 1, 4, 5), (2, 3, 1, 4, 5)

    def run(bias):
        return whole(None, query, pair, pair, 0, bias=bias, mask=bias > -0.5)

    np.testing.assert_array_equal(run(bias), run(jnp.broadcast_to(bias, shape)))


@both
def test_lengths_of_any_integer_type_are_taken(attend):
    def run(lengths):
        return attend(None, *inputs(), 0, query_seq_lengths=lengths, key_value_seq_lengths=lengths)

    for lengths in (np.array([3, 5], np.uint8), jnp.array([3, 5], jnp.uint32), np.array([3, 5])):
        np.testing.assert_array_equal(run(lengths), run(jnp.array([3, 5])))
    np.testing.assert_array_equal(run(5), run(jnp.array([5, 5])))
    assert not jnp.any(run(jnp.array([-1, 0])))
    beyond = np.array([2**32 - 1, 2**32 - 1], np.uint32)
    np.testing.assert_array_equal(run(beyond), run(jnp.array([9, 9])))


def test_lengths_of_64_bits_are_clipped_before_they_are_narrowed():
    with enable_x64():
        lengths = np.array([2**32 + 1, -(2**32) + 1, 2**63 - 1])
        found = _lengths(Check("f"), "lengths", lengths, (3,), 0, 9)
    np.testing.assert_array_equal(found, [9, 0, 9])
