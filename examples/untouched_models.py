"""Five small networks of library parts, which know nothing of dropout, nor of jaxdrop.

They are what `plant_any_model.py` plants into. Each classifies digits of 64
pixels: a transformer block and a recurrent network of flax.linen, which read the
eight rows of an image, and perceptrons of flax.nnx, equinox and haiku.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

WIDTH = 256  # of the perceptrons


class Model(NamedTuple):
    """How to make random parameters, and the logits that images get from them."""

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array], Array]


class Transformer(linen.Module):
    """One block over the rows of an image."""

    @linen.compact
    def __call__(self, images: Array) -> Array:
        """Logits, of shape (batch, 10)."""
        rows = images.reshape(-1, 8, 8)
        x = linen.Dense(32)(rows) + linen.Embed(8, 32)(jnp.arange(8))
        attention = linen.MultiHeadDotProductAttention(num_heads=4, name="attention")
        x += attention(linen.LayerNorm()(x))
        x += linen.Dense(32, name="mlp")(linen.gelu(linen.Dense(64)(linen.LayerNorm()(x))))
        return linen.Dense(10)(linen.LayerNorm()(x).mean(axis=1))


def linen_transformer() -> Model:
    """Attention over rows."""
    model = Transformer()
    return Model(lambda key: model.init(key, jnp.zeros((1, 64))), model.apply)


RNN = linen.RNN(linen.SimpleCell(128))  # a scan over the rows of an image


def linen_rnn() -> Model:
    """A recurrent network, and a layer that reads its last state."""
    head = linen.Dense(10)

    def init(key: Array) -> dict[str, Any]:
        rnn_key, head_key = jax.random.split(key)
        rows, state = jnp.zeros((1, 8, 8)), jnp.zeros((1, 128))
        return {"rnn": RNN.init(rnn_key, rows), "head": head.init(head_key, state)}

    def apply(params: dict[str, Any], images: Array) -> Array:
        states = RNN.apply(params["rnn"], images.reshape(-1, 8, 8))
        return head.apply(params["head"], states[:, -1])

    return Model(init, apply)


def nnx_mlp() -> Model:
    """A perceptron with `relu`."""

    def make(key: Array) -> nnx.Module:
        linear = partial(nnx.Linear, rngs=nnx.Rngs(key))
        first, second, last = linear(64, WIDTH), linear(WIDTH, WIDTH), linear(WIDTH, 10)
        return nnx.Sequential(first, nnx.relu, second, nnx.relu, last)

    graph, _ = nnx.split(make(jax.random.key(0)))
    return Model(
        lambda key: nnx.split(make(key))[1],
        lambda state, images: nnx.merge(graph, state)(images),
    )


def equinox_mlp() -> Model:
    """A perceptron with `tanh`, written for one image."""

    def make(key: Array) -> eqx.Module:
        return eqx.nn.MLP(64, 10, WIDTH, depth=2, activation=jnp.tanh, key=key)

    _, rest = eqx.partition(make(jax.random.key(0)), eqx.is_array)
    return Model(
        lambda key: eqx.filter(make(key), eqx.is_array),
        lambda params, images: jax.vmap(eqx.combine(params, rest))(images),
    )


def haiku_mlp() -> Model:
    """A perceptron with `relu`, whose layers are scopes."""
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([WIDTH, WIDTH, 10])(x)))
    return Model(lambda key: model.init(key, jnp.zeros((1, 64))), model.apply)
