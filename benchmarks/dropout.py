"""How fast is `jaxdrop.dropout`, and how much memory does it take, beside its peers?

    python benchmarks/dropout.py

measures dropout of one array (time, memory, time to compile, eager calls) and
what dropout adds to a training step; README.md says how. It prints tables, draws
a figure and writes everything to a JSON file.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common.figures import COLOURS, INK, two_panels, write_with_legend
from common.measuring import (
    NO_DROPOUT,
    REFERENCES,
    compile_drop,
    describe,
    elements,
    kept_bytes,
    time_programs,
)
from common.peers import (
    BASELINE,
    BOTH,
    FORWARD,
    OURS,
    PEERS,
    REFERENCE_PEER,
    TORCH,
    find_peers,
    make_drop,
    torch_runs,
)
from common.perceptron import Perceptron, loss
from common.results import (
    MIB,
    RESULTS,
    Record,
    cell,
    command,
    machine,
    number,
    quartiles,
    rounded,
    table,
    write_json,
)
from common.timing import ROUNDS, Samples, Tick, run_of, spread_ms, summarise, take_turns
from common.training import time_steps
from jax import Array
from matplotlib.axes import Axes
from tqdm import tqdm

WAYS = (FORWARD, BOTH)
DTYPES = ("float32", "bfloat16")
RATES = (0.1, 0.5)  # a usual one, and the one that needs a single binary digit
SIZES = ("64x256", "1024x1024", "4096x4096")  # fits a cache, fits a large one, fits none
EAGER_SHAPE = (64, 256)
NETWORK = Perceptron(width=1024, hidden_layers=3, batch=4096, rate=0.1)
QUICK_NETWORK = Perceptron(width=64, hidden_layers=3, batch=64, rate=0.1)
IN_A_STEP = (OURS, REFERENCE_PEER, "equinox")
_MOST_COMPILE_ROUNDS = 7  # each compiles 14 programs from cold caches


@dataclass(frozen=True)
class Case:
    """One input: its shape, the name of its dtype, and the rate."""

    shape: tuple[int, ...]
    dtype: str
    rate: float

    @property
    def size(self) -> str:
        """The shape, as in the command line."""
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.size}, {self.dtype}, rate {self.rate}"

    def inputs(self, direction: str) -> tuple[Array, ...]:
        """A key and random values, and a cotangent where the direction needs one."""
        key, x_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, self.shape, jnp.dtype(self.dtype))
        return (key, x) if direction == FORWARD else (key, x, jnp.ones_like(x))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes the results."""
    options = _parse(arguments)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times must be real
    versions, missing = find_peers(options.peers)
    peers = {"peers": versions, "left_out": missing, "command": _command(options)}
    results = {
        "environment": {**machine(), **peers},
        **measure(options, [OURS, *versions, BASELINE]),
    }
    print(tables(results))
    if options.json:
        write_json(options.json, results)
    if options.figure:
        largest = max(options.sizes, key=lambda size: elements(_shape(size)))
        draw(results, largest, RATES[0], options.figure)


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


def compare(case: Case, names: Sequence[str], rounds: int, tick: Tick) -> list[Record]:
    """Times and memory of the candidates on one input, with a record for each direction inside."""
    about = {"size": case.size, "dtype": case.dtype, "rate": case.rate}
    records: dict[str, Record] = {name: {**about, "candidate": name} for name in names}
    for direction in WAYS:
        inputs = case.inputs(direction)
        programs = {
            name: compile_drop(make_drop(name, case.rate), direction, inputs)
            for name in _in_jax(names)
        }
        others = _torch(names, case, direction)
        samples = time_programs(programs, inputs, rounds, tick, others=others)
        for name, record in describe(samples, programs, REFERENCES).items():
            records[name][direction] = record
    for name in _in_jax(names):
        kept = kept_bytes(make_drop(name, case.rate), *case.inputs(FORWARD))
        records[name]["kept_bytes_per_element"] = kept / elements(case.shape)
    return list(records.values())


def compare_steps(
    network: Perceptron, names: Sequence[str], rounds: int, tick: Tick
) -> list[Record]:
    """Times and temporaries of the step without dropout and with each candidate's.

    What dropout adds is the median over rounds of the difference within each
    round; `added_over_peer` divides it by what the reference peer adds.
    """
    drops = {name: make_drop(name, network.rate) for name in IN_A_STEP if name in names}
    samples, programs = time_steps(
        loss, {NO_DROPOUT: None, **drops}, network.init(), network.data(), rounds, tick
    )
    added = {name: samples[name] - samples[NO_DROPOUT] for name in drops}
    records = describe(samples, programs, {})
    for name, seconds in added.items():
        records[name]["added"] = spread_ms(seconds)
        if REFERENCE_PEER in added:
            ratio = np.median(seconds) / np.median(added[REFERENCE_PEER])
            records[name]["added_over_peer"] = rounded(ratio)
    return [{"candidate": name, **record} for name, record in records.items()]


def compare_eager(case: Case, names: Sequence[str], rounds: int, tick: Tick) -> list[Record]:
    """Time of one eager forward call of each candidate, each library called as it stands."""
    inputs = case.inputs(FORWARD)
    runs = {name: run_of(make_drop(name, case.rate), inputs) for name in _in_jax(names)}
    samples = take_turns({**runs, **_torch(names, case, FORWARD)}, rounds, tick)
    summaries = summarise(samples, REFERENCES)
    return [{"candidate": name, **summaries[name]} for name in names]


def compare_compile_times(
    case: Case, names: Sequence[str], rounds: int, tick: Tick
) -> list[Record]:
    """Seconds to trace, lower and compile each JAX candidate from cold caches.

    JAX's own caches are emptied first: functions such as `bernoulli` are jitted
    inside, and what an earlier compilation has traced would come for free.
    """
    order = list(product(_in_jax(names), WAYS))
    seconds: dict[tuple[str, str], list[float]] = {which: [] for which in order}
    inputs = {direction: case.inputs(direction) for direction in WAYS}
    generator = random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name, direction in order:
            drop = make_drop(name, case.rate)
            jax.clear_caches()
            start = time.perf_counter()
            compile_drop(drop, direction, inputs[direction])
            seconds[name, direction].append(time.perf_counter() - start)
        tick()

    def summaries(direction: str) -> dict[str, Record]:
        samples: Samples = {n: np.array(seconds[n, direction]) for n in _in_jax(names)}
        return summarise(samples, REFERENCES)

    found = {direction: summaries(direction) for direction in WAYS}
    return [{"candidate": n, **{way: found[way][n] for way in WAYS}} for n in _in_jax(names)]


def _in_jax(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != TORCH]


def _torch(names: Sequence[str], case: Case, direction: str) -> dict[str, Any]:
    """PyTorch's run, which takes turns with the JAX programs, if it is among the names."""
    if TORCH not in names:
        return {}
    return {TORCH: torch_runs(case.shape, case.dtype, case.rate)[direction]}


def tables(results: dict[str, Any]) -> str:
    """All measurements, in Markdown."""
    candidate = {"candidate": cell("candidate")}
    of_one_array = dict(candidate)
    for way in WAYS:
        of_one_array |= _times(way)
        of_one_array[f"{way}, temporary MiB"] = cell(way, "temporary_bytes", form=".1f", unit=MIB)
    of_one_array["kept B/element"] = cell("kept_bytes_per_element", form=".3f")
    of_a_step = {
        "dropout": cell("candidate"),
        "step, ms": cell("median_ms", form=number),
        "added, ms": cell("added", "median_ms", form=number),
        "quartiles": cell("added", "quartiles_ms", form=quartiles),
        f"/ {REFERENCE_PEER}'s": cell("added_over_peer", form=number),
        "temporary MiB": cell("temporary_bytes", form=".1f", unit=MIB),
    }
    settings = results["settings"]
    sections = {
        "{}, {}, rate {}".format(*about): table(records, of_one_array)
        for about, records in groupby(
            results["dropout"], lambda record: (record["size"], record["dtype"], record["rate"])
        )
    }
    sections |= {
        f"compile time, {settings['compile']}": table(
            results["compile"], candidate | _times(FORWARD) | _times(BOTH)
        ),
        f"training step, {settings['step']}": table(results["step"], of_a_step),
        f"eager call, {settings['eager']}": table(results["eager"], candidate | _times()),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())


def _times(*way: str) -> dict[str, Any]:
    label = f"{way[0]}, " if way else ""
    return {
        f"{label}ms": cell(*way, "median_ms", form=number),
        f"{label}/ {OURS}": cell(*way, "over_jaxdrop", form=number),
        f"{label}/ ({BASELINE})": cell(*way, "over_double", form=number),
    }


def draw(results: dict[str, Any], size: str, rate: float, path: Path) -> None:
    """Bars of the time of each candidate at one size and rate.

    Args:
      results: all measurements.
      size: the size to show, such as "4096x4096".
      rate: the rate to show.
      path: where the image goes.
    """
    shown = [r for r in results["dropout"] if r["size"] == size and r["rate"] == rate]
    about = results["environment"]
    title = f"Dropout of a {size} array, rate {rate}"
    machine = f"{about['device']}, {about['cpus']} CPUs, jax {about['jax']}"
    figure, axes = two_panels(4.6, f"{title} ({machine})", sharey=False)
    for ax, way, title in zip(axes, WAYS, ("Forward", "Forward + backward"), strict=True):
        _draw_bars(ax, shown, way)
        ax.set_title(title, color=INK)
    axes[0].set_ylabel("milliseconds, median (lower is better)", color=INK)
    write_with_legend(path, figure)


def _draw_bars(ax: Axes, records: Sequence[Record], way: str) -> None:
    dtypes = list(dict.fromkeys(record["dtype"] for record in records))
    names = [n for n in COLOURS if n != BASELINE and any(r["candidate"] == n for r in records)]
    width = 0.84 / len(names)  # of a group of bars, the rest being the gap to the next
    for record in records:
        name, group, height = record["candidate"], dtypes.index(record["dtype"]), record[way]
        height = height["median_ms"]
        label = name if group == 0 else None
        if name == BASELINE:
            ax.plot([group - 0.45, group + 0.45], [height] * 2, "--", color=INK, label=label)
            continue
        x = group + (names.index(name) - (len(names) - 1) / 2) * width
        ax.bar(x, height, 0.9 * width, color=COLOURS[name], label=label)
        above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
        ax.annotate(number(height), (x, height), size=6.5, color=INK, **above)
    ax.set_xticks(range(len(dtypes)), dtypes)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    results = RESULTS / jax.default_backend()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, help=f"samples of each; default: {ROUNDS}")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--json", type=Path, help=f"default: results/{results.name}.json")
    parser.add_argument("--figure", type=Path, help="default: the same with .png")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a trial of 2 rounds on a tiny size, rate 0.1 alone; writes only to the paths given",
    )
    options = parser.parse_args(arguments)
    options.sizes = options.sizes or SIZES[: 1 if options.quick else None]
    options.rounds = options.rounds or (2 if options.quick else ROUNDS)
    options.rates = RATES[:1] if options.quick else RATES
    if not options.quick:
        options.json = options.json or results.with_suffix(".json")
        options.figure = options.figure or results.with_suffix(".png")
    return options


def _command(options: argparse.Namespace) -> str:
    """The command that repeats the measurements, without where results were put."""
    words = ["--sizes", *options.sizes, "--rounds", options.rounds, "--peers", *options.peers]
    return command("dropout.py", *words, *["--quick"] * options.quick)


def _shape(size: str) -> tuple[int, ...]:
    return tuple(int(n) for n in size.split("x"))


if __name__ == "__main__":
    main()
