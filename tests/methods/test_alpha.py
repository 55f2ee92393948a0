"""Exact laws of alpha dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import keep_prob_of, one_of_each, probabilities
from modes import enable_x64, make_key
from reference import masks as reference

from jaxdrop import alpha_dropout, draw_mask

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_alpha_dropout_keeps_mean_zero_and_variance_one(rate):
    with enable_x64():
        x = jnp.array([-1.0, 1.0])  # mean 0 and variance 1
        keys = jax.random.split(jax.random.PRNGKey(0), 256)
        kept = jax.vmap(lambda key: draw_mask(key, 2, rate).unpack())(keys)
        outputs = np.asarray(jax.vmap(lambda key: alpha_dropout(key, x, rate))(keys))
        masks, values = one_of_each(np.asarray(kept), outputs, 4)
        weights = probabilities(masks, keep_prob_of(rate))
    mean = weights @ values.mean(1)
    second = weights @ (values**2).mean(1)
    np.testing.assert_allclose([mean, second - mean**2], [0, 1], atol=1e-12)


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_alpha_dropout_is_its_formula(rate):
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # of SELU
    limit, keep = -scale * alpha, reference.mask((0, 0), (5, 7), rate)
    q = reference.keep_prob(rate)
    a = (q + limit**2 * q * (1 - q)) ** -0.5
    with enable_x64():
        x = jnp.linspace(-2, 3, 35).reshape(5, 7)
        y = alpha_dropout(make_key("raw"), x, rate)
        expected = a * np.where(keep, x, limit) - a * (1 - q) * limit
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_alpha_dropout_drops_whole_features_to_one_value():
    y = alpha_dropout(make_key("raw"), jnp.ones((4, 5, 5, 8)), 0.4, broadcast_dims=(1, 2))
    assert jnp.all(y == y[:, :1, :1])
    assert len(np.unique(y)) == 2


def test_alpha_dropout_uses_the_mask_of_draw_mask():
    x = jnp.ones((5, 7))
    kept = draw_mask(make_key("raw"), x.shape, 0.4).unpack()
    y = alpha_dropout(make_key("raw"), x, 0.4)
    assert len(np.unique(y[kept])) == len(np.unique(y[~kept])) == 1


def test_alpha_dropout_is_real():
    with pytest.raises(TypeError, match=r"^alpha_dropout: x must be real; got complex64\.$"):
        alpha_dropout(make_key("raw"), jnp.ones(3, jnp.complex64), 0.5)
