"""How near dropout comes to the memory's limit, beside its peers, alone and in context.

    python benchmarks/memory_limit.py

runs on whatever device JAX finds: it measures the bandwidth of a large copy,
times each workload (workloads.py) at each size, and prints the bytes that must
move, the bandwidth achieved with them as a share of the copy's, and the ratios
to the peers; then a whole training step of a transformer (transformer.py). It
writes `results/memory_limit_<backend>.json` and `.png`.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from elementwise import Record, run_of, temporary_bytes
from matplotlib.figure import Figure
from peers import BASELINE, OURS, find_peers, make_drop
from probing import markdown
from report import legend_below, mebibytes, plain, write_figure
from results_file import machine, write_json
from timing import rounded, summarise, take_turns
from tqdm import tqdm
from training import NO_DROPOUT, REFERENCE_PEER
from transformer import LARGE, OUR_WEIGHTS, QUICK, SMALL, compare_transformers
from workloads import ALONE, PEERS, WIDTH, WORKLOADS, Workload

DTYPES = ("bfloat16", "float32")
RATE, HALF = 0.1, 0.5
RESULTS = Path(__file__).parent / "results"
_MILLION = 2**20
_SIZES = {"cpu": (2**-4, 1, 8, 16), "accelerator": (2**-4, 1, 8, 16, 64, 256, 1024)}
_LARGEST_COPY = 2**28  # elements of float32
# A function is called so often in a row that it meets so many elements, before it is waited for.
_ELEMENTS_A_SAMPLE = {"cpu": 2**20, "accelerator": 2**31}
_MOST_CALLS = 100
_LINES = {
    BASELINE: ("#222222", "o:"),
    OURS: ("#c8102e", "o-"),
    "flax.linen": ("#1b4f72", "o-"),
    "equinox": ("#7fb3d5", "s-"),
    "haiku": ("#5d6d7e", "^-"),
}


class Case(NamedTuple):
    """A workload on arrays of one size and dtype, at one rate."""

    workload: Workload
    elements: int
    dtype: str
    rate: float

    @property
    def record(self) -> Record:
        """What says which case a measurement is of."""
        return {
            "workload": self.workload.name,
            "elements": self.elements,
            "dtype": self.dtype,
            "rate": self.rate,
        }


def cases(sizes: Sequence[float], dtypes: Sequence[str]) -> Iterator[Case]:
    """All workloads at rate 0.1, and the forward pass alone at rate 0.5."""
    counts = [int(size * _MILLION) // WIDTH * WIDTH for size in sizes]
    for elements, dtype in product(counts, dtypes):
        yield from (Case(workload, elements, dtype, RATE) for workload in WORKLOADS)
        yield Case(ALONE, elements, dtype, HALF)


def inputs_of(case: Case) -> list[Any]:
    """A key and arrays of small numbers, made on the device and cheap to make."""
    types = case.workload.types(case.elements, case.dtype)
    ramps = [
        (jnp.arange(t.size, dtype=jnp.uint32) % 7).astype(t.dtype).reshape(t.shape) for t in types
    ]
    return [jax.random.key(0), *ramps]


def calls_in_a_row(elements: int) -> int:
    """How many calls on arrays of this size are one sample."""
    return min(_MOST_CALLS, max(1, _ELEMENTS_A_SAMPLE[_kind()] // elements))


def _kind() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "accelerator"


def copy_bandwidth(elements: int, rounds: int) -> float:
    """Bytes read and written in a second by `x * 2` of a large array."""
    x = jnp.ones(elements, jnp.float32)
    double = jax.jit(lambda x: x * 2).lower(x).compile()
    calls = calls_in_a_row(elements)
    seconds = take_turns({BASELINE: run_of(double, [x], calls)}, rounds, lambda: None)[BASELINE]
    return float(2 * x.nbytes * calls / np.median(seconds))


def compare(case: Case, names: Sequence[str], bandwidth: float, rounds: int) -> list[Record]:
    """Times, achieved bandwidths and temporaries of the candidates."""
    inputs = inputs_of(case)
    calls = calls_in_a_row(case.elements)
    compiled = {
        name: jax.jit(case.workload.of(make_drop(name, case.rate))).lower(*inputs).compile()
        for name in names
    }
    runs = {name: run_of(function, inputs, calls) for name, function in compiled.items()}
    samples = {name: s / calls for name, s in take_turns(runs, rounds, lambda: None).items()}
    must_move = case.workload.bytes(case.elements, case.dtype)
    summaries = summarise(samples, {"over_jaxdrop": OURS, "over_copy": BASELINE})
    return [
        {
            **case.record,
            "candidate": name,
            **summaries[name],
            "must_move_bytes": must_move,
            "share_of_copy_bandwidth": rounded(must_move / np.median(seconds) / bandwidth),
            "temporary_bytes": temporary_bytes(compiled[name]),
        }
        for name, seconds in samples.items()
    ]


def table(records: Sequence[Record], names: Sequence[str]) -> str:
    """One row a case, in Markdown: our bandwidth, and everybody's time over ours."""
    heading = ["", "elements", "rate", "must move, MiB", "GB/s", "share of copy"]
    heading += [f"{name} / {OURS}" for name in names if name != OURS]
    keys = ("workload", "elements", "rate", "dtype")
    rows = []
    for _, group in groupby(records, lambda record: [record[key] for key in keys]):
        of = {record["candidate"]: record for record in group}
        ours = of[OURS]
        moved = ours["must_move_bytes"]
        rows.append(
            [
                f"{ours['workload']}, {ours['dtype']}",
                _count(ours["elements"]),
                str(ours["rate"]),
                f"{moved / 2**20:.4g}",
                f"{moved / ours['median_ms'] / 1e6:.4g}",
                f"{100 * ours['share_of_copy_bandwidth']:.0f} %",
                *(f"{of[name]['over_jaxdrop']:.2f}" for name in names if name != OURS),
            ]
        )
    return markdown(heading, rows)


def _count(elements: int) -> str:
    for size, letter in ((2**30, "G"), (2**20, "M")):
        if elements >= size:
            return f"{elements / size:g} {letter}"
    return f"{elements / 1024:g} K"


def steps_table(records: Sequence[Record]) -> str:
    """Times of the training step, in Markdown."""
    heading = ["dropout", "step, ms", "quartiles", "/ no dropout", f"/ {OURS}", "temporaries, MiB"]
    rows = (
        [
            record["candidate"],
            f"{record['median_ms']:.4g}",
            " to ".join(f"{ms:.4g}" for ms in record["quartiles_ms"]),
            f"{record['over_no_dropout']:.3f}",
            f"{record['over_jaxdrop']:.3f}",
            mebibytes(record["temporary_bytes"]),
        ]
        for record in records
    )
    return markdown(heading, rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """The share of the copy's bandwidth against the size, alone and in context, on white."""
    figure = Figure(figsize=(10, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, workload in zip(axes, (WORKLOADS[0], WORKLOADS[-1]), strict=True):
        for name, (colour, style) in _LINES.items():
            shown = [
                r
                for r in results["workloads"]
                if (r["workload"], r["candidate"], r["rate"], r["dtype"])
                == (workload.name, name, RATE, DTYPES[0])
            ]
            if shown:
                sizes = [r["elements"] for r in shown]
                shares = [100 * r["share_of_copy_bandwidth"] for r in shown]
                ax.plot(sizes, shares, style, color=colour, label=name, markersize=5)
        ax.axhline(100, linestyle="--", color="#222222", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("elements")
        ax.set_title(workload.name)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        plain(ax)
    axes[0].set_ylabel("% of a large copy's bandwidth (higher is better)")
    legend_below(figure, axes[0])
    figure.suptitle(
        f"Bandwidth achieved by dropout in {DTYPES[0]}, rate {RATE}"
        f" ({results['device']}, jax {results['jax']})"
    )
    write_figure(path, figure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is measured."""
    versions, missing = find_peers(options.peers)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    names = [OURS, *versions, BASELINE]
    bandwidth = copy_bandwidth(options.copy, options.rounds)
    print(f"copy of {_count(options.copy)} elements of float32: {bandwidth / 1e9:.4g} GB/s")
    records: list[Record] = []
    for case in tqdm(list(cases(options.sizes, options.dtypes)), unit="case", disable=None):
        records += compare(case, names, bandwidth, options.rounds)
    ways = [NO_DROPOUT, *[REFERENCE_PEER] * (REFERENCE_PEER in versions), OURS, OUR_WEIGHTS]
    steps = compare_transformers(options.transformer, ways, options.rounds, lambda: None)
    return {
        **machine(),
        "peers": versions,
        "left_out": missing,
        "command": options.command,
        "copy": {"elements": options.copy, "gb_per_s": rounded(bandwidth / 1e9)},
        "workloads": records,
        "transformer": {"sizes": str(options.transformer), "steps": steps},
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    backend = jax.default_backend()
    default = RESULTS / f"memory_limit_{backend}"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", help="millions (2^20) of elements")
    parser.add_argument("--rounds", type=int, help="samples of each candidate; default: 15")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--out", type=Path, help=f"without .json and .png; default: {default.name}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a trial of 2 rounds, {DTYPES[0]} alone; give --out to keep it",
    )
    options = parser.parse_args(arguments)
    on_cpu = _kind() == "cpu"
    if options.quick:
        defaults, options.transformer = (_SIZES["cpu"][:1], 2), QUICK
    else:
        defaults = (_SIZES[_kind()], 15)
        options.transformer = SMALL if on_cpu else LARGE
        options.out = options.out or default
    options.sizes = options.sizes or defaults[0]
    if min(options.sizes) * _MILLION < WIDTH:
        parser.error(f"--sizes must be at least {WIDTH / _MILLION:g}; got {min(options.sizes):g}")
    options.rounds = options.rounds or defaults[1]
    options.dtypes = DTYPES[:1] if options.quick else DTYPES
    options.copy = _MILLION if options.quick else _LARGEST_COPY // (4 if on_cpu else 1)
    words = ["python", "benchmarks/memory_limit.py", "--sizes", *(f"{s:g}" for s in options.sizes)]
    words += ["--rounds", str(options.rounds), "--peers", *options.peers]
    options.command = shlex.join(words + ["--quick"] * options.quick)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes what was measured."""
    options = _parse(arguments)
    results = measure(options)
    names = [OURS, *results["peers"], BASELINE]
    print(f"\n{table(results['workloads'], names)}\n")
    step = results["transformer"]
    print(f"training step, {step['sizes']}\n\n{steps_table(step['steps'])}")
    if options.out:
        write_json(Path(f"{options.out}.json"), results)
        draw(results, Path(f"{options.out}.png"))


if __name__ == "__main__":
    main()
