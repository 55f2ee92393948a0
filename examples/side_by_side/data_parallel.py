"""A bare loop over all devices, with accumulated gradients, a scan over layers and remat."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxdrop import dropout


# With JAX alone.
def jax_layer(x, layer):
    w, key = layer
    y = jax.nn.gelu(x @ w)
    keep = jax.random.bernoulli(key, 0.9, y.shape)
    return x + jnp.where(keep, y / 0.9, 0), None


# With jaxdrop.
def layer(x, layer):
    w, key = layer
    return x + dropout(key, jax.nn.gelu(x @ w), 0.1), None


# Both, trained to learn a random map, with the batch split over the devices.
def train(layer) -> tuple[float, float]:
    """The loss at test time, before and after."""
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    xs = jax.random.normal(jax.random.key(0), (4, 16 * mesh.size, 32))
    xs = jax.device_put(xs, NamedSharding(mesh, P(None, "batch")))
    target = xs @ jax.random.normal(jax.random.key(1), (32, 32)) / 32**0.5
    params = jax.random.normal(jax.random.key(2), (4, 32, 32)) / 32**0.5
    params = jax.device_put(params, NamedSharding(mesh, P()))
    optimizer = optax.MultiSteps(optax.adam(3e-3), every_k_schedule=2)

    def loss(params, batch, key):
        x, target = batch
        keys = jax.random.split(key, len(params))
        y, _ = jax.lax.scan(jax.checkpoint(layer), x, (params, keys))
        return jnp.mean((y - target) ** 2)

    @jax.jit
    def epoch(state, key):
        def step(state, batch_and_key):
            params, memory = state
            slopes = jax.grad(loss)(params, *batch_and_key)
            updates, memory = optimizer.update(slopes, memory, params)
            return (optax.apply_updates(params, updates), memory), None

        keys = jax.random.split(key, len(xs))
        return jax.lax.scan(step, state, ((xs, target), keys))[0]

    @jax.jit
    def score(params):
        y = xs
        for w in params:
            y = y + jax.nn.gelu(y @ w)
        return jnp.mean((y - target) ** 2)

    state = params, optimizer.init(params)
    for key in jax.random.split(jax.random.key(3), 30):
        state = epoch(state, key)
    return float(score(params)), float(score(state[0]))


PROGRAMS = {"jax": lambda: train(jax_layer), "jaxdrop": lambda: train(layer)}
