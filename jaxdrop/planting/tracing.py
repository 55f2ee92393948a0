"""From a function to a jaxpr in which its sites can be seen."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdrop.planting import jaxprs
from jaxdrop.planting.mark import is_array, planting, site_p
from jaxdrop.planting.plan import Values

Rebuild = Callable[[Values], Any]


def trace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Rebuild, Values]:
    """The jaxpr of a call, how its results are put together, and its operands.

    Arrays are traced. All other leaves, of arguments as of results, stay what
    they are.
    """
    fill, operands = _take_arrays((args, kwargs))
    rebuild: list[Rebuild] = []

    def flat(*operands: Any) -> Values:
        args, kwargs = fill(operands)
        fill_results, results = _take_arrays(function(*args, **kwargs))
        rebuild.append(fill_results)
        return results

    with planting(True):
        jaxpr = jax.make_jaxpr(flat)(*operands)
    return jaxpr, rebuild[-1], operands


def _take_arrays(tree: Any) -> tuple[Rebuild, Values]:
    """The arrays of a pytree, and how the pytree is put together with others in their places."""
    leaves, structure = jax.tree.flatten(tree)
    others = [None if _is_traced(leaf) else _without_tracer(leaf) for leaf in leaves]
    places = [index for index, leaf in enumerate(leaves) if _is_traced(leaf)]

    def fill(values: Values) -> Any:
        filled = list(others)
        for index, value in zip(places, values, strict=True):
            filled[index] = value
        return jax.tree.unflatten(structure, filled)

    return fill, [leaves[index] for index in places]


def _without_tracer(leaf: Any) -> Any:
    """A leaf that is not traced; the derivative of an integer is zeros of no size."""
    if is_array(leaf) and leaf.dtype == jax.dtypes.float0:
        return np.zeros(leaf.shape, jax.dtypes.float0)
    return leaf


def refuse_functions(tree: Any) -> None:
    """Refuses what `jax.vjp` and `jax.linearize` return: a site in it is out of reach."""
    for node in jax.tree.leaves(tree, is_leaf=lambda node: bool(_hidden_jaxprs(node))):
        for jaxpr in _hidden_jaxprs(node):
            if jaxprs.has_primitive(jaxpr, site_p):
                raise NotImplementedError(
                    "plant: fn must not return the function of a derivative with a site in it; got"
                    f" {type(node).__name__}. Call it inside, or differentiate the planted"
                    " function: jax.vjp(plant(f, rules), ...)."
                )


def _hidden_jaxprs(value: Any) -> list[Any]:
    """The jaxprs that a function which JAX returned was made with."""
    if body := jaxprs.jaxpr_of(value):
        return [body]
    parts = [value.fun] if hasattr(value, "fun") else []  # what JAX wraps functions in
    if isinstance(value, functools.partial):
        parts += [value.func, *value.args, *value.keywords.values()]
    return [jaxpr for part in parts for jaxpr in _hidden_jaxprs(part)]


def _is_traced(leaf: Any) -> bool:
    like_array = is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    return like_array and leaf.dtype != jax.dtypes.float0
