"""What there is to plant: a table of sites, and what to say to a rule that matches none."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, overload

from jaxdrop.planting import jaxprs
from jaxdrop.planting.candidates import (
    candidates_in,
    is_whole,
    matches_in,
    names_of,
    path_of,
)
from jaxdrop.planting.groups import Surroundings, name_of_call
from jaxdrop.planting.mark import token_p
from jaxdrop.planting.plan import Plan
from jaxdrop.planting.rules import Candidate, Matcher, RuleBook, str_of

# Without rules, what was named on purpose.
_LISTED = (Matcher("site", "*"), Matcher("checkpoint_name", "*"))
_UNMARKED = ("named_scope", "jit", "function", "primitive")
_SHOWN = 8


@dataclass(frozen=True)
class SiteRow:
    """One site in the table of `sites`.

    Args:
      site: its name, as `site_key` takes it.
      shape: of the value that a drop gets; in an inner `vmap`, of an example.
      dtype: of the value.
      runs: how often it runs in a call; None in a while loop.
      where: the loops, calls and batches that it is in, outermost first.
      rule: the pattern of its rule, or None.
      source: the line that made the value.

    Example:
      >>> (row,) = sites(lambda x: site(x, "hidden"), jnp.ones((2, 3)))
      >>> row.site, row.shape, row.runs, row.rule
      ('hidden', (2, 3), 1, None)
    """

    site: str
    shape: tuple[int, ...]
    dtype: Any
    runs: int | None
    where: str
    rule: str | None
    source: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as texts."""
        value = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        runs = "?" if self.runs is None else str(self.runs)
        source = _shortened(self.source)
        return self.site, value, runs, self.where or "-", self.rule or "-", source


class SiteTable(Sequence[SiteRow]):
    """The sites of a function: a sequence of rows that prints as a table.

    Args:
      rows: what it holds.
      unmarked: by kind, names that a rule could match besides marks.

    Example:
      >>> table = sites(lambda x: site(x, "hidden"), jnp.ones((2, 3)))
      >>> len(table), table[0].site
      (1, 'hidden')
    """

    def __init__(
        self, rows: Sequence[SiteRow], unmarked: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._rows = tuple(rows)
        self.unmarked = dict(unmarked or {})

    @overload
    def __getitem__(self, index: int) -> SiteRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SiteRow]: ...
    def __getitem__(self, index: int | slice) -> SiteRow | Sequence[SiteRow]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        if not self._rows:
            kinds = [
                f"  match.{kind}: {', '.join(map(repr, names))}"
                for kind, names in self.unmarked.items()
                if names
            ]
            return "\n".join(["no marked sites; jaxdrop.match can find:", *kinds])
        lines = [("site", "value", "runs", "where", "rule", "source")]
        lines += [row.cells for row in self._rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def _shortened(source: str) -> str:
    """A line of a file here from here, of others with the last parts of the path."""
    path, colon, rest = source.partition(":")
    with suppress(ValueError):
        return f"{Path(path).relative_to(Path.cwd())}{colon}{rest}"
    return f"{Path(*Path(path).parts[-3:])}{colon}{rest}"


def table_of(jaxpr: Any, book: RuleBook) -> SiteTable:
    """The sites of a jaxpr; those that are alike share a row."""
    runs: dict[SiteRow, int | None] = {}
    for row in _rows(jaxpr, _Place(), book):
        alike = replace(row, runs=0)
        before = runs.get(alike, 0)
        runs[alike] = None if before is None or row.runs is None else before + row.runs
    rows = [replace(row, runs=count) for row, count in runs.items()]
    return SiteTable(rows, {kind: known_names(jaxpr, kind) for kind in _UNMARKED if not rows})


def known_names(jaxpr: Any, kind: str) -> list[str]:
    """All names of a kind, at any depth, in order."""
    return sorted(set(_names(jaxpr, Surroundings(), kind)))


def refuse_unmatched(function: str, jaxpr: Any, plan: Plan, book: RuleBook) -> None:
    """Raises an error if a rule matches nothing, with names that it may have meant."""
    used = {site.match.matcher for site in plan.sites}
    for matcher in book.matchers:
        if matcher in used:
            continue
        names = known_names(jaxpr, matcher.kind)
        if any(matcher.matches(Candidate(matcher.kind, name)) for name in names):
            alone = len(book.matchers) == 1
            reason = "" if alone else ", or an earlier rule or one around it takes it"
            raise KeyError(
                f"{function}: the rule {str_of(matcher)!r} is never used: what it matches is not"
                f" floating{reason}."
            )
        near = get_close_matches(matcher.pattern, names, _SHOWN, cutoff=0.3) or names[:_SHOWN]
        more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
        known = f"there are {', '.join(map(repr, near))}{more}" if names else "there is none"
        raise KeyError(f"{function}: no {matcher.kind} matches {matcher.pattern!r}; {known}.")


@dataclass(frozen=True)
class _Place:
    """Where a jaxpr is, for the table."""

    times: int | None = 1
    labels: tuple[str, ...] = ()
    around: Surroundings = field(default_factory=Surroundings)

    def inside(self, eqn: Any, index: int, book: RuleBook) -> "_Place":
        name, params = jaxprs.call_of(eqn)
        factor = {"scan": params.get("length"), "while": None}.get(name, 1)
        times = None if self.times is None or factor is None else self.times * factor
        label = f"cond[{index}]" if name == "cond" else _label(eqn)
        return _Place(times, (*self.labels, label), self.around.inside(eqn, book.matchers))


def _rows(jaxpr: Any, place: _Place, book: RuleBook) -> Iterator[SiteRow]:
    """The sites of a jaxpr and of those in it, in the order of the program."""
    body, _ = jaxprs.opened(jaxpr)
    matches = matches_in(body, place.around, book)
    listed = candidates_in(body, place.around, _LISTED)
    unmatched = {one.variable: one.candidate for one in listed if one.variable not in matches}
    for eqn in body.eqns:
        if not is_whole(eqn, matches):
            for index, inner in enumerate(jaxprs.jaxprs_in(eqn)):
                yield from _rows(inner, place.inside(eqn, index, book), book)
        for variable in eqn.outvars:
            if match := matches.get(variable):
                yield _row(eqn, variable, place, match.name, str_of(match.matcher))
            elif candidate := unmatched.get(variable):
                yield _row(eqn, variable, place, candidate.text + path_of(eqn), None)


def _row(eqn: Any, variable: Any, place: _Place, name: str, rule: str | None) -> SiteRow:
    axes = eqn.params.get("axes", ()) if eqn.primitive is token_p else ()
    value = (eqn.invars[0] if eqn.primitive is token_p else variable).aval
    batches = (f"vmap[{value.shape[axis]}]" for axis in axes)
    return SiteRow(
        site=name,
        shape=tuple(n for axis, n in enumerate(value.shape) if axis not in axes),
        dtype=value.dtype,
        runs=place.times,
        where="/".join((*place.labels, *batches)),
        rule=rule,
        source=jaxprs.source_line(eqn),
    )


def _label(eqn: Any) -> str:
    """How a call is named in a table, whatever this version of JAX calls it."""
    name, params = jaxprs.call_of(eqn)
    if name == "scan":
        return f"scan[{params['length']}]"
    for names in (jaxprs.JIT, jaxprs.CHECKPOINT, jaxprs.CUSTOM_JVP, jaxprs.CUSTOM_VJP):
        name = names[0] if name in names else name
    called = name_of_call(eqn)
    return f"{name}({called})" if called else name


def _names(jaxpr: Any, around: Surroundings, kind: str) -> Iterator[str]:
    body, _ = jaxprs.opened(jaxpr)
    for eqn in body.eqns:
        yield from names_of(eqn, around, kind)
        for inner in jaxprs.jaxprs_in(eqn):
            yield from _names(inner, around.inside(eqn, ()), kind)
