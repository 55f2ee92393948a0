"""From a function to a jaxpr in which its sites can be seen."""

from collections.abc import Callable
from typing import Any

import jax

from jaxdrop.transforms.planting.mark import is_array, planting
from jaxdrop.transforms.planting.plan import Values

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
    others = [None if _is_traced(leaf) else leaf for leaf in leaves]
    places = [index for index, leaf in enumerate(leaves) if _is_traced(leaf)]

    def fill(values: Values) -> Any:
        filled = list(others)
        for index, value in zip(places, values, strict=True):
            filled[index] = value
        return jax.tree.unflatten(structure, filled)

    return fill, [leaves[index] for index in places]


def _is_traced(leaf: Any) -> bool:
    like_array = is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    return like_array and leaf.dtype != jax.dtypes.float0
