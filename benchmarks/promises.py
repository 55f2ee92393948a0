"""Which promises of `jaxdrop.dropout` does each library keep?

    python benchmarks/promises.py

Each probe below measures one promise on one library and returns the text of one
cell; its docstring says how. What raises gets the name of the exception. It runs
on eight simulated CPU devices, prints a table in Markdown and writes it, with
versions, to a JSON file.
"""

import argparse
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from common.measuring import compile_drop, kept_bytes, temporary_bytes
from common.peers import FORWARD, OURS, PEERS, TORCH, find_peers, make_drop
from common.probing import attempt, how, refused
from common.results import MIB, RESULTS, command, markdown, write_json
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxdrop

Probe: TypeAlias = Callable[[str], str]
"""From the name of a library to what its dropout does."""

DEVICES = 8
BAD_RATES = {"-0.1": -0.1, "1.5": 1.5, "NaN": float("nan")}
RATE = 0.1
SHAPE = (64, 256)
_ONE = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)  # one array for what is only traced
_BITS_PER_BLOCK = 64
_XORS_PER_BLOCK = 20  # one in each round of Threefry-2x32-20


def bad_known_rates(name: str) -> str:
    """Calls eagerly with rates -0.1, 1.5 and NaN: what raises is refused.

    Keras has two entrances: the function that the other probes call, since it
    takes a key, and the layer, whose constructor checks.
    """

    def function(rate: float) -> object:
        return make_drop(name, rate)(_key(), _ones())

    entrances = {"function": function} | ({"layer": _keras_layer} if name == "keras" else {})
    return _joined(
        {
            entrance: _joined({text: refused(call, rate) for text, rate in BAD_RATES.items()})
            for entrance, call in entrances.items()
        }
    )


def traced_rate(name: str) -> str:
    """Rate 0.1 as an argument of `jit`: works where the result is finite, with zeros in it."""
    y = _under_traced_rate(name, _ones(), RATE)
    return "works" if _finite(y) and np.any(y == 0) else "wrong result"


def gradient_at_rate_one(name: str) -> str:
    """Gradient of the sum at rate 1, for a Python float and for an argument of `jit`."""

    def known() -> str:
        return _finiteness(jax.grad(lambda x: make_drop(name, 1.0)(_key(), x).sum())(_ones()))

    def traced() -> str:
        return _finiteness(jax.grad(lambda x: _under_traced_rate(name, x, 1.0).sum())(_ones()))

    return _joined({"known": attempt(known), "traced": attempt(traced)})


def nan_at_dropped_places(name: str) -> str:
    """Input all NaN at rate 0.5: what stands where the same key drops from ones.

    `backward` is the input's cotangent there, for a cotangent all NaN.
    """
    drop, nans = partial(make_drop(name, 0.5), _key()), jnp.full(SHAPE, jnp.nan)
    dropped = np.asarray(drop(_ones()) == 0)
    seen = {
        "eager": drop(nans),
        "jit": jax.jit(drop)(nans),
        "backward": jax.vjp(drop, nans)[1](nans)[0],
    }
    return _joined({way: _zeros_or_nan(np.asarray(y)[dropped]) for way, y in seen.items()})


def bfloat16_scale_error(name: str) -> str:
    """Sum of survivors in bfloat16 at rate 0.1 over that of correctly rounded ones, minus 1.

    The input is 2^20 numbers uniform in [1, 2); the reference is their product
    with `1 / keep_prob` in float64, rounded once. Rounding errors of the 128
    numbers that bfloat16 has there average to 0.003 %, not to 0, and are the
    same in both sums, so what is left is the error of the factor. For the peers
    `keep_prob` is 0.9; for jaxdrop the one drawn with, and 0.9 if that differs.
    """
    x = jax.random.uniform(jax.random.key(1), (2**20,), minval=1, maxval=2).astype(jnp.bfloat16)
    y = _float64(make_drop(name, RATE)(_key(), x))
    kept = y != 0
    keep_probs = {"of 1/0.9": 1 - RATE}
    if name == OURS:
        drawn = float(jaxdrop.draw_mask(_key(), (), RATE).keep_prob)
        keep_probs = {"of 1/keep_prob": drawn, **keep_probs}

    def error(keep_prob: float) -> str:
        exact = _float64((_float64(x) / keep_prob).astype(jnp.bfloat16))
        return f"{100 * (y[kept].sum() / exact[kept].sum() - 1):.2g} %"

    return _joined({reference: error(keep_prob) for reference, keep_prob in keep_probs.items()})


def bytes_kept(name: str) -> str:
    """Leaves of the function that `jax.vjp` returns, traced, for 1024x1024 float32, rate 0.1."""
    return f"{kept_bytes(make_drop(name, RATE), _key(), _ONE) / _ONE.size:.3g}"


def random_bits_computed(name: str) -> str:
    """64 bits for each Threefry block in the jaxpr of a 1024x1024 float32 forward pass.

    A `random_bits` of JAX computes one block for each number it returns, of 32
    bits or fewer (its default, `jax_threefry_partitionable`). A Threefry that is
    written out has 20 exclusive-ors per block, by which its blocks are counted.
    """

    def bits(rate: float) -> str:
        jaxpr = jax.make_jaxpr(make_drop(name, rate))(_key(), _ONE).jaxpr
        return f"{_BITS_PER_BLOCK * _threefry_blocks(jaxpr) / _ONE.size:.3g}"

    return _joined({f"rate {rate}": bits(rate) for rate in (RATE, 0.5)})


def temporaries(name: str) -> str:
    """What XLA allocates besides input and output, 4096x4096 float32 forward, rate 0.1."""
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    count = temporary_bytes(compile_drop(make_drop(name, RATE), FORWARD, (_key(), x)))
    return "n/a" if count is None else f"{count / MIB:.0f}"


def forward_mode(name: str) -> str:
    """Works where the tangent of `jax.jvp` is the same dropout of the input's tangent."""
    drop = partial(make_drop(name, RATE), _key())
    tangent = jax.random.normal(jax.random.key(1), SHAPE)
    _, y = jax.jvp(drop, (_ones(),), (tangent,))
    return "works" if np.allclose(y, drop(tangent), rtol=1e-6) else "wrong result"


def same_mask_with_x64(name: str) -> str:
    """Share of places dropped with x64 on or off, but not both; float32 input, rate 0.5."""

    def mask(x64: bool) -> np.ndarray:
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", x64)
        try:
            return np.asarray(make_drop(name, 0.5)(key, x) == 0)
        finally:
            jax.config.update("jax_enable_x64", before)

    key, x = _key(), _ones()
    return _same(mask(False), mask(True))


def same_mask_when_sharded(name: str) -> str:
    """Share of places dropped on 1 or 8 devices, but not both; rbg key, rate 0.5, Auto axes."""
    drop, key, x = jax.jit(make_drop(name, 0.5)), _key("rbg"), _ones()
    return _same(drop(key, x) == 0, drop(key, _sharded(x, _mesh(AxisType.Auto))) == 0)


def same_mask_under_vmap(name: str) -> str:
    """Share of places dropped under `vmap` over 4 rbg keys or in a loop over them, not both."""
    drop, keys = make_drop(name, 0.5), jax.random.split(_key("rbg"), 4)
    xs = jnp.ones((4, *SHAPE))
    loop = jnp.stack([drop(key, x) for key, x in zip(keys, xs, strict=True)])
    return _same(jax.vmap(drop)(keys, xs) == 0, loop == 0)


def explicit_axes(name: str) -> str:
    """Under `jit`, on an input sharded over 8 devices along an Explicit mesh axis."""
    drop, key, x = make_drop(name, RATE), _key(), _ones()
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        y = np.asarray(jax.jit(drop)(key, _sharded(x, mesh)))
    same = _same(y == 0, drop(key, x) == 0)
    return "works" if same == "yes" else f"works; same mask: {same}"


def same_mask_at_traced_rate(name: str) -> str:
    """Share of places dropped at a known or at a traced rate of 0.1, but not both."""
    known = make_drop(name, RATE)(_key(), _ones())
    return _same(known == 0, _under_traced_rate(name, _ones(), RATE) == 0)


PROMISES: dict[str, Probe] = {
    "bad known rates (-0.1, 1.5, NaN)": bad_known_rates,
    "traced rate under jit": traced_rate,
    "gradient at rate 1": gradient_at_rate_one,
    "NaN at a dropped place gives": nan_at_dropped_places,
    "scale error in bfloat16, rate 0.1": bfloat16_scale_error,
    "kept for the backward pass, bytes an element": bytes_kept,
    "random bits computed an element": random_bits_computed,
    "temporaries, 4096x4096 float32, MiB": temporaries,
    "forward mode": forward_mode,
    "same mask with x64 on and off": same_mask_with_x64,
    "same mask on 1 and 8 devices, rbg key": same_mask_when_sharded,
    "vmap over rbg keys equals a loop": same_mask_under_vmap,
    "Explicit mesh axes": explicit_axes,
    "same mask for known and traced rate": same_mask_at_traced_rate,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "promises.json", help="where the results go"
    )
    path = parser.parse_args(arguments).json
    jax.config.update("jax_platforms", "cpu")  # where eight devices can be had anywhere
    jax.config.update("jax_num_cpu_devices", DEVICES)
    versions, missing = find_peers(peer for peer in PEERS if peer != TORCH)
    names = [OURS, *versions]
    rows = {
        promise: {name: attempt(partial(probe, name)) for name in names}
        for promise, probe in PROMISES.items()
    }
    lines = ([promise, *cells.values()] for promise, cells in rows.items())
    print(markdown(["promise", *names], lines))
    results = {"environment": _environment(versions, missing), "promises": _records(rows)}
    write_json(path, results)


def _environment(versions: dict[str, str], missing: dict[str, str]) -> dict[str, Any]:
    return {
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "peers": versions,
        "left_out": missing,
        "command": command("promises.py"),
    }


def _records(rows: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    return [
        {"promise": promise, "how": how(PROMISES[promise]), "cells": cells}
        for promise, cells in rows.items()
    ]


def _threefry_blocks(jaxpr: Any) -> int:
    """Threefry blocks that a jaxpr computes, those of its inner ones included."""
    xors, blocks = Counter[int](), 0
    for equation in jaxpr.eqns:
        size = equation.outvars[0].aval.size if equation.outvars else 0
        match equation.primitive.name:
            case "random_bits":
                blocks += size
            case "xor":
                xors[size] += 1
        inner = [_threefry_blocks(jaxpr) for jaxpr in _inner_jaxprs(equation)]
        together = max if equation.primitive.name == "cond" else sum
        blocks += equation.params.get("length", 1) * together(inner or [0])
    # An exclusive-or left over is no round of a block: it works on words that are drawn.
    return blocks + sum(size * (count // _XORS_PER_BLOCK) for size, count in xors.items())


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(list(equation.params.values())):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def _joined(parts: Mapping[str, str]) -> str:
    """Each part with its name, or one alone where all say the same."""
    if len(set(parts.values())) == 1:
        return next(iter(parts.values()))
    return "; ".join(f"{name}: {part}" for name, part in parts.items())


def _keras_layer(rate: float) -> object:
    import keras

    return keras.layers.Dropout(rate)


def _key(implementation: str = "threefry2x32") -> Array:
    return jax.random.key(0, impl=implementation)


def _ones() -> Array:
    return jnp.ones(SHAPE)


def _under_traced_rate(name: str, x: Array, rate: float) -> Array:
    def call(rate: Array, key: Array, x: Array) -> Array:
        return make_drop(name, rate)(key, x)

    return jax.jit(call)(jnp.float32(rate), _key(), x)


def _mesh(axis_type: AxisType) -> Mesh:
    return jax.make_mesh((DEVICES,), ("rows",), axis_types=(axis_type,))


def _sharded(x: Array, mesh: Mesh) -> Array:
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))


def _same(mask: Any, other: Any) -> str:
    share = np.mean(np.asarray(mask) != np.asarray(other))
    return f"no, {100 * share:.2g} % differ" if share else "yes"


def _finite(y: Array) -> bool:
    return bool(np.all(np.isfinite(y)))


def _finiteness(y: Array) -> str:
    return "finite" if _finite(y) else "NaN"


def _zeros_or_nan(values: np.ndarray) -> str:
    if np.all(values == 0):
        return "0"
    return "NaN" if np.any(np.isnan(values)) else "neither 0 nor NaN"


def _float64(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


if __name__ == "__main__":
    main()
