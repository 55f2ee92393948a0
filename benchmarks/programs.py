"""What the compiler makes of dropout: kernels, bytes moved, how often words are computed.

    python benchmarks/programs.py

compiles each workload (workloads.py) for the device that JAX finds, and runs
nothing. With `--target h200` it compiles for a GPU that need not be there;
ahead.py says what that takes. It writes `results/programs_<target>.json`.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from ahead import HERE, TARGETS, Target, target
from attention import arguments_of, candidates as attentions, with_gradient
from compiled import Kernel, Program
from elementwise import Record, temporary_bytes
from jax import Array
from peers import BASELINE, OURS, find_peers, make_drop
from probing import markdown
from results_file import write_json
from timing import rounded
from tqdm import tqdm
from training import NO_DROPOUT, OPTIMIZER, make_step
from transformer import LARGE, OUR_WEIGHTS, SMALL, Transformer
from workloads import ALONE, PEERS, WORKLOADS

from jaxdrop.base.platforms import by_platform
from jaxdrop.core import bernoulli

SWAPPED = "jaxdrop, in the form for other platforms"
RESULTS = Path(__file__).parent / "results"
_MIB = 2**20
_SMALL = 2**16  # bytes below which a kernel is only its start
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)  # key data, which any device can be given


class Compilation(NamedTuple):
    """A program to compile.

    Attributes:
      record: what is said of it.
      function: takes key data, and then what `types` are of.
      types: the other types.
      within: a context to compile in.
    """

    record: Record
    function: Callable[..., Any]
    types: Sequence[Any]
    within: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def forms_swapped() -> Iterator[None]:
    """Gives each platform the form of drawing that is meant for the others."""

    def swapped(on_gpu: Any, elsewhere: Any, *operands: Any) -> Any:
        return by_platform(elsewhere, on_gpu, *operands)

    jax.clear_caches()
    try:
        with mock.patch.object(bernoulli, "by_platform", swapped):
            yield
    finally:
        jax.clear_caches()


def workload_programs(elements: int, dtype: str, names: Sequence[str]) -> Iterator[Compilation]:
    """The workloads with each candidate."""
    for workload, rate in [
        *((workload, 0.1) for workload in WORKLOADS),
        (ALONE, 0.5),
        (ALONE, 1e-5),
    ]:
        for name in names:
            record = {
                "program": f"{workload.name}, rate {rate}",
                "candidate": name,
                "must_move_mib": rounded(workload.bytes(elements, dtype) / _MIB),
            }
            function = with_key(workload.of(make_drop(name, rate)))
            types = workload.types(elements, dtype)
            yield Compilation(record, function, types)
            if name == OURS and workload == ALONE:
                record = {**record, "candidate": SWAPPED}
                yield Compilation(record, function, types, forms_swapped)


def attention_programs(shape: Sequence[int], dtype: str) -> Iterator[Compilation]:
    """Attention, forward and with its gradient."""
    for way in ("forward", "gradient"):
        for name, attend in attentions().items():
            types = arguments_of(way, shape, dtype)
            arrays = len(types) + (1 if way == "forward" else 4)
            must_move = arrays * types[0].size * types[0].dtype.itemsize
            record = {
                "program": f"attention, {way}",
                "candidate": name,
                "must_move_mib": rounded(must_move / _MIB),
            }
            function = with_gradient(attend) if way == "gradient" else attend
            yield Compilation(record, with_key(function), types)


def step_programs(model: Transformer, names: Sequence[str]) -> Iterator[Compilation]:
    """A whole training step of a transformer, which reads and writes weights and their state."""
    weights = jax.eval_shape(model.init)
    state = jax.eval_shape(OPTIMIZER.init, weights)
    tokens = jax.eval_shape(model.tokens)
    moved = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((weights, state)))
    for name, dropout in model.dropouts().items():
        if name in names:
            record = {
                "program": "training step of a transformer",
                "candidate": name,
                "must_move_mib": rounded(moved / _MIB),
            }
            step = make_step(partial(model.loss, dropout))
            yield Compilation(record, partial(_step_of_data, step), (weights, state, tokens))


def _step_of_data(
    step: Callable[..., Any], data: Array, weights: Any, state: Any, tokens: Array
) -> Any:
    return step(weights, state, jax.random.wrap_key_data(data), tokens)


def with_key(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of key data in the place of a key."""

    def of_data(data: Array, *operands: Any) -> Any:
        return function(jax.random.wrap_key_data(data), *operands)

    return of_data


def examine(device: Target, compilation: Compilation) -> Record:
    """Compiles, and counts what is in the program, if it fits into the device's memory."""
    start = time.perf_counter()
    try:
        with compilation.within():
            compiled = device.compile(compilation.function, _KEY, *compilation.types)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**compilation.record, "error": "out of memory"}
    seconds = time.perf_counter() - start
    program = Program(compiled.as_text() or "")
    kernels = program.kernels()
    return {
        **compilation.record,
        "kernels_started": sum(kernel.runs for kernel in kernels),
        "of_which_move_much": sum(k.runs for k in kernels if k.moved > k.runs * _SMALL),
        "moved_mib": rounded(sum(kernel.moved for kernel in kernels) / _MIB),
        "temporary_mib": rounded((temporary_bytes(compiled) or 0) / _MIB),
        "threefry_blocks": program.threefry_blocks(),
        "compile_seconds": rounded(seconds),
        "largest_kernels": [described(k) for k in sorted(kernels, key=lambda k: -k.moved)[:6]],
    }


def described(kernel: Kernel) -> Record:
    """A kernel for the results."""
    return {
        "name": kernel.name,
        "runs": kernel.runs,
        "read_mib": rounded(kernel.read / _MIB),
        "written_mib": rounded(kernel.written / _MIB),
    }


def table(records: Sequence[Record], elements: int) -> str:
    """All programs, in Markdown."""
    heading = ["program", "candidate", "kernels started", "must move, MiB", "moved, MiB"]
    heading += ["temporaries, MiB", "blocks an element, at least", "compiled in, s"]
    return markdown(heading, (_row(record, elements) for record in records))


def _row(record: Record, elements: int) -> list[str]:
    named = [record["program"], record["candidate"]]
    if "error" in record:
        return [*named, record["error"], f"{record['must_move_mib']:.0f}", *["-"] * 4]
    is_one_dropout = "rate" in record["program"]
    return [
        *named,
        f"{record['kernels_started']} ({record['of_which_move_much']})",
        f"{record['must_move_mib']:.0f}",
        f"{record['moved_mib']:.0f}",
        f"{record['temporary_mib']:.0f}",
        f"{record['threefry_blocks'] / elements:.3g}" if is_one_dropout else "-",
        f"{record['compile_seconds']:.2f}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, prints and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, default=HERE)
    parser.add_argument("--elements", type=int, default=2**28)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention", type=int, nargs=4, default=(4, 4096, 16, 64))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    device = target(options.target)
    label = jax.default_backend() if options.target == HERE else options.target
    out = options.out or RESULTS / f"programs_{label}.json"
    versions, _ = find_peers(options.peers)
    names = [OURS, *versions, BASELINE]
    model = LARGE if options.target != HERE or jax.default_backend() != "cpu" else SMALL
    todo = chain(
        workload_programs(options.elements, options.dtype, names),
        attention_programs(options.attention, options.dtype),
        step_programs(model, [*names, NO_DROPOUT, OUR_WEIGHTS]),
    )
    examined = map(partial(examine, device), todo)
    records = list(tqdm(examined, unit="program", disable=None))
    command = shlex.join(["python", "benchmarks/programs.py", *given])
    if options.target != HERE:
        command = f"JAX_PLATFORMS=cpu {command}"
    print(f"{device.name}, {options.elements} elements of {options.dtype}\n")
    print(table(records, options.elements))
    results = {
        "device": device.name,
        "jax": jax.__version__,
        "peers": versions,
        "command": command,
        "elements": options.elements,
        "dtype": options.dtype,
        "attention": list(options.attention),
        "transformer": str(model),
        "programs": records,
    }
    write_json(out, results)


if __name__ == "__main__":
    main()
