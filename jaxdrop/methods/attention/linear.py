"""Linear maps with a transpose of their own: one pass for `jvp`, and one pass for `vjp`.

`custom_vjp` has no forward mode. `custom_jvp` leaves the transpose to JAX, which does
not know the better order of computation. A primitive with a rule for each mode has
both. `jax.custom_derivatives.linear_call` is the same idea, but has no `vmap`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxdrop.base.compat import ClosedJaxpr, vary_as

In = TypeVar("In")
Out = TypeVar("Out")
Fixed = TypeVar("Fixed")
Flat = Callable[..., Sequence[Array]]

linear_p = Primitive("jaxdrop_linear")
"""Operands: residuals, then what the map is linear in. Parameters: the map as
a `jaxpr` of both, its `transpose` as a function of the residuals and the
cotangents, and how many `residuals` there are."""
linear_p.multiple_results = True


def linear_map(
    forward: Callable[[Fixed, In], Out],
    transpose: Callable[[Fixed, Out], In],
    residuals: Fixed,
    x: In,
) -> Out:
    """Returns `forward(residuals, x)`, which is linear in `x`.

    Args:
      forward: the map; it closes over no traced values.
      transpose: its transpose, `(residuals, cotangents of the result) ->
        cotangents of x`.
      residuals: a pytree of the other values that the map depends on. Derivatives of
        higher order differentiate `forward` by its leaves.
      x: a pytree of arrays.
    """
    fixed, fixed_tree = jax.tree.flatten(residuals)
    linear, linear_tree = jax.tree.flatten(x)
    count = len(fixed)  # a number, not the arrays: the functions below outlive the trace
    linear = vary_as(linear, (fixed, linear))
    out_tree: Any = None

    def flat_forward(*operands: Array) -> Sequence[Array]:
        nonlocal out_tree
        known = jax.tree.unflatten(fixed_tree, operands[:count])
        out = forward(known, jax.tree.unflatten(linear_tree, operands[count:]))
        leaves, out_tree = jax.tree.flatten(out)
        return leaves

    def flat_transpose(*operands: Array) -> Sequence[Array]:
        known = jax.tree.unflatten(fixed_tree, operands[:count])
        cotangents = jax.tree.unflatten(out_tree, operands[count:])
        return linear_tree.flatten_up_to(transpose(known, cotangents))

    jaxpr = jax.make_jaxpr(flat_forward)(*fixed, *linear)
    out = linear_p.bind(*fixed, *linear, jaxpr=jaxpr, transpose=flat_transpose, residuals=count)
    return jax.tree.unflatten(out_tree, out)


def opaque(function: Callable[[Fixed], Out], operands: Fixed) -> Out:
    """Returns `function(operands)`, which stays one equation.

    Partial evaluation splits a loop, and keeps for each step what does not depend on
    unknown operands, such as a mask. It cannot do this with one opaque equation.
    """
    return linear_map(lambda operands, _: function(operands), _no_transpose, operands, ())


def _no_transpose(*_: Any) -> Any:
    raise AssertionError("linear in nothing, so never transposed")


def _apply(*operands: Array, jaxpr: ClosedJaxpr, **_: Any) -> Sequence[Array]:
    return jaxpr_as_fun(jaxpr)(*operands)


def _out_avals(*operands: Any, jaxpr: ClosedJaxpr, **_: Any) -> Sequence[Any]:
    del operands
    return jaxpr.out_avals


def _batch(
    operands: Any, axes: Any, *, jaxpr: ClosedJaxpr, transpose: Flat, residuals: int
) -> tuple[Sequence[Array], Sequence[int]]:
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    linear = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands[residuals:], axes[residuals:], strict=True)
    ]
    operands, fixed = (*operands[:residuals], *linear), axes[:residuals]
    forward = jax.vmap(jaxpr_as_fun(jaxpr), in_axes=(*fixed, *[0] * len(linear)))
    backward = jax.vmap(transpose, in_axes=(*fixed, *[0] * len(jaxpr.out_avals)))
    out = linear_p.bind(
        *operands,
        jaxpr=jax.make_jaxpr(forward)(*operands),
        transpose=backward,
        residuals=residuals,
    )
    return out, [0] * len(out)


def _differentiate(
    primals: Any, tangents: Any, *, jaxpr: ClosedJaxpr, transpose: Flat, residuals: int
) -> tuple[Sequence[Array], Sequence[Any]]:
    bind = partial(linear_p.bind, jaxpr=jaxpr, transpose=transpose, residuals=residuals)
    out = bind(*primals)
    terms: list[Sequence[Array]] = []
    if not all(isinstance(tangent, ad.Zero) for tangent in tangents[residuals:]):
        linear = map(ad.instantiate_zeros, tangents[residuals:])
        terms.append(bind(*primals[:residuals], *linear))
    moving = [i for i in range(residuals) if not isinstance(tangents[i], ad.Zero)]
    if moving:

        def of_moving(*values: Array) -> Sequence[Array]:
            operands = list(primals)
            for i, value in zip(moving, values, strict=True):
                operands[i] = value
            return jaxpr_as_fun(jaxpr)(*operands)

        at, along = ([side[i] for i in moving] for side in (primals, tangents))
        terms.append(jax.jvp(of_moving, at, along)[1])
    return out, [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _transpose(
    cotangents: Any, *operands: Any, jaxpr: ClosedJaxpr, transpose: Flat, residuals: int
) -> Sequence[Any]:
    fixed = operands[:residuals]
    cotangents = list(map(ad.instantiate_zeros, cotangents))
    backward = jax.make_jaxpr(transpose)(*fixed, *cotangents)
    out = linear_p.bind(
        *fixed,
        *cotangents,
        jaxpr=backward,
        transpose=jaxpr_as_fun(jaxpr),
        residuals=residuals,
    )
    asked = map(ad.is_undefined_primal, operands[residuals:])
    return [None] * residuals + [
        x if wanted else None for x, wanted in zip(out, asked, strict=True)
    ]


linear_p.def_impl(_apply)
linear_p.def_abstract_eval(_out_avals)
mlir.register_lowering(linear_p, mlir.lower_fun(_apply, multiple_results=True))
batching.primitive_batchers[linear_p] = _batch
ad.primitive_jvps[linear_p] = _differentiate
ad.primitive_transposes[linear_p] = _transpose
