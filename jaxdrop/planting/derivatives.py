"""Functions with a derivative of their own and a site inside: their rules are kept.

Where a rule is used, it is traced and planned like the function, from the same
run on. So a backward rule that computes the function again has its masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from jaxdrop.planting import jaxprs
from jaxdrop.planting.groups import Surroundings
from jaxdrop.planting.keys import Stream, Streams, as_operands
from jaxdrop.planting.plan import Plan, Planned, Planner, Values
from jaxdrop.planting.tracing import trace


def plan_custom_jvp(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """The user's rule is kept: where it is used, it is traced and planned too."""
    body = planner.plan(eqn.params["call_jaxpr"], around)

    @jax.custom_jvp
    def planted(streams: Streams, *values: Any) -> Values:
        return body(streams, *values)

    def differentiate(primals: Values, tangents: Values) -> tuple[Values, Values]:
        (streams, *values), (_, *tangents) = primals, tangents
        inputs = _Inputs(eqn, [not isinstance(t, SymbolicZero) for t in tangents])

        def rule(xs: Values, ts: Values) -> Any:
            return jax.jvp(lambda *xs: jaxprs.bind(eqn, *inputs.put(xs, values)), xs, ts)

        args = inputs.take(values), [_instantiated(t) for t in inputs.take(tangents)]
        return _evaluate_rule(planner, around, streams, body, rule, *args)

    planted.defjvp(differentiate, symbolic_zeros=True)
    return lambda streams, *values: planted(as_operands(streams), *values), body.runs


def plan_custom_vjp(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """The user's rules are kept: where they are used, they are traced and planned too."""
    body = planner.plan(eqn.params["call_jaxpr"], around)

    @jax.custom_vjp
    def planted(streams: Streams, *values: Any) -> Values:
        return body(streams, *values)

    def forwards(streams: Streams, *args: Any) -> tuple[Values, Any]:
        inputs = _Inputs(eqn, [arg.perturbed for arg in args])
        streams, values = custom_vjp_primal_tree_values((streams, args))

        def rule(xs: Values) -> Any:
            return jax.vjp(lambda *xs: jaxprs.bind(eqn, *inputs.put(xs, values)), *xs)

        results, pull = _evaluate_rule(planner, around, streams, body, rule, inputs.take(values))
        return results, (streams, pull, inputs)

    def backwards(kept: Any, cotangents: Values) -> tuple[Any, ...]:
        streams, pull, inputs = kept
        cotangents = tuple(map(_instantiated, cotangents))
        results = _evaluate_rule(planner, around, streams, body, pull, cotangents, backwards=True)
        return None, *inputs.put(results, [None] * len(eqn.invars))

    planted.defvjp(forwards, backwards, symbolic_zeros=True)
    return lambda streams, *values: planted(as_operands(streams), *values), body.runs


@jax.tree_util.register_static
class _Inputs:
    """Which operands of a custom derivative are differentiated."""

    def __init__(self, eqn: Any, perturbed: Sequence[bool]) -> None:
        if any(perturbed[: eqn.params["num_consts"]]):
            # JAX refuses this itself, but here the values have become operands.
            raise ValueError(
                "plant: a function with a custom derivative was differentiated with respect to a"
                " value that it closes over. Make the value an argument of the function."
            )
        floating = [jnp.issubdtype(atom.aval.dtype, jnp.inexact) for atom in eqn.invars]
        self._places = [p and f for p, f in zip(perturbed, floating, strict=True)]

    def take(self, values: Values) -> list[Any]:
        return [value for value, place in zip(values, self._places, strict=True) if place]

    def put(self, taken: Values, others: Values) -> list[Any]:
        remaining = iter(taken)
        return [
            next(remaining) if place else other
            for other, place in zip(others, self._places, strict=True)
        ]


def _instantiated(derivative: Any) -> Any:
    if not isinstance(derivative, SymbolicZero):
        return derivative
    aval: Any = derivative.aval
    zeros = np if aval.dtype == jax.dtypes.float0 else jnp
    return zeros.zeros(aval.shape, aval.dtype)


def _evaluate_rule(
    planner: Planner,
    around: Surroundings,
    streams: Streams,
    body: Plan,
    rule: Callable[..., Any],
    *args: Any,
    backwards: bool = False,
) -> Any:
    """Evaluates a rule for a custom derivative with the masks of its function."""
    jaxpr, rebuild, values = trace(rule, *args)
    plan = planner.plan(jaxpr, replace(around, in_rule=True))
    missing = () if backwards else body.runs.keys() - plan.runs.keys()
    for name in (*missing, *(plan.runs.keys() - body.runs.keys())):
        raise NotImplementedError(
            f"plant: site {name!r} must run both in a function with a custom derivative and in the"
            " rule for it, if in one of them. Mark the same values in both."
        )
    here = {name: _stream_of(name, streams, body, plan, backwards) for name in plan.runs}
    return rebuild(plan(here, *values))


def _stream_of(name: str, streams: Streams, body: Plan, plan: Plan, backwards: bool) -> Stream:
    """The keys of a site in a rule: those of the function.

    A forward rule that runs a site as often as the function is taken to do so in
    the same order. A site that the function runs once has one mask, however often
    and wherever a rule runs it.
    """
    if not backwards and plan.runs[name] == body.runs[name]:
        return streams[name]
    if body.runs[name] == 1 and name not in body.looped:
        return replace(streams[name], fixed=True)
    raise NotImplementedError(
        f"plant: site {name!r} runs several times in a function with a custom derivative, and again"
        " in the rule for it, so that it cannot be told which run is which. Give each a name of its"
        " own."
    )
