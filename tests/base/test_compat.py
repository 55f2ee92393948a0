"""What is said of JAX, asked of the JAX that is installed."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import mesh

from jaxdrop.base.compat import CHECKS_LEAVE_CHECKPOINT_WORKING, debug_check, zeros_of

pytestmark = pytest.mark.quick


def differentiable_with(check):
    """Whether `jax.checkpoint` differentiates a function with a check in it."""

    @jax.checkpoint
    def checked(x):
        check(x > 0, "x must be positive; got {x}", x=x)
        return 2 * x

    try:
        return jax.grad(checked)(1.0) == 2
    except NotImplementedError:
        return False


def test_checks_are_made_where_checkpoint_takes_them():
    assert differentiable_with(checkify.debug_check) == CHECKS_LEAVE_CHECKPOINT_WORKING
    assert differentiable_with(debug_check)


def test_check_fails_under_checkify_where_it_is_made():
    def checked(x):
        debug_check(x > 0, "x must be positive; got {x}", x=x)
        return x

    error, _ = checkify.checkify(checked)(jnp.float32(-1))
    assert (error.get() is not None) == CHECKS_LEAVE_CHECKPOINT_WORKING


def test_zeros_have_the_type_of_what_they_stand_for():
    x = jnp.ones((4, 6), jnp.bfloat16)
    split = jax.device_put(x, NamedSharding(mesh(AxisType.Explicit), P("a", "b")))
    _, zeros = jax.jit(lambda x: (x, zeros_of(lambda: {"a": x, "b": 3 * x})))(split)
    for leaf in (zeros["a"], zeros["b"]):
        assert jax.typeof(leaf) == jax.typeof(split)
        assert not leaf.any()
    assert jax.typeof(zeros_of(lambda: x)) == jax.typeof(x)
