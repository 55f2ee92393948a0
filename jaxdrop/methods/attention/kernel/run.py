"""One run of a kernel as a primitive: how `vmap`, meshes and platforms deal with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from jaxdrop.base.compat import ClosedJaxpr, vary_as
from jaxdrop.methods.attention.kernel.back import back_to_keys
from jaxdrop.methods.attention.kernel.call import Dims, Launch, call
from jaxdrop.methods.attention.kernel.operands import LETTERS, Operands
from jaxdrop.methods.attention.kernel.split import over_batch_and_heads
from jaxdrop.methods.attention.kernel.tiles import KernelTiles

Arrays: TypeAlias = Sequence[Array]


@dataclass(frozen=True)
class Run:
    """A kernel with all that is known while tracing.

    Attributes:
      body: the kernel.
      results: the letters of the axes of its results, and whether they are float32.
      tiles: what its tiles have in common.
      names: which operands it takes.
      warps: groups of 32 threads of each program.
      stages: how many blocks are loaded ahead.
    """

    body: Callable[..., None]
    results: tuple[tuple[str, bool], ...]
    tiles: KernelTiles
    names: tuple[str, ...]
    warps: int
    stages: int

    def letters(self) -> list[str]:
        """The letters of the axes of the operands."""
        return [LETTERS[name] for name in self.names]

    def types(self, *arrays: Any) -> list[Dims]:
        """The types of the results for operands."""
        query = arrays[self.names.index("query")]
        _, queries, heads, _ = query.shape
        pairs = zip(self.names, arrays, strict=True)
        batch = max(x.shape[0] for name, x in pairs if name != "origin")
        sizes = {"b": batch, "t": queries, "n": heads, "h": self.tiles.query_features}
        sizes |= {"s": self.tiles.keys, "k": heads // self.tiles.groups}
        sizes |= {"v": self.tiles.value_features}
        return [
            Dims(axes, tuple(sizes[axis] for axis in axes), jnp.float32 if wide else query.dtype)
            for axes, wide in self.results
        ]

    def __call__(self, *arrays: Array, interpret: bool) -> list[Array]:
        """Runs the kernel on one device."""
        results = self.types(*arrays)
        launch = self._launch(arrays[self.names.index("query")].shape[2], results[0].shape[0])

        def body(*refs: Any) -> None:
            given: dict[str, Any] = dict.fromkeys(Operands._fields)
            given |= zip(self.names, refs, strict=False)  # the results come after
            self.body(self.tiles, Operands(**given), refs[len(self.names) :])

        operands = list(zip(self.letters(), arrays, strict=True))
        return call(body, launch, operands, results, interpret=interpret)

    def _launch(self, heads: int, samples: int) -> Launch:
        tiles = self.tiles
        rows, columns = -(-tiles.queries // tiles.rows), -(-tiles.keys // tiles.columns)
        # Blocks come first in the grid: programs that run at the same time then have a
        # head in common, and find what others have read of it in the cache.
        grid, heads_per_key = (rows, heads, samples), tiles.groups
        if self.body is back_to_keys:
            grid, heads_per_key = (columns * tiles.parts, heads // tiles.groups, samples), 1
        blocks = {
            "n": tiles.groups,
            "t": rows * tiles.rows,
            "s": columns * tiles.columns,
            "h": tiles.of_query.width,
            "v": tiles.of_value.width,
        }
        name = f"attention_{self.body.__name__}"
        return Launch(name, grid, heads_per_key, blocks, self.warps, self.stages)

    def part(self, origin: Array, *arrays: Array) -> Arrays:
        """The kernel on a device that has a part of the samples and heads of keys."""
        run = replace(self, names=("origin", *self.names))
        return _for_platform(run, origin, *arrays)


run_p = Primitive("jaxdrop_kernel")
"""Operands: those of the parameter `run`. `types` are those of the results; `jaxpr` is what
is run, for plain types."""
run_p.multiple_results = True


def run_kernel(run: Run, operands: Operands) -> Arrays:
    """The results of a kernel."""
    arrays = [getattr(operands, name) for name in run.names]
    return _bind(run, vary_as(arrays, arrays))


def _bind(run: Run, arrays: Arrays) -> Arrays:
    # The types of the results, which in `shard_map` vary over the mesh axes of the operands.
    def like_results(*arrays: Array) -> list[Array]:
        return vary_as([jnp.zeros(t.shape, t.dtype) for t in run.types(*arrays)], arrays)

    types: Any = tuple(jax.make_jaxpr(like_results)(*arrays).out_avals)
    function = over_batch_and_heads(
        partial(_for_platform, run),
        run.part,
        run.tiles.groups,
        [(letters, x.shape) for letters, x in zip(run.letters(), arrays, strict=True)],
        [(letters, t.shape) for (letters, _), t in zip(run.results, types, strict=True)],
    )
    # Traced for plain types: inside of `shard_map`, types say over which mesh axes they
    # vary, which Pallas's interpreter does not keep.
    plain = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    return run_p.bind(*arrays, run=run, types=types, jaxpr=jax.make_jaxpr(function)(*plain))


def _for_platform(run: Run, *arrays: Array) -> Arrays:
    # Not `by_platform`: for AMD's GPUs nothing was compiled.
    on_gpu, elsewhere = partial(run, interpret=False), partial(run, interpret=True)
    return lax.platform_dependent(*arrays, cuda=on_gpu, default=elsewhere)


def _batch(operands: Any, axes: Any, *, run: Run, types: Any, **_: Any) -> tuple[Arrays, list[int]]:
    """Makes the axis of samples longer. All that calls differ in may differ between samples."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    samples = types[0].shape[0]

    def longer(x: Array, axis: int | None) -> Array:
        if axis is None and x.shape[0] == 1:
            return x  # the same for all samples of all calls
        x = x[None] if axis is None else jnp.moveaxis(x, axis, 0)
        x = jnp.broadcast_to(x, (size, samples, *x.shape[2:]))
        return x.reshape(size * samples, *x.shape[2:])

    out = _bind(run, list(map(longer, operands, axes)))
    out = [x.reshape(size, samples, *x.shape[1:]) for x in out]
    return out, [0] * len(out)


def _run(*arrays: Array, jaxpr: ClosedJaxpr, **_: Any) -> Arrays:
    return jaxpr_as_fun(jaxpr)(*arrays)


def _lower(ctx: Any, *values: Any, jaxpr: ClosedJaxpr, **_: Any) -> Any:
    plain = ctx.replace(avals_in=jaxpr.in_avals, avals_out=jaxpr.out_avals)
    return mlir.lower_fun(jaxpr_as_fun(jaxpr), multiple_results=True)(plain, *values)


run_p.def_impl(_run)
run_p.def_abstract_eval(lambda *_, types, **__: types)
mlir.register_lowering(run_p, _lower)
batching.primitive_batchers[run_p] = _batch
