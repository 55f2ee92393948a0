"""A part of a mask is a slice of the whole mask, wherever it starts and however it is packed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import mesh
from modes import make_key, quick_jit
from numpy.lib.stride_tricks import sliding_window_view

from jaxdrop import Part, draw_mask, dropout
from jaxdrop.base.compat import CHECKS_LEAVE_CHECKPOINT_WORKING

RATE = 0.3
PARTS = {  # whole, shared axes, sizes of the part
    "rows that are whole words": ((5, 64), (), (2, 64)),
    "columns within words": ((3, 96), (), (2, 40)),
    "short rows, merged": ((4, 7, 10), (), (2, 3, 10)),
    "short rows, cut": ((7, 10), (), (7, 4)),
    "packed in another way than the whole": ((4, 100, 10), (), (2, 7, 10)),
    "one axis": ((70,), (), (40,)),
    "shared along an axis that is cut": ((4, 3, 64), (1,), (2, 2, 32)),
    "shared along the last axis": ((3, 40, 5), (2,), (2, 33, 4)),
}


@pytest.mark.parametrize("name", PARTS)
def test_part_is_a_slice_of_the_whole(name):
    whole, shared, sizes = PARTS[name]
    full = draw_mask(make_key("raw"), whole, RATE, broadcast_dims=shared).unpack()
    full = np.broadcast_to(full, whole)
    counts = [n - m + 1 for n, m in zip(whole, sizes, strict=True)]
    starts = np.stack(np.unravel_index(np.arange(np.prod(counts)), counts))

    @quick_jit
    @jax.vmap
    def parts(start):
        part = Part(tuple(start), whole)
        mask = draw_mask(make_key("raw"), sizes, RATE, broadcast_dims=shared, part=part)
        return jnp.broadcast_to(mask.unpack(), sizes)

    slices = sliding_window_view(full, sizes).reshape(-1, *sizes)
    np.testing.assert_array_equal(parts(starts.T), slices)
    known = Part(tuple(starts[:, -1].tolist()), whole)
    mask = draw_mask(make_key("raw"), sizes, RATE, broadcast_dims=shared, part=known)
    np.testing.assert_array_equal(np.broadcast_to(mask.unpack(), sizes), slices[-1])


@pytest.mark.parametrize("spec", [P("a"), P(None, ("a", "b")), P("b", "a")], ids=str)
def test_shards_that_say_where_they_lie_drop_as_one_array(spec):
    x = jnp.ones((8, 96))

    def drop(shard):
        index = [0 if axes is None else jax.lax.axis_index(axes) for axes in (*spec, None)[:2]]
        start = tuple(i * n for i, n in zip(index, shard.shape, strict=True))
        return dropout(make_key("raw"), shard, 0.5, part=Part(start, x.shape))

    y = jax.jit(jax.shard_map(drop, mesh=mesh(), in_specs=spec, out_specs=spec))(x)
    np.testing.assert_array_equal(y, dropout(make_key("raw"), x, 0.5))


def test_part_is_a_pytree_of_starts_with_a_static_shape():
    part, x = Part((jnp.int32(1), 0), (5, 64)), jnp.ones((2, 64))
    assert jax.tree.leaves(part) == [1, 0]
    y = jax.jit(lambda part: dropout(make_key("raw"), x, RATE, part=part))(part)
    np.testing.assert_array_equal(y, dropout(make_key("raw"), jnp.ones((5, 64)), RATE)[1:3])


def test_part_of_no_elements():
    mask = draw_mask(make_key("raw"), (0, 0, 5), RATE, part=Part((2, 3, 0), (3, 9, 6)))
    assert mask.unpack().shape == (0, 0, 5)


def test_part_that_is_split_over_explicit_axes():
    x = jax.device_put(jnp.ones((4, 64)), NamedSharding(mesh(AxisType.Explicit), P("a")))
    y = jax.jit(lambda x: dropout(make_key("raw"), x, RATE, part=Part((1, 0), (5, 64))))(x)
    np.testing.assert_array_equal(y, dropout(make_key("raw"), jnp.ones((5, 64)), RATE)[1:])
    assert jax.typeof(y).sharding.spec[0] == "a"


BAD = [
    ((0, 0), TypeError, "part must be a Part; got (0, 0)."),
    (Part((0,), (4, 4)), ValueError, "part.start must have one entry for each of 2 axes; got 1."),
    (
        Part((0, 0), (4, 1)),
        ValueError,
        "part.shape must be the sizes of an array that has (2, 3) as a part; got (4, 1).",
    ),
    (
        Part((0, 0), (4, 4, 4)),
        ValueError,
        "part.shape must be the sizes of an array that has (2, 3) as a part; got (4, 4, 4).",
    ),
    (
        Part((0, 0), (4, 2**32)),
        ValueError,
        "part.shape must have sizes below 2^32; got (4, 4294967296).",
    ),
    (Part((0, 0), (4, 4.5)), TypeError, "part.shape must be integers; got (4, 4.5)."),
    (
        Part((3, 0), (4, 4)),
        ValueError,
        "part.start must lie in [0, 2] for 2 of 4 elements; got 3.",
    ),
    (
        Part((0, -1), (2, 4)),
        ValueError,
        "part.start must lie in [0, 1] for 3 of 4 elements; got -1.",
    ),
    (Part((0.5, 0), (4, 4)), TypeError, "part.start must be integers; got float32."),
    (
        Part((np.arange(2), 0), (4, 4)),
        ValueError,
        "part.start must be scalars; got shape (2,).",
    ),
]


@pytest.mark.quick
@pytest.mark.parametrize(("part", "kind", "message"), BAD, ids=lambda value: None)
def test_bad_parts(part, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(f'dropout: {message}')}$"):
        dropout(make_key("raw"), jnp.ones((2, 3)), RATE, part=part)
    with pytest.raises(kind, match=f"^{re.escape(f'draw_mask: {message}')}$"):
        draw_mask(make_key("raw"), (2, 3), RATE, part=part)


@pytest.mark.parametrize("start", [-1, 0, 38, 39])
def test_traced_start_outside_of_the_whole_fails_under_checkify(start):
    @jax.jit
    @checkify.checkify
    def drop(key, start):
        return dropout(key, jnp.ones((2, 64)), RATE, part=Part((start, 0), (40, 64)))

    error, _ = drop(jax.random.key(0), jnp.int32(start))
    inside = 0 <= start <= 38 or not CHECKS_LEAVE_CHECKPOINT_WORKING
    found = error.get()
    assert (found is None) == inside
    if not inside:
        assert f"part.start must lie in [0, 38]; got {start}" in found
