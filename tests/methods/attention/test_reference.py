"""The whole is attention as written down, and `jax.nn.dot_product_attention` at rate 0."""

import itertools
from dataclasses import replace
from functools import partial

import chex
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


def as_batch(x):
    return np.asarray(x, np.float64).reshape(-1, *x.shape[-3:])


def over_weights(x, case):
    return np.broadcast_to(np.asarray(x), case.weights_shape).reshape(case.merged_shape)


def sees(case, fixed):
    """Which query sees which key, pair by pair."""
    batch, _, queries, keys = case.merged_shape
    mask = over_weights(fixed.get("mask", True), case)
    limits = [
        np.broadcast_to(fixed.get(name, 10**6), case.batch).reshape(-1)
        for name in ("query_seq_lengths", "key_value_seq_lengths")
    ]
    ids = fixed.get("segment_ids", (np.zeros((batch, queries)), np.zeros((batch, keys))))
    rows, columns = (np.reshape(each, (batch, -1)) for each in ids)
    window = (case.window, case.window) if isinstance(case.window, int) else case.window
    before, after = window or (10**6, 10**6)
    seen = np.zeros(case.merged_shape, bool)
    for b, n, i, j in itertools.product(*map(range, case.merged_shape)):
        t, s = i + case.start[-2], j + case.start[-1]  # where the whole is attended to
        real = t < limits[0][b] and s < limits[1][b] and rows[b, i] == columns[b, j]
        near = t - before <= s <= t + after and not (case.is_causal and s > t)
        seen[b, n, i, j] = real and near and mask[b, n, i, j]
    return seen


def kept_weights(case):
    """The part of the mask of the larger weights."""
    shape = tuple(1 if i in case.shared else n for i, n in enumerate(case.larger_shape))
    larger = np.broadcast_to(numpy_reference.mask(KEY_WORDS, shape, case.rate), case.larger_shape)
    spans = zip(case.start, case.weights_shape, strict=True)
    return larger[tuple(slice(start, start + size) for start, size in spans)]


def attention_in_numpy(case, moving, fixed):
    """Query by query, in float64, with the mask of `numpy_reference`."""
    query, key, value = (as_batch(moving[name]) for name in ("query", "key", "value"))
    bias = over_weights(moving.get("bias", 0), case)
    scale = case.features**-0.5 if case.scale is None else case.scale
    kept, keep_prob = over_weights(kept_weights(case), case), numpy_reference.keep_prob(case.rate)
    seen, out = sees(case, fixed), np.zeros((*query.shape[:-1], case.value_features))
    residual = np.full(query.shape[:-1], -np.inf)
    for b, n, t in itertools.product(*map(range, case.merged_shape[:3])):
        (keys,) = np.nonzero(seen[b, n, t])
        if keys.size:
            head = n // case.groups
            logits = scale * key[b, keys, head] @ query[b, t, n]
            if case.soft_cap is not None:
                logits = case.soft_cap * np.tanh(logits / case.soft_cap)
            logits = logits + bias[b, n, t, keys]
            residual[b, t, n] = np.log(np.exp(logits).sum())
            weights = np.exp(logits - residual[b, t, n]) * kept[b, n, t, keys]
            out[b, t, n] = (weights / keep_prob if keep_prob else weights) @ value[b, keys, head]
    rows = moving["query"].shape[:-1]
    out, residual = out.reshape(*rows, case.value_features), residual.reshape(rows)
    return (out, residual) if case.residual else out


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
    chex.assert_trees_all_close(out, attention_in_numpy(case, moving, fixed), rtol=0, atol=1e-12)


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
    # That of JAX has one batch axis or none, and neither caps, documents nor larger weights.
    batch = case.batch[-1:]
    case = replace(case, batch=batch, margins=None, soft_cap=None, segments=False, shared=())
    case = replace(case, value_features=case.features)
    moving, fixed = case.moving("float32"), case.fixed()
    shape = case.merged_shape

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
            return_residual=True,
            **arrays,
        )
        return ours, theirs if case.residual else theirs[0]

    ours, theirs = both(moving, fixed)
    # Queries that see nothing get the mean of the values there, and zeros here.
    lost = ~sees(case, fixed).any(-1).swapaxes(1, 2).reshape(moving["query"].shape[:-1])
    for a, b, empty in zip(*map(jax.tree.leaves, (ours, theirs)), (0, -np.inf), strict=False):
        np.testing.assert_array_equal(np.asarray(a)[lost], empty)
        np.testing.assert_allclose(np.asarray(a)[~lost], np.asarray(b)[~lost], rtol=1e-5, atol=1e-5)
