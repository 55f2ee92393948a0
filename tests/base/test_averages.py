"""Averages that are exact where all values agree."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrop.base.averages import centred_mean

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("value", [0.1, -3e38, 1e-30, jnp.inf, -jnp.inf, jnp.nan])
def test_mean_of_equal_values_is_that_value(value):
    x = jnp.full((3, 2), value, jnp.float32)
    np.testing.assert_array_equal(centred_mean(x, lambda x: (x / 3).sum(0)), x[0])


def test_mean_is_along_the_first_axis():
    x = jnp.array([[1.0, 2.0, jnp.inf], [3.0, -4.0, 0.0]])
    np.testing.assert_array_equal(centred_mean(x), [2, -1, jnp.inf])


def test_second_pass_takes_what_the_first_one_lost():
    x = jnp.array([8.0, 16.0])
    rough = jnp.array([1.0, 0.5])  # of what each pass finds
    assert centred_mean(x, lambda x: (x * rough).sum() / 2) == 8 + 2
