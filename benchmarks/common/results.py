"""What a benchmark leaves behind: a JSON file that says where it was measured, and tables."""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import jax

Record: TypeAlias = dict[str, Any]
"""What was measured of one candidate or case, ready for a JSON file."""
Cell: TypeAlias = Callable[[Record], str]
"""From a record to what a table shows of it."""

RESULTS = Path(__file__).parent.parent / "results"
MIB = 2**20


def machine() -> Record:
    """The device that was measured on, and the version of JAX."""
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
    }


def command(script: str, *words: object) -> str:
    """The command that repeats the measurements."""
    return shlex.join(["python", f"benchmarks/{script}", *map(str, words)])


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results, with the folder that they go into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def markdown(heading: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(records: Iterable[Record], columns: Mapping[str, Cell]) -> str:
    """One row per record, in Markdown."""
    return markdown(list(columns), ([cell(r) for cell in columns.values()] for r in records))


def cell(*path: str, form: str | Callable[[Any], str] = "", unit: float = 0) -> Cell:
    """What lies at `path` within a record, or a dash where there is nothing.

    Args:
      *path: keys of the record, of the record inside of it, and so on.
      form: a format, or a function from the value to its text.
      unit: what the value is divided by, unless it is 0.
    """

    def show(record: Record) -> str:
        value: Any = reduce(lambda inner, key: (inner or {}).get(key), path, record)
        if value is None:
            return "-"
        value = value / unit if unit else value
        return form(value) if callable(form) else format(value, form)

    return show


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def quartiles(milliseconds: Iterable[float]) -> str:
    """The first and the third."""
    return " to ".join(map(number, milliseconds))


def rounded(value: Any) -> float:
    """The value to four digits, which is more than timing can tell."""
    return float(f"{value:.4g}")
