"""Attention as three passes: makes a function with derivatives from any implementation of them.

To compute attention and its derivatives in a new way, such as in tiles or by a kernel,
write an object of `Passes`. This file makes the passes one function with derivatives in
both modes. It does not depend on how the passes work.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jaxdrop.base.compat import vary_as
from jaxdrop.base.platforms import by_platform
from jaxdrop.base.sharding import automatic
from jaxdrop.core.apply import compute_dtype, inverse_keep_prob
from jaxdrop.core.words import threefry_key
from jaxdrop.methods.attention.arguments import Arguments
from jaxdrop.methods.attention.linear import linear_map, opaque
from jaxdrop.methods.attention.operands import (
    Attended,
    Draw,
    Inputs,
    Result,
    Selection,
    Slopes,
    output_specs,
)

Residuals: TypeAlias = tuple[Inputs[Array], Selection, Attended]
"""What the derivatives of attention are taken at: all that a backward pass keeps."""


class Passes(Protocol):
    """One way to compute attention: forward, along tangents, and back from cotangents.

    An object is static under `jit`, so it must be hashable, and two objects that mean
    the same must be equal. All objects return and take the same `Attended`, so they can
    be mixed: for example, a kernel for the forward pass and tiles for the tangents.

    For derivatives of higher order JAX differentiates `along` and `back`. A kernel,
    which JAX cannot differentiate, must have a rule for that.
    """

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        """Attention. Rows that see nothing give zeros."""
        ...

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        """Tangents of the output and of `log_total`, linear in the tangents of the inputs."""
        ...

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        """The transpose of `along`: cotangents of the inputs that `asked` marks."""
        ...


@dataclass(frozen=True)
class ByPlatform:
    """Uses one object on GPUs and another elsewhere; chosen when the program is lowered."""

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


@dataclass(frozen=True)
class _AtPrecision:
    """Passes under the `jax.default_matmul_precision` that was set where attention was called."""

    # JAX traces `along` and `back` later, where it may be set no more. In functions that JAX
    # differentiates itself, derivatives have the precision of the product.
    passes: Passes
    precision: str

    def forward(self, inputs: Inputs[Array], selection: Selection) -> Attended:
        with jax.default_matmul_precision(self.precision):
            return self.passes.forward(inputs, selection)

    def along(self, residuals: Residuals, tangents: Slopes) -> tuple[Array, Array]:
        with jax.default_matmul_precision(self.precision):
            return self.passes.along(residuals, tangents)

    def back(
        self, asked: Inputs[bool], residuals: Residuals, cotangents: tuple[Array, Array]
    ) -> Slopes:
        with jax.default_matmul_precision(self.precision):
            return self.passes.back(asked, residuals, cotangents)


def attention_by(passes: Passes, arguments: Arguments) -> Result:
    """The output of attention for arguments with a batch axis, and the log-sum-exp if asked for."""
    config: Any = jax.config
    precision: str | None = config.jax_default_matmul_precision
    passes = passes if precision is None else _AtPrecision(passes, precision)
    dropping, inputs, selection = arguments.dropping, arguments.inputs, arguments.selection
    if arguments.gives_zeros:  # so passes never get an empty array or a known rate of 1
        return _zeros(passes, arguments)
    # If nothing is dropped, the program gets no key.
    source = None if dropping.rng is None else (dropping.rng, dropping.rate)
    if source is not None and dropping.within is not None:
        source = (*source, dropping.within.start)
    return _attention_by(passes, source, inputs, selection, arguments.residual)


def _zeros(passes: Passes, arguments: Arguments) -> Result:
    dropping, inputs, selection = arguments.dropping, arguments.inputs, arguments.selection
    operands, (of_out, of_rows) = (dropping.rng, inputs, selection), output_specs(inputs)
    shape = (*inputs.query.shape[:-1], inputs.value.shape[-1])
    zeros = automatic(lambda x: jnp.zeros(shape, x.query.dtype), of_out, inputs)
    zeros = vary_as(zeros, operands)
    if not arguments.residual:
        return zeros
    if arguments.has_no_weights:
        dtype = compute_dtype(inputs.query)
        rows = automatic(lambda _: jnp.full(shape[:-1], -jnp.inf, dtype), of_rows, inputs)
        return zeros, vary_as(rows, operands)
    # Values do not change the log-sum-exp, and passes want some.
    *others, features = inputs.value.shape
    value = jnp.zeros((*others, max(features, 1)), inputs.value.dtype)
    return zeros, _attention_by(passes, None, inputs._replace(value=value), selection, True)[1]


@partial(jax.jit, static_argnames=("passes", "residual"))
def _attention_by(
    passes: Passes,
    source: tuple[Any, ...] | None,
    inputs: Inputs[Array],
    selection: Selection,
    residual: bool,
) -> Any:
    if source is not None:
        # Done once, before all passes, so that all of them draw from the same key.
        (rng, rate, *start) = source
        rate = rate.settle()
        keep_prob = jnp.asarray(rate.threshold.keep_prob)
        factor = inverse_keep_prob(keep_prob, compute_dtype(inputs.query))
        selection = selection._replace(draw=Draw(threefry_key(rng), rate, factor, *start))

    def results(inputs: Inputs[Array], selection: Selection) -> Result:
        attended = attend(passes, inputs, selection)
        out = attended.out.astype(inputs.query.dtype)
        return (out, attended.residual()) if residual else out

    specs = output_specs(inputs)
    return automatic(results, specs if residual else specs[0], inputs, selection)


# `custom_vjp` has no forward mode, and `custom_jvp` alone leaves the transpose of
# `along` to JAX. So the tangents are computed by a `linear_map` whose transpose is
# `back`. The forward pass is `opaque`, because partial evaluation would split it and
# keep its masks.
@partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend(passes: Passes, inputs: Inputs[Array], selection: Selection) -> Attended:
    """The forward pass; its derivatives are the two other passes."""
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
