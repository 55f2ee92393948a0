"""A kernel on a mesh: split over samples and heads, each device runs its own part.

XLA cannot split a kernel, so under automatic sharding it would gather all operands on
every device. `custom_partitioning` tells it how: along each of these two axes, all
arrays that have it are split like the query.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdrop.base.sharding import shard_count
from jaxdrop.methods.attention.kernel.call import custom_partitioning

Function: TypeAlias = Callable[..., Sequence[Array]]
Axes: TypeAlias = Sequence[tuple[str, Sequence[int]]]
"""The letters of the axes of some arrays, and their shapes."""


def over_batch_and_heads(
    function: Function, of_part: Function, groups: int, operands: Axes, results: Axes
) -> Function:
    """The function with rules for a mesh; `groups` heads of queries share a head of keys.

    On a mesh `of_part` is called instead, of the first sample and head of keys of the
    device, and then of the arrays. The query is the first operand.
    """
    sizes = {axis: n for array in (operands[0], *results) for axis, n in zip(*array, strict=True)}
    sizes["k"] = sizes["n"] // groups

    def plain(*arrays: Array) -> Sequence[Array]:
        return function(*arrays)

    def partition(mesh: Mesh, given: Any, made: Any) -> Any:
        del made
        spec = dict(zip(operands[0][0], given[0].sharding.spec, strict=True))
        # A device has the heads of queries of its heads of keys, or the heads are not split.
        samples, heads = (_even(mesh, spec[axis], sizes[of]) for axis, of in ("bb", "nk"))
        axes = {"b": samples, "n": heads, "k": heads}

        def part(*arrays: Array) -> Sequence[Array]:
            first = [_first(mesh, axes[axis], sizes[axis]) for axis in "bk"]
            return of_part(jnp.stack(first), *arrays)

        def split(arrays: Axes) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, _spec(axes, *array)) for array in arrays)

        return mesh, part, split(results), split(operands)

    number = count()
    lines = [[_factors(number, groups, *array) for array in side] for side in (operands, results)]
    factors = [factor for side in lines for line in side for factor in line]
    whole = custom_partitioning(plain)
    whole.def_partition(
        partition,
        sharding_rule=" -> ".join(", ".join(map(" ".join, side)) for side in lines),
        need_replication_factors=tuple(factor for factor in factors if factor.startswith("x")),
    )
    return whole


def _even(mesh: Mesh, part: Any, size: int) -> Any:
    """The entry of a spec, if it splits an axis into equal parts; or else None."""
    return part if size % shard_count(mesh, part) == 0 else None


def _first(mesh: Mesh, part: Any, size: int) -> Array:
    """The first index that this device has of an axis."""
    if part is None:
        return jnp.uint32(0)
    return lax.axis_index(part).astype(jnp.uint32) * np.uint32(size // shard_count(mesh, part))


def _splits(letter: str, size: int) -> bool:
    return letter.lower() in "bnk" and size != 1


def _spec(axes: dict[str, Any], letters: str, shape: Sequence[int]) -> PartitionSpec:
    pairs = zip(letters, shape, strict=True)
    return PartitionSpec(
        *(axes[axis.lower()] if _splits(axis, size) else None for axis, size in pairs)
    )


def _factors(number: Iterator[int], groups: int, letters: str, shape: Sequence[int]) -> list[str]:
    """What the rule calls each axis: an axis that is not split has a name of its own.

    Heads of queries and of keys have one name only if they are as many. Otherwise XLA
    might split one of them over a part of a mesh axis, for which JAX has no name.
    """
    pairs = zip(letters, shape, strict=True)
    return [
        (axis.lower() if groups != 1 else axis.lower().replace("k", "n"))
        if _splits(axis, size)
        else f"x{next(number)}"
        for axis, size in pairs
    ]
