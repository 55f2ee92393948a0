"""A whole training step, of whatever model, with each candidate's dropout in it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax
from common.measuring import compile_for, time_programs
from common.timing import Samples, Tick
from jax import Array
from jax.stages import Compiled

OPTIMIZER = optax.adam(1e-3)


def make_step(loss: Callable[..., Array]) -> Callable[..., Any]:
    """One step of Adam: `(weights, state, key, *data) -> (weights, state, loss)`."""

    def step(weights: Any, state: optax.OptState, key: Array, *data: Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(weights, key, *data)
        updates, state = OPTIMIZER.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    return step


def time_steps(
    loss: Callable[..., Array],
    dropouts: Mapping[str, Any],
    weights: Any,
    data: tuple[Array, ...],
    rounds: int,
    tick: Tick = lambda: None,
) -> tuple[Samples, dict[str, Compiled]]:
    """Seconds of a step with each dropout, and the programs.

    Args:
      loss: of a dropout, the weights, a key and the data.
      dropouts: what `loss` is given, by name.
      weights: the parameters.
      data: the batch.
      rounds: number of samples of each.
      tick: called after each round.
    """
    inputs = (weights, OPTIMIZER.init(weights), jax.random.key(2), *data)
    programs = {
        name: compile_for(make_step(partial(loss, dropout)), inputs)
        for name, dropout in dropouts.items()
    }
    return time_programs(programs, inputs, rounds, tick), programs
