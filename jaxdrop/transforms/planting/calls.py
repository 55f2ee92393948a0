"""Calls, loops and branches with a site inside, rebuilt by JAX's own functions.

Each rule takes the planner, an equation and what is around its body. It returns
how the equation is evaluated, and how often each site runs in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec

from jaxdrop.core import compat
from jaxdrop.transforms.planting.candidates import Surroundings
from jaxdrop.transforms.planting.keys import Streams
from jaxdrop.transforms.planting.plan import Plan, Runs, Values
from jaxdrop.transforms.planting.tracing import trace

Evaluate: TypeAlias = Callable[..., Values]
Planned: TypeAlias = tuple[Evaluate, Runs]


class Planner(Protocol):
    """What a rule asks of the planner."""

    def plan(self, jaxpr: Any, around: Surroundings) -> Plan:
        """The plan of a body."""
        ...

    def refuse(self, jaxpr: Any, around: Surroundings, where: str) -> None:
        """Raises an error if there is a site in a body that cannot have one."""
        ...


def plan_jit(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """Keys are operands, so that calls with other keys share one compilation."""
    body = planner.plan(eqn.params["jaxpr"], around)
    call = jax.jit(_named(body, eqn.params["name"]), **compat.jit_options(eqn.params))
    return lambda streams, *values: call(_as_operands(streams), *values), body.runs


def plan_call(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """What differentiating a checkpoint leaves around its loops; it has no options to keep."""
    body = planner.plan(eqn.params["call_jaxpr"], around)
    return body, body.runs


def plan_scan(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """A step goes on where the one that ran before it stopped."""
    params = eqn.params
    body = planner.plan(params["jaxpr"], around)
    num_consts, num_carry = compat.scan_arity(params)

    def evaluate(streams: Streams, *values: Any) -> Values:
        consts, init, xs = _split(values, num_consts, num_carry)

        def step(carry: Values, x: Any) -> tuple[Values, Values]:
            number, xs = x
            here = {name: s.in_step(number, body.runs[name]) for name, s in streams.items()}
            results = body(here, *consts, *carry, *xs)
            return results[:num_carry], results[num_carry:]

        numbers = lax.iota(jnp.uint32, params["length"])
        numbers = numbers[::-1] if params["reverse"] else numbers
        carry, ys = lax.scan(step, init, (numbers, xs), **compat.scan_options(params))
        return [*carry, *ys]

    return _compiled_once(evaluate), {name: params["length"] * n for name, n in body.runs.items()}


def plan_while(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """Nobody knows how many iterations there will be, so each folds its number in."""
    params = eqn.params
    planner.refuse(params["cond_jaxpr"], around, "the condition of a while_loop, which drops twice")
    condition = jaxpr_as_fun(params["cond_jaxpr"])
    body = planner.plan(params["body_jaxpr"], around)

    def evaluate(streams: Streams, *values: Any) -> Values:
        consts_of_condition, consts, init = _split(
            values, params["cond_nconsts"], params["body_nconsts"]
        )

        def step(state: tuple[Any, Values]) -> tuple[Any, Values]:
            iteration, carry = state
            here = {name: s.in_iteration(iteration) for name, s in streams.items()}
            return iteration + jnp.uint32(1), body(here, *consts, *carry)

        def goes_on(state: tuple[Any, Values]) -> Any:
            return condition(*consts_of_condition, *state[1])[0]

        return lax.while_loop(goes_on, step, (jnp.uint32(0), init))[1]

    return _compiled_once(evaluate), body.runs


def plan_cond(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """All branches start at the same run, and what follows them at the greatest."""
    branches = [planner.plan(branch, around) for branch in eqn.params["branches"]]

    def evaluate(streams: Streams, index: Any, *values: Any) -> Values:
        return lax.switch(index, [partial(b, streams) for b in branches], *values)

    return _compiled_once(evaluate), _greatest(*(branch.runs for branch in branches))


def plan_checkpoint(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """One that was differentiated already is there to be computed late: its barrier stays."""
    _, params = compat.call_of(eqn)
    body = planner.plan(params["jaxpr"], around)
    call = jax.checkpoint(body, **compat.checkpoint_options(params))

    def evaluate(streams: Streams, *values: Any) -> Values:
        if params["differentiated"] and params["prevent_cse"]:
            values = lax.optimization_barrier(values)
        return call(_as_operands(streams), *values)

    return evaluate, body.runs


def plan_custom_jvp(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """The user's rule is kept: where it is used, it is traced and planned too."""
    body = planner.plan(eqn.params["call_jaxpr"], around)
    inputs = _Inputs(eqn)

    @jax.custom_jvp
    def planted(streams: Streams, *values: Any) -> Values:
        return body(streams, *values)

    def differentiate(primals: Values, tangents: Values) -> tuple[Values, Values]:
        streams, *values = primals
        inputs.refuse_consts([not isinstance(t, SymbolicZero) for t in tangents[1:]])

        def rule(xs: Values, ts: Values) -> Any:
            return jax.jvp(lambda *xs: compat.bind(eqn, *inputs.put(xs, values)), xs, ts)

        args = inputs.take(values), [_instantiated(t) for t in inputs.take(tangents[1:])]
        return _evaluate_rule(planner, around, streams, body, rule, *args)

    planted.defjvp(differentiate, symbolic_zeros=True)
    return lambda streams, *values: planted(_as_operands(streams), *values), body.runs


def plan_custom_vjp(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """The user's rules are kept: where they are used, they are traced and planned too."""
    body = planner.plan(eqn.params["call_jaxpr"], around)
    inputs = _Inputs(eqn)

    @jax.custom_vjp
    def planted(streams: Streams, *values: Any) -> Values:
        return body(streams, *values)

    def forwards(streams: Streams, *args: Any) -> tuple[Values, Any]:
        inputs.refuse_consts([arg.perturbed for arg in args])
        streams, values = custom_vjp_primal_tree_values((streams, args))

        def rule(xs: Values) -> Any:
            return jax.vjp(lambda *xs: compat.bind(eqn, *inputs.put(xs, values)), *xs)

        results, pull = _evaluate_rule(planner, around, streams, body, rule, inputs.take(values))
        return results, (streams, pull)

    def backwards(kept: Any, cotangents: Values) -> tuple[Any, ...]:
        streams, pull = kept
        cotangents = tuple(map(_instantiated, cotangents))
        results = _evaluate_rule(planner, around, streams, body, pull, cotangents)
        return None, *inputs.put(results, [None] * len(eqn.invars))

    planted.defvjp(forwards, backwards, symbolic_zeros=True)
    return lambda streams, *values: planted(_as_operands(streams), *values), body.runs


def plan_shard_map(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """The keys come in replicated; a site folds in the devices over which it varies."""
    params = eqn.params
    body = planner.plan(params["jaxpr"], around)

    def evaluate(streams: Streams, *values: Any) -> Values:
        specs = (PartitionSpec(), *params["in_specs"])
        call = jax.shard_map(
            lambda streams, *values: tuple(body(streams, *values)),
            in_specs=specs,
            out_specs=tuple(params["out_specs"]),
            **compat.shard_map_options(params),
        )
        return call(_as_operands(streams), *values)

    return _compiled_once(evaluate), body.runs


RULES: Mapping[str, Callable[[Planner, Any, Surroundings], Planned]] = {
    **dict.fromkeys(compat.JIT, plan_jit),
    **dict.fromkeys(compat.CALL, plan_call),
    "scan": plan_scan,
    "while": plan_while,
    "cond": plan_cond,
    **dict.fromkeys(compat.CHECKPOINT, plan_checkpoint),
    **dict.fromkeys(compat.CUSTOM_JVP, plan_custom_jvp),
    **dict.fromkeys(compat.CUSTOM_VJP, plan_custom_vjp),
    "shard_map": plan_shard_map,
}


class _Inputs:
    """Which operands of a custom derivative have one: floating ones that it was called with."""

    def __init__(self, eqn: Any) -> None:
        self._num_consts = eqn.params["num_consts"]
        self._places = [
            i >= self._num_consts and jnp.issubdtype(atom.aval.dtype, jnp.inexact)
            for i, atom in enumerate(eqn.invars)
        ]

    def take(self, values: Values) -> list[Any]:
        return [value for value, place in zip(values, self._places, strict=True) if place]

    def put(self, taken: Values, others: Values) -> list[Any]:
        remaining = iter(taken)
        return [
            next(remaining) if place else other
            for other, place in zip(others, self._places, strict=True)
        ]

    def refuse_consts(self, perturbed: Sequence[bool]) -> None:
        """JAX does so too, but here they have become operands."""
        if any(perturbed[: self._num_consts]):
            raise ValueError(
                "plant: a function with a custom derivative was differentiated with respect to a"
                " value that it closes over. Make the value an argument of the function."
            )


def _instantiated(derivative: Any) -> Any:
    if not isinstance(derivative, SymbolicZero):
        return derivative
    zeros = np if derivative.dtype == jax.dtypes.float0 else jnp
    return zeros.zeros(derivative.shape, derivative.dtype)


def _evaluate_rule(
    planner: Planner,
    around: Surroundings,
    streams: Streams,
    body: Plan,
    rule: Callable[..., Any],
    *args: Any,
) -> Any:
    """Evaluates a rule for a custom derivative with the masks of its function.

    It starts where the function does, and starts again after as many runs: what
    a rule computes twice has the same masks twice.
    """
    jaxpr, rebuild, values = trace(rule, *args)
    plan = planner.plan(jaxpr, replace(around, in_rule=True))
    for name in plan.runs:
        if name not in streams:
            raise NotImplementedError(
                f"plant: site {name!r} is in the rule for a custom derivative, but not in the"
                " function that the rule is for. Mark the same values in both."
            )
    here = {name: streams[name].cycling(body.runs[name]) for name in plan.runs}
    return rebuild(plan(here, *values))


def _greatest(*runs: Runs) -> Runs:
    return {name: max(r.get(name, 0) for r in runs) for name in set().union(*runs)}


def _as_operands(streams: Streams) -> Streams:
    return {name: stream.as_operand() for name, stream in streams.items()}


def _compiled_once(evaluate: Evaluate) -> Evaluate:
    """Outside of `jit`, where each call would compile again, it is put into one."""
    compiled = jax.jit(evaluate)

    def call(streams: Streams, *values: Any) -> Values:
        operands = (_as_operands(streams), *values)
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(operands))
        return (evaluate if is_traced else compiled)(*operands)

    return call


def _split(values: Values, *sizes: int) -> tuple[Values, ...]:
    parts: list[Values] = []
    for size in sizes:
        parts.append(values[:size])
        values = values[size:]
    return (*parts, values)


def _named(body: Plan, name: str) -> Evaluate:
    def call(streams: Streams, *values: Any) -> Values:
        return body(streams, *values)

    call.__name__ = call.__qualname__ = name
    return call
