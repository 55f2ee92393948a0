"""Dropout of one array: time, memory, compile time and eager calls of each candidate."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.stages import Compiled
from peers import BASELINE, BOTH, FORWARD, OURS, TORCH, Drop, make_drop, torch_runs
from timing import Run, summarise, take_turns

Record: TypeAlias = dict[str, Any]

REFERENCES = {"over_jaxdrop": OURS, "over_double": BASELINE}
_XORS_A_BLOCK = 20  # one in each round of Threefry-2x32-20


@dataclass(frozen=True)
class Case:
    """One input: its shape, the name of its dtype, and the rate."""

    shape: tuple[int, ...]
    dtype: str
    rate: float

    @property
    def size(self) -> str:
        """The shape, as in the command line."""
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.size}, {self.dtype}, rate {self.rate}"

    def inputs(self, direction: str) -> tuple[Array, ...]:
        """A key and random values, and a cotangent where the direction needs one."""
        key, x_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, self.shape, jnp.dtype(self.dtype))
        return (key, x) if direction == FORWARD else (key, x, jnp.ones_like(x))


def forward_backward(drop: Drop, key: Array, x: Array, cotangent: Array) -> tuple[Array, Array]:
    """The output and the cotangent of the input; both, so that both are computed."""
    y, pull_back = jax.vjp(partial(drop, key), x)
    return y, pull_back(cotangent)[0]


def compile_drop(drop: Drop, direction: str, inputs: tuple[Array, ...]) -> Compiled:
    """Lowers and compiles a fresh function that calls `drop`."""
    function = drop if direction == FORWARD else partial(forward_backward, drop)
    return jax.jit(lambda *inputs: function(*inputs)).lower(*inputs).compile()


def run_of(function: Callable[..., Any], inputs: Sequence[Any], calls: int = 1) -> Run:
    """A run that calls a function of JAX arrays, and waits for the result of the last call."""

    def run() -> object:
        for _ in range(calls - 1):
            function(*inputs)
        return jax.block_until_ready(function(*inputs))

    return run


def temporary_bytes(compiled: Compiled) -> int | None:
    """What XLA allocates besides inputs and outputs; None where it does not say."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def kept_bytes_per_element(drop: Drop, case: Case) -> float:
    """`kept_bytes` for each element of the input."""
    return kept_bytes(drop, *case.inputs(FORWARD)) / elements(case.shape)


def kept_bytes(drop: Callable[..., Any], key: Array, x: Any) -> int:
    """What the forward pass keeps for the backward pass: the leaves of the vjp."""
    pull_back = jax.eval_shape(lambda key, x: jax.vjp(partial(drop, key), x)[1], key, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back))


def threefry_blocks(jaxpr: Any) -> float:
    """Threefry blocks that a jaxpr computes, those of its inner ones included."""
    return sum(_blocks_of(equation) for equation in jaxpr.eqns)


def _blocks_of(equation: Any) -> float:
    size = equation.outvars[0].aval.size if equation.outvars else 0
    match equation.primitive.name:
        case "random_bits":
            return size
        case "xor":
            return size / _XORS_A_BLOCK
    inner = [threefry_blocks(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    together = max if equation.primitive.name == "cond" else sum
    return equation.params.get("length", 1) * together(inner or [0])


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(list(equation.params.values())):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def compare(
    case: Case, names: Sequence[str], rounds: int, tick: Callable[[], object]
) -> list[Record]:
    """Times and memory of the candidates on one input.

    Args:
      case: the input.
      names: the candidates.
      rounds: number of samples of each.
      tick: called after each round.

    Returns:
      A record for each candidate, with one for each direction inside.
    """
    records: dict[str, Record] = {
        name: {
            "size": case.size,
            "dtype": case.dtype,
            "rate": case.rate,
            "candidate": name,
        }
        for name in names
    }
    for direction in (FORWARD, BOTH):
        for name, record in _compare_direction(case, direction, names, rounds, tick).items():
            records[name][direction] = record
    for name in _in_jax(names):
        kept = kept_bytes_per_element(make_drop(name, case.rate), case)
        records[name]["kept_bytes_per_element"] = kept
    return list(records.values())


def _compare_direction(
    case: Case, direction: str, names: Sequence[str], rounds: int, tick: Callable[[], object]
) -> dict[str, Record]:
    inputs = case.inputs(direction)
    compiled = {
        name: compile_drop(make_drop(name, case.rate), direction, inputs) for name in _in_jax(names)
    }
    runs = {name: run_of(function, inputs) for name, function in compiled.items()}
    if TORCH in names:
        runs[TORCH] = torch_runs(case.shape, case.dtype, case.rate)[direction]
    records = summarise(take_turns(runs, rounds, tick), REFERENCES)
    for name, function in compiled.items():
        records[name]["temporary_bytes"] = temporary_bytes(function)
    return records


def compare_compile_times(
    case: Case, names: Sequence[str], rounds: int, tick: Callable[[], object]
) -> list[Record]:
    """Seconds to trace, lower and compile each JAX candidate from cold caches.

    JAX's own caches are emptied first: functions such as `bernoulli` are jitted
    inside, and what an earlier compilation has traced would come for free.
    """
    order = [(name, direction) for name in _in_jax(names) for direction in (FORWARD, BOTH)]
    seconds: dict[tuple[str, str], list[float]] = {which: [] for which in order}
    inputs = {direction: case.inputs(direction) for direction in (FORWARD, BOTH)}
    generator = random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name, direction in order:
            drop = make_drop(name, case.rate)
            jax.clear_caches()
            start = time.perf_counter()
            compile_drop(drop, direction, inputs[direction])
            seconds[name, direction].append(time.perf_counter() - start)
        tick()
    summaries = {
        direction: summarise(
            {name: np.array(seconds[name, direction]) for name in _in_jax(names)}, REFERENCES
        )
        for direction in (FORWARD, BOTH)
    }
    return [
        {"candidate": name, **{way: summary[name] for way, summary in summaries.items()}}
        for name in _in_jax(names)
    ]


def compare_eager(
    case: Case, names: Sequence[str], rounds: int, tick: Callable[[], object]
) -> list[Record]:
    """Time of one eager forward call of each candidate, each library called as it stands."""
    inputs = case.inputs(FORWARD)
    runs = {name: run_of(make_drop(name, case.rate), inputs) for name in _in_jax(names)}
    if TORCH in names:
        runs[TORCH] = torch_runs(case.shape, case.dtype, case.rate)[FORWARD]
    summaries = summarise(take_turns(runs, rounds, tick), REFERENCES)
    return [{"candidate": name, **summaries[name]} for name in names]


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements, by which sizes are compared."""
    return math.prod(shape)


def _in_jax(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != TORCH]
