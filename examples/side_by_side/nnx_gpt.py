"""A block of a GPT in flax.nnx, which drops attention weights and activations."""

from functools import partial

import jax
import optax
from flax import nnx

from jaxdrop import dropout
from jaxdrop.frameworks.nnx import Drop, attention_fn

SIZE = 32


# With flax alone.
class FlaxBlock(nnx.Module):
    def __init__(self, rngs):
        options = {"dropout_rate": 0.1, "decode": False, "rngs": rngs}
        self.attention = nnx.MultiHeadAttention(4, SIZE, broadcast_dropout=False, **options)
        self.norms = nnx.List([nnx.LayerNorm(SIZE, rngs=rngs) for _ in range(2)])
        self.up, self.down = nnx.Linear(SIZE, 64, rngs=rngs), nnx.Linear(64, SIZE, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.drop(self.attention(self.norms[0](x), is_causal=True))
        return x + self.drop(self.down(nnx.gelu(self.up(self.norms[1](x)))))


# With jaxdrop.
class Block(nnx.Module):
    def __init__(self, rngs):
        options = {"dropout_rate": 0.1, "decode": False, "rngs": rngs}
        self.attention = nnx.MultiHeadAttention(4, SIZE, attention_fn=attention_fn, **options)
        self.norms = nnx.List([nnx.LayerNorm(SIZE, rngs=rngs) for _ in range(2)])
        self.up, self.down = nnx.Linear(SIZE, 64, rngs=rngs), nnx.Linear(64, SIZE, rngs=rngs)
        self.drop = Drop(partial(dropout, rate=0.1), rngs=rngs)

    def __call__(self, x):
        x = x + self.drop(self.attention(self.norms[0](x), is_causal=True))
        return x + self.drop(self.down(nnx.gelu(self.up(self.norms[1](x)))))


# Both, trained to say the token before the last one.
class Model(nnx.Module):
    def __init__(self, block, rngs):
        self.embed = nnx.Embed(8, SIZE, rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (16, SIZE)))
        self.block, self.head = block(rngs), nnx.Linear(SIZE, 8, rngs=rngs)

    def __call__(self, ids):
        return self.head(self.block(self.embed(ids) + self.positions[...]))


def train(block: type) -> tuple[float, float]:
    """The loss at test time, before and after."""
    ids = jax.random.randint(jax.random.key(0), (64, 16), 0, 8)
    model = Model(block, nnx.Rngs(params=0, dropout=1))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss(model):
        logits = model(ids)[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, :-1]).mean()

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    score = nnx.jit(loss)

    def at_test_time():
        model.eval()
        value = float(score(model))
        model.train()
        return value

    before = at_test_time()
    for _ in range(60):
        step(model, optimizer)
    return before, at_test_time()


PROGRAMS = {"flax": lambda: train(FlaxBlock), "jaxdrop": lambda: train(Block)}
