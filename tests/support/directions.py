"""First and second derivatives of a function of a pytree, forwards and backwards."""

import jax
import jax.numpy as jnp


def forwards(run):
    """The derivative along a fixed direction, by `jvp`."""
    return lambda at: jax.jvp(run, (at,), (direction(at),))[1]


def backwards(run):
    """The same derivative, by `grad`."""
    return lambda at: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(run)(at), direction(at))))


def direction(at):
    return jax.lax.stop_gradient(jax.tree.map(jnp.cos, at))


ORDERS = {
    "forwards of forwards": lambda run: forwards(forwards(run)),
    "forwards of backwards": lambda run: forwards(jax.grad(run)),
    "backwards of forwards": lambda run: jax.grad(forwards(run)),
    "backwards of backwards": lambda run: jax.grad(backwards(run)),
}
