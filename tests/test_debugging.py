"""Debugging tools of JAX: they stop at what is wrong in the user's numbers, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from modes import assert_check_failed
from table.methods import METHODS

import jaxdrop
from jaxdrop.uncertainty import interval_score

ONES = jnp.ones((1, 3, 1, 4))  # queries, keys and values of attention


def bodies(jaxpr):
    """A jaxpr and all that are inside its equations."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for body in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(body):
                yield from bodies(body if isinstance(body, Jaxpr) else body.jaxpr)


def is_jaxpr(value):
    return isinstance(value, Jaxpr | ClosedJaxpr)


def literals(jaxpr):
    for body in bodies(jaxpr):
        for eqn in body.eqns:
            yield from (x.val for x in eqn.invars if isinstance(x, Literal))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_no_method_has_a_constant_nan(method, key):
    rate = jnp.float32(0.3) if method.takes_traced_rate else 0.3
    program = jax.make_jaxpr(lambda *args: method.run(*args, rate))(key, jnp.ones(method.small))
    assert not any(np.isnan(constant).any() for constant in literals(program.jaxpr))


def test_eager_operations_of_attention_make_no_infinity(key):
    with jax.disable_jit(), jax.debug_infs(True):
        options = {"is_causal": True, "implementation": "whole"}
        assert jnp.isfinite(jaxdrop.dot_product_attention(key, *[ONES] * 3, 0.0, **options)).all()


def test_eager_operations_stop_at_a_bad_rate(key):
    with jax.disable_jit(), jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        jaxdrop.alpha_dropout(key, ONES, jnp.float32(1.5))


def left_out_and_put_back(key, x):
    return jaxdrop.restore_tokens(*jaxdrop.drop_tokens(key, x, 0.5), x.shape[0])


def without_a_key(key, x):
    return jaxdrop.drop_key(key, x, 0.9, where=jnp.zeros(x.shape, bool))


@pytest.mark.parametrize("function", [left_out_and_put_back, without_a_key])
def test_no_index_is_out_of_bounds(function, key):
    error, _ = checkify.checkify(function, errors=checkify.index_checks)(key, jnp.ones((8, 2)))
    error.throw()


X = jnp.ones((2, 3))
# What takes a rate, and is no method or has no key.
OF_RATES = {
    "drop_block_gamma": lambda rate: jaxdrop.drop_block_gamma(rate, (4,), 2),
    "drop_block_gamma of the paper": lambda rate: jaxdrop.drop_block_gamma(
        rate, (4,), 2, exact=False
    ),
    "drop_path_rates": lambda rate: jaxdrop.drop_path_rates(rate, 3),
    "inference_scale": lambda rate: jaxdrop.rescale.inference_scale(X, rate),
    "shake_drop": lambda rate: jaxdrop.shake_drop(None, X, rate),
    "zoneout": lambda rate: jaxdrop.zoneout(None, X, rate, old=X),
    "interval_score": lambda rate: interval_score(X, X, X, alpha=rate),
}


def test_bad_traced_rates_of_what_is_no_method_give_nan_and_fail_under_checkify():
    checked = jax.jit(
        lambda rate: {name: checkify.checkify(run)(rate) for name, run in OF_RATES.items()}
    )
    for rate in (-0.1, 1.5, jnp.nan):
        for name, (error, found) in checked(jnp.float32(rate)).items():
            assert jnp.isnan(found).all(), name
            if name != "interval_score":  # whose docstring promises NaN alone
                assert_check_failed(error, r"rate must lie in \[0, 1\]; got")
    for name, (error, found) in checked(jnp.float32(1)).items():
        error.throw()
        assert not jnp.isnan(found).any(), name
