"""LoRA with Optax: small matrices are trained beside frozen ones, with dropout before them."""

import jax
import jax.numpy as jnp
import optax

from jaxdrop import dropout


# With JAX alone.
def jax_adapted(params, x, key):
    y = x @ params["frozen"]
    if key is not None:
        kept = jax.random.bernoulli(key, 0.9, x.shape)
        x = jnp.where(kept, x / 0.9, 0)
    return y + x @ params["a"] @ params["b"]


# With jaxdrop.
def adapted(params, x, key):
    y = x @ params["frozen"]
    x = x if key is None else dropout(key, x, 0.1)
    return y + x @ params["a"] @ params["b"]


# Both, trained to follow a map that differs from the frozen one by a matrix of rank 2.
def train(adapted) -> tuple[float, float]:
    """The loss at test time, before and after."""
    keys = jax.random.split(jax.random.key(0), 6)
    x, frozen = jax.random.normal(keys[0], (256, 32)), jax.random.normal(keys[1], (32, 32))
    shift = jax.random.normal(keys[2], (32, 2)) @ jax.random.normal(keys[3], (2, 32)) / 8
    target = x @ (frozen + shift)
    params = {
        "frozen": frozen,
        "a": jax.random.normal(keys[4], (32, 4)) / 32**0.5,
        "b": jnp.zeros((4, 32)),
    }
    labels = {"frozen": "frozen", "a": "trained", "b": "trained"}
    optimizer = optax.multi_transform(
        {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()}, labels
    )

    def loss(params, key=None):
        return jnp.mean((adapted(params, x, key) - target) ** 2)

    def step(state, key):
        params, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(params, key), memory)
        return (optax.apply_updates(params, updates), memory), None

    steps = jax.random.split(keys[5], 200)
    (trained, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, steps))(
        (params, optimizer.init(params))
    )
    score = jax.jit(loss)
    return float(score(params)), float(score(trained))


PROGRAMS = {"jax": lambda: train(jax_adapted), "jaxdrop": lambda: train(adapted)}
