"""Benchmarks `jaxdrop.dropout` side by side with its peers; see README.md.

Run it as `python benchmarks/dropout.py`. It measures (elementwise.py,
training.py), prints tables and draws a figure (report.py), and writes
everything to a JSON file.
"""

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
from elementwise import Case, compare, compare_compile_times, compare_eager, elements
from peers import BASELINE, OURS, PEERS, find_peers
from report import draw_figure, tables
from results_file import machine, write_json
from tqdm import tqdm
from training import Network, compare_steps

DTYPES = ("float32", "bfloat16")
RATES = (0.1, 0.5)
SIZES = ("64x256", "1024x1024", "4096x4096")
QUICK_SIZES = ("64x256",)
EAGER_SHAPE = (64, 256)
NETWORK = Network(width=1024, hidden_layers=3, batch=4096, rate=0.1)
QUICK_NETWORK = Network(width=64, hidden_layers=3, batch=64, rate=0.1)
RESULTS = Path(__file__).parent / "results"
_MOST_COMPILE_ROUNDS = 7


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes the results."""
    options = _parse(arguments)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times must be real
    versions, missing = find_peers(options.peers)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    results = {
        "environment": _environment(options, versions, missing),
        **measure(options, [OURS, *versions, BASELINE]),
    }
    print(tables(results))
    if options.json:
        write_json(options.json, results)
    if options.figure:
        largest = max(options.sizes, key=lambda size: elements(_shape(size)))
        draw_figure(results, largest, RATES[0], options.figure)


def measure(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """All measurements, and under `settings` what each was taken on."""
    rounds, network = options.rounds, QUICK_NETWORK if options.quick else NETWORK
    compile_rounds = 1 if options.quick else min(rounds, _MOST_COMPILE_ROUNDS)
    cases = [
        Case(_shape(size), dtype, rate)
        for size, dtype, rate in product(options.sizes, DTYPES, options.rates)
    ]
    largest = Case(max((case.shape for case in cases), key=elements), DTYPES[0], RATES[0])
    small = Case(EAGER_SHAPE, DTYPES[0], RATES[0])
    with tqdm(total=rounds * (2 * len(cases) + 2) + compile_rounds, unit="round") as bar:
        tick = partial(bar.update, 1)
        return {
            "settings": {"compile": str(largest), "step": str(network), "eager": str(small)},
            "dropout": [r for case in cases for r in compare(case, names, rounds, tick)],
            "step": compare_steps(network, names, rounds, tick),
            "eager": compare_eager(small, names, rounds, tick),
            "compile": compare_compile_times(largest, names, compile_rounds, tick),
        }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    results = RESULTS / jax.default_backend()
    parser = argparse.ArgumentParser(description="Benchmarks jaxdrop.dropout against its peers.")
    parser.add_argument("--sizes", nargs="+", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, help="samples of each candidate; default: 15")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument(
        "--json", type=Path, help=f"default: benchmarks/results/{results.name}.json"
    )
    parser.add_argument("--figure", type=Path, help="default: the same with .png")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a trial of 2 rounds on a tiny size, rate 0.1 alone; writes only to the paths given",
    )
    options = parser.parse_args(arguments)
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    options.rounds = options.rounds or (2 if options.quick else 15)
    options.rates = RATES[:1] if options.quick else RATES
    if not options.quick:
        options.json = options.json or results.with_suffix(".json")
        options.figure = options.figure or results.with_suffix(".png")
    return options


def _environment(
    options: argparse.Namespace, versions: dict[str, str], missing: dict[str, str]
) -> dict[str, Any]:
    return {
        **machine(),
        "peers": versions,
        "left_out": missing,
        "command": _command(options),
    }


def _command(options: argparse.Namespace) -> str:
    """The command that repeats the measurements, without where results were put."""
    words = ["python", "benchmarks/dropout.py", "--sizes", *options.sizes]
    words += ["--rounds", str(options.rounds), "--peers", *options.peers]
    return shlex.join(words + ["--quick"] * options.quick)


def _shape(size: str) -> tuple[int, ...]:
    return tuple(int(n) for n in size.split("x"))


if __name__ == "__main__":
    main()
