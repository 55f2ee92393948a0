"""All that is used of Pallas, and of other parts of JAX that may change: calls and their blocks.

From 0.12 on JAX says that it will part with the Triton form of Pallas. What must change
then is here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas
from jax.experimental.custom_partitioning import custom_partitioning as custom_partitioning
from jax.experimental.pallas import triton

from jaxdrop.base.compat import unvarying_type


def program(axis: int) -> Array:
    """The number of this program along an axis of the grid."""
    return jnp.asarray(pallas.program_id(axis), jnp.int32)  # without `jit` it is a plain number


class Dims(NamedTuple):
    """An array of a kernel: a letter for each axis (`operands.LETTERS`), and its shape."""

    letters: str
    shape: tuple[int, ...]
    dtype: Any


class Launch(NamedTuple):
    """How a kernel is started.

    Attributes:
      name: what profilers call it.
      grid: how many programs: blocks of rows or columns, heads, samples.
      heads_per_key: how many of the heads of the grid share a head of keys.
      blocks: how many elements of the axes n, t, s and h a program sees.
      warps: groups of 32 threads for each program.
      stages: how many blocks are loaded ahead.
    """

    name: str
    grid: tuple[int, int, int]
    heads_per_key: int
    blocks: dict[str, int]
    warps: int
    stages: int


def call(
    body: Callable[..., None],
    launch: Launch,
    operands: Sequence[tuple[str, Array]],
    results: Sequence[Dims],
    *,
    interpret: bool,
) -> list[Array]:
    """Runs a kernel; each operand is an array behind the letters of its axes."""
    given = [Dims(letters, x.shape, x.dtype) for letters, x in operands]
    return pallas.pallas_call(
        body,
        grid=launch.grid,
        in_specs=[_spec(launch, dims) for dims in given],
        out_specs=[_spec(launch, dims) for dims in results],
        out_shape=[unvarying_type(dims.shape, dims.dtype) for dims in results],
        compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
        interpret=interpret,
        name=launch.name,
    )(*(x for _, x in operands))


def _spec(launch: Launch, dims: Dims) -> pallas.BlockSpec:
    """A program sees one sample of an array, one head of keys with its heads of queries, and all
    of the other axes.
    """
    pairs = list(zip(dims.letters, dims.shape, strict=True))
    # Rounded up, so that the interpreter, which clamps, finds a whole block at the end
    # of an axis. On a GPU nothing lies there, and loads and stores are masked.
    shape = tuple(
        None if axis in "bk" else launch.blocks.get(axis.lower() if size != 1 else axis, size)
        for axis, size in pairs
    )

    def place(_: Array, head: Array, sample: Array) -> tuple[Any, ...]:
        key_head = jax.lax.div(head, jnp.int32(launch.heads_per_key))
        own = {"b": sample, "k": key_head, "n": key_head}
        zero = jnp.int32(0)
        return tuple(own.get(axis.lower(), zero) if size != 1 else zero for axis, size in pairs)

    return pallas.BlockSpec(shape, place)


def load(ref: Any, index: tuple[Any, ...], seen: Array | None) -> Array:
    """Part of an array; zeros where `seen` is False. A pair in the index is a start and a size."""
    part = ref.at[_slices(index)]
    if seen is None:
        return triton.load(part)
    return triton.load(part, mask=seen, other=False if ref.dtype == jnp.bool_ else 0)


def store(ref: Any, index: tuple[Any, ...], x: Array, seen: Array | None) -> None:
    """Writes part of an array, where `seen` is True."""
    triton.store(ref.at[_slices(index)], x.astype(ref.dtype), mask=seen)


def _slices(index: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(pallas.ds(*part) if isinstance(part, tuple) else part for part in index)


def exp(x: Array) -> Array:
    """The exponential by that of base 2, for which a GPU has an instruction."""
    return jnp.exp2(x * np.float32(np.log2(np.e)))


def product(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """The product of two matrices over one axis of each, summed in float32."""
    dims = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(a, b.astype(a.dtype), dims, preferred_element_type=jnp.float32)


over_features = partial(product, axes=(1, 1))
over_keys = partial(product, axes=(1, 0))
over_queries = partial(product, axes=(0, 0))
