"""From a jaxpr and rules to a plan."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from jax.extend.core import Literal

from jaxdrop.planting import calls, derivatives, jaxprs
from jaxdrop.planting.candidates import is_whole, matches_in
from jaxdrop.planting.drops import Site
from jaxdrop.planting.groups import Surroundings, name_of_call, unique_variables
from jaxdrop.planting.mark import site_p, token_p
from jaxdrop.planting.plan import (
    Dropped,
    Evaluate,
    Plan,
    Planned,
    Step,
    Values,
    untouched,
)
from jaxdrop.planting.rules import Candidate, Match, RuleBook

Rule: TypeAlias = Callable[..., Planned]
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(jaxprs.JIT, calls.plan_jit),
    **dict.fromkeys(jaxprs.CALL, calls.plan_call),
    "scan": calls.plan_scan,
    "while": calls.plan_while,
    "cond": calls.plan_cond,
    **dict.fromkeys(jaxprs.CHECKPOINT, calls.plan_checkpoint),
    "shard_map": calls.plan_shard_map,
    **dict.fromkeys(jaxprs.CUSTOM_JVP, derivatives.plan_custom_jvp),
    **dict.fromkeys(jaxprs.CUSTOM_VJP, derivatives.plan_custom_vjp),
}


class Planner:
    """Plans jaxprs for one set of rules, each once."""

    def __init__(self, book: RuleBook) -> None:
        self.book = book
        self._plans: WeakKeyDictionary[Any, dict[Surroundings, Plan]] = WeakKeyDictionary()

    def plan(self, jaxpr: Any, around: Surroundings) -> Plan:
        """The plan of a jaxpr; the same object for the same jaxpr, so that it compiles once."""
        plans = self._plans.setdefault(jaxpr, {})
        if around not in plans:
            body, consts = jaxprs.opened(jaxpr)
            plans[around] = Plan(body, consts, *self._steps(body, around))
        return plans[around]

    def refuse(self, jaxpr: Any, around: Surroundings, where: str) -> None:
        """Raises an error if there is a site in a body that cannot have one."""
        for site in self.plan(jaxpr, around).sites:
            raise NotImplementedError(
                f"{self.book.function}: site {site.match.name!r} at {site.source} is in {where}."
                " Move it out, or leave it without a rule."
            )

    def _steps(self, jaxpr: Any, around: Surroundings) -> tuple[list[Step], list[Any]]:
        """The steps of a jaxpr, and by which names its results are read."""
        matches = matches_in(jaxpr, around, self.book)
        last_read = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in unique_variables(eqn.invars)}
        last_read |= dict.fromkeys(unique_variables(jaxpr.outvars), len(jaxpr.eqns))
        last_read |= dict.fromkeys(matches, len(jaxpr.eqns))
        steps: list[Step] = []
        pending: list[Any] = []
        names: dict[Any, Any] = {}

        def flush(end: int) -> None:
            if pending:
                made = (variable for eqn in pending for variable in eqn.outvars)
                needed = {variable for variable in made if last_read.get(variable, -1) >= end}
                steps.append(untouched(jaxpr, pending, needed, names))
            pending.clear()
            names.clear()

        # Marks are dropped by equations of their own, other matches after the one that made them.
        foreign = {v: match for v, match in matches.items() if match.matcher.kind != "site"}
        for index, eqn in enumerate(jaxpr.eqns):
            read = _names_for(eqn, foreign)
            if own := self._step(eqn, around, matches):
                flush(index)
                steps.append(replace(own, operands=_renamed(eqn.invars, read)))
            else:
                if any(names.get(variable, name) != name for variable, name in read.items()):
                    flush(index)
                pending.append(eqn)
                names.update(read)
            for variable in filter(foreign.get, eqn.outvars):
                flush(index + 1)
                steps.append(self._drop_result(eqn, variable, foreign[variable], around))
        flush(len(jaxpr.eqns))
        return steps, _renamed(jaxpr.outvars, {v: Dropped(v) for v in foreign})

    def _step(self, eqn: Any, around: Surroundings, matches: Mapping[Any, Match]) -> Step | None:
        """What to do for an equation by itself; None to leave it to JAX."""
        if eqn.primitive is token_p:
            match = matches.get(eqn.outvars[0])
            return match and self._draw(eqn, match, around)
        if eqn.primitive is site_p:
            return None if eqn.outvars[0] in matches else self._drop(eqn, around)
        inner = list(jaxprs.jaxprs_in(eqn))
        if not inner:
            return None
        inside = self._inside(eqn, around)
        bodies = [self.plan(jaxpr, inside) for jaxpr in inner]
        sites = [site for body in bodies for site in body.sites]
        if not sites or is_whole(eqn, matches):
            return None
        name, _ = jaxprs.call_of(eqn)
        self._refuse_unmarked(name, eqn, sites)
        rule = _RULES.get(name)
        if rule is None:
            raise NotImplementedError(
                f"plant: site {sites[0].match.name!r} at {sites[0].source} is inside of"
                f" {name!r}, which plant cannot go into. Move the site out, or plant"
                " the function before it gets there."
            )
        evaluate, runs = self._call(eqn, rule, bodies, inside)
        looped = (runs.keys() if name == "while" else body.looped for body in bodies)
        return Step(
            _within(eqn, evaluate),
            eqn.invars,
            eqn.outvars,
            runs,
            tuple(sites),
            frozenset().union(*looped),
        )

    def _refuse_unmarked(self, name: str, eqn: Any, sites: list[Site]) -> None:
        """In a custom derivative, whose rule has other values, only marks can be followed."""
        for site in sites:
            if name in jaxprs.CUSTOM and site.match.matcher.kind != "site":
                raise NotImplementedError(
                    f"plant: {site.match.name!r} at {site.source} is inside of a function with a"
                    " custom derivative, where only marks of jaxdrop.site can be followed. Match"
                    f" the function, by match.jit({name_of_call(eqn)!r}), or mark the value."
                )

    def _call(self, eqn: Any, rule: Rule, bodies: list[Plan], inside: Surroundings) -> Planned:
        """What a rule makes of an equation; the same for equations that are alike.

        It is kept with the last body, as long as that body's jaxpr lives. So it must
        not hold that jaxpr, as the rules for custom derivatives do.
        """
        if rule in (derivatives.plan_custom_jvp, derivatives.plan_custom_vjp):
            return rule(self, eqn, inside)
        *others, last = bodies
        alike = (*jaxprs.identity_of(eqn), *others)
        if alike not in last.calls:
            last.calls[alike] = rule(self, eqn, inside)
        return last.calls[alike]

    def _draw(self, eqn: Any, match: Match, around: Surroundings) -> Step:
        site = self._site(eqn, match, around)

        def evaluate(streams: Any, x: Any) -> Values:
            return [site.draw(streams[match.name], x, eqn.params["axes"])]

        return Step(_within(eqn, evaluate), eqn.invars, eqn.outvars, {match.name: 1}, (site,))

    def _drop(self, eqn: Any, around: Surroundings) -> Step | None:
        params = eqn.params
        candidates = [Candidate("site", params["name"])]
        match = self.book.find(candidates, params["path"], jaxprs.source_line(eqn))
        if match is None:
            return None
        site = self._site(eqn, match, around)

        def evaluate(_: Any, x: Any, token: Any) -> Values:
            return [site.drop(x, token, params["role"], params["axes"])]

        return Step(_within(eqn, evaluate), eqn.invars, eqn.outvars, {}, (site,))

    def _drop_result(self, eqn: Any, variable: Any, match: Match, around: Surroundings) -> Step:
        """Drops what an equation returned, where it is not marked but matched."""
        site = self._site(eqn, match, around)

        def evaluate(streams: Any, x: Any) -> Values:
            return [site.drop(x, site.draw(streams[match.name], x), "value", ())]

        results = [Dropped(variable)]
        return Step(_within(eqn, evaluate), [variable], results, {match.name: 1}, (site,))

    def _site(self, eqn: Any, match: Match, around: Surroundings) -> Site:
        return Site(match, jaxprs.source_line(eqn), around.unchecked_axes)

    def _inside(self, eqn: Any, around: Surroundings) -> Surroundings:
        """What is around the bodies of an equation.

        No more than rules depend on, so that bodies are planned, and compiled, as
        seldom as possible.
        """
        matchers = self.book.matchers
        inside = around.inside(eqn, matchers)
        scopes = inside.scopes if any(m.kind == "named_scope" for m in matchers) else ()
        return replace(inside, scopes=scopes, transforms=inside.transforms & {"jvp", "transpose"})


def _names_for(eqn: Any, matches: Mapping[Any, Match]) -> dict[Any, Any]:
    """By which name an equation reads what is dropped: before, in its group, or after."""
    found = {v: matches[v] for v in unique_variables(eqn.invars) if v in matches}
    return {v: v if id(eqn) in m.insiders else Dropped(v) for v, m in found.items()}


def _renamed(atoms: Values, names: Mapping[Any, Any]) -> list[Any]:
    return [a if isinstance(a, Literal) else names.get(a, a) for a in atoms]


def _within(eqn: Any, evaluate: Evaluate) -> Evaluate:
    """Evaluates where the equation was: in its named scopes and configuration."""

    def evaluate_there(*args: Any) -> Values:
        with jaxprs.within(eqn):
            return evaluate(*args)

    return evaluate_there
