"""Attention says what is wrong with each of its arguments."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrop import Part, dot_product_attention

pytestmark = pytest.mark.quick

QUERY, KEYS = jnp.ones((2, 5, 4, 3)), jnp.ones((2, 6, 2, 3))
NAME = "dot_product_attention"
each = pytest.mark.parametrize("implementation", ["tiled", "whole", "kernel"])


def assert_raises(kind, message, **changes):
    arguments = {"query": QUERY, "key": KEYS, "value": KEYS, "rate": 0.5} | changes
    rng = arguments.pop("rng", np.zeros(2, np.uint32))
    with pytest.raises(kind, match=f"^{re.escape(f'{NAME}: {message}')}$") as raised:
        dot_product_attention(rng, **arguments)
    assert type(raised.value) is kind


def shaped(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


CAST = " Cast it, as in {}.astype(jnp.float32)."
BAD_ARRAYS = [
    ({"query": [1.0]}, TypeError, "query must be an array; got [1.0]. Use jnp.asarray."),
    (
        {"query": shaped(2, 5, 4, 3, dtype=jnp.int32)},
        TypeError,
        "query must be floating or complex; got int32." + CAST.format("query"),
    ),
    (
        {"key": shaped(2, 6, 2, 3, dtype=jnp.bool_)},
        TypeError,
        "key must be floating or complex; got bool." + CAST.format("key"),
    ),
    (
        {"value": shaped(2, 6, 2, 3, dtype=jnp.complex64)},
        TypeError,
        "value must be real; got complex64.",
    ),
    (
        {"query": shaped(5, 3)},
        ValueError,
        "query must have shape (*B, T, N, H); got (5, 3).",
    ),
    (
        {"query": shaped(1, 2, 5, 4, 3)},
        ValueError,
        "key must have the batch and features of query; got (2, 6, 2, 3) for (1, 2, 5, 4, 3).",
    ),
    (
        {"key": shaped(3, 6, 2, 3)},
        ValueError,
        "key must have the batch and features of query; got (3, 6, 2, 3) for (2, 5, 4, 3).",
    ),
    (
        {"key": shaped(2, 6, 2, 7)},
        ValueError,
        "key must have the batch and features of query; got (2, 6, 2, 7) for (2, 5, 4, 3).",
    ),
    (
        {"key": shaped(6, 2, 3)},
        ValueError,
        "key must have the batch and features of query; got (6, 2, 3) for (2, 5, 4, 3).",
    ),
    (
        {"value": shaped(2, 6, 1, 5)},
        ValueError,
        "value must have the shape of key, except for its features; got (2, 6, 1, 5) for"
        " (2, 6, 2, 3).",
    ),
    (
        {"key": shaped(2, 6, 2, 3, dtype=jnp.bfloat16)},
        TypeError,
        "key must have the dtype of query; got bfloat16 for float32.",
    ),
    (
        {"value": shaped(2, 6, 2, 3, dtype=jnp.float16)},
        TypeError,
        "value must have the dtype of query; got float16 for float32.",
    ),
    (
        dict.fromkeys(("query", "key", "value"), shaped(2, 5, 2, 3, dtype=jnp.float4_e2m1fn)),
        TypeError,
        "query must have a dtype of at least 8 bits; got float4_e2m1fn.",
    ),
    (
        {"key": shaped(2, 6, 3, 3), "value": shaped(2, 6, 3, 3)},
        ValueError,
        "key must have a number of heads that divides that of query; got 3 for 4.",
    ),
    (
        {"key": shaped(2, 6, 0, 3), "value": shaped(2, 6, 0, 3)},
        ValueError,
        "key must have a number of heads that divides that of query; got 0 for 4.",
    ),
]

BAD_OPTIONS = [
    ({"rng": None}, TypeError, "rng must be one key; got None. Make one with jax.random.key."),
    (
        {"rng": np.zeros((3, 2), np.uint32)},
        TypeError,
        "rng must be one key; got a batch of shape (3,). Use jax.vmap.",
    ),
    (
        {"rng": np.zeros((3, 2), np.uint32), "rate": 0},
        TypeError,
        "rng must be one key; got a batch of shape (3,). Use jax.vmap.",
    ),
    (
        {"rng": 3, "rate": 1},
        TypeError,
        "rng must be one key; got 3. Make one with jax.random.key.",
    ),
    ({"rate": 1.5}, ValueError, "rate must lie in [0, 1]; got 1.5."),
    ({"rate": None}, TypeError, "rate must be a real number; got None."),
    (
        {"bias": shaped(6, 5)},
        ValueError,
        "bias must broadcast to (*B, N, T, S) = (2, 4, 5, 6); got (1, 1, 6, 5).",
    ),
    (
        {"bias": shaped(1, 2, 4, 5, 6)},
        ValueError,
        "bias must broadcast to (*B, N, T, S) = (2, 4, 5, 6); got (1, 2, 4, 5, 6).",
    ),
    (
        {"bias": shaped(5, 6, dtype=jnp.bool_)},
        TypeError,
        "bias must be floating or complex; got bool." + CAST.format("bias"),
    ),
    (
        {"mask": shaped(2, 2, 5, 6, dtype=jnp.bool_)},
        ValueError,
        "mask must broadcast to (*B, N, T, S) = (2, 4, 5, 6); got (2, 2, 5, 6).",
    ),
    (
        {"mask": shaped(5, 6)},
        TypeError,
        "mask must be boolean; got float32. Cast ones and zeros, as in mask.astype(bool). To add"
        " an array to the logits, pass it as bias.",
    ),
    ({"mask": "causal"}, TypeError, "mask must be an array of numbers; got 'causal'."),
    ({"scale": shaped(4)}, ValueError, "scale must be one real number; got float32[4]."),
    ({"scale": 1j}, ValueError, "scale must be one real number; got complex64[]."),
    ({"scale": True}, ValueError, "scale must be one real number; got bool[]."),
    ({"scale": "no"}, TypeError, "scale must be an array of numbers; got 'no'."),
    (
        {"query_seq_lengths": shaped(2)},
        TypeError,
        "query_seq_lengths must be integers; got float32.",
    ),
    (
        {"query_seq_lengths": jnp.arange(3)},
        ValueError,
        "query_seq_lengths must have shape (2,) or (); got (3,).",
    ),
    (
        {"key_value_seq_lengths": jnp.ones((2, 1), jnp.int32)},
        ValueError,
        "key_value_seq_lengths must have shape (2,) or (); got (2, 1).",
    ),
    (
        {"key_value_seq_lengths": (3, 5)},
        TypeError,
        "key_value_seq_lengths must be an array of numbers; got (3, 5). Use jnp.asarray.",
    ),
    ({"is_causal": 1}, TypeError, "is_causal must be True or False; got 1."),
    (
        {"is_causal": jnp.array(True)},
        TypeError,
        "is_causal must be True or False; got bool[].",
    ),
    (
        {"local_window_size": -1},
        ValueError,
        "local_window_size must be one number of at least 0, or two (before, after); got -1.",
    ),
    (
        {"local_window_size": (1, -1)},
        ValueError,
        "local_window_size must be one number of at least 0, or two (before, after); got (1, -1).",
    ),
    (
        {"local_window_size": (1, 2, 3)},
        ValueError,
        "local_window_size must be one number of at least 0, or two (before, after);"
        " got (1, 2, 3).",
    ),
    (
        {"local_window_size": ()},
        ValueError,
        "local_window_size must be one number of at least 0, or two (before, after); got ().",
    ),
    ({"local_window_size": 1.5}, TypeError, "local_window_size must be integers; got 1.5."),
    (
        {"broadcast_dims": 4},
        ValueError,
        "broadcast_dims must lie in [-4, 4) for 4 axes; got 4.",
    ),
    (
        {"broadcast_dims": (0, -4)},
        ValueError,
        "broadcast_dims must name each axis once; got (0, -4).",
    ),
    (
        {"segment_ids": jnp.zeros((3, 5), jnp.int32)},
        TypeError,
        "segment_ids must be a pair, those of queries and those of keys; got int32[3, 5].",
    ),
    (
        {"segment_ids": (jnp.zeros((2, 5), jnp.int32),) * 2},
        ValueError,
        "segment_ids must have shapes (2, 5) and (2, 6); got (2, 5) and (2, 5).",
    ),
    ({"segment_ids": (shaped(2, 5), 0)}, TypeError, "segment_ids must be integers; got float32."),
    ({"logits_soft_cap": 0}, ValueError, "logits_soft_cap must be positive and finite; got 0."),
    (
        {"logits_soft_cap": jnp.float32(3)},
        TypeError,
        "logits_soft_cap must be a known number; got float32[].",
    ),
    ({"return_residual": 1}, TypeError, "return_residual must be True or False; got 1."),
    ({"part": (0, 0)}, TypeError, "part must be a Part; got (0, 0)."),
    (
        {"part": Part((0, 0), (5, 6))},
        ValueError,
        "part.shape must be the sizes of an array that has (2, 4, 5, 6) as a part; got (5, 6).",
    ),
]


@each
@pytest.mark.parametrize(
    ("changes", "kind", "message"), BAD_ARRAYS + BAD_OPTIONS, ids=lambda value: None
)
def test_bad_arguments(implementation, changes, kind, message):
    assert_raises(kind, message, implementation=implementation, **changes)


@pytest.mark.parametrize("option", ["query_block_size", "key_block_size"])
@pytest.mark.parametrize("rate", [0, 0.5, 1])
def test_bad_block_sizes(option, rate):
    for value, kind, message in [
        (0, ValueError, f"{option} must be at least 1; got 0."),
        (-3, ValueError, f"{option} must be at least 1; got -3."),
        (64.0, TypeError, f"{option} must be integers; got 64.0."),
    ]:
        assert_raises(kind, message, rate=rate, **{option: value})


@pytest.mark.parametrize("option", ["query_block_size", "key_block_size"])
@pytest.mark.parametrize("rate", [0, 0.5, 1])
def test_whole_has_no_blocks(option, rate):
    message = (
        f"{option} must be None with implementation='whole', which has no blocks; got 3."
        " Leave it out, or use implementation='tiled'."
    )
    assert_raises(ValueError, message, rate=rate, implementation="whole", **{option: 3})


@pytest.mark.parametrize("unknown", ["flash", "", ["tiled"], 0], ids=repr)
def test_unknown_implementations(unknown):
    message = f"implementation must be None or one of 'tiled', 'whole', 'kernel'; got {unknown!r}."
    assert_raises(ValueError, message, implementation=unknown)


@each
def test_without_a_batch_axes_are_those_of_one_sample(implementation):
    one = {"query": QUERY[0], "key": KEYS[0], "value": KEYS[0], "implementation": implementation}
    message = "broadcast_dims must lie in [-3, 3) for 3 axes; got 3."
    assert_raises(ValueError, message, broadcast_dims=3, **one)
    message = "bias must broadcast to (*B, N, T, S) = (1, 4, 5, 6); got (2, 4, 5, 6)."
    assert_raises(ValueError, message, bias=shaped(2, 4, 5, 6), **one)
    message = "query_seq_lengths must have shape (1,) or (); got (2,)."
    assert_raises(ValueError, message, query_seq_lengths=jnp.array([1, 2]), **one)


@each
def test_key_is_needed_for_every_rate_but_a_known_zero_and_one(implementation):
    message = "rng must be one key; got None. Make one with jax.random.key."
    for rate in (0.5, jnp.float32(0), jnp.float32(1)):
        assert_raises(TypeError, message, rng=None, rate=rate, implementation=implementation)
    attend = partial(dot_product_attention, None, QUERY, KEYS, KEYS, implementation=implementation)
    assert attend(0.0).shape == QUERY.shape
    out, residual = attend(1, return_residual=True)
    assert not out.any()
    np.testing.assert_allclose(residual, attend(0, return_residual=True)[1], rtol=1e-5)


def test_flags_and_numbers_of_numpy_are_taken():
    options = {"is_causal": np.True_, "return_residual": np.False_, "scale": np.int8(2)}
    options |= {"local_window_size": np.array([1, 2]), "logits_soft_cap": np.float16(3)}
    options |= {"query_block_size": np.int64(2), "segment_ids": [np.zeros((2, 5), int)] * 2}
    attend = partial(dot_product_attention, np.zeros(2, np.uint32), rate=np.array(0.5), **options)
    assert jax.eval_shape(attend, QUERY, QUERY, QUERY).shape == QUERY.shape


@each
def test_errors_are_raised_while_tracing_too(implementation):
    def attend(x):
        rng = np.zeros(2, np.uint32)
        return dot_product_attention(rng, x, KEYS, x, 0.5, implementation=implementation)

    with pytest.raises(ValueError, match=rf"^{NAME}: value must have the shape of key"):
        jax.jit(attend)(QUERY)
