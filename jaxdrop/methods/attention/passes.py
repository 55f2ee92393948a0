"""Attention as three passes: what JAX is told of any implementation that brings them.

Whoever computes attention and its derivatives in a way of its own, in tiles or by a
kernel, writes an object of `Passes`. How the passes become one function with
derivatives in both directions stands here, and knows nothing of how they work.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jaxdrop.base.compat import vary_as
from jaxdrop.base.platforms import by_platform
from jaxdrop.base.sharding import automatic
from jaxdrop.base.types import Key
from jaxdrop.core.apply import compute_dtype, inverse_keep_prob
from jaxdrop.core.rate import GridRate
from jaxdrop.core.words import threefry_key
from jaxdrop.methods.attention.arguments import Arguments
from jaxdrop.methods.attention.linear import linear_map, opaque
from jaxdrop.methods.attention.operands import Attended, Draw, Inputs, Selection, Slopes

Residuals: TypeAlias = tuple[Inputs[Array], Selection, Attended]
"""What the derivatives of attention are taken at: all that a backward pass keeps."""


class Passes(Protocol):
    """One way to compute attention: forward, along tangents, and back from cotangents.

    Static under `jit`, so hashable and equal if it means the same. All give and
    take the same `Attended`: passes of one object may follow those of another,
    as where a kernel goes forward and tiles go along tangents.

    For derivatives of higher order JAX differentiates `along` and `back`. What it
    cannot look into, such as a kernel, must bring a rule for that.
    """

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        """Attention. Rows that see nothing give zeros."""
        ...

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        """Tangents of the output and of `log_total`, linear in those of the inputs."""
        ...

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        """The transpose of `along`: cotangents of those inputs that are asked for."""
        ...


@dataclass(frozen=True)
class ByPlatform:
    """Passes of one object on GPUs and of another elsewhere, chosen when they are lowered."""

    on_gpu: Passes
    elsewhere: Passes

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        """As in `Passes`."""
        return by_platform(self.on_gpu.forward, self.elsewhere.forward, inputs, selection)

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        """As in `Passes`."""
        return by_platform(self.on_gpu.along, self.elsewhere.along, residuals, tangents)

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        """As in `Passes`."""
        ways = partial(self.on_gpu.back, asked), partial(self.elsewhere.back, asked)
        return by_platform(*ways, residuals, cotangents)


def attention_by(passes: Passes, arguments: Arguments) -> Array:
    """The output of attention for arguments with a batch axis."""
    dropping, inputs, selection = arguments.dropping, arguments.inputs, arguments.selection
    if arguments.gives_zeros:  # so passes never meet an empty array, nor a rate known to be 1
        return vary_as(jnp.zeros_like(inputs.query), (dropping.rng, inputs, selection))
    # A program that drops nothing is not given what it would draw from.
    source = None if dropping.rng is None else (dropping.rng, dropping.rate)
    return _attention_by(passes, source, inputs, selection)


@partial(jax.jit, static_argnames="passes")
def _attention_by(
    passes: Passes,
    source: tuple[Key, GridRate] | None,
    inputs: Inputs[Array],
    selection: Selection,
) -> Array:
    if source is not None:
        # Once, ahead of all passes, so that each of them draws from the same.
        rng, rate = source[0], source[1].settle()
        keep_prob = jnp.asarray(rate.threshold.keep_prob)
        factor = inverse_keep_prob(keep_prob, compute_dtype(inputs.query))
        selection = selection._replace(draw=Draw(threefry_key(rng), rate, factor))

    def out(inputs: Inputs[Array], selection: Selection) -> Array:
        return attend(passes, inputs, selection).out.astype(inputs.query.dtype)

    return automatic(out, inputs.query, inputs, selection)


# `custom_vjp` has no forward mode, and `custom_jvp` alone leaves the transpose of
# `along` to JAX. So tangents are a `linear_map`, which brings `back` for that. The
# forward pass is `opaque`: partial evaluation would split it and keep its masks.
@partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend(passes: Passes, inputs: Inputs[Array], selection: Selection) -> Attended:
    """The forward pass, with derivatives by the two others."""
    return opaque(lambda operands: passes.forward(*operands), (inputs, selection))


@partial(attend.defjvp, symbolic_zeros=True)
def _attend_jvp(
    passes: Passes,
    primals: tuple[Inputs[Array], Selection],
    tangents: tuple[Inputs[Array | SymbolicZero], Selection],
) -> tuple[Attended, Attended]:
    inputs, selection = primals
    attended = attend(passes, inputs, selection)
    moving = Inputs(*(None if isinstance(t, SymbolicZero) else t for t in tangents[0]))
    asked = Inputs(*(t is not None for t in moving))
    residuals = inputs, selection, attended
    d_out, d_log_total = linear_map(passes.along, partial(passes.back, asked), residuals, moving)
    return attended, Attended(d_out, jnp.zeros_like(attended.highest), d_log_total)
