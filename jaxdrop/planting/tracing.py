"""From a function to a jaxpr in which its sites can be seen."""

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxdrop.base.compat import ClosedJaxpr
from jaxdrop.base.describe import describe
from jaxdrop.planting.jaxprs import AnyJaxpr, Value, Values, has_primitive, jaxpr_of
from jaxdrop.planting.mark import is_array, planting, site_p

PyTree: TypeAlias = Any
"""Arrays, keys and whatever else a user's function takes and returns."""
Unflatten: TypeAlias = Callable[[Values], PyTree]
_ABSENT = object()


def trace(
    caller: str, function: Callable[..., PyTree], /, *args: PyTree, **kwargs: PyTree
) -> tuple[ClosedJaxpr, Unflatten, Values]:
    """The jaxpr of a call, with its marks.

    Arrays are traced. All other leaves, of arguments as of results, stay what
    they are.

    Args:
      caller: the function of this library that the user called.
      function: the function to trace.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      The jaxpr, how its results are put together, and its operands.
    """
    fill, operands = _take_arrays((args, kwargs))
    # Only while the function is traced are its results seen, with the leaves that are no arrays.
    unflatten: list[Unflatten] = []

    def flat(*operands: Value) -> Values:
        args, kwargs = fill(operands)
        fill_results, results = _take_arrays(function(*args, **kwargs))
        unflatten.append(fill_results)
        return results

    with planting(caller):
        jaxpr = jax.make_jaxpr(flat)(*operands)
    return jaxpr, unflatten[-1], operands


def _take_arrays(tree: PyTree) -> tuple[Unflatten, Values]:
    """The arrays of a pytree, and how the pytree is put together with others in their places."""
    leaves, structure = jax.tree.flatten(tree)
    others = [None if _is_traced(leaf) else _without_tracer(leaf) for leaf in leaves]
    places = [index for index, leaf in enumerate(leaves) if _is_traced(leaf)]

    def fill(values: Values) -> PyTree:
        filled = list(others)
        for index, value in zip(places, values, strict=True):
            filled[index] = value
        return jax.tree.unflatten(structure, filled)

    return fill, [leaves[index] for index in places]


def _without_tracer(leaf: Value) -> Value:
    """A leaf that is not traced."""
    # The derivative of an integer is zeros of no size. JAX may return it as a tracer, which
    # must not leave the function that is traced.
    if is_array(leaf) and leaf.dtype == jax.dtypes.float0:
        return np.zeros(leaf.shape, jax.dtypes.float0)
    return leaf


def _is_traced(leaf: Value) -> bool:
    like_array = is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    return like_array and leaf.dtype != jax.dtypes.float0


@contextmanager
def refusing_changes(
    caller: str, args: Sequence[PyTree], kwargs: dict[str, PyTree]
) -> Generator[None]:
    """Refuses changes in arguments: the traced function has copies, so they would be lost."""
    named = {**{f"argument {place}": arg for place, arg in enumerate(args)}, **kwargs}
    before, again = _leaves(named), _leaves(named)
    yield
    after = _leaves(named)
    for place in {**before, **after}:
        # A pytree of the user may be flattened to other arrays each time.
        was, is_again, now = (leaves.get(place, _ABSENT) for leaves in (before, again, after))
        if was is is_again is not now:
            name, path = place
            raise ValueError(
                f"{caller}: fn must not change its arguments, since the change would be lost; it"
                f" changed {name}{jax.tree_util.keystr(path)}. Return the new value. For modules"
                " of flax.nnx, use jaxdrop.frameworks.nnx.plant."
            )


def _leaves(named: dict[str, PyTree]) -> dict[tuple[str, tuple[Any, ...]], Value]:
    # By their paths, of which only the error makes text: a model may have thousands of leaves.
    return {
        (name, path): leaf
        for name, argument in named.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument)
    }


def refuse_uncallable(caller: str, fn: object) -> None:
    """Refuses what cannot be called."""
    if not callable(fn):
        raise TypeError(f"{caller}: fn must be callable; got {describe(fn)}.")


def refuse_functions(caller: str, results: PyTree) -> None:
    """Refuses what `jax.vjp` and `jax.linearize` return: a site in it is out of reach."""
    # Such a function has its jaxpr already. It would run outside of the planted function, with the
    # marks left in it, so nothing would be dropped and nobody would notice.
    for node in jax.tree.leaves(results, is_leaf=lambda node: bool(_hidden_jaxprs(node))):
        for jaxpr in _hidden_jaxprs(node):
            if has_primitive(jaxpr, site_p):
                raise NotImplementedError(
                    f"{caller}: fn must not return a derivative function with a site in it;"
                    f" got {type(node).__name__}. Call it inside, or differentiate the planted"
                    " function: jax.vjp(plant(f, rules), ...)."
                )


def _hidden_jaxprs(value: PyTree) -> list[AnyJaxpr]:
    """The jaxprs that a function which JAX returned was made with."""
    if body := jaxpr_of(value):
        return [body]
    parts = [value.fun] if hasattr(value, "fun") else []  # what JAX wraps functions in
    if isinstance(value, functools.partial):
        parts += [value.func, *value.args, *value.keywords.values()]
    return [jaxpr for part in parts for jaxpr in _hidden_jaxprs(part)]
