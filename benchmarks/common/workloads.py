"""Dropout alone and in context, for any library's dropout, and the bytes that must move."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from common.measuring import forward_backward
from common.peers import Drop
from jax import Array

PEERS = ("flax.linen", "equinox", "haiku")
WIDTH = 4096  # of the last axis, which the bias has


class Workload(NamedTuple):
    """What is done with dropout.

    Attributes:
      name: what tables call it.
      function: the dropout, a key and the arrays to all results.
      arrays: arrays of the full size that it takes.
      results: arrays of the full size that it returns.
      has_bias: whether it takes a bias too, first.
    """

    name: str
    function: Callable[..., Any]
    arrays: int
    results: int
    has_bias: bool = False

    def types(self, elements: int, dtype: str) -> list[jax.ShapeDtypeStruct]:
        """What it takes besides the key."""
        x = jax.ShapeDtypeStruct((elements // WIDTH, WIDTH), jnp.dtype(dtype))
        bias = jax.ShapeDtypeStruct((WIDTH,), x.dtype)
        return [bias] * self.has_bias + [x] * self.arrays

    def bytes(self, elements: int, dtype: str) -> int:
        """What must be read and written: each array once, and nothing for masks."""
        return (self.arrays + self.results) * elements * jnp.dtype(dtype).itemsize

    def of(self, drop: Drop) -> Callable[..., Any]:
        """The workload with one library's dropout."""
        return partial(self.function, drop)


def _block(drop: Drop, key: Array, bias: Array, x: Array, residual: Array) -> Array:
    """What follows a matrix product in a transformer, of which XLA makes one pass."""
    return drop(key, jax.nn.gelu(x + bias)) + residual


def _block_and_gradient(
    drop: Drop, key: Array, bias: Array, x: Array, residual: Array, cotangent: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Also the cotangents of the bias and of `x`; that of the residual is the given one."""
    y, pull_back = jax.vjp(lambda bias, x: _block(drop, key, bias, x, residual), bias, x)
    return y, pull_back(cotangent)


def _alone(drop: Drop, key: Array, x: Array) -> Array:
    return drop(key, x)


ALONE = Workload("forward", _alone, 1, 1)
WORKLOADS = (
    ALONE,
    Workload("forward + backward", forward_backward, 2, 2),
    Workload("in context, forward", _block, 2, 1, has_bias=True),
    Workload("in context, forward + backward", _block_and_gradient, 3, 2, has_bias=True),
)
