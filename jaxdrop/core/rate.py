"""A rate in the form that methods use: what is known while tracing, and the operands of `jit`."""

from dataclasses import dataclass, field, replace

import jax
from jax import Array
from jaxtyping import Float

from jaxdrop.base.types import Rate
from jaxdrop.core.threshold import ALL_PAIRS, Threshold, known_threshold, traced_threshold


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GridRate:
    """A known rate that is rounded to the grid, or a traced rate that is not rounded yet.

    It is a pytree of a few scalars, so that all rates with the same number of digits
    share a program.

    Attributes:
      value: the threshold of a known rate, or the unchanged traced rate.
      pairs: how many pairs of binary digits its masks need.
      is_zero: whether the rate is known to be exactly 0. It is False for a rate that
        only rounds to 0, so that the rescale rule is still applied.
      is_one: whether it is known to be exactly 1.
    """

    value: Threshold | Float[Array, ""]
    pairs: int = field(metadata={"static": True})
    is_zero: bool = field(default=False, metadata={"static": True})
    is_one: bool = field(default=False, metadata={"static": True})

    def settle(self) -> "GridRate":
        """The same rate on the grid; for use under `jit`, where it is traced."""
        return replace(self, value=self.threshold)

    @property
    def threshold(self) -> Threshold:
        """The threshold for random numbers; it is computed here if the rate is traced."""
        return self.value if isinstance(self.value, Threshold) else traced_threshold(self.value)


def grid_rate(rate: Rate) -> GridRate:
    """Makes a `GridRate` from a checked rate."""
    if isinstance(rate, Array):
        return GridRate(rate, ALL_PAIRS)
    threshold, pairs = known_threshold(rate)
    return GridRate(threshold, pairs, is_zero=rate == 0, is_one=rate == 1)
