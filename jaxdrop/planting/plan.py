"""The interpreter: a jaxpr as a sequence of steps, of which some take keys.

Equations without a site are left to JAX, in runs as long as possible. The other
steps are drops, and calls whose bodies are plans again.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from jax.core import eval_jaxpr
from jax.extend.core import Literal

from jaxdrop.planting.drops import Site
from jaxdrop.planting.groups import Surroundings, unique_variables
from jaxdrop.planting.keys import Streams

Values: TypeAlias = Sequence[Any]
Runs: TypeAlias = Mapping[str, int]
"""How many times each site runs."""
Evaluate: TypeAlias = Callable[..., Values]
"""A function of streams of keys and of values."""
Planned: TypeAlias = tuple[Evaluate, Runs]


@dataclass(frozen=True)
class Step:
    """What is evaluated at once."""

    evaluate: Evaluate
    operands: Values
    results: Values
    runs: Runs = field(default_factory=dict[str, int])
    sites: tuple[Site, ...] = ()
    looped: frozenset[str] = frozenset()  # sites in a while loop, which run more often than known


class Plan:
    """What to evaluate for a jaxpr; called with the streams of its sites and its operands."""

    def __init__(self, jaxpr: Any, consts: Values, steps: Sequence[Step], results: Values) -> None:
        self.operands = [*jaxpr.constvars, *jaxpr.invars]
        self.results = results
        self.consts = consts
        self.steps = steps
        self.runs = _total(step.runs for step in steps)
        self.sites = [site for step in steps for site in step.sites]
        self.looped = frozenset(name for step in steps for name in step.looped)
        self.calls: dict[Hashable, Planned] = {}  # with this plan as body, each built once
        self._unused_after = _last_uses(steps, self.results)

    def __call__(self, streams: Streams, *operands: Any) -> tuple[Any, ...]:
        """The results of the jaxpr."""
        values = dict(zip(self.operands, [*self.consts, *operands], strict=True))
        streams = dict(streams)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for step, unused in zip(self.steps, self._unused_after, strict=True):
            here = {name: streams[name] for name in step.runs}
            results = step.evaluate(here, *map(read, step.operands))
            values.update(zip(step.results, results, strict=True))
            streams.update({name: here[name].after(n) for name, n in step.runs.items()})
            for variable in unused:
                del values[variable]
        return tuple(map(read, self.results))


class Planner(Protocol):
    """What the rules for equations with a body ask of the planner."""

    def plan(self, jaxpr: Any, around: Surroundings) -> Plan:
        """The plan of a body."""
        ...

    def refuse(self, jaxpr: Any, around: Surroundings, where: str) -> None:
        """Raises an error if there is a site in a body that cannot have one."""
        ...


@dataclass(frozen=True)
class Dropped:
    """The value of a variable after its drop, where it is not marked but matched."""

    variable: Any


def untouched(jaxpr: Any, eqns: Sequence[Any], needed: set[Any], names: Mapping[Any, Any]) -> Step:
    """A run of equations without a site, as one step.

    Args:
      jaxpr: that they are part of.
      eqns: the equations.
      needed: the variables that are read elsewhere.
      names: what to read in place of a variable.

    Returns:
      A step.
    """
    made = {variable for eqn in eqns for variable in eqn.outvars}
    operands = [v for v in unique_variables(a for eqn in eqns for a in eqn.invars) if v not in made]
    results = [v for eqn in eqns for v in eqn.outvars if v in needed]
    part = jaxpr.replace(constvars=[], invars=operands, outvars=results, eqns=list(eqns))
    read = [names.get(variable, variable) for variable in operands]
    return Step(lambda _, *values: eval_jaxpr(part, (), *values), read, results)


def _total(runs: Iterable[Runs]) -> Runs:
    total: dict[str, int] = {}
    for some in runs:
        for name, count in some.items():
            total[name] = total.get(name, 0) + count
    return total


def _last_uses(steps: Sequence[Step], kept: Values) -> list[list[Any]]:
    """For each step, the variables that nothing reads after it."""
    last = {
        variable: index
        for index, step in enumerate(steps)
        for variable in unique_variables([*step.results, *step.operands])
    }
    for variable in unique_variables(kept):
        last.pop(variable, None)
    unused: list[list[Any]] = [[] for _ in steps]
    for variable, index in last.items():
        unused[index].append(variable)
    return unused
