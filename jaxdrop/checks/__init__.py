"""Assertions that anybody can run on their own dropout.

Each takes a drop, which is any function `(key, x) -> y`, one key and an input. If the
drop is wrong, it raises an AssertionError that says what was seen. If the input or the
settings do not allow a decision, it raises a ValueError. The assertions run the drop,
so call them in tests and not under `jit`. They do not consume the key.

The statistical ones reject a correct drop with at most the probability
`false_alarm_rate`, whatever its distribution. They assume that y_i / x_i has the same
range at every element i. So the survivors at some elements tell how large survivors at
other elements can be.
"""

from jaxdrop.checks.exact import (
    assert_gradient_uses_same_mask,
    assert_key_determines_output,
    assert_same_under_jit,
    assert_shape_and_dtype_kept,
)
from jaxdrop.checks.statistical import (
    assert_expectation_kept,
    assert_keep_rate,
    assert_mask_shared_along,
    assert_masks_differ_along,
)

__all__ = [
    "assert_expectation_kept",
    "assert_gradient_uses_same_mask",
    "assert_keep_rate",
    "assert_key_determines_output",
    "assert_mask_shared_along",
    "assert_masks_differ_along",
    "assert_same_under_jit",
    "assert_shape_and_dtype_kept",
]


def __dir__() -> list[str]:
    return __all__
