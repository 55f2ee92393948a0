"""The parts of JAX that may still change, each behind one name."""

import math
from typing import Any

import jax
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def debug_check(predicate: Any, message: str, **values: Any) -> None:
    """An assertion that fails under `checkify` and is nothing elsewhere."""
    checkify.debug_check(predicate, message, **values)


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """The sharding in the type of `x`, or None where it says nothing.

    Only Explicit mesh axes stand in a type. Auto axes need no help: XLA
    partitions the mask by itself. Inside `shard_map` arrays are already local.
    """
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding if any(part is not None for part in sharding.spec) else None


def with_spec(sharding: NamedSharding, spec: tuple[Any, ...]) -> NamedSharding:
    """The same mesh with another partition."""
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def shard_count(sharding: NamedSharding, mesh_axes: Any) -> int:
    """Into how many parts the mesh axes of one entry of a spec split an axis."""
    names = mesh_axes if isinstance(mesh_axes, tuple) else (mesh_axes,)
    return math.prod(sharding.mesh.shape[name] for name in names if name is not None)
