"""A multilayer perceptron with dropout after each hidden layer."""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from common.peers import Drop
from jax import Array

Layers: TypeAlias = list[dict[str, Array]]
"""Weights and biases, from the input to the logits."""

_CLASSES = 10


@dataclass(frozen=True)
class Perceptron:
    """A multilayer perceptron, by its sizes, and the batch that it sees."""

    width: int
    hidden_layers: int
    batch: int
    rate: float

    def __str__(self) -> str:
        layers = f"{self.hidden_layers} hidden layers of {self.width}"
        return f"{layers}, batch {self.batch}, float32, Adam, rate {self.rate}"

    def init(self) -> Layers:
        """He-initialised layers; the input is as wide as the hidden layers."""
        widths = [self.width] * (self.hidden_layers + 1) + [_CLASSES]
        keys = jax.random.split(jax.random.key(0), len(widths) - 1)
        return [
            {"weight": jax.random.normal(key, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
            for key, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
        ]

    def data(self) -> tuple[Array, Array]:
        """Random inputs and labels."""
        x = jax.random.normal(jax.random.key(1), (self.batch, self.width))
        return x, jnp.arange(self.batch) % _CLASSES


def loss(drop: Drop | None, layers: Layers, key: Array, x: Array, labels: Array) -> Array:
    """Mean cross-entropy, with dropout after each hidden layer unless it is None."""
    *hidden, readout = layers
    keys = jax.random.split(key, len(hidden))
    for i, layer in enumerate(hidden):
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
        x = x if drop is None else drop(keys[i], x)
    logits = x @ readout["weight"] + readout["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
