"""The whole is attention as written down, and `jax.nn.dot_product_attention` at rate 0."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import cases
from hypothesis import given, settings
from modes import enable_x64, make_key, quick_jit
from reference import masks as numpy_reference

from jaxdrop import dot_product_attention

whole = partial(dot_product_attention, implementation="whole")
KEY_WORDS = (0, 3)


def as_batch(x, case):
    return np.asarray(x, np.float64)[None] if case.batch is None else np.asarray(x, np.float64)


def over_weights(x, shape):
    return np.broadcast_to(np.asarray(x), shape)


def sees(case, fixed, shape):
    """Which query sees which key, pair by pair."""
    batch, _, queries, keys = shape
    mask = over_weights(fixed.get("mask", True), shape)
    limits = [
        np.broadcast_to(fixed.get(name, most), batch)
        for name, most in (("query_seq_lengths", queries), ("key_value_seq_lengths", keys))
    ]
    window = (case.window, case.window) if isinstance(case.window, int) else case.window
    before, after = window or (keys + queries, keys + queries)
    seen = np.zeros(shape, bool)
    for b, n, t, s in itertools.product(*map(range, shape)):
        real = t < limits[0][b] and s < limits[1][b]
        near = t - before <= s <= t + after and not (case.is_causal and s > t)
        seen[b, n, t, s] = real and near and mask[b, n, t, s]
    return seen


def attention_in_numpy(case, moving, fixed):
    """Query by query, in float64, with the mask of `numpy_reference`."""
    shape = (1, *case.weights_shape)[-4:]
    query, key, value = (as_batch(moving[name], case) for name in ("query", "key", "value"))
    bias = over_weights(moving.get("bias", 0), shape)
    scale = case.features**-0.5 if case.scale is None else case.scale
    kept_shape = tuple(1 if i in case.shared else n for i, n in enumerate(case.weights_shape))
    kept = over_weights(numpy_reference.mask(KEY_WORDS, kept_shape, case.rate), shape)
    keep_prob = numpy_reference.keep_prob(case.rate)
    seen, out = sees(case, fixed, shape), np.zeros(query.shape)
    for b, n, t in itertools.product(*map(range, shape[:3])):
        (keys,) = np.nonzero(seen[b, n, t])
        if keys.size and keep_prob:
            head = n // case.groups
            logits = scale * key[b, keys, head] @ query[b, t, n] + bias[b, n, t, keys]
            weights = np.exp(logits - logits.max())
            weights = weights / weights.sum() * kept[b, n, t, keys] / keep_prob
            out[b, t, n] = weights @ value[b, keys, head]
    return out.reshape(moving["query"].shape)


@settings(max_examples=20)
@given(case=cases())
def test_whole_is_attention_written_in_numpy(case):
    with enable_x64():
        moving, fixed = case.moving("float64"), case.fixed()

        @quick_jit
        def run(rng, rate, fixed, moving):
            rate = rate if case.rate_is_traced else case.rate
            return whole(rng, rate=rate, **moving, **fixed, **case.static())

        out = run(np.array(KEY_WORDS, np.uint32), jnp.float32(case.rate), fixed, moving)
    np.testing.assert_allclose(out, attention_in_numpy(case, moving, fixed), rtol=0, atol=1e-12)


def test_windows_hide_all_that_lies_beyond_and_nothing_else():
    queries, keys = 4, 5
    value = jnp.eye(keys)[:, None]  # the output is the weights
    windows = list(itertools.product(range(keys + 1), repeat=2))

    @quick_jit
    def weights():
        arrays = jnp.zeros((queries, 1, keys)), jnp.zeros((keys, 1, keys)), value
        return [whole(None, *arrays, 0, local_window_size=window)[:, 0] for window in windows]

    row, column = np.arange(queries)[:, None], np.arange(keys)[None, :]
    for (before, after), found in zip(windows, weights(), strict=True):
        seen = (row - before <= column) & (column <= row + after)
        np.testing.assert_array_equal(np.asarray(found) != 0, seen)


@settings(max_examples=10)
@given(case=cases())
def test_whole_at_rate_zero_is_that_of_jax(case):
    moving, fixed = case.moving("float32"), case.fixed()
    shape = (1, *case.weights_shape)[-4:]

    @quick_jit
    def both(moving, fixed):
        options = case.static()
        ours = whole(make_key("raw"), rate=0, **moving, **fixed, **options)
        # That of JAX takes neither leading sizes that are missing nor one length for all.
        wide = {"bias": shape, "mask": shape, "query_seq_lengths": shape[:1]}
        wide["key_value_seq_lengths"] = shape[:1]
        arrays = {
            name: jnp.broadcast_to(
                x.reshape((1,) * (len(wide[name]) - x.ndim) + x.shape), wide[name]
            )
            for name, x in (moving | fixed).items()
            if name in wide
        }
        theirs = jax.nn.dot_product_attention(
            *(moving[name] for name in ("query", "key", "value")),
            scale=moving.get("scale", case.scale),
            is_causal=case.is_causal,
            local_window_size=case.window,
            **arrays,
        )
        return ours, theirs

    ours, theirs = both(moving, fixed)
    # Queries that see nothing get the mean of the values there, and zeros here.
    lost = ~sees(case, fixed, shape).any(-1).swapaxes(1, 2).reshape(ours.shape[:-1])
    np.testing.assert_array_equal(np.asarray(ours)[lost], 0)
    np.testing.assert_allclose(
        np.asarray(ours)[~lost], np.asarray(theirs)[~lost], rtol=1e-5, atol=1e-5
    )
