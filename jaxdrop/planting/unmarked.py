"""The values that nobody marked, and that a matcher could find: what `sites` offers.

Each value that leaves a scope, a call or a function is a row. Rows of layers that differ in
their numbers only, as `layer_0` and `layer_1`, become one row.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import NamedTuple, TypeAlias

from jaxdrop.planting.calls import call_of, label_of
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import (
    DERIVATIVES,
    Block,
    Group,
    functions_of,
    leaves_of,
    loops_of,
    paths_of,
)
from jaxdrop.planting.matchers import Candidate, Matcher, Named
from jaxdrop.planting.outputs import Leaving, outputs_of
from jaxdrop.planting.table import SiteRow, row_of, total_runs

_Groups: TypeAlias = Sequence[Group | None]
_NUMBER = re.compile(r"\d+")
_PATHS = [Named("named_scope", "*")]  # makes the surroundings keep the paths of scopes


class _Offer(NamedTuple):
    """A row, with the matcher of its values, and where its first equation is."""

    order: tuple[int, ...]
    row: SiteRow
    matcher: Named


def unmarked_rows(block: Block) -> list[SiteRow]:
    """One row for each value that a matcher could find, with layers collapsed, in order.

    Those of scopes come first, so that they form a tree.
    """
    offers = sorted(
        _offers(block), key=lambda offer: (offer.matcher.kind != "named_scope", offer.order)
    )
    names = {(offer.matcher.kind, offer.matcher.pattern) for offer in offers}
    alike: dict[object, list[_Offer]] = defaultdict(list)
    for offer in offers:
        template = replace(offer.row, site=_NUMBER.sub("#", offer.row.site), runs=0, source="")
        alike[replace(template, matcher=replace(offer.matcher, pattern="*"))].append(offer)
    return [_collapsed(some, names) for some in alike.values()]


def _offers(block: Block) -> Iterator[_Offer]:
    """What leaves the scopes, calls and functions of a jaxpr and of the bodies in it."""
    inside = [
        (id(equation), _Offer((index, *offer.order), offer.row.within(*label), offer.matcher))
        for index, equation in enumerate(block.equations)
        for label, inner in _bodies(block, equation)
        for offer in _offers(inner)
    ]
    # A jitted function is seen as a call, and inside of the call as a function. Offered twice,
    # its value would be dropped twice.
    functions = {(entry, offer.matcher) for entry, offer in inside}
    listed: set[object] = set()
    of_kinds = (
        *(("named_scope", groups) for groups in _scopes(block)),
        ("jit", _calls(block)),
        *(("function", groups) for groups in _functions(block)),
    )
    for kind, groups in of_kinds:
        first = {group: -index for index, group in enumerate(reversed(groups), 1 - len(groups))}
        loops = loops_of(block.equations, groups, "sites") if kind == "function" else {}
        for group, leaves in leaves_of(block, groups, kind).items():
            # What is in the tree of scopes is not shown once more, except functions that all know.
            is_shown = _is_known(group, leaves) or not any(one.variable in listed for one in leaves)
            if is_shown and group not in loops and not _in_derivative(block, leaves):
                if kind != "function":
                    listed.update(one.variable for one in leaves)
                if (group.entry, Named("function", group.candidate.name)) not in functions:
                    for row, matcher in _rows(group, leaves):
                        yield _Offer((first[group],), row, matcher)
    yield from (offer for _, offer in inside)


def _is_known(group: Group, leaves: Sequence[Leaving]) -> bool:
    candidate = group.candidate
    return candidate.kind == "named_scope" or any(
        frame.is_layer_of_jax and frame.function == candidate.name
        for frame in leaves[0].equation.frames
    )


def _scopes(block: Block) -> Iterator[_Groups]:
    """For each depth, the scope of each equation."""
    paths = [paths_of(equation, block.around) for equation in block.equations]
    # A scope that is open at the call of the jaxpr is left there, not inside of the jaxpr.
    outside = len(block.around.scopes)
    for depth in range(outside, max(map(len, paths), default=0)):
        yield [
            Group(Candidate("named_scope", path[depth]), equation.scopes[depth - outside][1])
            if len(path) > depth
            else None
            for equation, path in zip(block.equations, paths, strict=True)
        ]


def _calls(block: Block) -> _Groups:
    return [
        Group(Candidate("jit", equation.called), id(equation)) if equation.called else None
        for equation in block.equations
    ]


def _functions(block: Block) -> Iterator[_Groups]:
    """For each depth of the stack, the function of each equation."""
    around = [functions_of(equation) for equation in block.equations]
    for depth in range(max(map(len, around), default=0)):
        yield [
            _function_at(equation, names, depth)
            for equation, names in zip(block.equations, around, strict=True)
        ]


def _function_at(equation: Equation, names: list[list[str]], depth: int) -> Group | None:
    name = names[depth][-1] if depth < len(names) and names[depth] else None
    # Lambdas and helpers have no name that a user would look for. Of nested functions with
    # one name, only the outermost is matched.
    if name is None or name[0] in "_<" or any(name in outer for outer in names[:depth]):
        return None
    return Group(Candidate("function", name), equation.line[:depth])


def _in_derivative(block: Block, leaves: Sequence[Leaving]) -> bool:
    around = (one.equation.transforms | block.around.transforms for one in leaves)
    return any(transforms & DERIVATIVES for transforms in around)


def _rows(group: Group, leaves: Sequence[Leaving]) -> Iterator[tuple[SiteRow, Named]]:
    """The rows of what leaves a group: of its output, or of each value if nobody chose."""
    candidate = group.candidate
    matcher = Named(candidate.kind, candidate.name)
    try:
        chosen = [(one, matcher) for one in outputs_of(leaves, matcher, candidate, "sites")]
    except ValueError:
        kinds = list(dict.fromkeys(one.alike for one in leaves))
        chosen = [(one, replace(matcher, output=kinds.index(one.alike))) for one in leaves]
    for one, matcher in chosen:
        row = row_of(one.equation, one.variable, candidate, None)
        yield replace(row, matcher=matcher), matcher


def _bodies(block: Block, equation: Equation) -> Iterator[tuple[tuple[str, int | None], Block]]:
    """The bodies of an equation in which a drop can be put, with what they are called."""
    call = call_of(equation)
    if call.rebuild is None:
        return
    inside = block.around.inside(equation, _PATHS)
    jaxprs = [(name, body) for name, bodies in equation.bodies.items() for body in bodies]
    for index, (name, jaxpr) in enumerate(jaxprs):
        if name not in call.siteless:
            yield label_of(equation, index), Block(jaxpr, inside)


def _collapsed(offers: Sequence[_Offer], names: set[tuple[str, str]]) -> SiteRow:
    """One row for the same value of several layers."""
    rows = [offer.row for offer in offers]
    row = replace(rows[0], runs=total_runs(rows))
    patterns = list(dict.fromkeys(offer.matcher.pattern for offer in offers))
    if len(patterns) == 1:
        return row
    numbers = list(zip(*map(_NUMBER.findall, patterns), strict=True))
    spans = [_span(sorted({int(text) for text in texts})) for texts in numbers]
    name = _filled(patterns[0], spans)
    glob = _filled(patterns[0], ["*" if "{" in span else span for span in spans])
    site = row.site.replace(patterns[0], name)
    return replace(row, site=site, matcher=_matcher(glob, offers[0].matcher, patterns, names))


def _matcher(
    glob: str, one: Named, patterns: Sequence[str], names: set[tuple[str, str]]
) -> Matcher:
    """A matcher of these names and of no others."""
    short = replace(one, pattern=glob)
    found = {name for kind, name in names if short.matches(Candidate(kind, name))}
    if found == set(patterns):
        return short
    each: list[Matcher] = [replace(one, pattern=pattern) for pattern in patterns]
    return reduce(or_, each)


def _span(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    whole = len(numbers) == last - first + 1
    return f"{{{first}..{last}}}" if whole else f"{{{','.join(map(str, numbers))}}}"


def _filled(name: str, numbers: Sequence[str]) -> str:
    """A name with other texts in the place of its numbers."""
    parts = _NUMBER.split(name)
    return "".join(part + number for part, number in zip(parts, [*numbers, ""], strict=True))
