"""Ways to run the same computation, and how JAX versions spell them."""

import jax
import jax.experimental
import pytest
from jax.experimental import checkify

from jaxdrop.base.compat import CHECKS_LEAVE_CHECKPOINT_WORKING


def enable_x64(enabled=True):
    """A context manager that turns 64-bit types on or off."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    if enabled:
        return jax.experimental.enable_x64()
    return jax.experimental.disable_x64()


def quick_jit(function, **options):
    """`jax.jit` that compiles twice as fast, for programs that run once, on little data."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def assert_check_failed(error, match):
    """A check failed under `checkify`; before JAX 0.8 there are none."""
    if CHECKS_LEAVE_CHECKPOINT_WORKING:
        with pytest.raises(checkify.JaxRuntimeError, match=match):
            error.throw()
    else:
        error.throw()


KEY_IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg", "raw"]
for _name in ("philox2x32", "philox4x32", "threefry4x32"):
    try:
        jax.random.key_impl(jax.random.key(0, impl=_name))
    except ValueError:
        continue
    KEY_IMPLEMENTATIONS.append(_name)


def make_key(implementation, seed=0):
    """One key of the named implementation; "raw" is an old-style array."""
    if implementation == "raw":
        return jax.random.PRNGKey(seed)
    return jax.random.key(seed, impl=implementation)


def make_keys(implementation, count):
    """A batch of the keys with seeds 0 to `count - 1`."""
    keys = jax.numpy.stack([make_key(implementation, seed) for seed in range(count)])
    # The key reuse checker takes stacked keys for used ones.
    return keys if implementation == "raw" else jax.random.clone(keys)
