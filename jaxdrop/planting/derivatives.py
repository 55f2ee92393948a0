"""Functions with a custom derivative and a site inside: their rules are kept.

When a rule is used, it is traced and planned like the function, and its runs start at
the same number. So a backward rule that computes the function again has the masks of
the function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import (
    CustomVJPPrimal,
    SymbolicZero,
    custom_vjp_primal_tree_values,
)

from jaxdrop.planting.equations import Equation
from jaxdrop.planting.jaxprs import AnyJaxpr, Value, Values
from jaxdrop.planting.keys import Stream, Streams, as_operands
from jaxdrop.planting.plan import Evaluate, Plan
from jaxdrop.planting.rules import is_counter
from jaxdrop.planting.tracing import PyTree, trace

PlanRule: TypeAlias = Callable[[AnyJaxpr], Plan]
"""Plans the jaxpr of a traced rule, in the surroundings of its function."""
_Kept: TypeAlias = "tuple[Streams, Callable[..., Values], _Differentiated]"
"""What a backward rule gets from its forward rule."""


def keep_jvp(equation: Equation, body: Plan, plan_rule: PlanRule) -> Evaluate:
    """Makes a function of `jax.custom_jvp` again. Its rule is the user's rule with masks."""

    @jax.custom_jvp
    def planted(streams: Streams, *values: Value) -> Values:
        return body(streams, *values)

    def differentiate(
        primals: tuple[Streams, *tuple[Value, ...]], tangents: tuple[object, *tuple[Value, ...]]
    ) -> tuple[Values, Values]:
        (streams, *values), (_, *tangents_of_values) = primals, tangents
        # The rule is traced only for the operands that are differentiated. So it sees
        # which tangents are zero, as without planting.
        is_differentiated = [not isinstance(t, SymbolicZero) for t in tangents_of_values]
        inputs = _Differentiated.of(equation, is_differentiated)

        def rule(xs: Values, ts: Values) -> tuple[Values, Values]:
            return jax.jvp(lambda *xs: equation.bind(*inputs.put(xs, values)), xs, ts)

        masked = _Masked(body, streams, plan_rule)
        tangents_taken = map(_instantiated, inputs.take(tangents_of_values))
        return masked.forwards(rule, inputs.take(values), list(tangents_taken))

    planted.defjvp(differentiate, symbolic_zeros=True)
    return lambda streams, *values: planted(as_operands(streams), *values)


def keep_vjp(equation: Equation, body: Plan, plan_rule: PlanRule) -> Evaluate:
    """Makes a function of `jax.custom_vjp` again. Its rules are the user's rules with masks."""

    @jax.custom_vjp
    def planted(streams: Streams, *values: Value) -> Values:
        return body(streams, *values)

    def forwards(streams: Streams, *args: CustomVJPPrimal) -> tuple[Values, _Kept]:
        inputs = _Differentiated.of(equation, [arg.perturbed for arg in args])
        streams, values = custom_vjp_primal_tree_values((streams, args))

        # JAX itself calls the user's forward rule. Besides the results it returns the
        # function `pull`, which has the backward rule and its residuals.
        def rule(xs: Values) -> tuple[Values, Callable[..., Values]]:
            return jax.vjp(lambda *xs: equation.bind(*inputs.put(xs, values)), *xs)

        results, pull = _Masked(body, streams, plan_rule).forwards(rule, inputs.take(values))
        return results, (streams, pull, inputs)

    def backwards(kept: _Kept, cotangents: Values) -> tuple[Value, ...]:
        streams, pull, inputs = kept
        cotangents = tuple(map(_instantiated, cotangents))
        results = _Masked(body, streams, plan_rule).backwards(pull, cotangents)
        return None, *inputs.put(results, [None] * len(equation.operands))

    planted.defvjp(forwards, backwards, symbolic_zeros=True)
    return lambda streams, *values: planted(as_operands(streams), *values)


DERIVATIVES: Mapping[str, Callable[[Equation, Plan, PlanRule], Evaluate]] = {
    "custom_jvp_call": keep_jvp,
    "custom_vjp_call": keep_vjp,
}


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Differentiated:
    """Says which operands of a custom derivative are differentiated."""

    places: tuple[bool, ...]

    @staticmethod
    def of(equation: Equation, is_differentiated: Sequence[bool]) -> "_Differentiated":
        if any(is_differentiated[: equation.params["num_consts"]]):
            # JAX normally refuses this, but here the values have become operands.
            raise ValueError(
                "plant: a function with a custom derivative was differentiated with respect to a"
                " value that it closes over. Make the value an argument of the function."
            )
        avals: list[Any] = [atom.aval for atom in equation.operands]
        # JAX counts integers as differentiated too, though they have no tangent.
        floating = (jnp.issubdtype(aval.dtype, jnp.inexact) for aval in avals)
        return _Differentiated(
            tuple(d and f for d, f in zip(is_differentiated, floating, strict=True))
        )

    def take(self, values: Values) -> list[Value]:
        return [value for value, place in zip(values, self.places, strict=True) if place]

    def put(self, taken: Values, others: Values) -> list[Value]:
        remaining = iter(taken)
        return [
            next(remaining) if place else other
            for other, place in zip(others, self.places, strict=True)
        ]


def _instantiated(derivative: Value) -> Value:
    if not isinstance(derivative, SymbolicZero):
        return derivative
    aval: Any = derivative.aval
    # The derivative of an integer has a dtype of size 0, for which jax.numpy has no array.
    zeros = np if aval.dtype == jax.dtypes.float0 else jnp
    return zeros.zeros(aval.shape, aval.dtype)


@dataclass(frozen=True)
class _Masked:
    """Gives the rules for a function the masks of the function."""

    body: Plan
    streams: Streams
    plan_rule: PlanRule

    def forwards(self, rule: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """The results of a rule that computes the function, and its derivative or residuals."""
        jaxpr, unflatten, operands = trace("plant", rule, *args)
        plan = self.plan_rule(jaxpr)
        self._refuse_differences(self.body.runs.keys() ^ plan.runs.keys())
        self._refuse_other_order(plan)
        here = {
            name: self.streams[name] if self._runs_alike(name, plan) else self._only_mask(name)
            for name in plan.runs
        }
        return unflatten(plan(here, *operands))

    def backwards(self, pull: Callable[..., PyTree], cotangents: Values) -> PyTree:
        """The cotangents of a rule, which may run sites of the function again."""
        jaxpr, unflatten, operands = trace("plant", pull, cotangents)
        plan = self.plan_rule(jaxpr)
        # It need not run all of them. If it runs several, their order is unknown.
        self._refuse_differences(plan.runs.keys() - self.body.runs.keys())
        here = {name: self._only_mask(name) for name in plan.runs}
        return unflatten(plan(here, *operands))

    def _runs_alike(self, name: str, plan: Plan) -> bool:
        """Whether a rule runs a site as often as the function. Then it is assumed to do so in
        the same order.
        """
        # A while loop counts as one run, but folds its iterations into the keys.
        same_loops = plan.is_looped(name) == self.body.is_looped(name)
        return same_loops and plan.runs[name] == self.body.runs[name]

    def _refuse_differences(self, names: set[str]) -> None:
        for name in sorted(names):
            raise NotImplementedError(
                f"plant: {_described(name)} must run both in a function with a custom derivative"
                " and in the rule for it, or in neither. Mark the same values in both."
            )

    def _refuse_other_order(self, plan: Plan) -> None:
        """Refuses a rule in which a site would have the rate of another one."""
        for name in filter(is_counter, plan.runs):
            if self.body.order(name) != plan.order(name):
                sites = ", ".join(map(repr, sorted({*plan.order(name)})))
                raise NotImplementedError(
                    f"plant: sites {sites}, whose rate depends on the run, must run in the same"
                    " order in a function with a custom derivative and in the rule for it. Give"
                    " each site a rule of its own, or all of them one rate."
                )

    def _only_mask(self, name: str) -> Stream:
        """The keys of a site that has one mask in the function: a rule uses this mask
        wherever it runs the site.
        """
        stream = self.streams[name]
        if stream.fixed:
            return stream
        if self.body.runs[name] == 1 and not self.body.is_looped(name):
            return replace(stream, fixed=True)
        advice = (
            "Give each site a rule of its own, or all of them one rate"
            if is_counter(name)
            else "Give each run a name of its own, or all of them one mask, by Rule(drop,"
            " share_runs=True)"
        )
        raise NotImplementedError(
            f"plant: {_described(name)} runs several times in a function with a custom derivative,"
            f" and again in the rule for it, so its runs cannot be told apart. {advice}."
        )


def _described(name: str) -> str:
    return (
        "the sites of a rule whose rate depends on the run"
        if is_counter(name)
        else f"site {name!r}"
    )
