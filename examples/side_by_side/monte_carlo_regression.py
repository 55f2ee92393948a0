"""Regression whose network says how sure it is, by Monte Carlo dropout."""

import jax
import jax.numpy as jnp
import optax

from jaxdrop import dropout, monte_carlo, uncertainty


# With JAX alone.
def jax_drop(key, x):
    return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0)


def jax_prediction(network, key, params, x):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(100))
    mean, log_variance = jax.vmap(lambda key: network(jax_drop, params, x, key))(keys)
    total = jnp.var(mean, axis=0) + jnp.mean(jnp.exp(log_variance), axis=0)
    return jnp.mean(mean, axis=0), total


# With jaxdrop.
def drop(key, x):
    return dropout(key, x, 0.1)


def prediction(network, key, params, x):
    sample = monte_carlo(lambda key: network(drop, params, x, key), 100)
    mean, log_variance = sample(key)
    found = uncertainty.regression(mean, jnp.exp(log_variance))
    return found.mean, found.total


# Both, trained on a wave that is noisier on the right.
def network(drop, params, x, key):
    """The mean and the logarithm of the variance."""
    keys = jax.random.split(key, len(params) - 1)
    for (w, b), key in zip(params, keys, strict=False):
        x = drop(key, jax.nn.gelu(x @ w + b))
    w, b = params[-1]
    return tuple(jnp.moveaxis(x @ w + b, -1, 0))


def train(drop, prediction) -> tuple[float, float]:
    """The negative log-likelihood of the predictions, before and after."""
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.uniform(keys[0], (256, 1), minval=-1.0)
    noise = 0.05 + 0.2 * (x[:, 0] > 0)
    y = jnp.sin(4 * x[:, 0]) + noise * jax.random.normal(keys[1], (256,))
    sizes = zip((1, 64, 64), (64, 64, 2), keys[2:5], strict=True)
    params = [(jax.random.normal(k, (n, m)) / n**0.5, jnp.zeros(m)) for n, m, k in sizes]
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        mean, log_variance = network(drop, params, x, key)
        return jnp.mean((y - mean) ** 2 * jnp.exp(-log_variance) + log_variance)

    def step(state, key):
        params, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(params, key), memory)
        return (optax.apply_updates(params, updates), memory), None

    @jax.jit
    def score(params):
        mean, variance = prediction(network, keys[5], params, x)
        return jnp.mean((y - mean) ** 2 / variance + jnp.log(variance)) / 2

    steps = jax.random.split(jax.random.key(1), 200)
    (trained, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, steps))(
        (params, optimizer.init(params))
    )
    return float(score(params)), float(score(trained))


PROGRAMS = {
    "jax": lambda: train(jax_drop, jax_prediction),
    "jaxdrop": lambda: train(drop, prediction),
}
