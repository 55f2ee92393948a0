"""Calls, loops and branches with a site inside, rebuilt by JAX's own functions.

Each rule takes the planner, an equation and what is around its body. It returns
how the equation is evaluated, and how often each site runs in it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec

from jaxdrop.planting import jaxprs
from jaxdrop.planting.groups import Surroundings
from jaxdrop.planting.keys import Streams, as_operands
from jaxdrop.planting.plan import Evaluate, Plan, Planned, Planner, Runs, Values


def plan_jit(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """Keys are operands, so that calls with other keys share one compilation."""
    body = planner.plan(eqn.params["jaxpr"], around)
    call = jax.jit(_named(body, eqn.params["name"]), **jaxprs.jit_options(eqn.params))
    return lambda streams, *values: call(as_operands(streams), *values), body.runs


def plan_call(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """What differentiating a checkpoint leaves around its loops; it has no options to keep."""
    body = planner.plan(eqn.params["call_jaxpr"], around)
    return body, body.runs


def plan_scan(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """A step goes on where the one that ran before it stopped."""
    body = planner.plan(eqn.params["jaxpr"], around)
    num_consts, num_carry = jaxprs.scan_arity(eqn.params)
    options = jaxprs.scan_options(eqn.params)
    length = options["length"]

    def evaluate(streams: Streams, *values: Any) -> Values:
        consts, init, xs = _split(values, num_consts, num_carry)

        def step(carry: Values, x: Any) -> tuple[Values, Values]:
            number, xs = x
            here = {name: s.in_step(number, body.runs[name]) for name, s in streams.items()}
            results = body(here, *consts, *carry, *xs)
            return results[:num_carry], results[num_carry:]

        numbers = lax.iota(jnp.uint32, length)
        numbers = numbers[::-1] if options["reverse"] else numbers
        carry, ys = lax.scan(step, init, (numbers, xs), **options)
        return [*carry, *ys]

    return _compiled_once(evaluate), {name: length * runs for name, runs in body.runs.items()}


def plan_while(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """Nobody knows how many iterations there will be, so each folds its number in."""
    params = eqn.params
    where = "the condition of a while_loop, which runs once more than its body"
    planner.refuse(params["cond_jaxpr"], around, where)
    condition = jaxpr_as_fun(params["cond_jaxpr"])
    body = planner.plan(params["body_jaxpr"], around)
    sizes = params["cond_nconsts"], params["body_nconsts"]

    def evaluate(streams: Streams, *values: Any) -> Values:
        consts_of_condition, consts, init = _split(values, *sizes)

        def step(state: tuple[Any, Values]) -> tuple[Any, Values]:
            iteration, carry = state
            here = {name: s.in_iteration(iteration) for name, s in streams.items()}
            following = body(here, *consts, *carry)
            going = wanted(carry)
            if going.ndim:  # of a vmap: examples that are done stay as they are
                following = tuple(
                    jnp.where(lax.broadcast_in_dim(going, new.shape, range(going.ndim)), new, old)
                    for new, old in zip(following, carry, strict=True)
                )
            return iteration + jnp.uint32(1), following

        def wanted(carry: Values) -> Any:
            return condition(*consts_of_condition, *carry)[0]

        state = (jnp.uint32(0), init)
        return lax.while_loop(lambda state: wanted(state[1]).any(), step, state)[1]

    return _compiled_once(evaluate), body.runs


def plan_cond(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """All branches start at the same run, and what follows them at the greatest."""
    if eqn.params.get("branches_platforms"):
        for branch in eqn.params["branches"]:
            planner.refuse(branch, around, "lax.platform_dependent, which plant cannot go into")
    branches = [planner.plan(branch, around) for branch in eqn.params["branches"]]

    def evaluate(streams: Streams, index: Any, *values: Any) -> Values:
        return lax.switch(index, [partial(b, streams) for b in branches], *values)

    return _compiled_once(evaluate), _greatest(*(branch.runs for branch in branches))


def plan_checkpoint(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """One that was differentiated already is there to be computed late: its barrier stays."""
    _, params = jaxprs.call_of(eqn)
    body = planner.plan(params["jaxpr"], around)
    call = jax.checkpoint(body, **jaxprs.checkpoint_options(params))
    has_barrier = params["differentiated"] and params["prevent_cse"]

    def evaluate(streams: Streams, *values: Any) -> Values:
        held = jaxprs.barrier(values) if has_barrier else values
        return call(as_operands(streams), *held)

    return evaluate, body.runs


def plan_shard_map(planner: Planner, eqn: Any, around: Surroundings) -> Planned:
    """The keys come in replicated; a site folds in the devices over which it varies."""
    params = eqn.params
    body = planner.plan(params["jaxpr"], around)
    call = jax.shard_map(
        body,
        in_specs=(PartitionSpec(), *params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        **jaxprs.shard_map_options(params),
    )
    return _compiled_once(call), body.runs


def _greatest(*runs: Runs) -> Runs:
    return {name: max(r.get(name, 0) for r in runs) for name in set().union(*runs)}


def _compiled_once(evaluate: Evaluate) -> Evaluate:
    """Outside of `jit`, where each call would compile again, it is put into one."""
    compiled = jax.jit(evaluate)

    def call(streams: Streams, *values: Any) -> Values:
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


def _named(body: Plan, name: str) -> Evaluate:
    def call(streams: Streams, *values: Any) -> Values:
        return body(streams, *values)

    call.__name__ = call.__qualname__ = name
    return call
