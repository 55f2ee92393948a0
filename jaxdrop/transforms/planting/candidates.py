"""Which values of a jaxpr are sites: marked ones, and those that go by another name.

A mark is an equation of its own. All other names are found around the equation
that makes a value: its parameters, its named scopes, its Python functions.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Literal

from jaxdrop.core import compat
from jaxdrop.transforms.planting.mark import site_p, token_p
from jaxdrop.transforms.planting.rules import Candidate, Match, Matcher, RuleBook


@dataclass(frozen=True)
class Surroundings:
    """What is around a jaxpr: its named scopes, and mesh axes of unknown variance."""

    scopes: str = ""
    unchecked_axes: frozenset[str] = frozenset()
    in_rule: bool = False  # of a custom derivative, which has the masks of its function

    def path_of(self, eqn: Any) -> str:
        """The scopes and transforms around an equation, the outermost first."""
        return "/".join(filter(None, (self.scopes, compat.scope_names(eqn))))


def matches_in(jaxpr: Any, around: Surroundings, book: RuleBook) -> dict[Any, Match]:
    """The rule for each variable of a jaxpr that is a site; for a mark, that of its token."""
    names: dict[Any, list[Candidate]] = defaultdict(list)
    makers: dict[Any, Any] = {}
    for eqn, variable, candidate in candidates_in(jaxpr, around, book.matchers):
        makers[variable] = eqn
        names[variable].append(candidate)
    matches: dict[Any, Match] = {}
    for variable, candidates in names.items():
        eqn = makers[variable]
        match = book.find(candidates, eqn.params.get("path", ""), compat.source_line(eqn))
        if match:
            _refuse_derivatives(eqn, match, around)
            matches[variable] = match
    return matches


def candidates_in(
    jaxpr: Any, around: Surroundings, matchers: Sequence[Matcher]
) -> Iterator[tuple[Any, Any, Candidate]]:
    """Equations and variables that may be sites, with a name; marks are not filtered."""
    kinds = {matcher.kind for matcher in matchers} - _NAMES_AROUND.keys()
    for eqn in jaxpr.eqns:
        variables = eqn.outvars if eqn.primitive is token_p else _floating(eqn)
        for kind in kinds:
            for name in names_of(eqn, around, kind):
                yield from ((eqn, variable, Candidate(kind, name)) for variable in variables)
    for matcher in matchers:
        if matcher.kind in _NAMES_AROUND:
            yield from _leaving(jaxpr, around, matcher)


def name_of_call(eqn: Any) -> str | None:
    """The name of the function that an equation calls, if it keeps one."""
    primitive = eqn.primitive.name
    if primitive in compat.JIT:
        return eqn.params["name"]
    if primitive in compat.CUSTOM_JVP + compat.CUSTOM_VJP:
        return compat.function_name(eqn.params)
    return None


def is_whole(eqn: Any, matches: Mapping[Any, Match]) -> bool:
    """Whether a rule takes what a custom derivative returns, whatever is inside of it."""
    custom = eqn.primitive.name in compat.CUSTOM_JVP + compat.CUSTOM_VJP
    return custom and any(variable in matches for variable in eqn.outvars)


def names_of(eqn: Any, around: Surroundings, kind: str) -> list[str]:
    """The names of a kind by which a value of an equation goes."""
    if kind in _NAMES_AROUND:
        return _NAMES_AROUND[kind](eqn, around)
    if eqn.primitive is token_p:
        return [eqn.params["name"]] if kind == "site" else []
    if eqn.primitive is site_p:
        return []
    name = {
        "checkpoint_name": compat.tag_of(eqn),
        "jit": name_of_call(eqn),
        "primitive": eqn.primitive.name,
    }.get(kind)
    return [name] if name else []


def _scopes(eqn: Any, around: Surroundings) -> list[str]:
    """The paths of the scopes that an equation's jaxpr opens around it, the outermost first.

    None, if a scope is open already where the jaxpr is called.
    """
    outside = _plain(around.scopes)
    parts = _plain(around.path_of(eqn))
    return ["/".join(parts[: i + 1]) for i in range(len(parts))] if parts != outside else []


def _plain(path: str) -> list[str]:
    return [part for part in path.replace("vmap(", "").replace(")", "").split("/") if part]


def _functions(eqn: Any, around: Surroundings) -> list[str]:
    del around
    return [*compat.function_names(eqn)][::-1]


_NAMES_AROUND: Mapping[str, Callable[[Any, Surroundings], list[str]]] = {
    "named_scope": _scopes,
    "function": _functions,
}


def _leaving(
    jaxpr: Any, around: Surroundings, matcher: Matcher
) -> Iterator[tuple[Any, Any, Candidate]]:
    """Values that leave the outermost scope or function that matches."""
    outside = len(_plain(around.scopes)) if matcher.kind == "named_scope" else 0

    def group_of(eqn: Any) -> Candidate | None:
        names = _NAMES_AROUND[matcher.kind](eqn, around)
        for depth, name in enumerate(names):
            if matcher.matches(candidate := Candidate(matcher.kind, name)):
                return candidate if depth >= outside else None
        return None

    groups = [group_of(eqn) for eqn in jaxpr.eqns]
    users: dict[Any, set[Candidate | None]] = defaultdict(set)
    readers = [*zip(jaxpr.eqns, groups, strict=True)]
    for atoms, group in [*((eqn.invars, group) for eqn, group in readers), (jaxpr.outvars, None)]:
        for variable in atoms:
            if not isinstance(variable, Literal):
                users[variable].add(group)
    for eqn, group in readers:
        if group is not None:
            for variable in _floating(eqn):
                if users[variable] - {group}:
                    yield eqn, variable, group


def _floating(eqn: Any) -> list[Any]:
    dtypes = ((v, getattr(v.aval, "dtype", None)) for v in eqn.outvars)
    return [v for v, dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.inexact)]


def _refuse_derivatives(eqn: Any, match: Match, around: Surroundings) -> None:
    path, source = around.path_of(eqn), compat.source_line(eqn)
    if eqn.primitive is token_p:
        if "transpose(" in path and not around.in_rule:
            raise NotImplementedError(
                f"plant: site {match.name!r} at {source} runs again in a backward pass, where it"
                " would draw another mask. Differentiate the planted function instead:"
                " grad(plant(f, rules))."
            )
    elif "jvp(" in path:
        raise NotImplementedError(
            f"plant: {match.name!r} at {source} is inside of a derivative, where only marks of"
            " jaxdrop.site can be followed. Differentiate the planted function instead:"
            " grad(plant(f, rules)), or mark the value."
        )
