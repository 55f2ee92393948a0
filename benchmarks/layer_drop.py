"""What does a step take where half of the layers are left out?

A scan over 24 blocks of a transformer, whole and with `layer_drop` at rate .5, in one
process and in turn: the loss, and the loss with its gradient, with and without
`jax.checkpoint` of each step. The key is the first whose 24 decisions keep 12 blocks. The
seconds on the clock stand beside those of all processors, which depend less on what else
runs.

    python benchmarks/layer_drop.py --json benchmarks/results/layer_drop.json
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common.measuring import NO_DROPOUT
from common.results import Record, cell, command, machine, number, rounded, table, write_json
from common.transformer import Transformer
from jax import Array, lax
from tqdm import tqdm

import jaxdrop

RATE = 0.5
MODEL = Transformer(24, 256, 4, 128, 2, "float32", 0)
QUICK = Transformer(4, 16, 2, 8, 2, "float32", 0)
CASES = {  # whether with the gradient, and whether steps are checkpointed
    "forward": (False, False),
    "forward + backward, each step under jax.checkpoint": (True, True),
    "forward + backward": (True, False),
}


def loss(
    weights: dict[str, Array], x: Array, keys: Array, *, model: Transformer, rate: Any, remat: bool
) -> Array:
    """The mean square of what the blocks make of `x`; all of them run if the rate is None."""
    dropout = model.dropouts()[NO_DROPOUT]

    def step(x: Array, operands: Any) -> tuple[Array, None]:
        weights, key = operands
        layer = partial(model.block, weights, jax.random.key(0), dropout)
        return layer(x) if rate is None else jaxdrop.layer_drop(key, x, rate, layer=layer), None

    step = jax.checkpoint(step, prevent_cse=False) if remat else step
    return jnp.mean(lax.scan(step, x, (weights, keys))[0] ** 2)


def typical_keys(blocks: int) -> Array:
    """Keys of which half keep their block, as they do on average."""
    kept = jax.jit(jax.vmap(lambda key: jaxdrop.draw_mask(key, (), RATE).unpack()))
    for seed in range(1000):
        keys = jax.random.split(jax.random.key(seed), blocks)
        if int(kept(jax.random.clone(keys)).sum()) == blocks // 2:
            return keys
    raise ValueError(f"blocks must be even; got {blocks}.")


def programs(model: Transformer) -> dict[tuple[str, str], Callable[[], object]]:
    """What is timed: by case, the whole stack and that with layers left out."""
    weights = {n: w for n, w in model.init().items() if n not in ("embedding", "positions")}
    x = jax.random.normal(jax.random.key(1), (model.batch, model.length, model.width))
    inputs = weights, x, typical_keys(model.blocks)
    found: dict[tuple[str, str], Callable[[], object]] = {}
    for case, (backward, remat) in CASES.items():
        for name, rate in (("all layers", None), ("layer_drop", RATE)):
            fn = partial(loss, model=model, rate=rate, remat=remat)
            compiled = jax.jit(jax.value_and_grad(fn) if backward else fn).lower(*inputs).compile()
            found[case, name] = partial(compiled, *inputs)
    return found


def compare(model: Transformer, rounds: int) -> list[Record]:
    """Medians over rounds, on the clock and of all processors, and the ratios in each round."""
    runs, taken = programs(model), {}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in tqdm(range(rounds), unit="round"):
        for which, run in runs.items():
            before = np.array([time.perf_counter(), time.process_time()])
            jax.block_until_ready(run())
            after = np.array([time.perf_counter(), time.process_time()])
            taken.setdefault(which, []).append(1e3 * (after - before))
    records = []
    for case in CASES:
        whole, dropped = (np.array(taken[case, name]) for name in ("all layers", "layer_drop"))
        record: Record = {"case": case}
        for name, times in (("all_layers", whole), ("layer_drop", dropped), ("ratio", None)):
            clock, processors = np.median(dropped / whole if times is None else times, axis=0)
            record[name] = {"clock": rounded(clock), "processors": rounded(processors)}
        records.append(record)
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and, if asked, writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a trial on a tiny model")
    options = parser.parse_args(arguments)
    model = QUICK if options.quick else MODEL
    records = compare(model, options.rounds)
    columns = {"": cell("case")}
    for name in ("all_layers", "layer_drop", "ratio"):
        unit = "" if name == "ratio" else ", ms"
        for clock in ("clock", "processors"):
            columns[f"{name.replace('_', ' ')}, {clock}{unit}"] = cell(name, clock, form=number)
    print(table(records, columns))
    if options.json:
        words = ["--rounds", options.rounds, *["--quick"] * options.quick]
        found = {"command": command("layer_drop.py", *words), "model": str(model), "rate": RATE}
        write_json(options.json, {**machine(), **found, "cases": records})


if __name__ == "__main__":
    main()
