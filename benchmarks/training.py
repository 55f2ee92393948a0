"""What dropout adds to a whole training step of a multilayer perceptron."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from elementwise import Record, run_of, temporary_bytes
from jax import Array
from peers import OURS, Drop, make_drop
from timing import Samples, rounded, spread_ms, take_turns

Layers: TypeAlias = list[dict[str, Array]]
"""Weights and biases, from the input to the logits."""

NO_DROPOUT = "no dropout"
REFERENCE_PEER = "flax.linen"
COMPARED = (OURS, REFERENCE_PEER, "equinox")
OPTIMIZER = optax.adam(1e-3)
_CLASSES = 10


@dataclass(frozen=True)
class Network:
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


def make_step(loss: Callable[..., Array]) -> Callable[..., Any]:
    """One step of Adam: `(weights, state, key, *data) -> (weights, state, loss)`."""

    def step(weights: Any, state: optax.OptState, key: Array, *data: Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(weights, key, *data)
        updates, state = OPTIMIZER.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    return step


def compare_steps(
    network: Network, names: Sequence[str], rounds: int, tick: Callable[[], object]
) -> list[Record]:
    """Times and temporaries of the step without dropout and with each candidate's.

    What dropout adds is the median over rounds of the difference within each
    round; `added_over_peer` divides it by what the reference peer adds.
    """
    layers = network.init()
    inputs = (layers, OPTIMIZER.init(layers), jax.random.key(2), *network.data())
    drops = {name: make_drop(name, network.rate) for name in COMPARED if name in names}
    compiled = {
        name: jax.jit(make_step(partial(loss, drop))).lower(*inputs).compile()
        for name, drop in {NO_DROPOUT: None, **drops}.items()
    }
    runs = {name: run_of(step, inputs) for name, step in compiled.items()}
    samples = take_turns(runs, rounds, tick)
    records = {name: {"candidate": name, **spread_ms(seconds)} for name, seconds in samples.items()}
    for name, step in compiled.items():
        records[name]["temporary_bytes"] = temporary_bytes(step)
    for name, record in _additions(samples).items():
        records[name] |= record
    return list(records.values())


def _additions(samples: Samples) -> dict[str, Record]:
    added = {
        name: seconds - samples[NO_DROPOUT]
        for name, seconds in samples.items()
        if name != NO_DROPOUT
    }
    records: dict[str, Record] = {name: {"added": spread_ms(s)} for name, s in added.items()}
    if REFERENCE_PEER in added:
        by_peer = np.median(added[REFERENCE_PEER])
        for name, record in records.items():
            record["added_over_peer"] = rounded(np.median(added[name]) / by_peer)
    return records
