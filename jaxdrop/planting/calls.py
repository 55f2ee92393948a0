"""Rebuilds calls, loops and branches with a site inside, by JAX's own functions.

Each rule takes the parameters of an equation, without its bodies, and the plans of its
bodies by the names of their parameters. It returns a function that evaluates the
equation. The table `CALLS` at the end has one line per primitive.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from jaxdrop.planting import options
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.jaxprs import Params, Value, Values
from jaxdrop.planting.keys import Streams, as_operands
from jaxdrop.planting.plan import Evaluate, Plan, Runs

Bodies: TypeAlias = Mapping[str, Sequence[Plan]]
"""The plans of the jaxprs in each parameter of an equation."""
# A rule does not get the jaxprs themselves. Its result is kept as long as the jaxpr of
# the body lives. If the result held that jaxpr, neither would ever be freed.
Rebuild: TypeAlias = Callable[[Params, Bodies], Evaluate]


@dataclass(frozen=True)
class Call:
    """A primitive with bodies: how it is evaluated, and what the table of sites says about it."""

    rebuild: Rebuild | None = None
    """None if no drop can be put inside."""
    times: Callable[[Params], int | None] = lambda params: 1
    """How often its bodies run in one call. None if nobody knows."""
    label: Callable[[Params, int], str] | None = None
    """What the table calls each body, by its index. If None, it is the label of the equation."""
    siteless: Mapping[str, str] = field(default_factory=dict[str, str])
    """The parameters whose bodies can have no site, and where such a site would be, in words."""

    loops: bool = False
    """Whether its bodies run again and again."""

    def runs(self, params: Params, bodies: Sequence[Plan]) -> Runs:
        """How many runs of each site the keys count in one call."""
        # All branches of a cond start at the same run, and the count continues after
        # the longest branch. The number of iterations of a while loop is unknown, so it
        # counts as one iteration, and each iteration folds its number in.
        times = self.times(params)
        counted = 1 if times is None else times
        # In order, and not a set: the order of a set of strings differs between processes, and
        # so would the programs, which compilation caches and several hosts need to be equal.
        names = dict.fromkeys(name for body in bodies for name in body.runs)
        return {
            name: max(self._counted(body, name, counted) for body in bodies if name in body.runs)
            for name in names
        }

    def shared_runs(self, bodies: Sequence[Plan]) -> Runs:
        """Of these runs, those that the steps of the next loop around share."""
        if self.loops:
            return {}
        names = dict.fromkeys(name for body in bodies for name in body.shared_runs)
        return {name: max(body.shared_runs.get(name, 0) for body in bodies) for name in names}

    def _counted(self, body: Plan, name: str, times: int) -> int:
        shared = body.shared_runs.get(name, 0) if self.loops else 0
        return times * (body.runs[name] - shared) + shared


def rebuild_jit(params: Params, bodies: Bodies) -> Evaluate:
    """Keys are operands, so that calls with other keys share one compilation."""
    (body,) = bodies["jaxpr"]

    def function(streams: Streams, *values: Value) -> Values:
        return body(streams, *values)

    # The name is what profiles and compilation logs show.
    function.__name__ = function.__qualname__ = params["name"]
    call = jax.jit(function, **options.jit_options(params))
    return lambda streams, *values: call(as_operands(streams), *values)


def rebuild_closed_call(params: Params, bodies: Bodies) -> Evaluate:
    """A call without options. JAX puts it around loops when it differentiates a checkpoint."""
    del params
    (body,) = bodies["call_jaxpr"]
    return body


def rebuild_scan(params: Params, bodies: Bodies) -> Evaluate:
    """In each step, the count of runs continues from the step that ran before."""
    (body,) = bodies["jaxpr"]
    num_consts, num_carry = options.scan_arity(params)
    kept = options.scan_options(params)
    own = {name: runs - body.shared_runs.get(name, 0) for name, runs in body.runs.items()}

    def evaluate(streams: Streams, *values: Value) -> Values:
        consts, init, xs = _split(values, num_consts, num_carry)

        def step(carry: Values, x: tuple[Array, Values]) -> tuple[Values, Values]:
            number, xs = x
            here = {name: s.in_step(number, own[name]) for name, s in streams.items()}
            results = body(here, *consts, *carry, *xs)
            return results[:num_carry], results[num_carry:]

        # A reversed scan runs its last row first, and runs are numbered in the order of execution.
        numbers = lax.iota(jnp.uint32, kept["length"])
        numbers = numbers[::-1] if kept["reverse"] else numbers
        carry, ys = lax.scan(step, init, (numbers, xs), **kept)
        return [*carry, *ys]

    return _compiled_once(evaluate)


def rebuild_while(params: Params, bodies: Bodies) -> Evaluate:
    """The loop also counts its iterations, and each iteration folds its number into the keys."""
    (condition,), (body,) = bodies["cond_jaxpr"], bodies["body_jaxpr"]
    sizes = params["cond_nconsts"], params["body_nconsts"]

    def evaluate(streams: Streams, *values: Value) -> Values:
        consts_of_condition, consts, init = _split(values, *sizes)

        def wanted(carry: Values) -> Array:
            (going,) = condition({}, *consts_of_condition, *carry)
            return going

        def step(state: tuple[Array, Values]) -> tuple[Array, Values]:
            iteration, carry = state
            here = {name: s.in_iteration(iteration) for name, s in streams.items()}
            following = body(here, *consts, *carry)
            going = wanted(carry)
            # In a batched loop, finished examples keep their values. The equation
            # allows one condition per example; `lax.while_loop` does not.
            if going.ndim:
                following = tuple(
                    jnp.where(lax.broadcast_in_dim(going, new.shape, range(going.ndim)), new, old)
                    for new, old in zip(following, carry, strict=True)
                )
            return iteration + jnp.uint32(1), following

        state = (jnp.uint32(0), init)
        return lax.while_loop(lambda state: wanted(state[1]).any(), step, state)[1]

    return _compiled_once(evaluate)


def rebuild_cond(params: Params, bodies: Bodies) -> Evaluate:
    """All branches get the same streams."""
    del params
    branches = bodies["branches"]

    def evaluate(streams: Streams, index: Array, *values: Value) -> Values:
        return lax.switch(index, [partial(branch, streams) for branch in branches], *values)

    return _compiled_once(evaluate)


def rebuild_checkpoint(params: Params, bodies: Bodies) -> Evaluate:
    """The streams are operands, so the backward pass has them too."""
    (body,) = bodies["jaxpr"]
    call = jax.checkpoint(body, **options.checkpoint_options(params))
    # A checkpoint that was differentiated already is in the backward pass, where it
    # computes the forward pass again. Its barrier prevents XLA from doing this too
    # early, together with the forward pass.
    has_barrier = params["differentiated"] and params["prevent_cse"]

    def evaluate(streams: Streams, *values: Value) -> Values:
        held = options.barrier(values) if has_barrier else values
        return call(as_operands(streams), *held)

    return evaluate


def rebuild_shard_map(params: Params, bodies: Bodies) -> Evaluate:
    """The keys are replicated operands; a site folds in the index of the device along
    axes over which it varies.
    """
    (body,) = bodies["jaxpr"]
    call = jax.shard_map(
        body,
        in_specs=(PartitionSpec(), *params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        **options.shard_map_options(params),
    )
    return _compiled_once(call)


def _compiled_once(evaluate: Evaluate) -> Evaluate:
    """Puts the call into a `jit` if it is outside of one, where each call would compile again."""
    # Outside of jit, JAX caches a loop by its body, and each evaluation makes a new
    # body. Inside of jit, another jit would only be an obstacle.
    compiled = jax.jit(evaluate)

    def call(streams: Streams, *values: Value) -> Values:
        operands = (as_operands(streams), *values)
        is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(operands))
        return (evaluate if is_traced else compiled)(*operands)

    return call


def _split(values: Values, *sizes: int) -> tuple[Values, ...]:
    parts: list[Values] = []
    for size in sizes:
        parts.append(values[:size])
        values = values[size:]
    return (*parts, values)


def _branch(params: Params, index: int) -> str:
    del params
    return f"cond[{index}]"


CALLS: Mapping[str, Call] = {
    "jit": Call(rebuild_jit),
    **dict.fromkeys(("closed_call", "core_call", "eval_jaxpr"), Call(rebuild_closed_call)),
    "scan": Call(
        rebuild_scan,
        times=lambda params: params["length"],
        label=lambda params, _: f"scan[{params['length']}]",
        loops=True,
    ),
    "while": Call(
        rebuild_while,
        times=lambda params: None,
        loops=True,
        siteless={
            "cond_jaxpr": "the condition of a while_loop, which runs once more than its body"
        },
    ),
    "cond": Call(rebuild_cond, label=_branch),
    "platform_dependent": Call(
        rebuild_cond,
        label=_branch,
        siteless={"branches": "lax.platform_dependent, which plant cannot go into"},
    ),
    "checkpoint": Call(rebuild_checkpoint),
    "shard_map": Call(rebuild_shard_map),
}


def call_of(equation: Equation) -> Call:
    """What is known of an equation's primitive."""
    return CALLS.get(equation.name, Call())


def label_of(equation: Equation, index: int) -> tuple[str, int | None]:
    """What the table of sites calls a body of an equation, and how often it runs in one call."""
    call = call_of(equation)
    label = call.label(equation.params, index) if call.label else equation.label
    return label, call.times(equation.params)
