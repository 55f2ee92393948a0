"""What the fuzz has found, each at its smallest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

import jaxdrop


@pytest.mark.parametrize("method", [jaxdrop.gaussian_dropout, jaxdrop.concrete_dropout])
def test_noise_on_an_empty_array_in_shard_map_has_a_gradient(method):
    def pulled(x):
        y, pull = jax.vjp(lambda x: method(jax.random.PRNGKey(0), x, 0.3), x)
        return pull(y)[0]

    mesh = Mesh(np.array(jax.devices()[:2]), ("device",))
    spread = jax.shard_map(pulled, mesh=mesh, in_specs=P("device"), out_specs=P("device"))
    assert jax.eval_shape(spread, jnp.ones((2, 0))).shape == (2, 0)
