"""A mark leaves nothing behind where nobody plants."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from programs import ROWS, RULES, X

from jaxdrop import plant, site

pytestmark = pytest.mark.quick


def model_with(mark):
    """The same model, with its values marked or not."""

    def model(x):
        def step(carry, row):
            carry = mark(jnp.tanh(carry + row), "state")
            return carry, mark({"y": carry * 2}, "output")["y"]

        x = mark(jax.jit(lambda x: mark(x, "in a jit") * 2)(x), "s")
        carry, ys = lax.scan(jax.checkpoint(step), x, ROWS)
        return (carry * ys.sum(0)).sum()

    return model


VARIANTS = {
    "value": lambda f: f,
    "grad": jax.grad,
    "checkpoint": jax.checkpoint,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x])),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}
marked, unmarked = model_with(site), model_with(lambda x, _: x)


def jaxpr_of(model):
    return str(jax.make_jaxpr(model)(X))


def hlo_of(model):
    """The compiled program, without what says where it came from."""

    def program(x):
        return model(x)

    text = jax.jit(program).lower(X).compile().as_text()
    return re.sub(
        r", metadata=\{[^}]*\}|(?<=\n)(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*",
        "",
        text,
    )


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_unplanted_mark_is_not_in_the_jaxpr_nor_in_the_program(variant):
    assert jaxpr_of(variant(marked)) == jaxpr_of(variant(unmarked))
    assert hlo_of(variant(marked)) == hlo_of(variant(unmarked))


def test_planting_before_or_after_changes_nothing_for_the_unplanted():
    planted_first, planted_last = model_with(site), jax.jit(model_with(site))
    rules = {"s": RULES["s"]}
    before = planted_last(X)
    jax.jit(plant(planted_first, rules))(jax.random.key(0), X)
    plant(planted_last, rules)(jax.random.key(0), X)
    assert jaxpr_of(planted_first) == jaxpr_of(unmarked)
    assert "jaxdrop" not in jaxpr_of(planted_last)
    assert planted_last(X) == before


def test_cached_jit_is_planted_and_unplanted_in_turns():
    inner = jax.jit(lambda x: site(x, "s"))
    planted = plant(lambda x: inner(x), RULES)
    for _ in range(2):
        assert bool(jnp.all(inner(jnp.ones(64)) == 1))
        assert bool(jnp.any(planted(jax.random.key(0), jnp.ones(64)) == 0))


def test_sites_without_a_rule_lower_to_nothing():
    rules = {"in a jit": RULES["s"]}
    text = jax.jit(plant(marked, rules)).lower(jax.random.key(0), X).as_text()
    assert "jaxdrop" not in text


def test_site_returns_the_very_object():
    tree = {"a": X, "b": [1, "text", None]}
    assert site(tree, "s") is tree


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [(3, TypeError, "site: name must be a string; got 3"), ("", ValueError, "must not be empty")],
)
def test_site_rejects_bad_names(name, error, match):
    with pytest.raises(error, match=match):
        site(X, name)


def test_cotangent_that_all_examples_share_gets_the_mask_of_each():
    def marked(x):
        return site(x, "s")

    rows = jnp.ones((3, *X.shape))
    forward, gradient = (
        plant(jax.vmap(f), RULES)(jax.random.key(0), rows)
        for f in (marked, jax.grad(lambda x: marked(x).sum()))
    )
    np.testing.assert_array_equal(gradient, forward)
    assert len({row.tobytes() for row in np.asarray(forward)}) > 1
