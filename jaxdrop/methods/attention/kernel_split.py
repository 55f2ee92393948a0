"""A kernel on a mesh: split over samples and heads of keys, each device runs its own part.

XLA cannot split a kernel, so under automatic sharding it would gather all operands on
every device. `custom_partitioning` tells it how: along each of these two axes, all
arrays that have it are split alike.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdrop.methods.attention.kernel_call import custom_partitioning

Function: TypeAlias = Callable[..., Sequence[Array]]
_SPLIT = "bk"


def over_batch_and_heads(
    function: Function,
    of_part: Function,
    operands: Sequence[tuple[str, Sequence[int]]],
    results: Sequence[tuple[str, Sequence[int]]],
) -> Function:
    """The function with rules for a mesh, of arrays given by letters of their axes and by shapes.

    On a mesh `of_part` is called instead, of the first sample and head of keys of the
    device, and then of the arrays.
    """

    def plain(*arrays: Array) -> Sequence[Array]:
        return function(*arrays)

    def partition(mesh: Any, given: Any, made: Any) -> Any:
        del given
        letters, shape = results[0]
        axes = dict(zip(letters, made[0].sharding.spec, strict=False))
        local = made[0].sharding.shard_shape(tuple(shape))

        def part(*arrays: Array) -> Sequence[Array]:
            first = [_index(axes[axis]) * np.uint32(local[letters.index(axis)]) for axis in _SPLIT]
            return of_part(jnp.stack(first), *arrays)

        def split(arrays: Sequence[tuple[str, Sequence[int]]]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, _spec(axes, *array)) for array in arrays)

        return mesh, part, split(results), split(operands)

    number = count()
    lines = [[_factors(number, *array) for array in side] for side in (operands, results)]
    factors = [factor for side in lines for line in side for factor in line]
    whole = custom_partitioning(plain)
    whole.def_partition(
        partition,
        sharding_rule=" -> ".join(", ".join(map(" ".join, side)) for side in lines),
        need_replication_factors=tuple(factor for factor in factors if factor not in _SPLIT),
    )
    return whole


def _index(mesh_axes: Any) -> Array:
    """The number of this device along the mesh axes that split an axis."""
    if mesh_axes is None:
        return jnp.uint32(0)
    return lax.axis_index(mesh_axes).astype(jnp.uint32)


def _splits(letter: str, size: int) -> bool:
    return letter in _SPLIT and size != 1


def _spec(axes: dict[str, Any], letters: str, shape: Sequence[int]) -> PartitionSpec:
    pairs = zip(letters, shape, strict=True)
    return PartitionSpec(*(axes[axis] if _splits(axis, size) else None for axis, size in pairs))


def _factors(number: Iterator[int], letters: str, shape: Sequence[int]) -> list[str]:
    """What the rule calls each axis: an axis that is not split has a name of its own."""
    pairs = zip(letters, shape, strict=True)
    return [axis if _splits(axis, size) else f"x{next(number)}" for axis, size in pairs]
