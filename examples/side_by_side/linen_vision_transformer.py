"""A block of a vision transformer in flax.linen, with stochastic depth."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxdrop import drop_path
from jaxdrop.frameworks.linen import Drop, attention_fn


# With flax alone.
class FlaxBlock(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        attention = nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, broadcast_dropout=False)
        y = attention(nn.LayerNorm()(x), deterministic=deterministic)
        x = x + nn.Dropout(0.2, broadcast_dims=(1, 2))(y, deterministic)
        y = nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return x + nn.Dropout(0.2, broadcast_dims=(1, 2))(y, deterministic)


# With jaxdrop.
class Block(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        attention = nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, attention_fn=attention_fn)
        y = attention(nn.LayerNorm()(x), deterministic=deterministic)
        x = x + Drop(partial(drop_path, rate=0.2))(y, deterministic)
        y = nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return x + Drop(partial(drop_path, rate=0.2))(y, deterministic)


# Both, trained to put the patches of an image into the opposite order.
def train(block: nn.Module) -> tuple[float, float]:
    """The loss at test time, before and after."""
    patches = jax.random.normal(jax.random.key(0), (32, 8, 16))
    init = jax.jit(partial(block.init, deterministic=True))
    params = init(jax.random.key(1), patches)
    optimizer = optax.adam(3e-3)

    def loss(params, key=None):
        rngs = {} if key is None else {"dropout": key}
        y = block.apply(params, patches, deterministic=key is None, rngs=rngs)
        return jnp.mean((y - patches[:, ::-1]) ** 2)

    @jax.jit
    def step(state, key):
        params, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(params, key), memory)
        return (optax.apply_updates(params, updates), memory), None

    keys = jax.random.split(jax.random.key(2), 60)
    (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    score = jax.jit(loss)
    return float(score(params)), float(score(trained))


PROGRAMS = {"flax": lambda: train(FlaxBlock()), "jaxdrop": lambda: train(Block())}
