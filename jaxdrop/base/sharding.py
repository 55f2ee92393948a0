"""Sharding in types: what Explicit mesh axes say about an array and its mask.

Auto axes need none of this, since XLA partitions masks by itself. All that depends on
how JAX spells Explicit axes is in this file.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """The sharding in the type of `x`, or None where it says nothing."""
    return explicit_part(jax.typeof(x))


def explicit_part(aval: Any) -> NamedSharding | None:
    """The sharding in a type, or None where it says nothing."""
    sharding = aval.sharding
    split = any(part is not None for part in sharding.spec)
    return sharding if split and has_explicit_axes(sharding) else None


def sharded_along(batch: jax.Array, x: jax.Array, *axes: int) -> jax.Array:
    """One value per slice of `x` along the axes, sharded like these axes."""
    sharding = explicit_sharding(x)
    if sharding is None or not axes:
        return batch
    spec = (*sharding.spec, *(None for _ in range(x.ndim)))
    return jax.jit(jax.sharding.reshard, static_argnums=1)(
        batch, with_spec(sharding, tuple(spec[axis] for axis in axes))
    )


def spread_to(value: jax.Array, x: jax.Array) -> jax.Array:
    """A value that broadcasts to `x`, split as `x` along the axes where its size is not 1."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return value
    spec = (*sharding.spec, *(None for _ in range(x.ndim)))
    spec = tuple(None if n == 1 else part for n, part in zip(value.shape, spec, strict=False))
    return jax.sharding.reshard(value, with_spec(sharding, spec))


def whole(x: jax.Array) -> jax.Array:
    """The same array, not split along any axis that its type says is split."""
    sharding = explicit_sharding(x)
    return x if sharding is None else jax.sharding.reshard(x, with_spec(sharding, ()))


def whole_along(x: jax.Array, axis: int) -> jax.Array:
    """The same array, not split along one axis if its type says that it is."""
    return laid_like(x, x, axis)


def laid_like(value: jax.Array, x: jax.Array, axis: int | None = None) -> jax.Array:
    """The value split as `x` is, except along one axis, where it is whole."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return value
    spec = enumerate(tuple(sharding.spec)[: value.ndim])
    spec = tuple(None if i == axis else mesh_axes for i, mesh_axes in spec)
    return jax.sharding.reshard(value, with_spec(sharding, spec))


def automatic(function: Callable[..., jax.Array], x: jax.Array, *operands: Any) -> jax.Array:
    """`function(*operands)` with Explicit axes made Auto inside; the result is split as `x` is."""
    shardings = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves(operands)]
    sharding = next(filter(has_explicit_axes, shardings), None)
    if sharding is None:
        return function(*operands)
    kinds = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    out_sharding = with_spec(sharding, tuple(jax.typeof(x).sharding.spec))
    inside: Callable[..., Any] = jax.sharding.auto_axes(
        function, axes=axes, out_sharding=out_sharding
    )
    return inside(*operands)


def with_spec(sharding: NamedSharding, spec: tuple[Any, ...]) -> NamedSharding:
    """The same mesh with another partition."""
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def shard_count(sharding: NamedSharding, mesh_axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts the mesh axes of one entry of a spec split an axis."""
    names = mesh_axes if isinstance(mesh_axes, tuple) else (mesh_axes,)
    return math.prod(sharding.mesh.shape[name] for name in names if name is not None)


def has_explicit_axes(sharding: NamedSharding) -> bool:
    """Whether some axis of its mesh is Explicit."""
    return AxisType.Explicit in sharding.mesh.axis_types
