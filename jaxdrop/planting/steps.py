"""The steps of a jaxpr: drops, calls, and sequences of equations that JAX evaluates.

A value that is matched but not marked has two names here. Its variable is the value
before the drop; equations of its own scope or function read it. All other equations
read `Dropped(variable)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jax.core import eval_jaxpr
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from jaxdrop.planting.candidates import Sites
from jaxdrop.planting.drops import Site
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import Block
from jaxdrop.planting.jaxprs import Atom, Value, Values, unique_variables
from jaxdrop.planting.keys import Streams
from jaxdrop.planting.mark import site_p, token_p
from jaxdrop.planting.plan import Dropped, Name, Step


def mark_step(equation: Equation, sites: Sites) -> Step | None:
    """The step for one of the two equations of a mark: a token becomes a key, or a
    value is dropped.
    """
    if equation.primitive is token_p and (site := sites.drawn.get(equation.results[0])):
        return _draw(equation, site)
    if equation.primitive is site_p and (site := sites.marked.get(equation.results[0])):
        return _drop(equation, site)
    return None


def _draw(equation: Equation, site: Site) -> Step:
    name, axes = site.match.name, equation.params["axes"]

    def evaluate(streams: Streams, x: Value) -> Values:
        return [site.draw(streams[name], x, axes)]

    return Step(
        evaluate,
        equation.operands,
        equation.results,
        {name: 1},
        sites=(site,),
        context=equation.context,
    )


def _drop(equation: Equation, site: Site) -> Step:
    role, axes = equation.params["role"], equation.params["axes"]

    def evaluate(streams: Streams, x: Value, token: Value) -> Values:
        return [site.drop(streams, x, token, role, axes)]

    runs, shared = dict.fromkeys(site.counted, 1), dict.fromkeys(site.counted_once, 1)
    return Step(
        evaluate, equation.operands, equation.results, runs, shared, (site,), equation.context
    )


def _drop_result(equation: Equation, variable: Var, site: Site) -> Step:
    """Drops a result of an equation that is matched but not marked."""
    name = site.match.name

    # The batch axis of an inner vmap looks like any other axis here, so one mask covers the batch.
    def evaluate(streams: Streams, x: Value) -> Values:
        return [site.drop(streams, x, site.draw(streams[name], x), "value", ())]

    runs, shared = dict.fromkeys((name, *site.counted), 1), dict.fromkeys(site.counted_once, 1)
    return Step(evaluate, [variable], [Dropped(variable)], runs, shared, (site,), equation.context)


def arranged(
    block: Block, steps: Sequence[Step | None], matched: Mapping[Var, Site]
) -> tuple[list[Step], list[Name | Literal]]:
    """All steps of a jaxpr, in order.

    Args:
      block: the jaxpr.
      steps: the step of each equation, or None to leave it to JAX.
      matched: the sites that are matched but not marked. They are dropped when they are computed.

    Returns:
      The steps, and the names of the results of the jaxpr.
    """
    pending = _Pending(block.jaxpr, matched)
    for index, (equation, step) in enumerate(zip(block.equations, steps, strict=True)):
        names = _names_read(equation, matched)
        if step:
            pending.flush(index)
            pending.steps.append(replace(step, operands=_read_by(equation.operands, names)))
        else:
            pending.add(index, equation.eqn, names)
        for variable in filter(matched.get, equation.results):
            pending.flush(index + 1)
            pending.steps.append(_drop_result(equation, variable, matched[variable]))
    pending.flush(len(block.equations))
    after_drop: dict[Var, Name] = {variable: Dropped(variable) for variable in matched}
    return pending.steps, _read_by(block.jaxpr.outvars, after_drop)


class _Pending:
    """Consecutive equations that are left to JAX, until another step comes or a name changes."""

    # They become one jaxpr that JAX evaluates itself. So only JAX must know how to bind
    # each primitive, and tracing takes one call for many equations.

    def __init__(self, jaxpr: Jaxpr, matched: Mapping[Var, Site]) -> None:
        self.steps: list[Step] = []
        self._jaxpr = jaxpr
        self._eqns: list[JaxprEqn] = []
        self._names: dict[Var, Name] = {}
        self._last_read = {
            variable: index
            for index, eqn in enumerate(jaxpr.eqns)
            for variable in unique_variables(eqn.invars)
        }
        # The results of the jaxpr and the dropped values are read after all equations.
        for variable in (*unique_variables(jaxpr.outvars), *matched):
            self._last_read[variable] = len(jaxpr.eqns)

    def add(self, index: int, eqn: JaxprEqn, names: Mapping[Var, Name]) -> None:
        # In one sequence a variable has one value. So an equation that reads the value
        # after its drop cannot be in the same sequence as an equation that reads it
        # before the drop.
        if any(self._names.get(variable, name) != name for variable, name in names.items()):
            self.flush(index)
        self._eqns.append(eqn)
        self._names.update(names)

    def flush(self, end: int) -> None:
        """Makes a step of the pending equations, which end before index `end`."""
        if self._eqns:
            results = [
                variable
                for eqn in self._eqns
                for variable in eqn.outvars
                if self._last_read.get(variable, -1) >= end
            ]
            self.steps.append(_untouched(self._jaxpr, self._eqns, results, self._names))
        self._eqns, self._names = [], {}


def _untouched(
    jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], results: Sequence[Var], names: Mapping[Var, Name]
) -> Step:
    """A sequence of equations without a site, as one step."""
    # Inside, equations read variables as before. Only the operands of the whole step have names.
    made = {variable for eqn in eqns for variable in eqn.outvars}
    read = unique_variables(atom for eqn in eqns for atom in eqn.invars)
    operands = [variable for variable in read if variable not in made]
    part = jaxpr.replace(constvars=[], invars=operands, outvars=list(results), eqns=list(eqns))

    def evaluate(_: Streams, *values: Value) -> Values:
        return eval_jaxpr(part, (), *values)

    return Step(evaluate, _read_by(operands, names), results)


def _names_read(equation: Equation, matched: Mapping[Var, Site]) -> dict[Var, Name]:
    """The name by which an equation reads each matched value, before or after its drop."""
    return {
        variable: variable if id(equation.eqn) in site.insiders else Dropped(variable)
        for variable in unique_variables(equation.operands)
        if (site := matched.get(variable))
    }


def _read_by(atoms: Sequence[Atom], names: Mapping[Var, Name]) -> list[Name | Literal]:
    return [atom if isinstance(atom, Literal) else names.get(atom, atom) for atom in atoms]
