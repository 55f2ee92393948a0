"""Counting flags, by the sum that it stands for."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrop.core.apply import count_flags


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 255), (1,)),
        ((3, 256), (1,)),
        ((65536, 2), (0,)),
        ((4, 300, 5), (0, 1, 2)),
        ((0, 3), (0,)),
        ((3,), ()),
    ],
)
def test_counts_are_exact_at_the_bounds_of_narrow_types(shape, axes):
    counted = count_flags(jnp.ones(shape, bool), axes)
    assert counted.dtype == jnp.uint32
    np.testing.assert_array_equal(counted, np.ones(shape, bool).sum(axes, keepdims=True))
