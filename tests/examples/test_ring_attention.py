"""A ring of devices computes the attention of one device, with its masks and its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import make_key
from scripts import EXAMPLES, load

from jaxdrop import dot_product_attention

OPTIONS = {"is_causal": True, "local_window_size": 40, "rate": 0.3}


@pytest.fixture(scope="module")
def ring():
    return load(EXAMPLES / "ring_attention.py")


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=(2, 64, 2, 4)), jnp.float32) for _ in range(3)]


@pytest.fixture(scope="module")
def expected(ring, arrays):
    call = partial(dot_product_attention, implementation="whole", **OPTIONS)
    return jax.jit(partial(ring.value_and_grads, call))(make_key("threefry2x32"), *arrays)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_ring_of_any_size_computes_what_one_device_does(ring, arrays, expected, devices):
    attend = partial(ring.value_and_grads, ring.split_over(devices, **OPTIONS))
    found = jax.jit(attend)(make_key("threefry2x32"), *arrays)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_what_is_merged_does_not_depend_on_the_order_and_may_see_nothing(ring):
    random = np.random.default_rng(0)
    outs = jnp.asarray(random.normal(size=(3, 4, 2)), jnp.float32)
    residuals = jnp.asarray([[0.0, 800, -800, -np.inf], [1, 0, -800, -np.inf], [2, 0, 0, -np.inf]])

    def mean(order):
        sums = jnp.zeros((4, 2)), jnp.zeros(4), jnp.full(4, -jnp.inf)
        for i in order:
            sums = ring.added(sums, outs[i], residuals[i])
        return sums[0] / jnp.where(sums[1] == 0, 1, sums[1])[:, None]

    highest = jnp.max(residuals, 0, keepdims=True, where=residuals > -1e9, initial=-1e9)
    weights = jnp.exp(residuals - highest)
    expected = (weights[..., None] * outs).sum(0) / jnp.maximum(weights.sum(0), 1e-9)[:, None]
    for order in ([0, 1, 2], [2, 0, 1]):
        np.testing.assert_allclose(mean(order), expected, rtol=1e-5)
    np.testing.assert_array_equal(mean([0])[3], 0)
