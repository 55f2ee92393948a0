"""How near does dropout come to the limit of the memory, alone and in context?

    python benchmarks/memory_limit.py

runs on whatever device JAX finds: it measures the bandwidth of a large copy,
times each workload (common/workloads.py) at each size, beside the peers, and
prints the bytes that must move, the bandwidth achieved with them as a share of
the copy's, and the ratios to the peers; then a whole training step of a
transformer. It writes `results/memory_limit_<backend>.json` and `.png`.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common.figures import COLOURS, two_panels, write_with_legend
from common.measuring import NO_DROPOUT, compile_for, describe, time_programs
from common.peers import BASELINE, OURS, REFERENCE_PEER, find_peers, make_drop
from common.results import (
    MIB,
    RESULTS,
    Record,
    cell,
    command,
    machine,
    markdown,
    rounded,
    table,
    write_json,
)
from common.timing import ROUNDS
from common.transformer import LARGE, OUR_WEIGHTS, QUICK, SMALL, compare_transformers
from common.workloads import ALONE, PEERS, WIDTH, WORKLOADS, Workload
from tqdm import tqdm

DTYPES = ("bfloat16", "float32")
RATE, HALF = 0.1, 0.5
_MILLION = 2**20
_SIZES = {"cpu": (2**-4, 1, 8, 16), "accelerator": (2**-4, 1, 8, 16, 64, 256, 1024)}
# Elements of float32: on either far more than its caches hold.
_COPY = {"cpu": 2**26, "accelerator": 2**28}
# A function is called so often in a row that it meets so many elements, before it is waited for.
_ELEMENTS_PER_SAMPLE = {"cpu": 2**20, "accelerator": 2**31}
_MOST_CALLS = 100
_LINES = {BASELINE: "o:", OURS: "o-", "flax.linen": "o-", "equinox": "s-", "haiku": "^-"}


class Case(NamedTuple):
    """A workload on arrays of one size and dtype, at one rate."""

    workload: Workload
    elements: int
    dtype: str
    rate: float

    def inputs(self) -> list[Any]:
        """A key and arrays of small numbers, made on the device and cheap to make."""
        types = self.workload.types(self.elements, self.dtype)
        ramps = [
            (jnp.arange(t.size, dtype=jnp.uint32) % 7).astype(t.dtype).reshape(t.shape)
            for t in types
        ]
        return [jax.random.key(0), *ramps]


def cases(sizes: Sequence[float], dtypes: Sequence[str]) -> Iterator[Case]:
    """All workloads at rate 0.1, and the forward pass alone at rate 0.5."""
    counts = [int(size * _MILLION) // WIDTH * WIDTH for size in sizes]
    for elements, dtype in product(counts, dtypes):
        yield from (Case(workload, elements, dtype, RATE) for workload in WORKLOADS)
        yield Case(ALONE, elements, dtype, HALF)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes what was measured."""
    options = _parse(arguments)
    results = measure(options)
    names = [OURS, *results["peers"], BASELINE]
    print(f"\n{workloads_table(results['workloads'], names)}\n")
    step = results["transformer"]
    print(f"training step, {step['sizes']}\n\n{steps_table(step['steps'])}")
    if options.out:
        write_json(Path(f"{options.out}.json"), results)
        draw(results, Path(f"{options.out}.png"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is measured."""
    versions, missing = find_peers(options.peers)
    names = [OURS, *versions, BASELINE]
    bandwidth = copy_bandwidth(options.copy, options.rounds)
    print(f"copy of {_count(options.copy)} elements of float32: {bandwidth / 1e9:.4g} GB/s")
    records: list[Record] = []
    for case in tqdm(list(cases(options.sizes, options.dtypes)), unit="case", disable=None):
        records += compare(case, names, bandwidth, options.rounds)
    ways = [NO_DROPOUT, *[REFERENCE_PEER] * (REFERENCE_PEER in versions), OURS, OUR_WEIGHTS]
    steps = compare_transformers(options.transformer, ways, options.rounds)
    return {
        **machine(),
        "peers": versions,
        "left_out": missing,
        "command": options.command,
        "copy": {"elements": options.copy, "gb_per_s": rounded(bandwidth / 1e9)},
        "workloads": records,
        "transformer": {"sizes": str(options.transformer), "steps": steps},
    }


def copy_bandwidth(elements: int, rounds: int) -> float:
    """Bytes read and written per second by `x * 2` of a large array."""
    x = jnp.ones(elements, jnp.float32)
    programs = {BASELINE: compile_for(lambda x: x * 2, [x])}
    samples = time_programs(programs, [x], rounds, calls=calls_in_a_row(elements))
    return float(2 * x.nbytes / np.median(samples[BASELINE]))


def calls_in_a_row(elements: int) -> int:
    """How many calls on arrays of this size are one sample."""
    return min(_MOST_CALLS, max(1, _ELEMENTS_PER_SAMPLE[_kind()] // elements))


def compare(case: Case, names: Sequence[str], bandwidth: float, rounds: int) -> list[Record]:
    """Times, achieved bandwidths and temporaries of the candidates."""
    inputs = case.inputs()
    programs = {
        name: compile_for(case.workload.of(make_drop(name, case.rate)), inputs) for name in names
    }
    calls = calls_in_a_row(case.elements)
    samples = time_programs(programs, inputs, rounds, calls=calls)
    must_move = case.workload.bytes(case.elements, case.dtype)
    records = describe(samples, programs, {"over_jaxdrop": OURS, "over_copy": BASELINE})
    about = {**case._asdict(), "workload": case.workload.name}
    return [
        {
            **about,
            "candidate": name,
            **record,
            "must_move_bytes": must_move,
            "share_of_copy_bandwidth": rounded(must_move / np.median(samples[name]) / bandwidth),
        }
        for name, record in records.items()
    ]


def _kind() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "accelerator"


def workloads_table(records: Sequence[Record], names: Sequence[str]) -> str:
    """One row per case, in Markdown: our bandwidth, and everybody's time over ours."""
    others = [name for name in names if name != OURS]
    heading = ["", "elements", "rate", "must move, MiB", "GB/s", "share of copy"]
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
                f"{moved / MIB:.4g}",
                f"{moved / ours['median_ms'] / 1e6:.4g}",  # bytes per ms to GB per s
                f"{100 * ours['share_of_copy_bandwidth']:.0f} %",
                *(f"{of[name]['over_jaxdrop']:.2f}" for name in others),
            ]
        )
    return markdown([*heading, *(f"{name} / {OURS}" for name in others)], rows)


def _count(elements: int) -> str:
    for size, letter in ((2**30, "G"), (2**20, "M")):
        if elements >= size:
            return f"{elements / size:g} {letter}"
    return f"{elements / 1024:g} K"


def steps_table(records: Sequence[Record]) -> str:
    """Times of the training step, in Markdown."""
    columns = {
        "dropout": cell("candidate"),
        "step, ms": cell("median_ms", form=".4g"),
        "quartiles": cell("quartiles_ms", form=lambda q: " to ".join(f"{ms:.4g}" for ms in q)),
        "/ no dropout": cell("over_no_dropout", form=".3f"),
        f"/ {OURS}": cell("over_jaxdrop", form=".3f"),
        "temporaries, MiB": cell("temporary_bytes", form=".1f", unit=MIB),
    }
    return table(records, columns)


def draw(results: dict[str, Any], path: Path) -> None:
    """The share of the copy's bandwidth against the size, alone and in context."""
    title = f"Bandwidth achieved by dropout in {DTYPES[0]}, rate {RATE}"
    title += f" ({results['device']}, jax {results['jax']})"
    figure, axes = two_panels(4.6, title, sharey=True)
    for ax, workload in zip(axes, (WORKLOADS[0], WORKLOADS[-1]), strict=True):
        for name, style in _LINES.items():
            shown = [
                r
                for r in results["workloads"]
                if (r["workload"], r["candidate"], r["rate"], r["dtype"])
                == (workload.name, name, RATE, DTYPES[0])
            ]
            if shown:
                sizes = [r["elements"] for r in shown]
                shares = [100 * r["share_of_copy_bandwidth"] for r in shown]
                ax.plot(sizes, shares, style, color=COLOURS[name], label=name, markersize=5)
        ax.axhline(100, linestyle="--", color=COLOURS[BASELINE], linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("elements")
        ax.set_title(workload.name)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("% of a large copy's bandwidth (higher is better)")
    write_with_legend(path, figure)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = RESULTS / f"memory_limit_{jax.default_backend()}"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", help="millions (2^20) of elements")
    parser.add_argument("--rounds", type=int, help=f"samples of each; default: {ROUNDS}")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--out", type=Path, help=f"without .json and .png; default: {default.name}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a trial of 2 rounds, {DTYPES[0]} alone; give --out to keep it",
    )
    options = parser.parse_args(arguments)
    sizes, rounds, options.copy = _SIZES[_kind()], ROUNDS, _COPY[_kind()]
    options.transformer, options.dtypes = SMALL if _kind() == "cpu" else LARGE, DTYPES
    if options.quick:
        sizes, rounds, options.copy = _SIZES["cpu"][:1], 2, _MILLION
        options.transformer, options.dtypes = QUICK, DTYPES[:1]
    else:
        options.out = options.out or default
    options.sizes, options.rounds = options.sizes or sizes, options.rounds or rounds
    if min(options.sizes) * _MILLION < WIDTH:
        parser.error(f"--sizes must be at least {WIDTH / _MILLION:g}; got {min(options.sizes):g}")
    words = ["--sizes", *(f"{s:g}" for s in options.sizes), "--rounds", options.rounds]
    words += ["--peers", *options.peers, *["--quick"] * options.quick]
    options.command = command("memory_limit.py", *words)
    return options


if __name__ == "__main__":
    main()
