"""From a jaxpr and rules to a plan."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from jaxdrop.planting.calls import CALLS, Bodies, Call
from jaxdrop.planting.candidates import sites_in
from jaxdrop.planting.derivatives import DERIVATIVES, PlanRule
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import Block, Surroundings
from jaxdrop.planting.jaxprs import AnyJaxpr
from jaxdrop.planting.plan import Evaluate, Plan, Step
from jaxdrop.planting.rules import Matcher, Rules
from jaxdrop.planting.steps import arranged, mark_step
from jaxdrop.planting.table import SiteRow


class Planner:
    """Plans jaxprs for one set of rules, each once.

    Args:
      rules: the rules.
      also: matchers whose values get a row in the table even if no rule matches.
    """

    def __init__(self, rules: Rules, also: Sequence[Matcher] = ()) -> None:
        self._rules = rules
        self._also = also
        # Planted functions live as long as a program, and JAX traces new jaxprs for them at
        # each call. So a plan goes with its jaxpr, and must not hold it.
        self._plans: WeakKeyDictionary[AnyJaxpr, dict[Surroundings, Plan]] = WeakKeyDictionary()

    def plan(self, jaxpr: AnyJaxpr, around: Surroundings) -> Plan:
        """The plan of a jaxpr; the same object for the same jaxpr, so that it compiles once."""
        plans = self._plans.setdefault(jaxpr, {})
        if around not in plans:
            plans[around] = self._planned(Block(jaxpr, around))
        return plans[around]

    def _planned(self, block: Block) -> Plan:
        sites = sites_in(block, self._rules, self._also)
        steps: list[Step | None] = []
        rows: list[SiteRow] = []
        for equation in block.equations:
            if equation.bodies and not sites.take_all_of(equation):
                inside = block.around.inside(equation, self._rules.matchers)
                bodies = self._bodies(equation, inside)
                steps.append(self._call_step(equation, bodies, inside))
                rows += _rows_inside(equation, bodies)
            else:
                steps.append(mark_step(equation, sites))
            rows += [sites.rows[v] for v in equation.results if v in sites.rows]
        in_order, results = arranged(block, steps, sites.matched)
        return Plan(block.jaxpr, block.consts, in_order, results, rows)

    def _bodies(self, equation: Equation, inside: Surroundings) -> Bodies:
        return {
            parameter: [self.plan(jaxpr, inside) for jaxpr in jaxprs]
            for parameter, jaxprs in equation.bodies.items()
        }

    def _call_step(self, equation: Equation, bodies: Bodies, inside: Surroundings) -> Step | None:
        """The step for an equation with bodies; None if no site is inside of it."""
        plans = [plan for _, plan in _each(bodies)]
        sites = tuple(site for plan in plans for site in plan.sites)
        if not sites:
            return None
        refuse_unreachable(self._rules.caller, equation, bodies)
        if equation.name in DERIVATIVES:
            keep = DERIVATIVES[equation.name]
            (body,) = bodies["call_jaxpr"]
            evaluate = keep(equation, body, self._plan_rule(inside))
        else:
            evaluate = _rebuilt_once(equation, bodies)
        runs = call_of(equation).runs(equation.params, plans)
        return Step(evaluate, equation.operands, equation.results, runs, sites, equation.context)

    def _plan_rule(self, around: Surroundings) -> PlanRule:
        return lambda jaxpr: self.plan(jaxpr, replace(around, in_rule=True))


def call_of(equation: Equation) -> Call:
    """What the table says of an equation's primitive."""
    return CALLS.get(equation.name, Call())


def refuse_unreachable(caller: str, equation: Equation, bodies: Bodies) -> None:
    """Raises an error if there is a site in a body where no drop can be put."""
    call = call_of(equation)
    for parameter, plan in _each(bodies):
        for site in plan.sites:
            name = site.match.name
            # A rule for a custom derivative computes other values than its function does.
            # Only a mark says which of them is which.
            if equation.is_custom_derivative and site.match.matcher.kind != "site":
                raise NotImplementedError(
                    f"{caller}: {name!r} at {site.source} is inside of a function with a"
                    " custom derivative, where only marks of jaxdrop.site can be followed. Match"
                    f" the function, by match.jit({equation.called!r}), or mark the value."
                )
            if parameter in call.siteless:
                raise NotImplementedError(
                    f"{caller}: site {name!r} at {site.source} is in {call.siteless[parameter]}."
                    " Move it out, or leave it without a rule."
                )
            if call.rebuild is None and equation.name not in DERIVATIVES:
                raise NotImplementedError(
                    f"{caller}: site {name!r} at {site.source} is inside of {equation.name!r},"
                    " which plant cannot go into. Move the site out, or plant the function before"
                    " it gets there."
                )


def _rebuilt_once(equation: Equation, bodies: Bodies) -> Evaluate:
    """How an equation is evaluated: the same function for equations that are alike."""
    # JAX's caches go by the function, so a body that is called twice is compiled once. The
    # function is kept with the last body's plan, and so as long as that body's jaxpr lives.
    rebuild = call_of(equation).rebuild
    assert rebuild is not None
    *others, last = (plan for _, plan in _each(bodies))
    alike = (*equation.identity, *others)
    if alike not in last.calls:
        last.calls[alike] = rebuild(equation.own_params, bodies)
    return last.calls[alike]


def _rows_inside(equation: Equation, bodies: Bodies) -> Iterator[SiteRow]:
    """What the table says of the sites in the bodies of an equation."""
    call = call_of(equation)
    called = f"{equation.name}({equation.called})" if equation.called else equation.name
    times = call.times(equation.params)
    for index, (_, plan) in enumerate(_each(bodies)):
        label = call.label(equation.params, index) if call.label else called
        yield from (row.inside(label, times) for row in plan.rows)


def _each(bodies: Bodies) -> Iterator[tuple[str, Plan]]:
    for parameter, plans in bodies.items():
        for plan in plans:
            yield parameter, plan
