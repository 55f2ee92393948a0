"""Programs side by side: compiled ahead of time, timed in turn, with the memory of each."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from common.peers import BASELINE, FORWARD, OURS, Drop
from common.results import Record
from common.timing import Run, Samples, Tick, run_of, summarise, take_turns
from jax import Array
from jax.stages import Compiled

REFERENCES = {"over_jaxdrop": OURS, "over_double": BASELINE}
NO_DROPOUT = "no dropout"


def compile_for(function: Callable[..., Any], inputs: Sequence[Any]) -> Compiled:
    """Lowers and compiles a fresh function, so that nothing comes from JAX's caches."""
    return jax.jit(lambda *inputs: function(*inputs)).lower(*inputs).compile()


def compile_drop(drop: Drop, direction: str, inputs: Sequence[Any]) -> Compiled:
    """The program of `drop`, or also of its backward pass."""
    return compile_for(drop if direction == FORWARD else partial(forward_backward, drop), inputs)


def forward_backward(drop: Drop, key: Array, x: Array, cotangent: Array) -> tuple[Array, Array]:
    """The output and the cotangent of the input; both, so that both are computed."""
    y, pull_back = jax.vjp(partial(drop, key), x)
    return y, pull_back(cotangent)[0]


def time_programs(
    programs: Mapping[str, Compiled],
    inputs: Sequence[Any],
    rounds: int,
    tick: Tick = lambda: None,
    *,
    calls: int = 1,
    others: Mapping[str, Run] | None = None,
) -> Samples:
    """Seconds per call of programs that take the same inputs.

    Args:
      programs: what to time, by name.
      inputs: what all of them take.
      rounds: number of samples of each.
      tick: called after each round.
      calls: how often a program is called in a row before its result is waited for.
      others: runs of one call that take turns with the programs, by name.
    """
    runs = {name: run_of(program, inputs, calls) for name, program in programs.items()}
    samples = take_turns({**runs, **(others or {})}, rounds, tick)
    return {name: seconds / calls for name, seconds in samples.items()}


def describe(
    samples: Samples, programs: Mapping[str, Compiled], references: Mapping[str, str]
) -> dict[str, Record]:
    """Medians, quartiles, ratios to the references, and temporaries of the programs."""
    records = summarise(samples, references)
    for name, program in programs.items():
        records[name]["temporary_bytes"] = temporary_bytes(program)
    return records


def temporary_bytes(compiled: Compiled) -> int | None:
    """What XLA allocates besides inputs and outputs; None where it does not say."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def kept_bytes(drop: Callable[..., Any], key: Array, x: Any) -> int:
    """What the forward pass keeps for the backward pass: the leaves of the vjp."""
    pull_back = jax.eval_shape(lambda key, x: jax.vjp(partial(drop, key), x)[1], key, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back))


def elements(shape: Sequence[int]) -> int:
    """Number of elements, by which sizes are compared."""
    return math.prod(shape)
