"""A graph network with DropEdge on an undirected graph: both directions of an edge go."""

import jax
import jax.numpy as jnp
import optax

from jaxdrop import drop_edges


# With JAX alone.
def jax_edges(key, weights):
    kept = jax.random.bernoulli(key, 0.8, weights.shape)
    weights = jnp.where(kept, weights / 0.8, 0)
    return jnp.concatenate([weights, weights])


# With jaxdrop.
def edges(key, weights):
    return jnp.tile(drop_edges(key, weights, 0.2), 2)


# Both, trained to tell two groups, of which each is linked more inside than to the other.
def train(edges) -> tuple[float, float]:
    """The loss at test time, before and after."""
    keys = jax.random.split(jax.random.key(0), 6)
    labels = jnp.arange(60) % 2
    pairs = jax.random.randint(keys[0], (2, 900), 0, 60)
    inside = labels[pairs[0]] == labels[pairs[1]]
    weights = (inside | jax.random.bernoulli(keys[1], 0.2, inside.shape)).astype(jnp.float32)
    senders, receivers = jnp.concatenate([pairs, pairs[::-1]], axis=1)
    features = jax.random.normal(keys[2], (60, 8)) + 0.3 * (2 * labels[:, None] - 1)
    params = [
        jax.random.normal(k, n) / 4 for k, n in zip(keys[3:5], [(8, 16), (16, 2)], strict=True)
    ]
    optimizer = optax.adam(1e-2)

    def network(params, both):
        x, degree = features, 1 + jax.ops.segment_sum(both, receivers, 60)
        for w in params:
            sums = jax.ops.segment_sum(both[:, None] * x[senders], receivers, 60)
            x = jnp.tanh((x + sums) / degree[:, None]) @ w
        return x

    def loss(params, key=None):
        both = jnp.tile(weights, 2) if key is None else edges(key, weights)
        logits = network(params, both)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, key):
        params, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(params, key), memory)
        return (optax.apply_updates(params, updates), memory), None

    steps = jax.random.split(keys[5], 100)
    (trained, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, steps))(
        (params, optimizer.init(params))
    )
    score = jax.jit(loss)
    return float(score(params)), float(score(trained))


PROGRAMS = {"jax": lambda: train(jax_edges), "jaxdrop": lambda: train(edges)}
