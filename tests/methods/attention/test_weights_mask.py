"""The mask of the weights is that of `dropout`, bit for bit, however they are cut into tiles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import make_key, quick_jit

from jaxdrop import Part, dot_product_attention, dropout

RATE = 0.5


def identity(*batch, keys, heads):
    """Values with which the output is the weights themselves."""
    return jnp.broadcast_to(jnp.eye(keys)[:, None], (*batch, keys, heads, keys))


def dropped(rng, shape, key_heads, **options):
    """Which weights attention drops, of weights that are all positive."""
    *batch, heads, queries, keys = shape
    query = jnp.zeros((*batch, queries, heads, keys))
    value = identity(*batch, keys=keys, heads=key_heads)
    out = dot_product_attention(rng, query, jnp.zeros_like(value), value, RATE, **options)
    return out.swapaxes(-3, -2) == 0


def dropped_by_dropout(rng, shape, **options):
    return dropout(rng, jnp.ones(shape), RATE, **options) == 0


@pytest.mark.parametrize(
    ("shape", "key_heads", "shared", "blocks"),
    [
        ((2, 3, 9, 5), 3, (), (None, None)),  # all axes merged
        ((4, 11, 7), 2, (0,), (3, 7)),
        ((2, 2, 6, 33), 1, (), (6, 32)),
        ((3, 2, 7, 40), 1, (1,), (2, 40)),
        ((2, 6, 5, 64), 2, (), (2, 32)),  # each tile starts at a word
        ((2, 2, 5, 100), 2, (0, 2), (3, 32)),
        ((2, 2, 5, 40), 1, (3,), (1, 9)),
    ],
    ids=str,
)
def test_mask_is_that_of_dropout_for_any_blocks(shape, key_heads, shared, blocks):
    tiled = partial(dropped, shape=shape, key_heads=key_heads, broadcast_dims=shared)
    tiled = quick_jit(partial(tiled, query_block_size=blocks[0], key_block_size=blocks[1]))
    whole = dropped_by_dropout(make_key("raw"), shape, broadcast_dims=shared)
    np.testing.assert_array_equal(tiled(make_key("raw")), np.broadcast_to(whole, shape))
    assert 0.1 < np.mean(whole) < 0.9


@pytest.mark.parametrize("first", [32, 39])
def test_mask_of_tiles_of_a_part_that_starts_at_a_word_or_within_one(first):
    options = {"part": Part((0, 0, first), (2, 5, 128)), "query_block_size": 2}
    tiled = quick_jit(partial(dropped, shape=(2, 5, 64), key_heads=1, key_block_size=32, **options))
    larger = dropped_by_dropout(make_key("raw"), (2, 5, 128))
    np.testing.assert_array_equal(tiled(make_key("raw")), larger[..., first : first + 64])


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])  # one place takes all kinds
def test_mask_is_that_of_dropout_for_every_kind_of_key(kind):
    tiled = quick_jit(partial(dropped, shape=(1, 2, 3, 7), key_heads=1))
    whole = dropped_by_dropout(make_key(kind, 5), (1, 2, 3, 7))
    np.testing.assert_array_equal(tiled(make_key(kind, 5)), whole)


@pytest.mark.parametrize("lengths", [64, 32])
@pytest.mark.parametrize("implementation", ["tiled", "whole"])
def test_weights_are_those_of_dropout_of_the_softmax(implementation, lengths):
    """Of equal logits, and with all numbers powers of two, so that nothing is rounded."""
    value = identity(2, keys=64, heads=2)
    query = jnp.zeros((2, 5, 2, 64))
    options = {"key_value_seq_lengths": lengths, "implementation": implementation}
    run = partial(dot_product_attention, rate=RATE, **options)
    out = quick_jit(run)(make_key("raw"), query, jnp.zeros_like(value), value)
    weights = jnp.where(jnp.arange(64) < lengths, 1 / lengths, jnp.zeros((2, 2, 5, 64)))
    np.testing.assert_array_equal(out.swapaxes(1, 2), dropout(make_key("raw"), weights, RATE))


def test_derivatives_have_the_mask_of_the_output():
    shape, rng = (2, 2, 33, 33), make_key("raw")
    values = identity(2, keys=33, heads=2)

    @quick_jit
    def weights(value):
        zeros = jnp.zeros_like(value)
        attend = partial(dot_product_attention, rng, zeros, zeros, rate=RATE, key_block_size=20)
        out, tangent = jax.jvp(attend, (value,), (value,))
        # The cotangents of the values are the transposed weights.
        return out, tangent, jax.vjp(attend, value)[1](value)[0].transpose(0, 3, 2, 1)

    whole = dropped_by_dropout(make_key("raw"), shape)
    for found in weights(values):
        np.testing.assert_array_equal(found.swapaxes(1, 2) == 0, whole)
