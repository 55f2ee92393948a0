"""What is split, and how, by the types of arrays on a mesh with Explicit axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import mesh

from jaxdrop.base.sharding import (
    automatic,
    explicit_sharding,
    laid_like,
    shard_count,
    sharded_along,
    spread_to,
    whole,
    whole_along,
    zeros_like,
)

pytestmark = pytest.mark.quick

MESH = mesh(AxisType.Explicit)
SHAPE = (4, 6, 8)


def split(spec, shape=SHAPE):
    return jax.device_put(jnp.arange(np.prod(shape)).reshape(shape), NamedSharding(MESH, spec))


def laid(lay, value, x):
    """What a function makes of a value under `jit`, where all methods use it."""
    return jax.jit(lay)(jax.device_put(value, NamedSharding(MESH, P())), x)


def assert_same_but_split(y, x, *spec):
    np.testing.assert_array_equal(y, x)
    assert tuple(jax.typeof(y).sharding.spec) == spec


def test_type_says_nothing_of_what_is_not_split_on_explicit_axes():
    assert explicit_sharding(jnp.ones(8)) is None
    assert explicit_sharding(split(P())) is None
    assert explicit_sharding(jax.device_put(jnp.ones(8), NamedSharding(mesh(), P("a")))) is None
    assert tuple(explicit_sharding(split(P("a"))).spec) == ("a", None, None)


@pytest.mark.parametrize(
    ("axes", "spec"), [((0,), ("a",)), ((2, 0), ("b", "a")), ((1,), (None,)), ((0, 1), ("a", None))]
)
def test_values_of_slices_are_split_as_their_axes_are(axes, spec):
    values = jnp.ones([SHAPE[axis] for axis in axes])
    y = laid(lambda v, x: sharded_along(v, x, *axes), values, split(P("a", None, "b")))
    assert_same_but_split(y, values, *spec)


def test_value_without_axes_or_of_an_array_that_is_not_split_stays_as_it_is():
    value = jnp.ones(())
    assert sharded_along(value, split(P("a"))) is value
    rows, x = jnp.ones(4), jnp.ones(SHAPE)
    assert sharded_along(rows, x, 0) is rows
    assert spread_to(rows, x) is rows
    assert laid_like(rows, x) is rows
    assert whole(x) is x
    assert whole_along(x, 0) is x


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((4, 1, 8), ("a", None, "b")), ((1, 6, 8), (None, None, "b")), ((4, 1), ("a", None))],
)
def test_value_is_spread_as_the_array_is_but_where_it_has_size_one(shape, spec):
    value = jnp.ones(shape)
    assert_same_but_split(laid(spread_to, value, split(P("a", None, "b"))), value, *spec)


def test_array_is_made_whole_along_all_axes_or_one():
    x = split(P("a", None, "b"))
    assert_same_but_split(whole(x), x, None, None, None)
    assert_same_but_split(whole_along(x, 0), x, None, None, "b")
    assert_same_but_split(whole_along(x, 2), x, "a", None, None)


def test_value_of_fewer_axes_is_laid_like_the_first_ones():
    value = jnp.ones((4, 6))
    assert_same_but_split(laid(laid_like, value, split(P("a", None, "b"))), value, "a", None)


def test_function_on_automatic_axes_sees_none_and_its_result_is_split_as_the_array_is():
    def double(y):
        assert explicit_sharding(y) is None
        return 2 * y

    x = split(P("a", None, "b"))
    assert_same_but_split(automatic(double, P(None, None, "b"), x), 2 * x, None, None, "b")
    plain = jnp.ones(3)
    np.testing.assert_array_equal(automatic(double, P("a"), plain), 2 * plain)


@pytest.mark.parametrize(("entry", "count"), [(None, 1), ("a", 4), ("b", 2), (("a", "b"), 8)])
def test_an_axis_is_split_into_as_many_parts_as_there_are_devices_along_its_mesh_axes(entry, count):
    assert shard_count(MESH, entry) == count


@pytest.mark.parametrize("under", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("spec", [P("a"), P("a", None, "b"), P(None, None, ("a", "b"))])
def test_zeros_lie_as_the_array_does_also_where_no_mesh_is_set(spec, under):
    x = split(spec)

    def zeros_and_spec(x):
        specs.append(tuple(jax.typeof(zeros_like(x)).sharding.spec))
        return zeros_like(x)

    specs = []
    y = under(zeros_and_spec)(x)
    assert_same_but_split(y, np.zeros(SHAPE, x.dtype), *specs[0])
    assert specs[0] == tuple(jax.typeof(x).sharding.spec)
    assert y.dtype == x.dtype
