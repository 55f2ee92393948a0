"""What the fuzz has found, each at its smallest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

import jaxdrop
from jaxdrop.base.compat import varying_axes

pytestmark = pytest.mark.quick

MESH = Mesh(np.array(jax.devices()[:2]), ("device",))


@pytest.mark.parametrize("method", [jaxdrop.gaussian_dropout, jaxdrop.concrete_dropout])
def test_noise_on_an_empty_array_in_shard_map_has_a_gradient(method):
    def pulled(x):
        y, pull = jax.vjp(lambda x: method(jax.random.PRNGKey(0), x, 0.3), x)
        return pull(y)[0]

    spread = jax.shard_map(pulled, mesh=MESH, in_specs=P("device"), out_specs=P("device"))
    assert jax.eval_shape(spread, jnp.ones((2, 0))).shape == (2, 0)


def test_tokens_restored_from_none_vary_as_those_did():
    def restored(x):
        tokens, positions = jaxdrop.drop_tokens(jax.random.PRNGKey(0), x, 1.0)
        y = jaxdrop.restore_tokens(tokens, positions, 3)
        assert varying_axes(y) == {"device"}
        return y

    spread = jax.shard_map(restored, mesh=MESH, in_specs=P("device"), out_specs=P("device"))
    assert jax.eval_shape(spread, jnp.ones((2, 3, 4))).shape == (2, 3, 4)


def test_gradient_of_mixout_in_low_precision_is_rounded_once():
    params, pulled = jnp.ones(64, jnp.bfloat16), jnp.full(64, 3.75, jnp.bfloat16)

    def mixed(x):
        return jaxdrop.mixout(jax.random.PRNGKey(0), x, 0.3, target=jnp.zeros_like(x))

    (gradient,) = jax.vjp(mixed, params)[1](pulled)
    kept_exactly = jnp.bfloat16(3.75 / (1 - round(0.3 * 2**16) / 2**16))
    assert {0.0, float(kept_exactly)} == set(np.asarray(gradient, float).tolist())
