"""Which functions use up the key that they get: the key reuse checker of JAX must see it."""

import contextlib
import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from good_calls import DROP, GOOD, ROW, call, function_named, public_functions
from jax.errors import KeyReuseError
from modes import KEY_IMPLEMENTATIONS, make_key
from table.methods import RECORDS

import jaxdrop
from jaxdrop import plant, site

Q = jnp.ones((1, 2, 1, 4))


def marked(x):
    return site(x, "h")


# What a function returns that takes a key.
MADE = {
    "chain": jaxdrop.chain(DROP),
    "monte_carlo": jaxdrop.monte_carlo(DROP, 2),
    "monte_carlo_moments": jaxdrop.monte_carlo_moments(DROP, 2),
    "multi_sample": jaxdrop.multi_sample(DROP, 2),
    "per_leaf": jaxdrop.per_leaf(DROP),
    "per_sample": jaxdrop.per_sample(DROP),
    "plant": plant(marked, {"h": DROP}),
    "plant without rules": plant(marked, {}),
    "scheduled": lambda key, x: jaxdrop.scheduled(jaxdrop.dropout, lambda step: 0.5)(key, x, 3),
    "two_views": jaxdrop.two_views(DROP),
}
CALLS = {name: lambda key, made=made: made(key, ROW) for name, made in MADE.items()}
CALLS |= {
    name: lambda key, name=name: call(name, GOOD[name] | {"key": key})
    for name in GOOD
    if "key" in GOOD[name]
}
CALLS["dot_product_attention"] = lambda key: jaxdrop.dot_product_attention(key, Q, Q, Q, 0.5)
CHECKS = {name for name in CALLS if name.startswith("checks.")}
USERS = sorted(CALLS.keys() - CHECKS - {"site_key"})


def takes_key(name):
    """What the docstring of a function says of its key, or of that of what it returns."""
    text = inspect.getdoc(function_named(name))
    return re.search(r"^  (?:key|rng): .*|function `\(key", text, re.M)


def test_every_function_that_takes_a_key_is_called():
    named = {name for name in public_functions() if takes_key(name)}
    assert named <= CALLS.keys() | {"complementary_views"}
    for name in named & set(USERS) - MADE.keys():
        assert "one random key, consumed here" in takes_key(name)[0], name
    assert "not consumed" in takes_key("site_key")[0]


@pytest.mark.parametrize("name", USERS)
def test_key_is_consumed(name):
    key = make_key("threefry2x32")
    CALLS[name](key)
    with pytest.raises(KeyReuseError):
        CALLS[name](key)
    assert_traced_key_is_consumed(CALLS[name])


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_traced_key_is_consumed(record):
    assert_traced_key_is_consumed(lambda key: record.run(key, jnp.ones(record.shape), 0.3))


def assert_traced_key_is_consumed(run):
    """Tracing alone finds out, so nothing is compiled."""

    def twice(key):
        return run(key), run(key)

    jax.jit(run).trace(make_key("threefry2x32"))
    with pytest.raises(KeyReuseError):
        jax.jit(twice).trace(make_key("threefry2x32"))


@pytest.mark.quick
@pytest.mark.parametrize("implementation", [k for k in KEY_IMPLEMENTATIONS if k != "raw"])
def test_key_of_every_implementation_is_consumed(implementation):
    key = make_key(implementation)
    DROP(key, ROW)
    with pytest.raises(KeyReuseError):
        DROP(key, ROW)


def test_several_assertions_and_site_keys_may_take_one_key():
    key = make_key("threefry2x32")
    for name in sorted(CHECKS):
        with contextlib.suppress(AssertionError, ValueError):  # what they find does not matter
            CALLS[name](key)
    jaxdrop.site_key(key, "h")
    DROP(key, ROW)
