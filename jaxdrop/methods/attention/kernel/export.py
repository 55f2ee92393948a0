"""A computation in two forms: by kernels where it is compiled, and by tiles where it is exported.

`jax.export` refuses kernels, since nobody promises that a later version of JAX runs them.
Only the lowering knows that a program is exported, so a primitive holds both forms.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import Array
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from jaxdrop.base.compat import ClosedJaxpr

Out = TypeVar("Out")

form_p = Primitive("jaxdrop_unless_exported")
"""Computes the parameter `usual`, or `exported` in exported programs."""
form_p.multiple_results = True


def unless_exported(usual: Callable[..., Out], exported: Callable[..., Out], *operands: Any) -> Out:
    """The first of two functions with the same meaning; the second in exported programs."""
    leaves, tree = jax.tree.flatten(operands)
    trees: list[Any] = []

    def flat(function: Callable[..., Out]) -> Callable[..., Any]:
        def of_leaves(*leaves: Array) -> list[Array]:
            out, out_tree = jax.tree.flatten(function(*tree.unflatten(leaves)))
            trees.append(out_tree)
            return out

        return of_leaves

    forms = [jax.make_jaxpr(flat(function))(*leaves) for function in (usual, exported)]
    return trees[0].unflatten(form_p.bind(*leaves, usual=forms[0], exported=forms[1]))


def _batch(operands: Any, axes: Any, **forms: ClosedJaxpr) -> tuple[Any, list[int]]:
    batched = {
        name: jax.make_jaxpr(jax.vmap(jaxpr_as_fun(jaxpr), axes))(*operands)
        for name, jaxpr in forms.items()
    }
    out = form_p.bind(*operands, **batched)
    return out, [0] * len(out)


def _lower(ctx: Any, *values: Any, usual: ClosedJaxpr, exported: ClosedJaxpr) -> Any:
    form = exported if ctx.module_context.lowering_parameters.for_export else usual
    return mlir.lower_fun(jaxpr_as_fun(form), multiple_results=True)(ctx, *values)


form_p.def_impl(lambda *operands, usual, exported: jaxpr_as_fun(usual)(*operands))
form_p.def_abstract_eval(lambda *_, usual, exported: usual.out_avals)
mlir.register_lowering(form_p, _lower)
batching.primitive_batchers[form_p] = _batch
