"""The parts of JAX that change between versions and that all rooms may use, with one name each.

What only planting needs is in `jaxprs`, `equations` and `options` of `jaxdrop.planting`.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import PurePath
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, experimental, lax
from jax.experimental import checkify
from jax.extend.core import ClosedJaxpr as _ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]

from jaxdrop.base.sharding import explicit_part

Tree = TypeVar("Tree")

ClosedJaxpr: TypeAlias = _ClosedJaxpr
"""In newer versions a second name of `Jaxpr`, which JAX does not export to type checkers."""

# Before 0.8, `jax.checkpoint` refused to differentiate a function with a check.
CHECKS_LEAVE_CHECKPOINT_WORKING = jax.__version_info__ >= (0, 8)


def debug_check(predicate: Any, message: str, **values: Any) -> None:
    """An assertion that fails under `checkify`. Elsewhere, and before JAX 0.8, it does nothing."""
    if CHECKS_LEAVE_CHECKPOINT_WORKING:
        checkify.debug_check(predicate, message, **values)


def enable_x64() -> AbstractContextManager[Any]:
    """A context in which 64-bit types can be used, whatever the user has chosen."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return getattr(experimental, "enable_x64")()  # noqa: B009, its place before 0.8


def decided(comparison: Callable[[], bool]) -> bool | None:
    """The result of a comparison of sizes; None if it depends on a symbolic one of `jax.export`."""
    try:
        return bool(comparison())
    except Exception:  # its class is not public, and integers raise nothing
        return None


def in_pmap() -> bool:
    """Whether a function is called by `jax.pmap`, in versions where that is a `shard_map`."""
    # Only the stack tells them apart: the mesh is a usual one, and the user names its axis.
    frame = inspect.currentframe()
    while frame is not None and PurePath(frame.f_code.co_filename).name != "pmap.py":
        frame = frame.f_back
    return frame is not None


def varying_axes(x: Any) -> frozenset[str]:
    """The manual mesh axes over which a value, or its type, varies."""
    # Types have this attribute, and values do not. Newer versions have the name `mat`.
    aval = x if hasattr(x, "strip_weak_type") else jax.typeof(x)
    return aval.mat.varying if hasattr(aval, "mat") else aval.vma


def unvarying_type(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The type of an array that varies over no mesh axes, as Pallas wants it in `shard_map`."""
    scalar: Any = jax.typeof(jnp.int32(0))
    nowhere: dict[str, Any] = (
        {"manual_axis_type": scalar.mat} if hasattr(scalar, "mat") else {"vma": frozenset()}
    )
    return jax.ShapeDtypeStruct(shape, dtype, **nowhere)


def vary_over(x: Array, axes: frozenset[str]) -> Array:
    """The same value, typed as one that varies over the axes too."""
    missing = tuple(sorted(axes - varying_axes(x)))
    if not missing:
        return x
    if hasattr(lax, "pcast"):
        return lax.pcast(x, missing, to="varying")
    return getattr(lax, "pvary")(x, missing)  # noqa: B009, its name before 0.9


def vary_as(tree: Tree, operands: Any) -> Tree:
    """The same arrays, typed as varying over all axes over which any operand varies."""
    axes = frozenset[str]().union(*map(varying_axes, jax.tree.leaves(operands)))
    return jax.tree.map(lambda x: vary_over(x, axes), tree)


def zeros_of(fn: Callable[[], Tree]) -> Tree:
    """Zeros with the types and shardings of the results of a function, which is not run."""
    # `eval_shape` returns shapes alone. The full types are noted while it traces.
    types: list[Any] = []

    def typed() -> Any:
        leaves, tree = jax.tree.flatten(fn())
        types[:] = [tree, *map(jax.typeof, leaves)]
        return leaves

    jax.eval_shape(typed)

    def zeros(aval: Any) -> Array:
        plain, sharding = jnp.zeros(aval.shape, aval.dtype), explicit_part(aval)
        split = plain if sharding is None else jax.sharding.reshard(plain, sharding)
        return vary_over(split, varying_axes(aval))

    tree, *avals = types
    return jax.tree.unflatten(tree, [zeros(aval) for aval in avals])
