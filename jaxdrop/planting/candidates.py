"""Which values of a jaxpr are sites: marked ones, and those that go by another name.

A mark is an equation of its own. All other names are found at the equation that
makes a value: in its parameters, its named scopes, its Python functions.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxdrop.planting import jaxprs
from jaxdrop.planting.groups import Found, Surroundings, leaving, name_of_call, paths_of
from jaxdrop.planting.mark import site_p, token_p
from jaxdrop.planting.rules import Candidate, Match, Matcher, RuleBook

_GROUPED = ("named_scope", "function")
_OWN_NAMES: Mapping[str, Callable[[Any], str | None]] = {
    "checkpoint_name": jaxprs.tag_of,
    "jit": name_of_call,
    "primitive": lambda eqn: eqn.primitive.name,
}


def matches_in(jaxpr: Any, around: Surroundings, book: RuleBook) -> dict[Any, Match]:
    """The rule for each variable of a jaxpr that is a site; for a mark, that of its token."""
    found: dict[Any, list[Found]] = defaultdict(list)
    for one in candidates_in(jaxpr, around, book.matchers):
        found[one.variable].append(one)
    # A marked value may go by other names too.
    marked = {eqn.invars[1]: eqn.outvars[0] for eqn in jaxpr.eqns if eqn.primitive is site_p}
    for token, value in marked.items():
        if token in found and value in found:
            found[token] += found.pop(value)
    matches: dict[Any, Match] = {}
    for variable, ones in found.items():
        eqn = ones[0].eqn
        names = [one.candidate for one in ones]
        if match := book.find(names, path_of(eqn), jaxprs.source_line(eqn)):
            _refuse_derivatives(eqn, match, around)
            insiders = (one.insiders for one in ones if match.matcher.matches(one.candidate))
            variable = variable if match.matcher.kind == "site" else marked.get(variable, variable)
            matches[variable] = replace(match, insiders=next(insiders))
    return matches


def candidates_in(jaxpr: Any, around: Surroundings, matchers: Sequence[Matcher]) -> Iterator[Found]:
    """Variables that may be sites.

    Scopes and functions are those that match; other names may match or not.
    """
    matchers = [matcher for matcher in matchers if matcher not in around.taken]
    kinds = dict.fromkeys(matcher.kind for matcher in matchers if matcher.kind not in _GROUPED)
    for eqn in jaxpr.eqns:
        for kind in kinds:
            for name in names_of(eqn, around, kind):
                for variable in eqn.outvars:
                    if kind == "site" or _is_floating(variable):
                        yield Found(eqn, variable, Candidate(kind, name))
    for matcher in matchers:
        if matcher.kind in _GROUPED:
            yield from (
                one for one in leaving(jaxpr, around, matcher) if _is_floating(one.variable)
            )


def names_of(eqn: Any, around: Surroundings, kind: str) -> list[str]:
    """The names of a kind by which what an equation makes goes."""
    if eqn.primitive is token_p:
        return [eqn.params["name"]] if kind == "site" else []
    if eqn.primitive is site_p or kind == "site":
        return []
    if kind == "named_scope":
        return paths_of(eqn, around)
    if kind == "function":
        return [frame.function for frame in jaxprs.frames_of(eqn) if not frame.is_internal]
    name = _OWN_NAMES[kind](eqn)
    return [name] if name else []


def path_of(eqn: Any) -> str:
    """The path of a marked array in its pytree."""
    return eqn.params["path"] if eqn.primitive in (token_p, site_p) else ""


def is_whole(eqn: Any, matches: Mapping[Any, Match]) -> bool:
    """Whether a rule takes what a custom derivative returns, whatever is inside of it."""
    name, _ = jaxprs.call_of(eqn)
    return name in jaxprs.CUSTOM and any(variable in matches for variable in eqn.outvars)


def _is_floating(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _refuse_derivatives(eqn: Any, match: Match, around: Surroundings) -> None:
    transforms = around.transforms | jaxprs.transforms_of(eqn)
    source = jaxprs.source_line(eqn)
    if match.matcher.kind == "site":
        if "transpose" in transforms and not around.in_rule:
            raise NotImplementedError(
                f"plant: site {match.name!r} at {source} runs again in a backward pass, where it"
                " would draw another mask. Differentiate the planted function instead:"
                " grad(plant(f, rules))."
            )
    elif transforms & {"jvp", "transpose"}:
        raise NotImplementedError(
            f"plant: {match.name!r} at {source} is inside of a derivative, where only marks of"
            " jaxdrop.site can be followed. Differentiate the planted function instead:"
            " grad(plant(f, rules)), or mark the value."
        )
