"""Finds the sites of a jaxpr: marked values, and values that a rule finds by another name.

A mark has equations of its own. All other names are found at the equation that makes
the value: in its parameters, its named scopes and its Python functions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jax.extend.core import Var

from jaxdrop.planting.drops import Site
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import (
    DERIVATIVES,
    Block,
    Found,
    Surroundings,
    functions_of,
    is_floating,
    is_inside,
    leaving,
    paths_of,
    type_of,
)
from jaxdrop.planting.mark import site_p, token_p
from jaxdrop.planting.matchers import (
    GROUPED,
    Candidate,
    Matcher,
    Named,
    is_decided_by_mark,
    named_by,
)
from jaxdrop.planting.rules import Match, Rules


class Sites(NamedTuple):
    """The sites of a jaxpr by their variables, without the sites inside of bodies."""

    drawn: Mapping[Var, Site]
    """Tokens that become keys."""
    marked: Mapping[Var, Site]
    """Results of marks, and of their derivatives, that are dropped."""
    matched: Mapping[Var, Site]
    """All other values that are dropped."""
    unmatched: Mapping[Var, Candidate]
    """The names of values that no rule matches, but that the table lists."""
    excluded: frozenset[Matcher]
    """What keeps other rules from values here."""

    def take_all_of(self, equation: Equation) -> bool:
        """Whether a rule matches what a custom derivative returns, so that its body stays whole."""
        returns_site = any(variable in self.matched for variable in equation.results)
        return equation.is_custom_derivative and returns_site


@dataclass(frozen=True)
class _Value:
    """What a matcher sees of a value."""

    names: Sequence[Found]
    around: Surroundings

    @property
    def type(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype."""
        return type_of(self.names[0].equation, self.names[0].variable)

    def is_inside(self, matcher: Named) -> bool:
        """Whether it is computed inside of a scope, function or call that matches."""
        return is_inside(matcher, self.names[0].equation, self.around)


def sites_in(block: Block, rules: Rules, also: Sequence[Named]) -> Sites:
    """The values of a jaxpr to which a rule applies.

    Args:
      block: the jaxpr.
      rules: the rules.
      also: matchers; the table lists their values even if no rule matches.

    Returns:
      The sites, by their variables.
    """
    drawn: dict[Var, Site] = {}
    matched: dict[Var, Site] = {}
    excluded: set[Matcher] = set()
    for names in _named(block, rules.naming, rules.caller).values():
        found = rules.find(_Value(names, block.around), names[0].equation.source)
        if isinstance(found, Matcher):
            excluded.add(found)
        elif found:
            match, one = found
            assert isinstance(one, Found)
            # If a rule matches another name of a marked value, the mark is not used.
            # The value is dropped like a value without a mark.
            (drawn if match.is_marked else matched)[one.variable] = _site(match, one, block, rules)
    unmatched = {
        one.variable: one.candidate
        for one in candidates_in(block, also, rules.caller)
        if one.variable not in drawn and one.variable not in matched
    }
    marked = _marked(block, rules, drawn, matched)
    return Sites(drawn, marked, matched, unmatched, frozenset(excluded))


def _named(block: Block, matchers: Sequence[Named], caller: str) -> dict[Var, list[Found]]:
    """The names of each variable that has names. The names of a marked value are listed
    at its token.
    """
    found: dict[Var, list[Found]] = defaultdict(list)
    for one in candidates_in(block, matchers, caller):
        found[one.variable].append(one)
    # A mark makes two variables, a token and a value, and the value may have other
    # names. But it is one site, so that one rule applies.
    for equation in block.equations:
        if equation.primitive is site_p:
            token, value = equation.operands[1], equation.results[0]
            if isinstance(token, Var) and token in found and value in found:
                found[token] += found.pop(value)
    return found


def _site(match: Match, one: Found, block: Block, rules: Rules) -> Site:
    if one.problem:
        raise one.problem
    site = Site(match, one.equation.source, block.around.unchecked_axes, one.insiders)
    _refuse_derivatives(site, one.equation, block.around, rules.caller)
    return site


def _marked(
    block: Block, rules: Rules, drawn: Mapping[Var, Site], matched: Mapping[Var, Site]
) -> dict[Var, Site]:
    """The marked sites."""
    # A token may be a literal too, by its type.
    here: dict[object, Site] = {**drawn}
    tokens: set[object] = {
        variable
        for equation in block.equations
        if equation.primitive is token_p
        for variable in equation.results
    }
    marked: dict[Var, Site] = {}
    for equation in block.equations:
        if equation.primitive is not site_p or equation.results[0] in matched:
            continue
        token = equation.operands[1]
        # The token of a mark may have been drawn in another jaxpr: around a loop, or in the
        # forward pass of a derivative. Then only the name says which rule it is.
        is_here = token in tokens
        site = here.get(token) if is_here else _by_name(equation, block, rules)
        if site:
            _refuse_lost_run(site, equation, is_here, rules.caller)
            marked[equation.results[0]] = site
    return marked


def _by_name(equation: Equation, block: Block, rules: Rules) -> Site | None:
    """The site of a mark, without what was around when its token was drawn."""
    name = _found(equation, equation.results[0], "site", equation.params["name"])
    if not any(_may_match(matcher, name) for matcher, rule in rules.pairs if rule):
        return None
    for matcher, rule in rules.pairs:
        # What has no name, as `match.value`, and what may leave a scope or a function, may leave
        # any marked value alone.
        alone = rule is None and any(one.kind in GROUPED for one in named_by(matcher))
        concerns = alone or _may_match(matcher, name) or not matcher.names_values
        if concerns and not is_decided_by_mark(matcher):
            raise NotImplementedError(
                f"{rules.caller}: site {name.candidate.text!r} at {equation.source} is inside of a"
                f" derivative, where {matcher!r} cannot be decided. Differentiate the planted"
                f" function instead: {equation.planted_inside}."
            )
    found = rules.find(_Value([name], block.around), equation.source)
    if found is None or isinstance(found, Matcher):
        return None
    return Site(found[0], equation.source, block.around.unchecked_axes)


def _may_match(matcher: Matcher, name: Found) -> bool:
    """Whether a name fits a pattern in a matcher."""
    return any(named.matches(name.candidate) for named in named_by(matcher))


def _refuse_lost_run(site: Site, equation: Equation, is_here: bool, caller: str) -> None:
    """Refuses a rate by the run where the number of the run is not known any more."""
    is_value = equation.params["role"] == "value"
    if site.match.rule.counts_runs and not (is_value and is_here):
        raise NotImplementedError(
            f"{caller}: rate must be one number for site {site.match.name!r} at {equation.source},"
            " inside of a derivative, where the number of the run is not known. Differentiate the"
            f" planted function instead: {equation.planted_inside}."
        )


def _found(equation: Equation, variable: Var, kind: str, name: str) -> Found:
    return Found(equation, variable, Candidate(kind, name, path_of(equation)))


def candidates_in(block: Block, matchers: Sequence[Named], caller: str) -> Iterator[Found]:
    """The variables that may be sites.

    For scopes, functions and calls, only matching ones are returned; for other kinds, all
    names are returned.
    """
    matchers = [matcher for matcher in matchers if matcher not in block.around.taken]
    kinds = dict.fromkeys(matcher.kind for matcher in matchers if matcher.kind not in GROUPED)
    for equation in block.equations:
        for kind in kinds:
            for name in names_of(equation, block.around, kind):
                for variable in equation.results:
                    if kind == "site" or is_floating(variable):
                        yield _found(equation, variable, kind, name)
    for matcher in matchers:
        if matcher.kind in GROUPED:
            yield from leaving(block, matcher, caller)


def names_of(equation: Equation, around: Surroundings, kind: str) -> list[str]:
    """The names of one kind that the results of an equation have."""
    if equation.primitive is token_p:
        return [equation.params["name"]] if kind == "site" else []
    if equation.primitive is site_p or kind == "site":
        return []
    if kind == "named_scope":
        return paths_of(equation, around)
    if kind == "function":
        return [name for names in functions_of(equation) for name in names]
    if kind == "primitive":
        return [equation.primitive.name]
    name = equation.tag if kind == "checkpoint_name" else equation.called
    return [name] if name else []


def path_of(equation: Equation) -> str:
    """The path of a marked array in its pytree."""
    return equation.params["path"] if equation.primitive in (token_p, site_p) else ""


def _refuse_derivatives(site: Site, equation: Equation, around: Surroundings, caller: str) -> None:
    """Refuses sites that need a mask of the forward pass which cannot be known."""
    name = site.match.name
    transforms = around.transforms | equation.transforms
    if site.match.is_marked:
        # A token is made in the forward pass and carried to the backward pass. If the
        # backward pass makes a token, it computes the value again, and the value would
        # get another mask, except if all runs share one.
        shares_mask = around.in_rule or site.match.rule.share_runs
        if "transpose" in transforms and not shares_mask:
            raise NotImplementedError(
                f"{caller}: site {name!r} at {site.source} runs again in a backward pass, where it"
                " would draw another mask. Differentiate the planted function instead:"
                f" {equation.planted_inside}."
            )
    elif transforms & DERIVATIVES:
        # Other equations compute the tangent of this value, and they have no token.
        raise NotImplementedError(
            f"{caller}: {name!r} at {site.source} is inside of a derivative, where only marks of"
            " jaxdrop.site can be followed. Differentiate the planted function instead:"
            f" {equation.planted_inside}, or mark the value."
        )
