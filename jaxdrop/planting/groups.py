"""Groups of equations: the equations of one entry into a named scope, or of one call.

A value leaves a scope or a function if an equation of the group makes it and an
equation outside of the group uses it. JAX records the entry into a scope to which an
equation belongs. For functions it records only the lines that were running. So calls
from different places can be distinguished, but two calls from the same place cannot. A
group that looks like two such calls, where one call uses the result of the other, is
refused.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import groupby
from operator import or_
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jaxdrop.planting.equations import Equation, Frame
from jaxdrop.planting.jaxprs import AnyJaxpr, opened, unique_variables
from jaxdrop.planting.mark import token_p
from jaxdrop.planting.matchers import Candidate, Named
from jaxdrop.planting.outputs import Leaving, outputs_of
from jaxdrop.planting.reach import may_follow

DERIVATIVES = frozenset({"jvp", "transpose"})


@dataclass(frozen=True)
class Surroundings:
    """What is around a jaxpr."""

    scopes: tuple[str, ...] = ()
    transforms: frozenset[str] = frozenset()
    unchecked_axes: frozenset[str] = frozenset()  # mesh axes that JAX does not check
    in_rule: bool = False  # whether the jaxpr is the rule of a custom derivative
    # Matchers that already match an outer call or function. Only the outermost match
    # counts, so they find nothing here.
    taken: frozenset[Named] = frozenset()

    def inside(self, equation: Equation, matchers: Sequence[Named]) -> "Surroundings":
        """What is around the bodies of an equation.

        It has only what these matchers depend on. Equal bodies in equal surroundings
        share a plan and compile once.
        """
        scopes = (*self.scopes, *(name for name, _ in equation.scopes))
        reads_scopes = any(matcher.kind == "named_scope" for matcher in matchers)
        transforms = self.transforms | equation.transforms
        return replace(
            self,
            scopes=scopes if reads_scopes else (),
            transforms=transforms & DERIVATIVES,
            unchecked_axes=self.unchecked_axes | equation.unchecked_axes,
            taken=self.taken | {m for m in matchers if _takes(m, equation)},
        )


class Block:
    """The equations of a jaxpr, and what is around it."""

    def __init__(self, jaxpr: AnyJaxpr, around: Surroundings) -> None:
        self.jaxpr, self.consts = opened(jaxpr)
        self.around = around

    @cached_property
    def equations(self) -> list[Equation]:
        """The equations, each of which is read once."""
        return [Equation(eqn) for eqn in self.jaxpr.eqns]


@dataclass(frozen=True)
class Group:
    """The name of a scope or function, and which entry or call of it."""

    candidate: Candidate
    entry: Hashable


@dataclass(frozen=True)
class Found:
    """A variable that may be a site, the equation that makes it, and one of its names."""

    equation: Equation
    variable: Var
    candidate: Candidate
    matcher: Named | None = None  # which alone may match this name; None if any may
    # Equations, by `id`, that read the value before it leaves its scope or function.
    insiders: frozenset[int] = frozenset()
    problem: Exception | None = None  # why no rule can drop it


def leaving(block: Block, matcher: Named, caller: str) -> Iterator[Found]:
    """The variables by which values leave a matching scope, function or call."""
    groups = [group_of(matcher, equation, block.around) for equation in block.equations]
    loops = loops_of(block.equations, groups, caller) if matcher.kind == "function" else {}
    members: dict[Group | None, set[int]] = defaultdict(set)
    for equation, group in zip(block.equations, groups, strict=True):
        members[group].add(id(equation.eqn))
    for group, leaves in leaves_of(block, groups, matcher.kind).items():
        problem: Exception | None = loops.get(group)
        inside = [one.equation.transforms | block.around.transforms for one in leaves]
        if not any(transforms & DERIVATIVES for transforms in inside):
            try:
                leaves = outputs_of(leaves, matcher, group.candidate, caller)
            except ValueError as error:
                problem = problem or error
        insiders = frozenset(members[group])
        for one in leaves:
            yield Found(one.equation, one.variable, group.candidate, matcher, insiders, problem)


def leaves_of(
    block: Block, groups: Sequence[Group | None], kind: str
) -> dict[Group, list[Leaving]]:
    """The floating values that leave each group."""
    users: dict[Var, set[Group | None]] = defaultdict(set)
    for equation, group in zip(block.equations, groups, strict=True):
        for variable in unique_variables(equation.operands):
            users[variable].add(group)
    # The results of the jaxpr are used by its caller, which is in no group of this jaxpr.
    returned = set(unique_variables(block.jaxpr.outvars))
    values: dict[Group, list[Leaving]] = defaultdict(list)
    for equation, group in zip(block.equations, groups, strict=True):
        for place, variable in enumerate(equation.results):
            is_used = bool(users[variable] - {group})
            if group and is_floating(variable) and (is_used or variable in returned):
                # Calls of one function from one place, as in a list, are in one group.
                alike = (equation.line, place) if kind == "function" else variable
                values[group].append(Leaving(equation, variable, is_used, alike))
    return values


def type_of(equation: Equation, variable: Var) -> jax.ShapeDtypeStruct:
    """The shape and dtype that a drop gets: for a mark, those of one example of inner vmaps."""
    # A token stands for the value that it was made from.
    is_token = equation.primitive is token_p
    axes: Sequence[int] = equation.params["axes"] if is_token else ()
    value: Any = (equation.operands[0] if is_token else variable).aval
    shape = tuple(n for axis, n in enumerate(value.shape) if axis not in axes)
    return jax.ShapeDtypeStruct(shape, value.dtype)


def is_floating(variable: Var) -> bool:
    """Whether a value can be dropped from."""
    dtype = getattr(variable.aval, "dtype", None)  # tokens of effects have none
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def group_of(matcher: Named, equation: Equation, around: Surroundings) -> Group | None:
    """The outermost scope or function that matches, around an equation and in its jaxpr."""
    if matcher.kind == "function":
        return _function_of(matcher, equation)
    if matcher.kind == "jit":
        return _call_of(matcher, equation)
    outside = len(around.scopes)
    for depth, path in enumerate(paths_of(equation, around)):
        if matcher.matches(candidate := Candidate("named_scope", path)):
            # A scope that is open at the call of the jaxpr is left there, not inside of the jaxpr.
            inside = depth >= outside
            return Group(candidate, equation.scopes[depth - outside][1]) if inside else None
    return None


def is_inside(matcher: Named, equation: Equation, around: Surroundings) -> bool:
    """Whether an equation is inside of a scope, function or call that matches, at any depth."""
    if matcher in around.taken:
        return True
    if matcher.kind == "named_scope":
        paths = paths_of(equation, around)
        return any(matcher.matches(Candidate("named_scope", path)) for path in paths)
    return _takes(matcher, equation)


def paths_of(equation: Equation, around: Surroundings) -> list[str]:
    """The paths of the scopes around an equation, outermost first."""
    names = [*around.scopes, *(name for name, _ in equation.scopes)]
    return ["/".join(names[: i + 1]) for i in range(len(names))]


def functions_of(equation: Equation) -> list[list[str]]:
    """The names of each function around an equation, outermost first: short and with its class."""
    names = [
        [] if frame.is_internal else list(dict.fromkeys([frame.function, frame.qualified]))
        for frame in equation.frames
    ]
    # A function with a custom derivative is traced inside of its equation, which has no frame
    # of it.
    called = equation.called if equation.is_custom_derivative else None
    return [*names, [called]] if called else names


def _function_of(matcher: Named, equation: Equation) -> Group | None:
    for depth, names in enumerate(functions_of(equation)):
        for candidate in (Candidate("function", name) for name in names):
            if matcher.matches(candidate):
                if depth == len(equation.frames):
                    return Group(candidate, id(equation))
                # A call is identified by the places outside of the function that led to it.
                return Group(candidate, equation.line[:depth])
    return None


def _call_of(matcher: Named, equation: Equation) -> Group | None:
    if equation.called is None:
        return None
    candidate = Candidate("jit", equation.called)
    return Group(candidate, id(equation)) if matcher.matches(candidate) else None


def _takes(matcher: Named, equation: Equation) -> bool:
    """Whether everything inside of an equation is inside of a call or function that matches."""
    find = _function_of if matcher.kind == "function" else _call_of
    return find(matcher, equation) is not None


def loops_of(
    equations: Sequence[Equation], groups: Sequence[Group | None], caller: str
) -> dict[Group, Exception]:
    """An error for each group in which a line runs again on its own result: a loop, or a call
    in a loop.
    """
    loops: dict[Group, Exception] = {}
    # For each variable: the lines of its group that it depends on, as the bits of an
    # integer. A function may have thousands of lines and variables, and sets would be
    # slow.
    behind: dict[tuple[Group, Var], int] = {}
    made_in: dict[tuple[Group, Var], Sequence[Frame]] = {}
    bits: dict[Hashable, int] = {}
    for group, visit in _visits(equations, groups):
        frames = visit[0].frames
        bit = 1 << bits.setdefault(visit[0].line, len(bits))
        read = unique_variables(atom for equation in visit for atom in equation.operands)
        read = [(group, variable) for variable in read if (group, variable) in behind]
        before = reduce(or_, (behind[one] for one in read), 0)
        # Tangents are computed by the lines of their values, in another order.
        in_order = not any(equation.transforms & DERIVATIVES for equation in visit)
        apart = in_order and any(_in_another_call(made_in[one], frames) for one in read)
        if before & bit or apart:
            loops[group] = NotImplementedError(
                f"{caller}: {group.candidate.text!r} runs the line at {visit[0].source}"
                " again on its own result, so it loops or is called in a loop, and these cases look"
                " the same. Mark the value by jaxdrop.site, or match a named_scope around it."
            )
        for equation in visit:
            for variable in equation.results:
                behind[group, variable], made_in[group, variable] = before | bit, frames
    return loops


def _in_another_call(before: Sequence[Frame], after: Sequence[Frame]) -> bool:
    """Whether no single call can run these two lines in this order, as in `a(x) if i else b(x)`."""
    for one, other in zip(before, after, strict=False):
        if one.position != other.position:
            (code, first), (other_code, second) = one.position, other.position
            same = code is other_code and not one.is_internal
            return same and not may_follow(code, first, second)
    return False


def _visits(
    equations: Sequence[Equation], groups: Sequence[Group | None]
) -> Iterator[tuple[Group, Sequence[Equation]]]:
    """For each visit of a line of Python: its group, and the equations that it made."""
    indices = range(len(equations))
    for (group, _), run in groupby(indices, lambda index: (groups[index], equations[index].line)):
        if group:
            made = [equations[index] for index in run]
            # One line may make several equations, as `jnp.var` does. If the same
            # equations repeat n times, the line was visited n times.
            names = [equation.primitive.name for equation in made]
            lengths = range(1, len(names) + 1)
            length = next(n for n in lengths if names == names[:n] * (len(names) // n))
            for start in range(0, len(made), length):
                yield group, made[start : start + length]
