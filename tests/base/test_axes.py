"""What lies inside of an axis."""

import jax.numpy as jnp
import pytest
from modes import enable_x64

from jaxdrop.base.axes import lies_inside

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_integers_of_every_width_are_compared_with_the_size_itself(dtype):
    limits = jnp.iinfo(dtype)
    indices = jnp.array([0, 99, limits.max, limits.min], dtype)
    assert lies_inside(indices, 300).tolist() == [True, True, limits.max < 300, limits.min == 0]
    assert lies_inside(indices, 99).tolist() == [True, False, False, limits.min == 0]


def test_wide_integers_are_not_narrowed():
    with enable_x64():
        assert lies_inside(jnp.array([2**32 + 1, 1, -(2**32)]), 3).tolist() == [False, True, False]
