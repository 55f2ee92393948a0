"""Attention by kernels on an NVIDIA GPU: one forward, two and a sum of rows backward.

A kernel computes what `tiled` computes, with the same mask and the same log-sum-exp, so
tiles serve what no kernel serves: tangents, derivatives of higher order, and the
gradients of the bias and of the scale.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim
from jax.sharding import AxisType

from jaxdrop.base.validate import Check
from jaxdrop.methods.attention.arguments import Arguments, Blocks
from jaxdrop.methods.attention.kernel.back import back_to_keys, back_to_queries
from jaxdrop.methods.attention.kernel.blocks import AllSizes, Sizes, checked_sizes
from jaxdrop.methods.attention.kernel.export import unless_exported
from jaxdrop.methods.attention.kernel.forward import forward
from jaxdrop.methods.attention.kernel.operands import Operands, operands_of
from jaxdrop.methods.attention.kernel.run import Run, run_kernel
from jaxdrop.methods.attention.kernel.spans import spans_of_documents
from jaxdrop.methods.attention.kernel.tiles import KernelTiles
from jaxdrop.methods.attention.operands import (
    Attended,
    Inputs,
    Result,
    Selection,
    Slopes,
    split_heads,
)
from jaxdrop.methods.attention.passes import Passes, Residuals, attention_by
from jaxdrop.methods.attention.tiled import tiled, tiled_passes

_AS_QUERY, _AS_KEY, _BY_ROW = ("btnh", False), ("bskh", False), ("bnt", True)
_AS_OUTPUT, _AS_VALUE = ("btnv", False), ("bskv", False)


def kernel(check: Check, arguments: Arguments) -> Result:
    """Attention by kernels."""
    sizes = checked_sizes(check, arguments)
    if any(map(is_symbolic_dim, arguments.weights_shape)):
        return tiled(check, arguments)  # what is exported is computed by tiles
    by_tiles = tiled_passes(arguments._replace(blocks=Blocks(None, None)))
    inputs, dropping = arguments.inputs, arguments.dropping
    no_features = 0 in (inputs.query.shape[-1], inputs.value.shape[-1])
    if no_features or _some_axes_are_manual():
        return attention_by(by_tiles, arguments)
    _, heads, queries, keys = arguments.weights_shape
    tiles = KernelTiles(
        layout=arguments.layout,
        batch=arguments.batch,
        at_words=dropping.within is None or dropping.within.start[-1] is None,
        window=arguments.window,
        soft_cap=arguments.soft_cap,
        pairs=dropping.rate.pairs,
        queries=queries,
        keys=keys,
        query_features=inputs.query.shape[-1],
        value_features=inputs.value.shape[-1],
        groups=heads // max(inputs.key.shape[2], 1),
    )
    return attention_by(KernelPasses(tiles, sizes, by_tiles), arguments)


def _some_axes_are_manual() -> bool:
    """Whether this is inside of a `shard_map` over some axes of a mesh and not over others.

    There JAX gives `custom_partitioning` no mesh, so XLA would gather all operands.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    kinds = {kind for size, kind in sizes if size != 1}
    return AxisType.Manual in kinds and len(kinds) > 1


@dataclass(frozen=True)
class KernelPasses:
    """`Passes` by kernels where there are some, and by tiles elsewhere."""

    tiles: KernelTiles
    sizes: AllSizes
    by_tiles: Passes

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        """As in `Passes`, with an output in the dtype of the query.

        Then nothing but the kernel runs forward. Only in bfloat16 and float16 does the
        backward pass notice, and the cuDNN and flash-attention libraries do the same.
        """
        return unless_exported(self._forward, self._forward_by_tiles, inputs, selection)

    def _forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        operands = operands_of(inputs, selection)
        results = (_AS_OUTPUT, _BY_ROW, _BY_ROW)
        out, *rows = _run(forward, self.tiles, self.sizes.forward, operands, results)
        key_heads = inputs.key.shape[2]
        highest, log_total = (split_heads(x[..., None], key_heads) for x in rows)
        return Attended(out, highest, log_total)

    def _forward_by_tiles(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        attended = self.by_tiles.forward(inputs, selection)
        return attended._replace(out=attended.out.astype(inputs.query.dtype))

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        """As in `Passes`, by tiles."""
        d_out, d_log_total = self.by_tiles.along(_wide(residuals), tangents)
        return d_out.astype(residuals[2].out.dtype), d_log_total

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        """As in `Passes`; by tiles if the slope of the bias or of the scale is asked for."""
        by_kernel = not (asked.bias or asked.scale)
        return (_back if by_kernel else _back_by_tiles)(self, asked, residuals, cotangents)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _back(
    passes: KernelPasses,
    asked: Inputs[bool],
    residuals: Residuals,
    cotangents: tuple[Array, Array],
) -> Slopes:
    """The backward pass by kernels, whose own derivative is that of the tiles."""
    ways = (partial(way, passes, asked) for way in (_back_by_kernels, _back_by_tiles))
    return unless_exported(*ways, residuals, cotangents)


def _back_by_kernels(
    passes: KernelPasses,
    asked: Inputs[bool],
    residuals: Residuals,
    cotangents: tuple[Array, Array],
) -> Slopes:
    inputs, selection, attended = residuals
    d_out, d_log_total = cotangents
    operands = operands_of(inputs, selection)
    # The part of the slopes of the logits that depends only on the row, as in `tiled`.
    products = d_out.astype(jnp.float32) * attended.out.astype(jnp.float32)
    highest, log_total, d_log_total = (
        x.reshape(x.shape[0], -1, x.shape[-2])
        for x in (attended.highest, attended.log_total, d_log_total)
    )
    inner = jnp.swapaxes(jnp.sum(products, -1), 1, 2) - d_log_total
    operands = operands._replace(d_out=d_out, highest=highest, log_total=log_total, inner=inner)
    tiles, (_, of_keys, of_queries) = passes.tiles, passes.sizes
    query = key = value = None
    if asked.key or asked.value:
        key, value = _run(back_to_keys, tiles, of_keys, operands, (_AS_KEY, _AS_VALUE))
    if asked.query:
        (query,) = _run(back_to_queries, tiles, of_queries, operands, (_AS_QUERY,))
    return Inputs(query, key if asked.key else None, value if asked.value else None, None, None)


@_back.defjvp
def _back_jvp(
    passes: KernelPasses, asked: Inputs[bool], primals: Any, tangents: Any
) -> tuple[Slopes, Slopes]:
    tiles = partial(_back_by_tiles, passes, asked)
    return _back(passes, asked, *primals), jax.jvp(tiles, primals, tangents)[1]


def _back_by_tiles(
    passes: KernelPasses,
    asked: Inputs[bool],
    residuals: Residuals,
    cotangents: tuple[Array, Array],
) -> Slopes:
    d_out, d_log_total = cotangents
    return passes.by_tiles.back(asked, _wide(residuals), (d_out.astype(jnp.float32), d_log_total))


def _wide(residuals: Residuals) -> Residuals:
    """With the output in float32, in which tiles expect it."""
    inputs, selection, attended = residuals
    return inputs, selection, attended._replace(out=attended.out.astype(jnp.float32))


def _run(
    body: Callable[..., None],
    tiles: KernelTiles,
    sizes: Sizes,
    operands: Operands,
    results: tuple[tuple[str, bool], ...],
) -> Any:
    sized = replace(tiles, rows=sizes.rows, columns=sizes.columns, parts=sizes.parts)
    spans = spans_of_documents(operands, sized, over_queries=body is back_to_keys)
    operands = operands._replace(spans=spans)
    given = zip(Operands._fields, operands, strict=True)
    names = tuple(name for name, x in given if x is not None)
    return run_kernel(Run(body, results, sized, names, sizes.warps, sizes.stages), operands)
