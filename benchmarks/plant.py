"""What does planting cost in tracing and in the program, beside dropout by hand?

A transformer of 12 blocks and 48 sites, unrolled and scanned, whose dropout is
planted or written by hand with the same keys. Traced and compiled is the value
with its gradient.

    python benchmarks/plant.py --json benchmarks/results/plant.json
"""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common.results import machine, write_json
from common.timing import spread_ms, summarise, take_turns
from jax import Array, lax
from tqdm import tqdm

import jaxdrop
from jaxdrop.base.names import fold_in_name

WIDTH, LENGTH, HEADS, BATCH = 64, 16, 4, 2
SITES = ("attention/weights", "attention/output", "mlp/hidden", "mlp/output")

drop = partial(jaxdrop.dropout, rate=0.1)


def init(blocks: int) -> dict[str, Array]:
    """Weights, stacked over the blocks."""
    shapes = {
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 0.02 * jax.random.normal(key, (blocks, *shape))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def block(weights: dict[str, Array], x: Array, mark: Callable[[Array, str], Array]) -> Array:
    """Attention and a perceptron, each on a residual branch, with four marks."""
    qkv = (normalized(x) @ weights["qkv"]).reshape(BATCH, LENGTH, 3 * HEADS, WIDTH // HEADS)
    query, key, value = jnp.split(qkv, 3, axis=2)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    attended = jnp.einsum("bhqk,bkhd->bqhd", mark(jax.nn.softmax(logits), SITES[0]), value)
    x = x + mark(attended.reshape(x.shape) @ weights["out"], SITES[1])
    hidden = mark(jax.nn.gelu(normalized(x) @ weights["up"]), SITES[2])
    return x + mark(hidden @ weights["down"], SITES[3])


def normalized(x: Array) -> Array:
    """Mean 0 and variance 1 along the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def unrolled(weights: dict[str, Array], x: Array, mark: Callable[..., Array]) -> Array:
    """A Python loop over the blocks; `mark` gets the number of the block."""
    for i in range(len(weights["out"])):
        x = block(jax.tree.map(lambda w, i=i: w[i], weights), x, partial(mark, i))
    return (x * x).mean()


def scanned(weights: dict[str, Array], x: Array, mark: Callable[..., Array]) -> Array:
    """A scan over the blocks."""

    def step(x: Array, operands: Any) -> tuple[Array, None]:
        weights, i = operands
        return block(weights, x, partial(mark, i)), None

    numbers = lax.iota(jnp.uint32, len(weights["out"]))
    return (lax.scan(step, x, (weights, numbers))[0] ** 2).mean()


def planted(model: Callable[..., Array]) -> Callable[..., Array]:
    """The model with marks, planted."""

    def marked(weights: dict[str, Array], x: Array) -> Array:
        return model(weights, x, lambda _, x, name: jaxdrop.site(x, name))

    return jaxdrop.plant(marked, {"attention/*": drop, "mlp/*": drop})


def by_hand(model: Callable[..., Array]) -> Callable[..., Array]:
    """The model with the same drops, as one writes them: a key per name, and from it per block."""

    def dropped(key: Array, weights: dict[str, Array], x: Array) -> Array:
        threefry = jax.random.wrap_key_data(jax.random.key_data(key))
        keys = {name: fold_in_name(threefry, name) for name in SITES}

        def mark(i: Any, x: Array, name: str) -> Array:
            return drop(jax.random.fold_in(keys[name], i), x)

        return model(weights, x, mark)

    return dropped


def traced(fn: Callable[..., Array], args: tuple[Any, ...]) -> Any:
    """Traces anew: the function that is traced is a new one each time."""
    return jax.jit(lambda *args: jax.value_and_grad(fn, argnums=1)(*args)).trace(*args)


def operations(compiled: Any) -> int:
    """Operations in the optimised program, those inside of fusions included."""
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", compiled.as_text(), re.MULTILINE))


def compare(model: Callable[..., Array], blocks: int, rounds: int) -> dict[str, Any]:
    """Tracing times side by side, operations, and whether the results are equal bit for bit."""
    x = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
    args = (jax.random.key(2), init(blocks), x)
    candidates = {"planted": planted(model), "by hand": by_hand(model)}
    runs = {name: partial(traced, fn, args) for name, fn in candidates.items()}
    with tqdm(total=rounds, unit="round", desc=model.__name__) as bar:
        samples = take_turns(runs, rounds, bar.update)
    compiled = {name: traced(fn, args).lower().compile() for name, fn in candidates.items()}
    results = [fn(*args) for fn in compiled.values()]
    return {
        "trace": {name: spread_ms(seconds) for name, seconds in samples.items()},
        "ratio": summarise(samples, {"ratio": "by hand"})["planted"]["ratio"],
        "operations": {name: operations(program) for name, program in compiled.items()},
        "equal": bool(jax.tree.all(jax.tree.map(jnp.array_equal, *results))),
    }


def main() -> None:
    """Measures, prints and, if asked, writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {m.__name__: compare(m, options.blocks, options.rounds) for m in (unrolled, scanned)}
    for name, record in found.items():
        print(f"{name}, {options.blocks} blocks, {4 * options.blocks} runs of sites")
        print("  tracing, ms:", record["trace"], "ratio", record["ratio"])
        print("  operations:", record["operations"], "equal results:", record["equal"])
    if options.json:
        command = " ".join(["python", *sys.argv])
        write_json(options.json, {**machine(), "command": command, **found})


if __name__ == "__main__":
    main()
