"""A kernel on a mesh: split over samples and heads of keys, each device runs its own part.

XLA cannot split a kernel, so under automatic sharding it would gather all operands on
every device. `custom_partitioning` tells it how: along each of these two axes, all
arrays that have it are split alike.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, TypeAlias

from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Function: TypeAlias = Callable[..., Sequence[Array]]
_SPLIT = "bk"


def over_batch_and_heads(
    function: Function,
    operands: Sequence[tuple[str, Sequence[int]]],
    results: Sequence[tuple[str, Sequence[int]]],
) -> Function:
    """The function with rules for a mesh, of arrays given by letters of their axes and by shapes."""

    def plain(*arrays: Array) -> Sequence[Array]:
        return function(*arrays)

    def partition(mesh: Any, given: Any, made: Any) -> Any:
        del given
        axes = dict(zip(results[0][0], made[0].sharding.spec, strict=False))

        def split(arrays: Sequence[tuple[str, Sequence[int]]]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, _spec(axes, *array)) for array in arrays)

        return mesh, plain, list(split(results)), split(operands)

    fresh = (f"x{number}" for number in count())
    sides = [
        ", ".join(" ".join(_factors(fresh, *array)) for array in side)
        for side in (operands, results)
    ]
    whole = custom_partitioning(plain)
    whole.def_partition(
        partition,
        sharding_rule=" -> ".join(sides),
        need_replication_factors=tuple({f for side in sides for f in side.replace(",", "").split() if f not in _SPLIT}),
    )
    return whole


def _splits(letter: str, size: int) -> bool:
    return letter in _SPLIT and size != 1


def _spec(axes: dict[str, Any], letters: str, shape: Sequence[int]) -> PartitionSpec:
    pairs = zip(letters, shape, strict=True)
    return PartitionSpec(*(axes[axis] if _splits(axis, size) else None for axis, size in pairs))


def _factors(fresh: Iterator[str], letters: str, shape: Sequence[int]) -> list[str]:
    """What the rule calls each axis: no other array has an axis that is not split."""
    pairs = zip(letters, shape, strict=True)
    return [axis if _splits(axis, size) else next(fresh) for axis, size in pairs]
