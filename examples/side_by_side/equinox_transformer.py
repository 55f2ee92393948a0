"""A block of a transformer in equinox, which is given one sample and its key."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxdrop import drop_path
from jaxdrop.frameworks.equinox import Drop


# With equinox alone, which has no stochastic depth.
class EquinoxBlock(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    rate: float = 0.2
    inference: bool = False

    def __call__(self, x, *, key=None):
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = x + self.drop(self.attention(x, x, x, key=keys[0]), keys[1])
        return x + self.drop(jax.vmap(self.mlp)(x), keys[2])

    def drop(self, branch, key):
        if self.inference:
            return branch
        kept = jax.random.bernoulli(key, 1 - self.rate)
        return jnp.where(kept, branch / (1 - self.rate), 0)


# With jaxdrop.
class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    drop: Drop = Drop(partial(drop_path, rate=0.2, batch_axis=None))

    def __call__(self, x, *, key=None):
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = x + self.drop(self.attention(x, x, x, key=keys[0]), key=keys[1])
        return x + self.drop(jax.vmap(self.mlp)(x), key=keys[2])


# Both, trained to put a sequence into the opposite order.
def train(block: type) -> tuple[float, float]:
    """The loss at test time, before and after."""
    xs = jax.random.normal(jax.random.key(0), (32, 8, 16)) + jnp.linspace(-2, 2, 8)[:, None]
    keys = jax.random.split(jax.random.key(1))
    attention = eqx.nn.MultiheadAttention(4, 16, dropout_p=0.1, key=keys[0])
    model = block(attention, eqx.nn.MLP(16, 16, 64, 1, jax.nn.gelu, key=keys[1]))
    optimizer = optax.adam(3e-3)

    def loss(model, keys):
        ys = jax.vmap(lambda x, key: model(x, key=key))(xs, keys)
        return jnp.mean((ys - xs[:, ::-1]) ** 2)

    @eqx.filter_jit
    def step(model, memory, key):
        slopes = eqx.filter_grad(loss)(model, jax.random.split(key, len(xs)))
        updates, memory = optimizer.update(slopes, memory)
        return eqx.apply_updates(model, updates), memory

    def at_test_time(model):
        return float(eqx.filter_jit(loss)(eqx.nn.inference_mode(model), None))

    before, memory = at_test_time(model), optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for key in jax.random.split(jax.random.key(2), 60):
        model, memory = step(model, memory, key)
    return before, at_test_time(model)


PROGRAMS = {"equinox": lambda: train(EquinoxBlock), "jaxdrop": lambda: train(Block)}
