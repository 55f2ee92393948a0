"""The grid of keep probabilities: from a rate to the binary digits that words are compared with.

A keep probability is a multiple of 2^-16. If this coarse grid would miss the rate or
the keep probability by more than 1 %, it is a multiple of 2^-32. Known and traced rates
go through the same arithmetic, so they give the same mask.
"""

from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, UInt32

from jaxdrop.base.compat import debug_check
from jaxdrop.base.nan import nan_unless

ALL_PAIRS = 16  # of the 32 binary digits
_ONES = 0xFFFFFFFF

# Half a step of the coarse grid. A traced rate may be outside of [0, 1] by this amount,
# because a schedule that ends at 0 may miss 0 by rounding.
_SLACK = 2.0**-17


class Threshold(NamedTuple):
    """An element is kept where a uniform number is below this keep probability.

    All are scalars, or all are arrays with a number for each element.

    Attributes:
      keep_prob: the keep probability on the grid; NaN for a bad traced rate.
      digits: its first 32 binary digits, the highest first.
      start: the result for a number that equals the keep probability: 0, or all ones
        if everything is kept.
    """

    keep_prob: Float[Array, "..."] | float
    digits: UInt32[Array, "..."] | np.uint32
    start: UInt32[Array, "..."] | np.uint32

    def probabilities(self, dtype: jnp.dtype) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The probabilities of keeping and of dropping, both exact near 0 too."""
        keep_prob = jnp.asarray(self.keep_prob, dtype)
        # This is 2^32 - digits, since uint32 wraps. `1 - keep_prob` would lose all digits near 0.
        units = jnp.uint32(0) - self.digits
        nothing = (self.digits == 0) & (self.start == 0)
        share = jnp.where(nothing, 1, units.astype(dtype) * 2.0**-32)
        drop_prob = jnp.where(self.start == 0, share, 0)
        return keep_prob, jnp.where(jnp.isnan(keep_prob), keep_prob, drop_prob)


@lru_cache(maxsize=1024)  # eager loops ask for the same few rates
def known_threshold(rate: float) -> tuple[Threshold, int]:
    """The threshold of a known rate, and how many pairs of its digits matter."""
    threshold = _known_from_units(rate, int(_grid_units(np.float64(rate), np)))
    return threshold, _pairs(int(threshold.digits), int(threshold.start))


def _known_from_units(rate: float, units: int) -> Threshold:
    # A keep probability of 1 does not fit into 32 digits: all are ones, and equality keeps too.
    if rate < 0.5:
        digits, start = ((2**32 - units) & _ONES, 0) if units else (_ONES, _ONES)
        return Threshold(1 - units / 2**32, np.uint32(digits), np.uint32(start))
    return Threshold(units / 2**32, np.uint32(units), np.uint32(0))


def traced_threshold(rate: Float[Array, "..."]) -> Threshold:
    """The threshold for a traced rate. If the rate is bad, its keep probability is NaN."""
    rate = checked_rate(rate)
    return _from_units(rate, _grid_units(jnp.where(jnp.isnan(rate), 0, rate), jnp))


def fine_threshold(rate: float | Float[Array, "..."]) -> Threshold:
    """The threshold on the fine grid for a rate in [0, 1], or a traced NaN."""
    if not isinstance(rate, Array):
        return _known_from_units(rate, round(min(rate, 1 - rate) * 2**32))
    near = jnp.minimum(rate, 1 - rate)
    units = jnp.rint(jnp.where(jnp.isnan(near), 0, near) * 2.0**32)
    return _from_units(rate, units.astype(jnp.uint32))


def checked_rate(rate: Float[Array, "..."]) -> Float[Array, "..."]:
    """A traced rate without its gradient, clipped to [0, 1]; NaN if it is bad."""
    rate = lax.stop_gradient(rate)
    if jnp.finfo(rate.dtype).bits < 32:
        rate = rate.astype(jnp.float32)
    valid = (rate >= -_SLACK) & (rate <= 1 + _SLACK)
    debug_check(
        valid.all() if valid.ndim else valid, "rate must lie in [0, 1]; got {rate}", rate=rate
    )
    return nan_unless(valid, jnp.clip(rate, 0, 1))


def _from_units(rate: Float[Array, "..."], units: UInt32[Array, "..."]) -> Threshold:
    """The threshold for the smaller of a rate and its complement, in units of 2^-32."""
    valid = ~jnp.isnan(rate)
    share = units.astype(jnp.result_type(float)) * 2.0**-32
    is_drop_share = rate < 0.5
    # If the rate is bad, all elements are kept, so that the NaN of `keep_prob` reaches
    # every element.
    all_kept = (is_drop_share & (units == 0)) | ~valid
    ones = jnp.uint32(_ONES)
    return Threshold(
        jnp.where(valid, jnp.where(is_drop_share, 1 - share, share), rate.astype(share.dtype)),
        jnp.where(all_kept, ones, jnp.where(is_drop_share, jnp.uint32(0) - units, units)),
        jnp.where(all_kept, ones, jnp.uint32(0)),
    )


def _grid_units(rate: Any, xp: ModuleType) -> Any:
    """The smaller of the rate and its complement, in units of 2^-32.

    The choice of the grid is made in float32, so that known and traced rates agree. If
    float32 misses the rate by more than 0.1 %, as for a float64 rate near 1, it is the
    fine grid.
    """
    single = rate.astype(xp.float32)
    near, exact = xp.minimum(single, 1 - single), xp.minimum(rate, 1 - rate)
    coarse = xp.rint(near * 2.0**16)
    # The coarse grid may miss the rate by 1 %.
    suffices = abs(coarse * 2.0**-16 - near) <= 0.01 * near
    faithful = abs(near.astype(rate.dtype) - exact) <= 0.001 * exact
    fine = xp.rint(exact * 2.0**32)
    units = xp.where(suffices & faithful, (coarse * 2.0**16).astype(rate.dtype), fine)
    return units.astype(xp.uint32)


def _pairs(digits: int, start: int) -> int:
    """The number of pairs of digits without trailing zeros, which do not matter.

    It is rounded up to one of four counts, so that changing rates cost at most four
    compilations. It is at least 2, since XLA inlines a loop of one trip and then draws
    the words again for each element.
    """
    if start or not digits:
        return 2
    trailing_zeros = (digits & -digits).bit_length() - 1
    needed = (33 - trailing_zeros) // 2
    return next(pairs for pairs in (2, 4, 8, ALL_PAIRS) if pairs >= needed)
