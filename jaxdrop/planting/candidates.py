"""Finds the sites of a jaxpr: marked values, and values that a rule finds by another name.

A mark has equations of its own. All other names are found at the equation that makes
the value: in its parameters, its named scopes and its Python functions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jax.extend.core import Var

from jaxdrop.planting.drops import Site
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import (
    DERIVATIVES,
    Block,
    Found,
    Surroundings,
    is_floating,
    leaving,
    paths_of,
)
from jaxdrop.planting.mark import site_p, token_p
from jaxdrop.planting.rules import Candidate, Matcher, Rules

_GROUPED = ("named_scope", "function", "jit")


class Sites(NamedTuple):
    """The sites of a jaxpr by their variables, without the sites inside of bodies."""

    drawn: Mapping[Var, Site]
    """Tokens that become keys."""
    marked: Mapping[Var, Site]
    """Results of marks, and of their derivatives, that are dropped."""
    matched: Mapping[Var, Site]
    """All other values that are dropped."""
    unmatched: Mapping[Var, str]
    """The names of values that no rule matches, but that the table lists."""

    def take_all_of(self, equation: Equation) -> bool:
        """Whether a rule matches what a custom derivative returns, so that its body stays whole."""
        returns_site = any(variable in self.matched for variable in equation.results)
        return equation.is_custom_derivative and returns_site


def sites_in(block: Block, rules: Rules, also: Sequence[Matcher]) -> Sites:
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
    for names in _named(block, rules.matchers, rules.caller).values():
        if site := _site_of(names, block.around, rules):
            # If a rule matches another name of a marked value, the mark is not used.
            # The value is dropped like a value without a mark.
            is_drawn = site.match.matcher.kind == "site"
            one = names[0] if is_drawn else names[-1]
            (drawn if is_drawn else matched)[one.variable] = site
    unmatched = {
        one.variable: one.candidate.text + path_of(one.equation)
        for one in candidates_in(block, also, rules.caller)
        if one.variable not in drawn and one.variable not in matched
    }
    return Sites(drawn, _marked(block, rules, matched), matched, unmatched)


def _named(block: Block, matchers: Sequence[Matcher], caller: str) -> dict[Var, list[Found]]:
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


def _site_of(names: Sequence[Found], around: Surroundings, rules: Rules) -> Site | None:
    equation = names[0].equation
    match = rules.find([one.candidate for one in names], path_of(equation), equation.source)
    if match is None:
        return None
    insiders = next(one.insiders for one in names if match.matcher.matches(one.candidate))
    site = Site(match, equation.source, around.unchecked_axes, insiders)
    _refuse_derivatives(site, around.transforms | equation.transforms, around, rules.caller)
    return site


def _marked(block: Block, rules: Rules, matched: Mapping[Var, Site]) -> dict[Var, Site]:
    """The marked sites, each found by the name at its mark."""
    # The token of a mark may have been drawn in another jaxpr: around a loop, or in the forward
    # pass of a derivative. So a mark cannot learn its rule from its token.
    marked: dict[Var, Site] = {}
    for equation in block.equations:
        if equation.primitive is site_p and equation.results[0] not in matched:
            candidates = [Candidate("site", equation.params["name"])]
            if match := rules.find(candidates, path_of(equation), equation.source):
                site = Site(match, equation.source, block.around.unchecked_axes)
                marked[equation.results[0]] = site
    return marked


def candidates_in(block: Block, matchers: Sequence[Matcher], caller: str) -> Iterator[Found]:
    """The variables that may be sites.

    For scopes, functions and calls, only matching ones are returned; for other kinds, all
    names are returned.
    """
    matchers = [matcher for matcher in matchers if matcher not in block.around.taken]
    kinds = dict.fromkeys(matcher.kind for matcher in matchers if matcher.kind not in _GROUPED)
    for equation in block.equations:
        for kind in kinds:
            for name in names_of(equation, block.around, kind):
                for variable in equation.results:
                    if kind == "site" or is_floating(variable):
                        yield Found(equation, variable, Candidate(kind, name))
    for matcher in matchers:
        if matcher.kind in _GROUPED:
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
        return [frame.function for frame in equation.frames if not frame.is_internal]
    if kind == "primitive":
        return [equation.primitive.name]
    name = equation.tag if kind == "checkpoint_name" else equation.called
    return [name] if name else []


def path_of(equation: Equation) -> str:
    """The path of a marked array in its pytree."""
    return equation.params["path"] if equation.primitive in (token_p, site_p) else ""


def _refuse_derivatives(
    site: Site, transforms: frozenset[str], around: Surroundings, caller: str
) -> None:
    """Refuses sites that need a mask of the forward pass which cannot be known."""
    name = site.match.name
    if site.match.matcher.kind == "site":
        # A token is made in the forward pass and carried to the backward pass. If the
        # backward pass makes a token, it computes the value again, and the value would
        # get another mask, except if all runs share one.
        shares_mask = around.in_rule or site.match.rule.share_runs
        if "transpose" in transforms and not shares_mask:
            raise NotImplementedError(
                f"{caller}: site {name!r} at {site.source} runs again in a backward pass, where it"
                " would draw another mask. Differentiate the planted function instead:"
                " grad(plant(f, rules))."
            )
    elif transforms & DERIVATIVES:
        # Other equations compute the tangent of this value, and they have no token.
        raise NotImplementedError(
            f"{caller}: {name!r} at {site.source} is inside of a derivative, where only marks of"
            " jaxdrop.site can be followed. Differentiate the planted function instead:"
            " grad(plant(f, rules)), or mark the value."
        )
