"""From a jaxpr and rules to a plan."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

from jax.extend.core import Literal, Var

from jaxdrop.planting.calls import Bodies, call_of, label_of
from jaxdrop.planting.candidates import Sites, sites_in
from jaxdrop.planting.derivatives import DERIVATIVES, PlanRule
from jaxdrop.planting.drops import Site
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import Block, Surroundings
from jaxdrop.planting.jaxprs import AnyJaxpr
from jaxdrop.planting.matchers import Named
from jaxdrop.planting.plan import Evaluate, Plan, Step
from jaxdrop.planting.rules import Rules
from jaxdrop.planting.steps import arranged, mark_step
from jaxdrop.planting.table import SiteRow, row_of


class Planner:
    """Plans jaxprs for one set of rules, each once.

    Args:
      rules: the rules.
      also: matchers whose values get a row in the table even if no rule matches.
    """

    def __init__(self, rules: Rules, also: Sequence[Named] = ()) -> None:
        self._rules = rules
        self._also = also
        # A planted function may live as long as the program, and each call traces new jaxprs.
        # So a plan is forgotten with its jaxpr, and it must not hold the jaxpr itself.
        self._plans: WeakKeyDictionary[AnyJaxpr, dict[Surroundings, Plan]] = WeakKeyDictionary()

    def plan(self, jaxpr: AnyJaxpr, around: Surroundings) -> Plan:
        """The plan of a jaxpr. The same jaxpr has the same plan, so that it compiles once."""
        plans = self._plans.setdefault(jaxpr, {})
        if around not in plans:
            plans[around] = self._planned(Block(jaxpr, around))
        return plans[around]

    def _planned(self, block: Block) -> Plan:
        sites = sites_in(block, self._rules, self._also)
        steps: list[Step | None] = []
        rows: list[SiteRow] = []
        excluded = set(sites.excluded)
        known: dict[Var, Site] = {**sites.marked, **sites.matched}
        for equation in block.equations:
            bodies = self._bodies(equation, sites, block.around)
            plan_rule = partial(self._plan_rule, equation, block.around)
            steps.append(step_of(equation, sites, bodies, plan_rule, self._rules.caller))
            rows += rows_of(equation, sites, bodies)
            excluded.update(*(plan.excluded for _, plan in _each(bodies)))
            known |= dropped_inside(equation, sites, bodies, self._rules.caller)
        in_order, results = arranged(block, steps, sites.matched)
        dropped = [
            None if isinstance(result, Literal) else known.get(result)
            for result in block.jaxpr.outvars
        ]
        return Plan(block.jaxpr, block.consts, in_order, results, rows, excluded, dropped)

    def _bodies(self, equation: Equation, sites: Sites, around: Surroundings) -> Bodies:
        """The plans of the bodies of an equation. None are needed if a rule takes its result."""
        if not equation.bodies or sites.take_all_of(equation):
            return {}
        inside = around.inside(equation, self._rules.named)
        return {
            parameter: [self.plan(jaxpr, inside) for jaxpr in jaxprs]
            for parameter, jaxprs in equation.bodies.items()
        }

    def _plan_rule(self, equation: Equation, around: Surroundings, jaxpr: AnyJaxpr) -> Plan:
        """The plan of a rule for a custom derivative, once the rule is traced."""
        inside = around.inside(equation, self._rules.named)
        return self.plan(jaxpr, replace(inside, in_rule=True))


def step_of(
    equation: Equation, sites: Sites, bodies: Bodies, plan_rule: PlanRule, caller: str
) -> Step | None:
    """What to do for an equation.

    Args:
      equation: the equation.
      sites: the sites of its jaxpr.
      bodies: the plans of its bodies.
      plan_rule: plans a rule for a custom derivative when it is used.
      caller: the function of this library that the user called.

    Returns:
      A step, or None to leave the equation to JAX.
    """
    plans = [plan for _, plan in _each(bodies)]
    inside = tuple(site for plan in plans for site in plan.sites)
    if not inside:
        return mark_step(equation, sites)
    refuse_unreachable(caller, equation, bodies)
    if equation.name in DERIVATIVES:
        (body,) = bodies["call_jaxpr"]
        evaluate = DERIVATIVES[equation.name](equation, body, plan_rule)
    else:
        evaluate = _rebuilt_once(equation, bodies)
    call = call_of(equation)
    return Step(
        evaluate,
        equation.operands,
        equation.results,
        call.runs(equation.params, plans),
        call.shared_runs(plans),
        inside,
        equation.context,
    )


def refuse_unreachable(caller: str, equation: Equation, bodies: Bodies) -> None:
    """Raises an error if there is a site in a body where no drop can be put."""
    call = call_of(equation)
    for parameter, plan in _each(bodies):
        for site in plan.sites:
            name = site.match.name
            # A rule for a custom derivative computes other values than its function does.
            # Only a mark says which of them is which.
            if equation.is_custom_derivative and not site.match.is_marked:
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
            if call.times(equation.params) is None and site.match.rule.counts_runs:
                raise NotImplementedError(
                    f"{caller}: rate must be one number for site {name!r} at {site.source}, which"
                    " is in a while_loop, so that the number of its runs is not known."
                )
            if call.rebuild is None and equation.name not in DERIVATIVES:
                raise NotImplementedError(
                    f"{caller}: site {name!r} at {site.source} is inside of {equation.name!r},"
                    " which plant cannot go into. Move the site out, or plant the function that"
                    " is passed to it."
                )


def dropped_inside(
    equation: Equation, sites: Sites, bodies: Bodies, caller: str
) -> dict[Var, Site]:
    """The results of a call or loop that are dropped inside of it.

    Raises:
      ValueError: such a result would be dropped once more, outside of the call.
    """
    call = call_of(equation)
    if call.rebuild is None and equation.name not in DERIVATIVES:
        return {}
    # What a body returns is what the call returns; of a loop, in the last step or in each.
    dropped = {
        variable: site
        for parameter, plan in _each(bodies)
        if parameter not in call.siteless
        for variable, site in zip(equation.results, plan.dropped, strict=True)
        if site
    }
    for variable, site in dropped.items():
        if again := sites.matched.get(variable):
            raise ValueError(
                f"{caller}: a value must be dropped once; site {again.match.name!r} at"
                f" {again.source}, which {again.match.matcher.as_written!r} matches, is dropped"
                f" inside of {equation.label} already, as {site.match.name!r}, which"
                f" {site.match.matcher.as_written!r} matches. Narrow one of them, or leave it out."
            )
    return dropped


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


def rows_of(equation: Equation, sites: Sites, bodies: Bodies) -> list[SiteRow]:
    """What the table says of the sites in the bodies of an equation, and of its results."""
    rows: list[SiteRow] = []
    for index, (_, plan) in enumerate(_each(bodies)):
        rows += [row.within(*label_of(equation, index)) for row in plan.rows]
    for variable in equation.results:
        if site := sites.drawn.get(variable) or sites.matched.get(variable):
            pattern = site.match.matcher.as_written
            rows.append(row_of(equation, variable, site.match.candidate, pattern))
        elif candidate := sites.unmatched.get(variable):
            rows.append(row_of(equation, variable, candidate, None))
    return rows


def _each(bodies: Bodies) -> Iterator[tuple[str, Plan]]:
    for parameter, plans in bodies.items():
        for plan in plans:
            yield parameter, plan
