"""How long does a program with many dropouts take to compile, beside `jax.random.bernoulli`?

    python benchmarks/compile_time.py

compiles `x + drop(gelu(x @ w))`, repeated for each number of sites and unrolled,
forward and with its gradient, for the device that JAX finds, and runs nothing.
With `--target h200` it compiles for a GPU that need not be there; common/ahead.py
says what that takes. All candidates take turns in one process, and the ratio is
the median over rounds. It writes `results/compile_time_<target>.json` and `.png`.
"""

import argparse
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common.ahead import HERE, TARGETS, Target, target
from common.compiled import Program
from common.figures import COLOURS, two_panels, write_with_legend
from common.peers import OURS
from common.results import RESULTS, Record, cell, command, machine, rounded, table, write_json
from jax import Array
from tqdm import tqdm

import jaxdrop

SITES = (1, 4, 16, 64, 144)
RATES = ("0.1", "0.5", "traced")
ROUNDS = 3
BERNOULLI = "jax.random.bernoulli, where"
WAYS = ("forward", "gradient")
_MANY = 16  # sites; of more, one round takes long enough to be exact
_SHAPE, _DTYPE = (8192, 1024), jnp.bfloat16
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)  # key data, which any device can be given


class Case(NamedTuple):
    """What is compiled: how many sites, which way, at which rate."""

    sites: int
    way: str
    rate: str


def cases(sites: Sequence[int], rates: Sequence[str]) -> list[Case]:
    """All numbers of sites at the first rate, and two of them at the others."""
    others = [n for n in sites if _MANY <= n <= 4 * _MANY]
    swept = itertools.product(sites, WAYS, rates[:1])
    return [Case(*case) for case in (*swept, *itertools.product(others, WAYS, rates[1:]))]


def plain_dropout(key: Array, x: Array, rate: Any) -> Array:
    """Dropout as flax, equinox and haiku write it."""
    keep_prob = 1 - jnp.asarray(rate, x.dtype)
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / keep_prob, jnp.zeros_like(x))


CANDIDATES = {BERNOULLI: plain_dropout, OURS: jaxdrop.dropout}


def program(drop: Callable[..., Array], case: Case) -> Callable[..., Any]:
    """The network of a case, of key data, weights, activations and perhaps a rate."""

    def forward(data: Array, w: Array, x: Array, *rate: Array) -> Array:
        key = jax.random.wrap_key_data(data)
        known = rate or (float(case.rate),)
        for i in range(case.sites):
            x = x + drop(jax.random.fold_in(key, i), jax.nn.gelu(x @ w), *known)
        return x

    def gradient(data: Array, w: Array, x: Array, *rate: Array) -> Any:
        def loss(w: Array, x: Array) -> Array:
            return forward(data, w, x, *rate).astype(jnp.float32).sum()

        return jax.grad(loss, argnums=(0, 1))(w, x)

    return forward if case.way == "forward" else gradient


def types(case: Case) -> list[jax.ShapeDtypeStruct]:
    """What the network of a case takes."""
    w = jax.ShapeDtypeStruct((_SHAPE[1], _SHAPE[1]), _DTYPE)
    rate = [jax.ShapeDtypeStruct((), jnp.float32)] * (case.rate == "traced")
    return [_KEY, w, jax.ShapeDtypeStruct(_SHAPE, _DTYPE), *rate]


def processor_time() -> float:
    """Seconds that processors gave to this process and to assemblers that it started."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


class Compiled(NamedTuple):
    """Seconds on the clock and of the processors, from cold caches, and kernels started."""

    seconds: float
    processor_seconds: float
    kernels: int | None  # None if a loop has a number of trips that is not known


def compile_once(device: Target, name: str, case: Case) -> Compiled:
    """Compiles one candidate."""
    jax.clear_caches()
    clock, processors = time.perf_counter(), processor_time()
    compiled = device.compile(program(CANDIDATES[name], case), *types(case))
    seconds = time.perf_counter() - clock, processor_time() - processors
    kernels = None
    with suppress(ValueError):
        kernels = sum(k.runs for k in Program(compiled.as_text() or "").kernels())
    return Compiled(*seconds, kernels)


def compare(device: Target, rounds: int, case: Case) -> Record:
    """Medians of all candidates, and their ratios to `jax.random.bernoulli`."""
    found: dict[str, list[Compiled]] = {name: [] for name in CANDIDATES}
    order = list(CANDIDATES)
    for _ in range(rounds if case.sites <= _MANY else 1):
        random.Random(case.sites).shuffle(order)
        for name in order:
            found[name].append(compile_once(device, name, case))
    times = {name: np.array([one[:2] for one in ones]) for name, ones in found.items()}
    record: Record = case._asdict()
    for name, samples in times.items():
        seconds, processor_seconds = np.median(samples, axis=0)
        ratios = np.median(samples / times[BERNOULLI], axis=0)
        record[name] = {
            "seconds": rounded(seconds),
            "processor_seconds": rounded(processor_seconds),
            "kernels": found[name][0].kernels,
            "ratio": rounded(ratios[0]),
            "processor_ratio": rounded(ratios[1]),
        }
    return record


def compile_table(records: Sequence[Record]) -> str:
    """All cases, in Markdown."""
    columns = {
        "sites": cell("sites"),
        "way": cell("way"),
        "rate": cell("rate"),
        f"{BERNOULLI}, s": cell(BERNOULLI, "seconds", form=".3g"),
        f"{OURS}, s": cell(OURS, "seconds", form=".3g"),
        "ratio": cell(OURS, "ratio", form=".2f"),
        "ratio of processor time": cell(OURS, "processor_ratio", form=".2f"),
        f"kernels, {BERNOULLI}": cell(BERNOULLI, "kernels"),
        f"kernels, {OURS}": cell(OURS, "kernels"),
    }
    return table(records, columns)


def draw(path: Path, records: Sequence[Record], title: str, rate: str) -> None:
    """Seconds against sites, one panel for each way."""
    figure, axes = two_panels(4, title, sharey=True)
    lines = {BERNOULLI: (COLOURS["flax.linen"], "o-"), OURS: (COLOURS[OURS], "D-")}
    for ax, way in zip(axes, WAYS, strict=True):
        shown = [r for r in records if r["way"] == way and r["rate"] == rate]
        for name, (colour, style) in lines.items():
            seconds = [r[name]["seconds"] for r in shown]
            ax.loglog([r["sites"] for r in shown], seconds, style, color=colour, label=name)
        ax.set(title=f"{way}, rate {rate}", xlabel="sites")
        ax.set_xticks([r["sites"] for r in shown], [str(r["sites"]) for r in shown])
        ax.minorticks_off()
    axes[0].set_ylabel("seconds to compile")
    write_with_legend(path, figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, prints and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, default=HERE)
    parser.add_argument("--sites", type=int, nargs="+", default=SITES)
    parser.add_argument("--rates", nargs="+", default=RATES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    device = target(options.target)
    label = jax.default_backend() if options.target == HERE else options.target
    out = options.out or RESULTS / f"compile_time_{label}"
    for name in CANDIDATES:  # what is imported and started only once is not timed
        compile_once(device, name, Case(1, WAYS[0], options.rates[0]))
    todo = tqdm(cases(options.sites, options.rates), unit="case", disable=None)
    records = list(map(partial(compare, device, options.rounds), todo))
    print(f"{device.name}\n\n{compile_table(records)}")
    prefix = "" if options.target == HERE else "JAX_PLATFORMS=cpu "
    results = {
        **machine(),
        "compiled_for": device.name,
        "command": prefix + command("compile_time.py", *given),
        "shape": list(_SHAPE),
        "dtype": jnp.dtype(_DTYPE).name,
        "rounds": options.rounds,
        "cases": records,
    }
    write_json(out.with_suffix(".json"), results)
    draw(out.with_suffix(".png"), records, f"Compiled for: {device.name}", options.rates[0])


if __name__ == "__main__":
    main()
