"""The table that `sites` returns: one row for each site, as data and as text."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from jax.extend.core import Var

from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import type_of
from jaxdrop.planting.mark import token_p
from jaxdrop.planting.matchers import Candidate, Matcher, Named, fits


@dataclass(frozen=True)
class SiteRow:
    """One site in the table of `sites`.

    Args:
      site: its name, which `site_key` takes. Of values that nobody marked, the numbers of
        layers are collapsed, as in `layer_{0..11}`.
      shape: the shape of the value that a drop gets. For a marked value in an inner
        `vmap` it is the shape of one example.
      dtype: the dtype of the value.
      runs: how often the site runs in a call that takes its branches. None if it is in a
        while loop.
      where: the loops, calls and branches around it, from the outermost to the innermost,
        and then the sizes of inner `vmap`s around a mark.
      rule: the pattern of its rule, or None.
      source: the line of code that computes the value.
      matcher: what matches the site in a rule. For a function, it matches all of its calls.

    Example:
      >>> (row,) = sites(lambda x: site(x, "hidden"), jnp.ones((2, 3)))
      >>> row.site, row.shape, row.runs, row.rule
      ('hidden', (2, 3), 1, None)
      >>> row.matcher
      match.site('hidden')
    """

    site: str
    shape: tuple[int, ...]
    dtype: np.dtype
    runs: int | None
    where: str
    rule: str | None
    source: str
    matcher: Matcher

    def within(self, label: str, times: int | None) -> "SiteRow":
        """The row of the same site, outside of an equation that runs it `times` times."""
        # None stands for an unknown number. A product with an unknown number is unknown too.
        runs = None if self.runs is None or times is None else times * self.runs
        return replace(self, runs=runs, where=f"{label}/{self.where}" if self.where else label)

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
      rows: the rows.
      unmarked: rows of values that nobody marked, but that a matcher can find: what
        leaves named scopes, calls and functions. They are printed below the table, as a
        tree. The rows themselves do not have them; `where` looks among them too.

    Example:
      >>> table = sites(lambda x: site(x, "hidden"), jnp.ones((2, 3)))
      >>> len(table), table[0].site
      (1, 'hidden')
    """

    def __init__(self, rows: Sequence[SiteRow], unmarked: Sequence[SiteRow] = ()) -> None:
        self._rows = tuple(rows)
        self.unmarked = tuple(unmarked)

    @overload
    def __getitem__(self, index: int) -> SiteRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SiteRow]: ...
    def __getitem__(self, index: int | slice) -> SiteRow | Sequence[SiteRow]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, wanted: str | Callable[[SiteRow], bool]) -> "SiteTable":
        """The rows of some sites, also of those that nobody marked.

        Args:
          wanted: a glob over the names in the first column, or a function of a row.

        Returns:
          A table of these rows. Their matchers are patterns for `plant`.

        Raises:
          TypeError: `wanted` is neither.

        Example:
          >>> def model(x):
          ...     for i in range(3):
          ...         with jax.named_scope(f"layer_{i}"):
          ...             x = jnp.tanh(x)
          ...     return x
          >>> table = sites(model, jnp.ones(4)).where("*layer*")
          >>> [(row.site, row.runs) for row in table]
          [('named_scope:layer_{0..2}', 3)]
          >>> drop = partial(dropout, rate=0.1)
          >>> train = plant(model, {row.matcher: drop for row in table})
        """
        if not (isinstance(wanted, str) or callable(wanted)):
            raise TypeError(f"where: wanted must be a glob or a function of a row; got {wanted!r}.")
        rows = (*self._rows, *self.unmarked)
        if isinstance(wanted, str):
            return SiteTable([row for row in rows if fits(wanted, row.site)])
        return SiteTable([row for row in rows if wanted(row)])

    def __repr__(self) -> str:
        marked = "no marked sites"
        if self._rows:
            marked = _aligned(
                [("site", "value", "runs", "where", "rule", "source")]
                + [row.cells for row in self._rows]
            )
        if not self.unmarked:
            return marked
        tree = _aligned(
            [
                (name, value, runs, where, source)
                for name, (_, value, runs, where, _, source) in zip(
                    _as_tree(self.unmarked), (row.cells for row in self.unmarked), strict=True
                )
            ]
        )
        between = "\n\nnot marked" if self._rows else ""
        return f"{marked}{between}; jaxdrop.match can find:\n{tree}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _as_tree(rows: Sequence[SiteRow]) -> list[str]:
    """The names of rows, each below the one whose path it continues."""
    names: list[str] = []
    above: list[str] = []
    for row in rows:
        while above and not row.site.startswith(f"{above[-1]}/"):
            above.pop()
        shown = row.site[len(above[-1]) + 1 :] if above else row.site
        names.append("  " * len(above) + shown)
        above.append(row.site)
    return names


def row_of(equation: Equation, variable: Var, candidate: Candidate, rule: str | None) -> SiteRow:
    """The row of a site in its own jaxpr, in which it runs once."""
    value = type_of(equation, variable)
    return SiteRow(
        site=candidate.text,
        shape=value.shape,
        dtype=value.dtype,
        runs=1,
        where="/".join(f"vmap[{n}]" for n in _batches(equation)),
        rule=rule,
        source=equation.source,
        matcher=Named(candidate.kind, candidate.name + candidate.path),
    )


def _batches(equation: Equation) -> list[int]:
    """The sizes of the inner vmaps around a mark."""
    if equation.primitive is not token_p:
        return []
    value: Any = equation.operands[0].aval
    return [value.shape[axis] for axis in equation.params["axes"]]


def merged(rows: Sequence[SiteRow]) -> list[SiteRow]:
    """Merges rows that are alike. A merged row has the sum of their runs."""
    # Two calls of one jitted function, or two layers of a Python loop, come from one line.
    alike: dict[SiteRow, list[SiteRow]] = {}
    for row in rows:
        alike.setdefault(replace(row, runs=0), []).append(row)
    return [replace(row, runs=total_runs(some)) for row, some in alike.items()]


def total_runs(rows: Sequence[SiteRow]) -> int | None:
    """How often the sites of rows run together, or None if nobody knows."""
    runs = [row.runs for row in rows if row.runs is not None]
    return sum(runs) if len(runs) == len(rows) else None


def _shortened(source: str) -> str:
    """A source line with a path relative to where packages are installed, or to the working
    directory, or the last three parts of its path.
    """
    path, colon, rest = source.partition(":")
    if not colon:
        return source
    parts = Path(path).parts
    if "site-packages" in parts:
        return f"{Path(*parts[parts.index('site-packages') + 1 :])}{colon}{rest}"
    with suppress(ValueError):
        return f"{Path(path).relative_to(Path.cwd())}{colon}{rest}"
    return f"{Path(*parts[-3:])}{colon}{rest}"
