"""Measures what each method costs beside one pass over its input and `dropout` of its mask.

Run it as `python benchmarks/methods.py`. The promise is that a method takes no
longer than two things together: a pass over what it reads, and
`jaxdrop.dropout` of an array with one element for each decision. It prints a
table in Markdown and writes everything to a JSON file; see README.md.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from common.compiled import Program
from common.measuring import compile_drop, elements, kept_bytes, temporary_bytes
from common.peers import BOTH, FORWARD
from common.results import Record, machine, markdown, rounded, write_json
from common.timing import Samples, run_of, summarise, take_turns
from jax import Array
from tqdm import tqdm

import jaxdrop

# The table of methods that the tests run over, so that each method is described once.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from table.methods import RECORDS
from table.record import Timed

Shape: TypeAlias = tuple[int, ...]
Candidate: TypeAlias = tuple[Callable[..., Any], tuple[Array, ...]]
"""A function `(key, xs)`, and the arrays `xs` that it takes."""

RATE = 0.1
RESULTS = Path(__file__).parent / "results"
_METHOD, _PASS, _MASK, _PROMISE = "method", "pass", "dropout of the mask", "promise"
_QUICK_EDGE = 16  # the longest axis in a trial


@dataclass(frozen=True)
class Row:
    """A method on an input of realistic size.

    Attributes:
      drop: a function of the key and of the arrays that it reads.
      shape: sizes of these arrays.
      decisions: from these sizes to those of an array with one element a decision.
      reads: the number of these arrays.
      dtype: name of their dtype; integers have no backward pass.
    """

    drop: Callable[..., Array]
    shape: Shape
    decisions: Callable[[Shape], Shape]
    reads: int
    dtype: str

    @property
    def directions(self) -> tuple[str, ...]:
        """Those that exist."""
        return (FORWARD, BOTH) if self.dtype == "float32" else (FORWARD,)

    def candidates(self) -> dict[str, Candidate]:
        """What is timed side by side."""
        keys = jax.random.split(jax.random.key(1), self.reads)
        normal = [8 * jax.random.normal(key, self.shape) for key in keys]
        xs = tuple(x.astype(self.dtype) for x in normal)
        one_a_decision = jnp.ones(self.decisions(self.shape))
        return {
            _METHOD: (lambda key, xs: self.drop(key, *xs), xs),
            _PASS: (lambda key, xs: xs[0] * 2 if self.reads == 1 else xs[0] + xs[1], xs),
            _MASK: (lambda key, xs: jaxdrop.dropout(key, *xs, RATE), (one_a_decision,)),
        }


def rows() -> dict[str, Row]:
    """The rows of the table of methods, by name; a record without one says why."""
    found = {}
    for record in RECORDS:
        timed = record.timed
        if isinstance(timed, Timed):
            name = f"{record.function}, {timed.title}" if timed.title else record.function
            drop = partial(timed.run or record.run, rate=RATE)
            decisions = timed.decisions or partial(_without, record.shared)
            found[name] = Row(drop, timed.shape, decisions, timed.reads, timed.dtype)
    return found


def _without(shared: Callable[[int], tuple[int, ...]], shape: Shape) -> Shape:
    """The sizes of the axes along which decisions differ."""
    return tuple(n for axis, n in enumerate(shape) if axis not in shared(len(shape)))


def compare(name: str, method: Row, rounds: int, tick: Callable[[], object]) -> Record:
    """Times, blocks and memory of a method and of what it is promised to cost at most.

    Args:
      name: the method's name.
      method: the method.
      rounds: number of samples of each candidate.
      tick: called after each round.

    Returns:
      A record with one for each direction inside.
    """
    key, candidates = jax.random.key(0), method.candidates()
    record: Record = {
        "method": name,
        "size": "x".join(map(str, method.shape)),
        "dtype": method.dtype,
        "decisions": elements(method.decisions(method.shape)),
    }
    for direction in method.directions:
        record[direction] = _compare_direction(key, candidates, direction, rounds, tick)
    if BOTH in method.directions:
        function, xs = candidates[_METHOD]
        record["kept_bytes"] = kept_bytes(function, key, xs)
    return record


def _compare_direction(
    key: Array,
    candidates: dict[str, Candidate],
    direction: str,
    rounds: int,
    tick: Callable[[], object],
) -> dict[str, Record]:
    runs, compiled = {}, {}
    for which, (function, xs) in candidates.items():
        inputs: tuple[Any, ...] = (key, xs)
        if direction == BOTH:
            y = jax.eval_shape(function, key, xs)
            inputs = (key, xs, jnp.ones(y.shape, y.dtype))
        compiled[which] = compile_drop(function, direction, inputs)
        runs[which] = run_of(compiled[which], inputs)
    samples: Samples = take_turns(runs, rounds, tick)
    samples[_PROMISE] = samples[_PASS] + samples[_MASK]
    records = summarise(samples, {"over_promise": _PROMISE, "over_pass": _PASS})
    for which, program in compiled.items():
        records[which]["threefry_blocks"] = Program(program.as_text()).threefry_blocks()
        records[which]["temporary_bytes"] = temporary_bytes(program)
    return records


def table(records: Sequence[Record]) -> str:
    """The measurements in Markdown."""
    heading = ["method", "x", "decisions"]
    for direction in (FORWARD, BOTH):
        heading += [f"{direction}, ms", "over promise", "over pass"]
    heading += ["blocks", "of dropout of the mask", "temporary, MiB", "kept bytes a decision"]
    return markdown(heading, map(_cells, records))


def _cells(record: Record) -> list[str]:
    cells = [record["method"], f"{record['size']} {record['dtype']}", f"{record['decisions']:,}"]
    for direction in (FORWARD, BOTH):
        if direction in record:
            own = record[direction][_METHOD]
            cells += [
                f"{own['median_ms']:.3g}",
                f"{own['over_promise']:.2f}",
                f"{own['over_pass']:.2f}",
            ]
        else:
            cells += ["-"] * 3
    blocks = [record[FORWARD][which]["threefry_blocks"] for which in (_METHOD, _MASK)]
    ways = [record[direction] for direction in (FORWARD, BOTH) if direction in record]
    temporary = [way[_METHOD]["temporary_bytes"] for way in ways]
    kept = record.get("kept_bytes")
    return [
        *cells,
        *(f"{count:,}" for count in blocks),
        "-" if None in temporary else " / ".join(f"{count / 2**20:.1f}" for count in temporary),
        "-" if kept is None else f"{rounded(kept / record['decisions']):g}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes the results."""
    options = _parse(arguments)
    methods = {name: row for name, row in rows().items() if name.split(",")[0] in options.methods}
    if options.quick:
        methods = {name: _small(method) for name, method in methods.items()}
    total = options.rounds * sum(len(method.directions) for method in methods.values())
    with tqdm(total=total, unit="round") as bar:
        tick = partial(bar.update, 1)
        records = [compare(name, each, options.rounds, tick) for name, each in methods.items()]
    print(table(records))
    if options.json:
        results = {"environment": _environment(options), "rate": RATE, "methods": records}
        write_json(options.json, results)


def _small(method: Row) -> Row:
    """The method on a tiny input."""
    return replace(method, shape=tuple(min(size, _QUICK_EDGE) for size in method.shape))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [name.split(",")[0] for name in rows()]
    parser = argparse.ArgumentParser(description="Benchmarks the methods of jaxdrop.")
    parser.add_argument("--methods", nargs="+", choices=names, default=names, metavar="METHOD")
    parser.add_argument("--rounds", type=int, help="samples of each candidate; default: 15")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/methods.json")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a trial of 2 rounds on tiny inputs; writes only to the path given",
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else 15)
    if not options.quick and options.methods == names:
        options.json = options.json or RESULTS / "methods.json"
    return options


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    words = ["python", "benchmarks/methods.py", "--rounds", str(options.rounds)]
    return {
        **machine(),
        "jaxdrop": jaxdrop.__version__,
        "command": shlex.join(words + ["--quick"] * options.quick),
    }


if __name__ == "__main__":
    main()
