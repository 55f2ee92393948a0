"""What is known of a rate while tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.threshold import ALL_PAIRS, Threshold

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("rate", "is_zero", "is_one"),
    [(0.0, True, False), (1.0, False, True), (0.3, False, False), (1e-12, False, False)],
)
def test_known_rates_say_whether_they_are_zero_or_one(rate, is_zero, is_one):
    on_grid = grid_rate(rate)
    assert (on_grid.is_zero, on_grid.is_one) == (is_zero, is_one)
    assert isinstance(on_grid.value, Threshold)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_traced_rates_are_neither_and_need_all_digits(rate):
    on_grid = grid_rate(jnp.float32(rate))
    assert not on_grid.is_zero
    assert not on_grid.is_one
    assert on_grid.pairs == ALL_PAIRS


def test_flags_are_no_part_of_a_program():
    kinds = {jax.tree.structure(grid_rate(rate)) for rate in (0.0, 0.5, 1.0)}
    assert len(kinds) == 1


def test_settled_rate_is_computed_once():
    settled = grid_rate(jnp.float32(0.3)).settle()
    assert settled.threshold is settled.value
    assert settled.settle().value is settled.value


def test_rates_with_as_many_digits_share_a_program():
    traces = []

    @jax.jit
    def keep_prob(rate: GridRate):
        traces.append(rate.pairs)
        return rate.threshold.keep_prob

    for rate in (0.1, 0.2, 0.3):
        np.testing.assert_allclose(keep_prob(grid_rate(rate)), 1 - rate, atol=2**-17)
    keep_prob(grid_rate(0.5))
    assert traces == [8, 2]
