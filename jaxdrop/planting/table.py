"""The table that `sites` returns: one row for each site, as data and as text."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from jax.extend.core import Var

from jaxdrop.planting.equations import Equation
from jaxdrop.planting.groups import type_of
from jaxdrop.planting.mark import token_p


@dataclass(frozen=True)
class SiteRow:
    """One site in the table of `sites`.

    Args:
      site: its name, which `site_key` takes.
      shape: the shape of the value that a drop gets. In an inner `vmap` it is the shape
        of one example.
      dtype: the dtype of the value.
      runs: how often the site runs in a call. None if it is in a while loop.
      where: the loops, calls and batches around it, from the outermost to the innermost.
      rule: the pattern of its rule, or None.
      source: the line of code that computes the value.

    Example:
      >>> (row,) = sites(lambda x: site(x, "hidden"), jnp.ones((2, 3)))
      >>> row.site, row.shape, row.runs, row.rule
      ('hidden', (2, 3), 1, None)
    """

    site: str
    shape: tuple[int, ...]
    dtype: np.dtype
    runs: int | None
    where: str
    rule: str | None
    source: str

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
      unmarked: for each kind of matcher, the names that it could match. They are
        printed if the table has no rows.

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
        # If the table is empty, nothing is marked yet. So it shows the names that
        # matchers can find.
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


def row_of(equation: Equation, variable: Var, name: str, rule: str | None) -> SiteRow:
    """The row of a site in its own jaxpr, in which it runs once."""
    value = type_of(equation, variable)
    return SiteRow(
        site=name,
        shape=value.shape,
        dtype=value.dtype,
        runs=1,
        where="/".join(f"vmap[{n}]" for n in _batches(equation)),
        rule=rule,
        source=equation.source,
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
    runs: dict[SiteRow, int | None] = {}
    for row in rows:
        alike = replace(row, runs=0)
        before = runs.get(alike, 0)
        runs[alike] = None if before is None or row.runs is None else before + row.runs
    return [replace(row, runs=count) for row, count in runs.items()]


def _shortened(source: str) -> str:
    """A source line with a path relative to the working directory, or the last three
    parts of its path.
    """
    path, colon, rest = source.partition(":")
    with suppress(ValueError):
        return f"{Path(path).relative_to(Path.cwd())}{colon}{rest}"
    return f"{Path(*Path(path).parts[-3:])}{colon}{rest}"
