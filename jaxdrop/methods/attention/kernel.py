"""Attention by kernels on an NVIDIA GPU: one forward, two and a sum of rows backward.

A kernel computes what `tiled` computes, with the same mask and the same log-sum-exp, so
tiles serve what no kernel serves: tangents, derivatives of higher order, and the
gradients of the bias and of the scale.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdrop.base.validate import Check
from jaxdrop.core.layout import mask_layout
from jaxdrop.methods.attention.arguments import Arguments
from jaxdrop.methods.attention.kernel_back import back_to_keys, back_to_queries
from jaxdrop.methods.attention.kernel_blocks import Sizes
from jaxdrop.methods.attention.kernel_forward import forward
from jaxdrop.methods.attention.kernel_operands import Operands
from jaxdrop.methods.attention.kernel_run import Run, run_kernel
from jaxdrop.methods.attention.kernel_tile import Tiles
from jaxdrop.methods.attention.operands import Attended, Inputs, Selection, Slopes
from jaxdrop.methods.attention.passes import Passes, Residuals, attention_by
from jaxdrop.methods.attention.tiled import tiled_passes


def kernel(check: Check, arguments: Arguments) -> Array:
    """Attention by kernels."""
    rows, columns = arguments.blocks
    sizes = Sizes(rows or 64, columns or 64, 4, 2)
    layout = mask_layout(arguments.weights_shape, arguments.dropping.shared)
    *_, queries, keys = arguments.weights_shape
    tiles = Tiles(layout, arguments.window, arguments.dropping.rate.pairs, sizes.rows, sizes.columns, queries, keys, arguments.inputs.query.shape[-1], arguments.weights_shape[0], arguments.weights_shape[1]//arguments.inputs.key.shape[2])
    by_tiles = tiled_passes(arguments._replace(blocks=arguments.blocks._replace(queries=None, keys=None)))
    return attention_by(KernelPasses(tiles, sizes, by_tiles), arguments)


@dataclass(frozen=True)
class KernelPasses:
    """`Passes` by kernels, where there is one."""

    tiles: Tiles
    sizes: Sizes
    by_tiles: Passes

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        """As in `Passes`; the output has the dtype of the query."""
        operands = _operands(inputs, selection)
        out, highest, log_total = self._run(forward, operands, (("btkgh", False), ("bkgt", True), ("bkgt", True)))
        out = out.reshape(inputs.query.shape)
        return Attended(out, highest[..., None], log_total[..., None])

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        """As in `Passes`, by tiles."""
        d_out, d_log_total = self.by_tiles.along(_wide(residuals), tangents)
        return d_out.astype(residuals[0].query.dtype), d_log_total

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        """As in `Passes`; by tiles if a gradient of the bias or of the scale is asked for."""
        by_kernel = not (asked.bias or asked.scale)
        return (_back if by_kernel else _back_by_tiles)(self, asked, residuals, cotangents)

    def kernel_back(self, asked, residuals, cotangents):
        inputs, selection, attended = residuals
        operands = _operands(inputs, selection)
        shape = operands.query.shape
        d_out = cotangents[0].reshape(shape)
        out = attended.out.reshape(shape)
        inner = jnp.einsum("btkgh,btkgh->bkgt", d_out.astype(jnp.float32), out.astype(jnp.float32)) - cotangents[1][..., 0]
        operands = operands._replace(d_out=d_out.astype(inputs.query.dtype), highest=attended.highest[..., 0], log_total=attended.log_total[..., 0], inner=inner)
        d_query = d_key = d_value = None
        if asked.key or asked.value:
            d_key, d_value = self._run(back_to_keys, operands, (("bskh", False),) * 2)
        if asked.query:
            (d_query,) = self._run(back_to_queries, operands, (("btkgh", False),))
            d_query = d_query.reshape(inputs.query.shape)
        return Inputs(d_query, d_key if asked.key else None, d_value if asked.value else None, None, None)

    def _run(self, body, operands, results):
        names = tuple(name for name, x in zip(Operands._fields, operands, strict=True) if x is not None)
        run = Run(body, results, self.tiles, names, self.sizes.warps, self.sizes.stages, jax.config.jax_default_matmul_precision)
        return run_kernel(run, operands)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _back(passes, asked, residuals, cotangents):
    return passes.kernel_back(asked, residuals, cotangents)


@_back.defjvp
def _back_jvp(passes, asked, primals, tangents):
    out = _back(passes, asked, *primals)
    return out, jax.jvp(partial(_back_by_tiles, passes, asked), primals, tangents)[1]


def _back_by_tiles(passes, asked, residuals, cotangents):
    d_out, d_log_total = cotangents
    return passes.by_tiles.back(asked, _wide(residuals), (d_out.astype(jnp.float32), d_log_total))


def _wide(residuals: Residuals) -> Residuals:
    """With the output in float32, as tiles give it, since it cancels in derivatives."""
    inputs, selection, attended = residuals
    return inputs, selection, attended._replace(out=attended.out.astype(jnp.float32))


def _operands(inputs: Inputs[Array], selection: Selection) -> Operands:
    batch, queries, heads, features = inputs.query.shape
    key_heads = inputs.key.shape[2]
    groups = heads // key_heads

    def split(x):
        if x is None: return None
        b, n, *rest = x.shape
        return x.reshape(b, key_heads if n != 1 else 1, groups if n != 1 else 1, *rest)

    draw = selection.draw
    factors = jnp.stack([inputs.scale, selection.factor(jnp.float32)])[None]
    words = threshold = None
    if draw is not None:
        words = jnp.stack(draw.key)[None]
        threshold = jnp.stack([jnp.asarray(x) for x in (draw.rate.threshold.start, draw.rate.threshold.digits)])[None]
    mask = split(selection.mask)
    return Operands(
        query=inputs.query.reshape(batch, queries, key_heads, groups, features),
        key=inputs.key, value=inputs.value, factors=factors,
        words=words, threshold=threshold,
        bias=split(inputs.bias), mask=None if mask is None else mask.astype(jnp.int8),
        query_lengths=selection.query_lengths, key_lengths=selection.key_lengths,
    )
