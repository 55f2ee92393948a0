"""Noise by its definition, in NumPy and double precision."""

import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, make_key
from reference.methods import Key

from jaxdrop.core.layout import Layout
from jaxdrop.core.noise import _SINE, multiply_by_noise, standard_logistic, standard_normal

pytestmark = pytest.mark.quick

WORDS = (7, 5)  # of the key
SHAPE = (40, 50)


def words():
    """Both words of each number, as integers of 64 bits."""
    return (word.astype(np.int64) for word in Key("raw", WORDS).pair(SHAPE))


def normal():
    first, second = words()
    u = (first + 0.5) / 2**32
    t = ((second + 2**31) % 2**32 - 2**31 + 0.5) / 2**31
    return np.sqrt(-2 * np.log(u)) * np.sin(np.pi / 2 * t)


def logistic():
    u = (next(words()) + 0.5) / 2**32
    return np.log(u) - np.log1p(-u)


@pytest.mark.parametrize(
    ("noise", "expected"), [(standard_normal, normal), (standard_logistic, logistic)]
)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_noise_is_its_formula_of_the_words_at_its_addresses(noise, expected, dtype, rtol):
    with enable_x64():
        drawn = noise(tuple(map(jnp.uint32, WORDS)), SHAPE, jnp.dtype(dtype), None)
    assert drawn.dtype == dtype
    np.testing.assert_allclose(drawn, expected(), rtol, atol=rtol)


def test_the_series_of_the_sine_is_exact_to_4e_14():
    # No more exact either: with another term, seeds would give other numbers of 64 bits.
    assert 4e-14 < sum(_SINE) - np.sin(np.pi / 2) < 4.5e-14


@pytest.mark.parametrize("learned", [False, True])
def test_a_factor_of_zero_hides_what_is_infinite_and_what_is_not_a_number(learned):
    def multiply(factor):
        x = jnp.array([jnp.inf, jnp.nan, -2], jnp.float16)
        layout = Layout(x.shape)
        return multiply_by_noise(
            make_key("raw"), x, layout, standard_normal, factor, jnp.float32(-1), learned=learned
        )

    y = multiply(lambda noise, parameter: jnp.zeros_like(noise) * parameter)
    assert y.dtype == jnp.float16
    np.testing.assert_array_equal(y, [0, 0, 0])
    y = multiply(lambda noise, parameter: jnp.ones_like(noise) * parameter)
    np.testing.assert_array_equal(y, [-jnp.inf, jnp.nan, 2])
