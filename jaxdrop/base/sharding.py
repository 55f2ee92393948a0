"""Sharding in types: what Explicit mesh axes say about an array and its mask.

Auto axes need none of this, since XLA partitions masks by itself. All code that depends
on JAX's interface for Explicit axes is in this file.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """The sharding in the type of `x`, or None if the type has none."""
    return explicit_part(jax.typeof(x))


def explicit_part(aval: Any) -> NamedSharding | None:
    """The sharding in a type, or None if the type has none."""
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
    """A value that broadcasts to `x`, split like `x` along the axes where its size is not 1."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return value
    spec = (*sharding.spec, *(None for _ in range(x.ndim)))
    spec = tuple(None if n == 1 else part for n, part in zip(value.shape, spec, strict=False))
    return jax.sharding.reshard(value, with_spec(sharding, spec))


def whole(x: jax.Array) -> jax.Array:
    """The same array, split along no axis of its type."""
    sharding = explicit_sharding(x)
    return x if sharding is None else jax.sharding.reshard(x, with_spec(sharding, ()))


def whole_along(x: jax.Array, axis: int) -> jax.Array:
    """The same array, not split along one axis of its type."""
    return laid_like(x, x, axis)


def laid_like(value: jax.Array, x: jax.Array, axis: int | None = None) -> jax.Array:
    """The value, split like `x` except along one axis, along which it is not split."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return value
    spec = enumerate(tuple(sharding.spec)[: value.ndim])
    spec = tuple(None if i == axis else part for i, part in spec)
    return jax.sharding.reshard(value, with_spec(sharding, spec))


def zeros_like(x: jax.Array) -> jax.Array:
    """Zeros with the shape, dtype and sharding of `x`."""
    if explicit_sharding(x) is None:
        return jnp.zeros_like(x)
    # Under `jit` and outside a mesh context, `jnp.zeros_like` loses the sharding on JAX
    # 0.12. On older versions a program of zeros alone does not know its devices.
    return jnp.where(False, x, jnp.zeros((), x.dtype))


def automatic(
    function: Callable[..., Any], spec: PartitionSpec | tuple[PartitionSpec, ...], *operands: Any
) -> Any:
    """`function(*operands)` with Auto axes in place of Explicit ones; the result, or each
    of several, is split as `spec` says.
    """
    shardings = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves(operands)]
    sharding = next(filter(has_explicit_axes, shardings), None)
    if sharding is None:
        return function(*operands)
    kinds = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    specs = (spec,) if isinstance(spec, PartitionSpec) else spec
    shardings = tuple(with_spec(sharding, tuple(one)) for one in specs)
    inside: Callable[..., Any] = jax.sharding.auto_axes(
        function,
        axes=axes,
        out_sharding=shardings[0] if isinstance(spec, PartitionSpec) else shardings,
    )
    return inside(*operands)


def with_spec(sharding: NamedSharding, spec: tuple[Any, ...]) -> NamedSharding:
    """The same mesh with another partition."""
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def shard_count(mesh: Mesh | AbstractMesh, part: str | tuple[str, ...] | None) -> int:
    """The number of parts into which one entry of a spec splits an axis."""
    return math.prod(mesh.shape[name] for name in mesh_axes(part))


def mesh_axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that one entry of a spec names."""
    if part is None:
        return ()
    return part if isinstance(part, tuple) else (part,)


def has_explicit_axes(sharding: NamedSharding) -> bool:
    """Whether some axis of its mesh is Explicit."""
    return AxisType.Explicit in sharding.mesh.axis_types
