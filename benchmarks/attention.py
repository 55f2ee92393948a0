"""Attention with dropout: time and memory beside flax's, and beside `jax.nn`'s without dropout.

    python benchmarks/attention.py

prints two tables and writes `results/attention_<backend>.json` and `.png`. All
candidates are compiled ahead of time and take turns in one process. Memory is
what XLA allocates besides inputs and outputs; it is read off the compiled
program, so that lengths at which a peer would not fit are measured too. The
long sequence runs in a process of its own, whose peak is the whole process's.
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
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from probing import markdown
from report import legend_below, plain, write_figure
from results_file import machine, write_json
from timing import rounded, summarise, take_turns
from tqdm import tqdm

import jaxdrop

RESULTS = Path(__file__).parent / "results"
RATE = 0.1
HEADS, FEATURES, LENGTH = 8, 64, 2048
LENGTHS = (1024, 2048, 4096, 8192)
LONG = 16384
FLAX, PLAIN = "flax.linen, dropout", "jax.nn, no dropout"
OURS, OURS_PLAIN = "jaxdrop, dropout", "jaxdrop, rate 0"
WAYS = ("forward", "gradient")
LINES = {
    FLAX: ("#1b4f72", "o-"),
    "flax.linen, mask shared over heads": ("#3a7ca5", "s-"),
    PLAIN: ("#5d6d7e", "^-"),
    OURS: ("#c8102e", "D-"),
    OURS_PLAIN: ("#e59866", "v--"),
}

Attention = Callable[..., Array]


def candidates() -> dict[str, Attention]:
    """Functions of a key, query, key and value, by name."""

    def of_flax(rng: Array, *arrays: Array, shared: bool) -> Array:
        return flax.linen.dot_product_attention(
            *arrays,
            dropout_rng=rng,
            dropout_rate=RATE,
            deterministic=False,
            broadcast_dropout=shared,
        )

    return {
        FLAX: partial(of_flax, shared=False),
        "flax.linen, mask shared over heads": partial(of_flax, shared=True),
        PLAIN: lambda rng, *arrays: jax.nn.dot_product_attention(*arrays),
        OURS: partial(attend, rate=RATE),
        OURS_PLAIN: partial(attend, rate=0.0),
    }


def attend(rng: Array, *arrays: Array, rate: float, **options: Any) -> Array:
    """Our function, with the rate by keyword."""
    return jaxdrop.dot_product_attention(rng, *arrays, rate, **options)


def with_gradient(attention: Attention) -> Callable[..., Any]:
    """Of a key, query, key, value and a cotangent: the output and the three cotangents."""

    def both(rng: Array, *arrays: Array) -> Any:
        *arrays, cotangent = arrays
        out, pull = jax.vjp(partial(attention, rng), *arrays)
        return out, pull(cotangent)

    return both


def arguments_of(way: str, shape: Sequence[int], dtype: str) -> list[jax.ShapeDtypeStruct]:
    """Types of query, key and value, and of the cotangent where the way needs one."""
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    return [x] * (3 if way == "forward" else 4)


def program(attention: Attention, way: str, shape: Sequence[int], dtype: str) -> Any:
    """The compiled output, or the output and the cotangents of query, key and value."""
    rng = jax.eval_shape(lambda: jax.random.key(0))
    function = attention if way == "forward" else with_gradient(attention)
    return jax.jit(function).lower(rng, *arguments_of(way, shape, dtype)).compile()


def arrays(shape: Sequence[int], dtype: str, way: str) -> list[Array]:
    """A key and normal arrays for a program."""
    keys = jax.random.split(jax.random.key(1), 3 if way == "forward" else 4)
    return [jax.random.key(0), *(jax.random.normal(key, tuple(shape), dtype) for key in keys)]


def temporaries(compiled: Any) -> float:
    """MiB that XLA allocates besides inputs and outputs."""
    return rounded(compiled.memory_analysis().temp_size_in_bytes / 2**20)


def compare(way: str, length: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Times of all candidates in turn, their ratios to ours, and their temporaries."""
    shape = (1, length, HEADS, FEATURES)
    programs = {name: program(f, way, shape, dtype) for name, f in candidates().items()}
    operands = arrays(shape, dtype, way)

    def run(compiled: Any) -> Any:
        return jax.block_until_ready(compiled(*operands))

    runs = {name: partial(run, compiled) for name, compiled in programs.items()}
    with tqdm(total=rounds, unit="round", desc=f"{way}, {dtype}", disable=None) as bar:
        samples = take_turns(runs, rounds, bar.update)
    references = {"over_jaxdrop": OURS, "over_rate_0": OURS_PLAIN}
    records = summarise(samples, references)
    return {
        name: {**record, "temporary_mib": temporaries(programs[name])}
        for name, record in records.items()
    }


def growth(lengths: Sequence[int]) -> dict[str, Any]:
    """Temporaries by way, candidate and length."""
    return {
        way: {
            name: [
                temporaries(program(f, way, (1, length, HEADS, FEATURES), "float32"))
                for length in lengths
            ]
            for name, f in candidates().items()
        }
        for way in WAYS
    }


def long_sequence(length: int) -> dict[str, float]:
    """A causal gradient of one head: its temporaries, its time, and the process's peak."""
    attention = partial(attend, rate=RATE, is_causal=True)
    shape = (1, length, 1, FEATURES)
    compiled = program(attention, "gradient", shape, "float32")
    operands = arrays(shape, "float32", "gradient")
    samples = take_turns(
        {OURS: lambda: jax.block_until_ready(compiled(*operands))}, 3, lambda: None
    )
    return {
        "temporary_mib": temporaries(compiled),
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


def table(times: dict[str, dict[str, Any]]) -> str:
    """Time, ratio and temporaries of each candidate, both ways, in Markdown."""
    heading = ["", *(f"{way}, {what}" for way in WAYS for what in ("ms", "ratio", "MiB"))]
    rows = (
        [
            name,
            *(
                cell
                for way in WAYS
                for record in [times[way][name]]
                for cell in (
                    f"{record['median_ms']:.0f}",
                    f"{record['over_jaxdrop']:.2f}",
                    f"{record['temporary_mib']:.1f}",
                )
            ),
        ]
        for name in times[WAYS[0]]
    )
    return markdown(heading, rows)


def growth_table(lengths: Sequence[int], memory: dict[str, Any]) -> str:
    """MiB of temporaries by length, in Markdown."""
    rows = (
        [f"{name}, {way}", *(f"{mib:.1f}" for mib in by_length)]
        for way, by_name in memory.items()
        for name, by_length in by_name.items()
    )
    return markdown(["MiB", *(f"T = {length}" for length in lengths)], rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """Temporaries against length, both axes logarithmic, on white."""
    figure = Figure(figsize=(10, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    lengths = results["lengths"]
    for ax, way in zip(axes, WAYS, strict=True):
        for name, mib in results["memory"][way].items():
            colour, style = LINES[name]
            ax.plot(lengths, mib, style, color=colour, label=name, markersize=5)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(lengths, map(str, lengths))
        ax.set_xlabel("sequence length")
        ax.set_title(way)
        ax.grid(alpha=0.3)
        plain(ax)
    axes[0].set_ylabel("temporaries, MiB (lower is better)")
    legend_below(figure, axes[0], columns=3)
    figure.suptitle(
        f"Memory of attention, {HEADS} heads of {FEATURES}, float32, dropout rate {RATE}"
        f" ({results['device']}, jax {results['jax']})"
    )
    write_figure(path, figure)


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


def main() -> None:
    """Measures, prints and writes what was measured."""
    default = RESULTS / f"attention_{jax.default_backend()}"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--long", type=int, default=LONG)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=default, help="without .json and .png")
    options = parser.parse_args()
    results = measure(options)
    for dtype, times in results["times"].items():
        print(f"\n{dtype}, T = {options.length}, ratio to {OURS}\n\n{table(times)}")
    print(f"\n{growth_table(options.lengths, results['memory'])}\n")
    print("gradient of one causal head:", results["long"])
    write_json(options.out.with_suffix(".json"), results)
    draw(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
