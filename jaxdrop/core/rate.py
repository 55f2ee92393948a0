"""A rate on its way to a mask: what is known of it while tracing, and what `jit` is given."""

from dataclasses import dataclass, field, replace

import jax
from jax import Array
from jaxtyping import Float

from jaxdrop.base.types import Rate
from jaxdrop.core.threshold import ALL_PAIRS, Threshold, known_threshold, traced_threshold


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GridRate:
    """A rate on the grid if it is known, or a traced one that is not there yet.

    A pytree of a few scalars, so that one program serves all rates with equally many digits.

    Attributes:
      value: the threshold of a known rate, or the traced rate as it came.
      pairs: how many pairs of binary digits its masks need.
      is_zero: whether the rate is known to be exactly 0. A rate that only rounds to 0 is
        not, so that its rescale rule is still asked.
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
        """What random numbers are compared with, computed here unless it is known."""
        return self.value if isinstance(self.value, Threshold) else traced_threshold(self.value)


def grid_rate(rate: Rate) -> GridRate:
    """A checked rate as methods hand it around."""
    if isinstance(rate, Array):
        return GridRate(rate, ALL_PAIRS)
    threshold, pairs = known_threshold(rate)
    return GridRate(threshold, pairs, is_zero=rate == 0, is_one=rate == 1)
