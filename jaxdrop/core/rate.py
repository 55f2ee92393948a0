"""A rate in the form that methods use: what is known while tracing, and the operands of `jit`."""

from dataclasses import dataclass, replace

import jax
from jax import Array
from jaxtyping import Float

from jaxdrop.base.types import KnownOrTraced
from jaxdrop.core.threshold import ALL_PAIRS, Threshold, known_threshold, traced_threshold


@dataclass(frozen=True)
class GridRate:
    """A known rate that is rounded to the grid, or a traced rate that is not rounded yet.

    It is a pytree of a few scalars, so that all rates with the same number of digits
    share a program.

    Attributes:
      value: the threshold of a known rate, or the unchanged traced rate.
      pairs: how many pairs of binary digits its masks need.
      is_zero: whether the rate is known to be exactly 0. It is False for a rate that
        only rounds to 0, so that the rescale rule is still applied, and under `jit`.
      is_one: whether it is known to be exactly 1. Under `jit` it is False.
      is_traced: whether the rate was traced, so that any number of its digits may be 0.
    """

    value: Threshold | Float[Array, ""]
    pairs: int
    is_zero: bool = False
    is_one: bool = False
    is_traced: bool = False

    def settle(self) -> "GridRate":
        """The same rate on the grid; for use under `jit`, where it is traced."""
        return replace(self, value=self.threshold)

    @property
    def threshold(self) -> Threshold:
        """The threshold for random numbers; it is computed here if the rate is traced."""
        return self.value if isinstance(self.value, Threshold) else traced_threshold(self.value)


# Methods ask the flags before `jit`. As static fields they would give rates of 0 and 1 programs
# of their own, so they are no part of the pytree. `register_dataclass` has `drop_fields` for
# this, but that of JAX 0.7.2 does not take names of more than one letter.
jax.tree_util.register_pytree_node(
    GridRate,
    lambda rate: ((rate.value,), (rate.pairs, rate.is_traced)),
    lambda static, values: GridRate(*values, static[0], is_traced=static[1]),
)


def grid_rate(rate: KnownOrTraced) -> GridRate:
    """Makes a `GridRate` from a checked rate."""
    if isinstance(rate, Array):
        return GridRate(rate, ALL_PAIRS, is_traced=True)
    threshold, pairs = known_threshold(rate)
    return GridRate(threshold, pairs, is_zero=rate == 0, is_one=rate == 1)
