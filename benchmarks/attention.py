"""How fast is attention with dropout, and how much memory does it take, beside flax's?

    python benchmarks/attention.py

also compares with `jax.nn`'s, which has no dropout; it prints two tables and
writes `results/attention_<backend>.json` and `.png`. All candidates are compiled
ahead of time and take turns in one process. Memory is what XLA allocates besides
inputs and outputs; it is read from the compiled program, so that lengths at which
a peer would not fit are measured too. The long sequence runs in a process of its
own, whose peak is the whole process's.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from common.attention import (
    FLAX,
    FLAX_SHARED,
    OURS,
    OURS_PLAIN,
    PLAIN,
    RATE,
    WAYS,
    Attention,
    attend,
    candidates,
    function_of,
    types_of,
)
from common.figures import two_panels, write_with_legend
from common.measuring import describe, temporary_bytes, time_programs
from common.results import MIB, RESULTS, Record, cell, machine, markdown, rounded, table, write_json
from common.timing import ROUNDS
from jax import Array
from jax.stages import Compiled
from tqdm import tqdm

HEADS, FEATURES, LENGTH = 8, 64, 2048
LENGTHS = (1024, 2048, 4096, 8192)
LONG = 16384
_LONG_ROUNDS = 3
_LINES = {
    FLAX: ("#1b4f72", "o-"),
    FLAX_SHARED: ("#3a7ca5", "s-"),
    PLAIN: ("#5d6d7e", "^-"),
    OURS: ("#c8102e", "D-"),
    OURS_PLAIN: ("#e59866", "v--"),
}


def compared() -> dict[str, Attention]:
    """The candidates that run on this device."""
    return candidates(jax.default_backend())


def main() -> None:
    """Measures, prints and writes what was measured."""
    options = _parse()
    results = measure(options)
    for dtype, times in results["times"].items():
        print(f"\n{dtype}, T = {options.length}, ratio to {OURS}\n\n{times_table(times)}")
    print(f"\n{growth_table(options.lengths, results['memory'])}\n")
    print("gradient of one causal head:", results["long"])
    write_json(options.out.with_suffix(".json"), results)
    draw(results, options.out.with_suffix(".png"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is measured."""
    return {
        **machine(),
        "flax": flax.__version__,
        "command": " ".join(["python", *sys.argv]),
        "shape": {"batch": 1, "length": options.length, "heads": HEADS, "features": FEATURES},
        "rate": RATE,
        "times": {
            dtype: {way: compare(way, options.length, dtype, options.rounds) for way in WAYS}
            for dtype in options.dtypes
        },
        "lengths": options.lengths,
        "memory": growth(options.lengths),
        "long": {"length": options.long, **in_a_new_process(long_sequence, options.long)},
    }


def compare(way: str, length: int, dtype: str, rounds: int) -> dict[str, Record]:
    """Times of all candidates in turn, their ratios to ours, and their temporaries."""
    shape = (1, length, HEADS, FEATURES)
    programs = {name: program(f, way, shape, dtype) for name, f in compared().items()}
    with tqdm(total=rounds, unit="round", desc=f"{way}, {dtype}", disable=None) as bar:
        samples = time_programs(programs, arrays(way, shape, dtype), rounds, bar.update)
    records = describe(samples, programs, {"over_jaxdrop": OURS, "over_rate_0": OURS_PLAIN})
    for record in records.values():
        record["temporary_mib"] = rounded(record.pop("temporary_bytes") / MIB)
    return records


def growth(lengths: Sequence[int]) -> dict[str, Any]:
    """Temporaries by way, candidate and length."""

    def mib(attention: Attention, way: str, length: int) -> float:
        return temporary_mib(program(attention, way, (1, length, HEADS, FEATURES), "float32"))

    return {
        way: {name: [mib(f, way, n) for n in lengths] for name, f in compared().items()}
        for way in WAYS
    }


def long_sequence(length: int) -> dict[str, float]:
    """A causal gradient of one head: its temporaries, its time, and the process's peak."""
    attention, shape = partial(attend, rate=RATE, is_causal=True), (1, length, 1, FEATURES)
    compiled = program(attention, "gradient", shape, "float32")
    operands = arrays("gradient", shape, "float32")
    samples = time_programs({OURS: compiled}, operands, _LONG_ROUNDS)
    return {
        "temporary_mib": temporary_mib(compiled),
        "seconds": rounded(np.median(samples[OURS])),
        "process_mib": peak_of_the_process(),
    }


def peak_of_the_process() -> float | None:
    """The most MiB that this process has held, where Linux tells it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return rounded(int(lines["VmHWM"].split()[0]) / 2**10)


def in_a_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Runs a function where nothing else has run."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def program(attention: Attention, way: str, shape: Sequence[int], dtype: str) -> Compiled:
    """The compiled output, or the output and the cotangents of query, key and value."""
    rng = jax.eval_shape(lambda: jax.random.key(0))
    function = function_of(attention, way)
    return jax.jit(function).lower(rng, *types_of(way, shape, dtype)).compile()


def arrays(way: str, shape: Sequence[int], dtype: str) -> list[Array]:
    """A key and normal arrays for a program."""
    types = types_of(way, shape, dtype)
    keys = jax.random.split(jax.random.key(1), len(types))
    normal = (jax.random.normal(k, t.shape, t.dtype) for k, t in zip(keys, types, strict=True))
    return [jax.random.key(0), *normal]


def temporary_mib(compiled: Compiled) -> float:
    """MiB that XLA allocates besides inputs and outputs."""
    return rounded((temporary_bytes(compiled) or 0) / MIB)


def times_table(times: dict[str, dict[str, Record]]) -> str:
    """Time, ratio and temporaries of each candidate, both ways, in Markdown."""
    columns = {"": cell("candidate")}
    for way in WAYS:
        columns |= {
            f"{way}, ms": cell(way, "median_ms", form=".0f"),
            f"{way}, ratio": cell(way, "over_jaxdrop", form=".2f"),
            f"{way}, MiB": cell(way, "temporary_mib", form=".1f"),
        }
    rows = ({"candidate": n, **{way: times[way][n] for way in WAYS}} for n in times[WAYS[0]])
    return table(rows, columns)


def growth_table(lengths: Sequence[int], memory: dict[str, Any]) -> str:
    """MiB of temporaries by length, in Markdown."""
    rows = (
        [f"{name}, {way}", *(f"{mib:.1f}" for mib in by_length)]
        for way, by_name in memory.items()
        for name, by_length in by_name.items()
    )
    return markdown(["MiB", *(f"T = {length}" for length in lengths)], rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """Temporaries against length, both axes logarithmic."""
    title = f"Memory of attention, {HEADS} heads of {FEATURES}, float32, dropout rate {RATE}"
    title += f" ({results['device']}, jax {results['jax']})"
    figure, axes = two_panels(4.4, title, sharey=True)
    lengths = results["lengths"]
    for ax, way in zip(axes, WAYS, strict=True):
        for name, mib in results["memory"][way].items():
            colour, style = _LINES[name]
            ax.plot(lengths, mib, style, color=colour, label=name, markersize=5)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(lengths, map(str, lengths))
        ax.set_xlabel("sequence length")
        ax.set_title(way)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("temporaries, MiB (lower is better)")
    write_with_legend(path, figure, columns=3)


def _parse() -> argparse.Namespace:
    default = RESULTS / f"attention_{jax.default_backend()}"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--long", type=int, default=LONG)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=default, help="without .json and .png")
    return parser.parse_args()


if __name__ == "__main__":
    main()
