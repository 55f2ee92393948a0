"""Equations that belong together: those of one entry of a named scope, or of one call.

What such a group makes and others use is what leaves the scope or the function.
A scope is entered anew each time, which JAX keeps. Of a function it keeps the
lines that were running, so calls from different places are told apart; what
looks like a second call from the same place on the result of the first is
refused.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import or_
from typing import Any

from jax.extend.core import Literal

from jaxdrop.planting import jaxprs
from jaxdrop.planting.rules import Candidate, Matcher


@dataclass(frozen=True)
class Surroundings:
    """What is around a jaxpr: named scopes, transforms, mesh axes of unknown variance."""

    scopes: tuple[str, ...] = ()
    transforms: frozenset[str] = frozenset()
    unchecked_axes: frozenset[str] = frozenset()
    in_rule: bool = False  # of a custom derivative, which has the masks of its function
    taken: frozenset[Matcher] = frozenset()  # by a call or function around: the outermost counts

    def inside(self, eqn: Any, matchers: Sequence[Matcher]) -> "Surroundings":
        """What is around the bodies of an equation."""
        return replace(
            self,
            scopes=(*self.scopes, *(name for name, _ in jaxprs.scopes_of(eqn))),
            transforms=self.transforms | jaxprs.transforms_of(eqn),
            unchecked_axes=self.unchecked_axes | jaxprs.unchecked_axes(eqn),
            taken=self.taken | {m for m in matchers if _takes(eqn, self, m)},
        )


@dataclass(frozen=True)
class Group:
    """The name of a scope or function, and which entry or call of it."""

    candidate: Candidate
    entry: Hashable


@dataclass(frozen=True)
class Found:
    """A variable that may be a site, the equation that makes it, and a name of it."""

    eqn: Any
    variable: Any
    candidate: Candidate
    insiders: frozenset[int] = frozenset()
    """Equations, by `id`, that read the value before it leaves its scope or function."""


def leaving(jaxpr: Any, around: Surroundings, matcher: Matcher) -> Iterator[Found]:
    """Variables by which values leave a matching scope or function."""
    group_of = {"named_scope": _scope_of, "function": _function_of}[matcher.kind]
    groups = [group_of(eqn, around, matcher) for eqn in jaxpr.eqns]
    if matcher.kind == "function":
        _refuse_repeats(jaxpr.eqns, groups)
    users: dict[Any, set[Group | None]] = defaultdict(set)
    reads = [(eqn.invars, group) for eqn, group in zip(jaxpr.eqns, groups, strict=True)]
    for atoms, group in [*reads, (jaxpr.outvars, None)]:
        for variable in unique_variables(atoms):
            users[variable].add(group)
    members: dict[Group | None, set[int]] = defaultdict(set)
    for eqn, group in zip(jaxpr.eqns, groups, strict=True):
        members[group].add(id(eqn))
    for eqn, group in zip(jaxpr.eqns, groups, strict=True):
        for variable in eqn.outvars:
            if group and users[variable] - {group}:
                yield Found(eqn, variable, group.candidate, frozenset(members[group]))


def paths_of(eqn: Any, around: Surroundings) -> list[str]:
    """The paths of the scopes around an equation, outermost first."""
    names = [*around.scopes, *(name for name, _ in jaxprs.scopes_of(eqn))]
    return ["/".join(names[: i + 1]) for i in range(len(names))]


def unique_variables(atoms: Iterable[Any]) -> list[Any]:
    """The variables among the atoms of a jaxpr, each once."""
    return list(dict.fromkeys(atom for atom in atoms if not isinstance(atom, Literal)))


def name_of_call(eqn: Any) -> str | None:
    """The name of the function that an equation calls, if it keeps one."""
    name, params = jaxprs.call_of(eqn)
    if name in jaxprs.JIT:
        return params["name"]
    return jaxprs.function_name(params) if name in jaxprs.CUSTOM else None


def _takes(eqn: Any, around: Surroundings, matcher: Matcher) -> bool:
    """Whether all that an equation does is inside of a call or function that matches."""
    if matcher.kind == "function":
        return _function_of(eqn, around, matcher) is not None
    name = name_of_call(eqn)
    return name is not None and matcher.matches(Candidate("jit", name))


def _scope_of(eqn: Any, around: Surroundings, matcher: Matcher) -> Group | None:
    """The outermost scope that matches, unless it is open where the jaxpr is called."""
    outside = len(around.scopes)
    for depth, path in enumerate(paths_of(eqn, around)):
        if matcher.matches(candidate := Candidate("named_scope", path)):
            entries = jaxprs.scopes_of(eqn)
            return Group(candidate, entries[depth - outside][1]) if depth >= outside else None
    return None


def _function_of(eqn: Any, around: Surroundings, matcher: Matcher) -> Group | None:
    """The outermost function that matches, and the places that it was called from."""
    del around
    frames = jaxprs.frames_of(eqn)
    for depth, frame in enumerate(frames):
        candidate = Candidate("function", frame.function)
        if matcher.matches(candidate) and not frame.is_internal:
            return Group(candidate, tuple(frame.position for frame in frames[:depth]))
    return None


def _refuse_repeats(eqns: list[Any], groups: list[Group | None]) -> None:
    """Refuses groups in which a line runs again on what it made: a loop, or a call in one."""
    # For each variable, the lines of its group that led to it, as the bits of an integer.
    behind: dict[tuple[Group, Any], int] = {}
    bits: dict[Any, int] = {}
    for group, line, visit in _visits(eqns, groups):
        bit = 1 << bits.setdefault(line, len(bits))
        read = unique_variables(atom for eqn in visit for atom in eqn.invars)
        before = reduce(or_, (behind.get((group, variable), 0) for variable in read), 0)
        if before & bit:
            raise NotImplementedError(
                f"plant: {group.candidate.text!r} runs the line at {jaxprs.source_line(visit[0])}"
                " again on its own result, so that it cannot be told whether it loops or is called"
                " in a loop. Mark the value by jaxdrop.site, or match a named_scope around it."
            )
        for eqn in visit:
            behind.update({(group, variable): before | bit for variable in eqn.outvars})


def _visits(
    eqns: list[Any], groups: list[Group | None]
) -> Iterator[tuple[Group, Hashable, list[Any]]]:
    """Groups, lines of Python, and the equations that a visit of the line made.

    What JAX has compiled into one call comes from one line; if it is the same
    several times over, the line was visited as often.
    """
    lines = [tuple(frame.position for frame in jaxprs.frames_of(eqn)) for eqn in eqns]
    indices = range(len(eqns))
    for (group, line), run in groupby(indices, lambda index: (groups[index], lines[index])):
        if group:
            made = [eqns[index] for index in run]
            names = [eqn.primitive.name for eqn in made]
            lengths = range(1, len(names) + 1)
            length = next(n for n in lengths if names == names[:n] * (len(names) // n))
            for start in range(0, len(made), length):
                yield group, line, made[start : start + length]
