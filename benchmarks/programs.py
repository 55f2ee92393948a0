"""What does the compiler make of dropout: which kernels, bytes moved, words computed how often?

    python benchmarks/programs.py

compiles each workload (common/workloads.py), attention and a training step for
the device that JAX finds, and runs nothing. With `--target h200` or `v5e` it compiles
for a GPU or a TPU that need not be there; common/ahead.py says what that takes. It writes
`results/programs_<target>.json`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from common.ahead import HERE, TARGETS, Target, target
from common.assembled import assembled
from common.attention import (
    OURS_KERNEL,
    RATE,
    WAYS,
    attend,
    candidates as attentions,
    function_of,
    types_of,
)
from common.compiled import Kernel, Program
from common.measuring import NO_DROPOUT, temporary_bytes
from common.peers import BASELINE, OURS, find_peers, make_drop
from common.results import MIB, RESULTS, Record, cell, command, rounded, table, write_json
from common.training import OPTIMIZER, make_step
from common.transformer import LARGE, OUR_WEIGHTS, SMALL, Transformer
from common.workloads import ALONE, PEERS, WORKLOADS
from jax import Array
from jax.stages import Compiled
from tqdm import tqdm

from jaxdrop import drop_block, fixed_count_dropout
from jaxdrop.base.platforms import by_platform
from jaxdrop.core import bernoulli

RATES = (0.1, 0.5, 1e-5)  # usual; of one binary digit; of twice the digits
DTYPES, HEAD_SIZES = ("bfloat16", "float32"), (32, 64, 80, 128, 256)  # of attention by kernels
SWAPPED = "jaxdrop, in the form for other platforms"
_SMALL = 2**16  # bytes; of a kernel that moves fewer, the start is most of the cost
_SHOWN = 6  # of the largest kernels
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)  # key data, which any device can be given


class Compilation(NamedTuple):
    """A program to compile.

    Attributes:
      record: what is said of it.
      function: takes key data, and then what `types` are of.
      types: the other types.
      within: a context to compile in.
      kernels: whether the assembler is asked about kernels of our own.
    """

    record: Record
    function: Callable[..., Any]
    types: Sequence[Any]
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    kernels: bool = False


@contextmanager
def forms_swapped() -> Iterator[None]:
    """Gives each platform the form of drawing that is meant for the others."""

    def swapped(on_gpu: Any, elsewhere: Any, *operands: Any, on_tpu: Any) -> Any:
        return by_platform(elsewhere, on_gpu, *operands, on_tpu=on_tpu)

    jax.clear_caches()
    try:
        with mock.patch.object(bernoulli, "by_platform", swapped):
            yield
    finally:
        jax.clear_caches()


def workload_programs(
    elements: int, dtype: str, names: Sequence[str], backend: str
) -> Iterator[Compilation]:
    """The workloads with each candidate."""
    usual, *others = RATES
    cases = [*((workload, usual) for workload in WORKLOADS), *((ALONE, rate) for rate in others)]
    for workload, rate in cases:
        program, moved = f"{workload.name}, rate {rate}", workload.bytes(elements, dtype)
        types = workload.types(elements, dtype)
        for name in names:
            function = with_key(workload.of(make_drop(name, rate)))
            yield Compilation(_about(program, name, moved), function, types)
            if name == OURS and workload == ALONE and backend != "tpu":
                yield Compilation(_about(program, SWAPPED, moved), function, types, forms_swapped)


def attention_programs(shape: Sequence[int], dtype: str, backend: str) -> Iterator[Compilation]:
    """Attention, forward and with its gradient."""
    for way in WAYS:
        types = types_of(way, shape, dtype)
        arrays = len(types) + (1 if way == "forward" else 4)  # the output, and three cotangents
        moved = arrays * types[0].size * types[0].dtype.itemsize
        for name, attention in attentions(backend).items():
            function = with_key(function_of(attention, way))
            record = _about(f"attention, {way}", name, moved)
            yield Compilation(record, function, types, kernels=name == OURS_KERNEL)


def kernel_programs(shape: Sequence[int]) -> Iterator[Compilation]:
    """Attention by kernels with its gradient, for each form that they have tiles for."""
    for dtype, features, is_causal in product(DTYPES, HEAD_SIZES, (False, True)):
        types = types_of("gradient", (*shape[:3], features), dtype)
        moved = 8 * types[0].size * types[0].dtype.itemsize
        program = f"attention, {dtype}, {features} features{', causal' if is_causal else ''}"
        ours = partial(attend, rate=RATE, implementation="kernel", is_causal=is_causal)
        function = with_key(function_of(ours, "gradient"))
        yield Compilation(_about(program, OURS_KERNEL, moved), function, types, kernels=True)


def method_programs() -> Iterator[Compilation]:
    """Methods that take more than to draw and to select, whose forms for GPUs are their own."""
    for program, shape, method in (
        ("fixed_count_dropout of rows", (4096, 4096), partial(fixed_count_dropout, axis=-1)),
        ("drop_block of 7 x 7", (64, 56, 56, 256), partial(drop_block, block_size=7)),
    ):
        types = (jax.ShapeDtypeStruct(shape, jnp.float32),)
        moved = 2 * types[0].size * types[0].dtype.itemsize
        function = with_key(partial(method, rate=RATES[0]))
        yield Compilation(_about(program, OURS, moved), function, types)


def step_programs(model: Transformer, names: Sequence[str]) -> Iterator[Compilation]:
    """A whole training step of a transformer, which reads and writes weights and their state."""
    weights = jax.eval_shape(model.init)
    state = jax.eval_shape(OPTIMIZER.init, weights)
    tokens = jax.eval_shape(model.tokens)
    moved = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((weights, state)))
    for name, dropout in model.dropouts().items():
        if name in names:
            record = _about("training step of a transformer", name, moved)
            step = make_step(partial(model.loss, dropout))
            yield Compilation(record, partial(_step_of_data, step), (weights, state, tokens))


def _step_of_data(
    step: Callable[..., Any], data: Array, weights: Any, state: Any, tokens: Array
) -> Any:
    return step(weights, state, jax.random.wrap_key_data(data), tokens)


def _about(program: str, candidate: str, must_move: int) -> Record:
    return {
        "program": program,
        "candidate": candidate,
        "must_move_mib": rounded(must_move / MIB),
    }


def with_key(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of key data in the place of a key."""

    def of_data(data: Array, *operands: Any) -> Any:
        return function(jax.random.wrap_key_data(data), *operands)

    return of_data


def examine(device: Target, compilation: Compilation) -> Record:
    """Compiles, and counts what is in the program, if it fits into the device's memory."""
    start = time.perf_counter()
    report: Record = {}
    try:
        with compilation.within(), TemporaryDirectory() as folder:
            options = {"xla_dump_to": folder} if compilation.kernels else {}
            compiled = device.compile(compilation.function, _KEY, *compilation.types, **options)
            seconds = time.perf_counter() - start
            if compilation.kernels:
                report["assembled"] = assembled(Path(folder), "attention")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**compilation.record, "error": "out of memory"}
    program = Program(compiled.as_text() or "")
    kernels = program.kernels()
    return {
        **compilation.record,
        "kernels_started": sum(kernel.runs for kernel in kernels),
        "of_which_move_much": sum(k.runs for k in kernels if k.moved > k.runs * _SMALL),
        "moved_mib": rounded(sum(kernel.moved for kernel in kernels) / MIB),
        **(_accessed(compiled) if device.backend == "tpu" else {}),
        "temporary_mib": rounded((temporary_bytes(compiled) or 0) / MIB),
        "threefry_blocks": program.threefry_blocks(),
        "compile_seconds": rounded(seconds),
        **report,
        "largest_kernels": [described(k) for k in sorted(kernels, key=lambda k: -k.moved)[:_SHOWN]],
    }


def _accessed(compiled: Compiled) -> Record:
    """The bytes that XLA counts, those of the memory of the core too, and each loop once."""
    costs = compiled.cost_analysis() or {}
    return {"accessed_mib": rounded(costs["bytes accessed"] / MIB)}


def described(kernel: Kernel) -> Record:
    """A kernel for the results."""
    return {
        "name": kernel.name,
        "runs": kernel.runs,
        "read_mib": rounded(kernel.read / MIB),
        "written_mib": rounded(kernel.written / MIB),
    }


def programs_table(records: Sequence[Record], elements: int) -> str:
    """All programs, in Markdown."""

    def kernels(record: Record) -> str:
        if "error" in record:
            return record["error"]
        return f"{record['kernels_started']} ({record['of_which_move_much']})"

    def blocks(record: Record) -> str:
        is_one_dropout = "rate" in record["program"] and "error" not in record
        return f"{record['threefry_blocks'] / elements:.3g}" if is_one_dropout else "-"

    def registers(record: Record) -> str:
        return ", ".join(
            f"{kernel['registers']} ({kernel['spilled_bytes']})"
            for kernel in record.get("assembled", [])
        )

    columns = {
        "program": cell("program"),
        "candidate": cell("candidate"),
        "kernels started": kernels,
        "must move, MiB": cell("must_move_mib", form=".0f"),
        "moved, MiB": cell("moved_mib", form=".0f"),
        "accessed, MiB": lambda record: (
            f"{record['accessed_mib']:.0f}" if "accessed_mib" in record else "-"
        ),
        "temporaries, MiB": cell("temporary_mib", form=".0f"),
        "blocks per element, at least": blocks,
        "compiled in, s": cell("compile_seconds", form=".2f"),
        "registers (bytes spilled)": registers,
    }
    return table(records, columns)


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
    on_gpu = device.backend in ("cuda", "gpu")
    todo = chain(
        workload_programs(options.elements, options.dtype, names, device.backend),
        attention_programs(options.attention, options.dtype, device.backend),
        *((kernel_programs(options.attention), method_programs()) if on_gpu else ()),
        step_programs(model, [*names, NO_DROPOUT, OUR_WEIGHTS]),
    )
    examined = map(partial(examine, device), todo)
    records = list(tqdm(examined, unit="program", disable=None))
    prefix = "" if options.target == HERE else "JAX_PLATFORMS=cpu "
    print(f"{device.name}, {options.elements} elements of {options.dtype}\n")
    print(programs_table(records, options.elements))
    results = {
        "device": device.name,
        "jax": jax.__version__,
        "peers": versions,
        "command": prefix + command("programs.py", *given),
        "elements": options.elements,
        "dtype": options.dtype,
        "attention": list(options.attention),
        "transformer": str(model),
        "programs": records,
    }
    write_json(out, results)


if __name__ == "__main__":
    main()
