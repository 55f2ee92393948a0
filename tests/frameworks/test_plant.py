"""`plant` and modules of nnx, which change when they are called: nothing is lost in silence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdrop
from jaxdrop import Rule, dropout, match, site
from jaxdrop.frameworks.nnx import Drop, plant

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(site(self.linear(x), "hidden"))


RULES = {"hidden": partial(dropout, rate=0.5)}
KEEP = {"hidden": lambda key, x: x}


def call(net, x):
    return net(x)


def statistics(net):
    return np.stack([net.norm.mean[...], net.norm.var[...]])


def test_statistics_are_those_of_the_model_that_is_called():
    plain, planted = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    expected = plain(X)
    y = plant(call, KEEP)(jax.random.key(0), planted, X)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(statistics(planted), statistics(plain), rtol=1e-6)
    assert not np.array_equal(statistics(planted), statistics(Net(nnx.Rngs(0))))


@pytest.mark.parametrize("jit", [False, True])
def test_statistics_see_what_is_dropped(jit):
    net = Net(nnx.Rngs(0))
    train = plant(call, RULES)
    (nnx.jit(train) if jit else train)(jax.random.key(0), net, X)
    key = jaxdrop.site_key(jax.random.key(0), "hidden")
    mean = dropout(key, net.linear(X), 0.5).mean(0)
    np.testing.assert_allclose(net.norm.mean[...], 0.01 * mean, rtol=1e-4, atol=1e-8)


def test_a_training_step_of_nnx_updates_all():
    net = Net(nnx.Rngs(0))
    train = plant(call, RULES)

    @nnx.jit
    def step(net, key):
        def loss(net):
            return jnp.mean((train(key, net, X) - X[:, ::-1]) ** 2)

        value, slopes = nnx.value_and_grad(loss)(net)
        nnx.update(net, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(net, nnx.Param), slopes))
        return value

    before = statistics(net)
    losses = [float(step(net, key)) for key in jax.random.split(jax.random.key(0), 30)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert not np.array_equal(statistics(net), before)


def test_streams_of_keys_go_on():
    layer = Drop(partial(dropout, rate=0.5), rngs=nnx.Rngs(0))
    net = nnx.Sequential(Net(nnx.Rngs(0)), layer)
    train = plant(call, KEEP)
    first, second = (train(jax.random.key(0), net, X) for _ in range(2))
    assert not np.array_equal(first == 0, second == 0)


@pytest.mark.parametrize("change", ["adds", "removes"])
def test_variables_must_stay(change):
    class Changing(Net):
        def __call__(self, x):
            y = super().__call__(x)
            if change == "adds":
                self.added = nnx.Variable(x)
            else:
                del self.norm.mean
            return y

    with pytest.raises(ValueError, match="plant: fn must not add or remove variables"):
        plant(call, RULES)(jax.random.key(0), Changing(nnx.Rngs(0)), X)


def test_wrong_rules_are_refused_at_once():
    with pytest.raises(TypeError, match="plant: "):
        plant(call, {"hidden": 0.5})


@pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit])
def test_plain_plant_refuses_to_lose_statistics(wrap):
    train = wrap(jaxdrop.plant(call, RULES))
    message = r"plant: fn must not change its arguments, .* it changed argument 0\.norm\.mean"
    with pytest.raises(ValueError, match=message):
        train(jax.random.key(0), Net(nnx.Rngs(0)), X)
    net = Net(nnx.Rngs(0))
    net.eval()  # now nothing changes
    assert train(jax.random.key(0), net, X).shape == X.shape


def test_plain_plant_refuses_changes_in_other_objects():
    def model(state, x, *, seen):
        h = site(x, "hidden")
        if "added" in seen:
            seen["added"] = h
        elif "new" in seen:
            state["new"] = h
        else:
            state.clear()
        return h

    run = partial(jaxdrop.plant(model, RULES), jax.random.key(0))
    with jax.debug_key_reuse(False):
        for seen, name in (
            ({"added": X}, r"seen\['added'\]"),
            ({"new": X}, r"argument 0\['new'\]"),
            ({}, r"argument 0\['h'\]"),
        ):
            with pytest.raises(ValueError, match=f"it changed {name}. Return the new value"):
                run({"h": X}, X, seen=seen)


def test_a_pytree_that_is_made_anew_each_time_is_no_change():
    @jax.tree_util.register_pytree_node_class
    class Doubled:
        def __init__(self, x):
            self.x = x

        def tree_flatten(self):
            return [2 * self.x], None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(leaves[0] / 2)

    run = jaxdrop.plant(lambda pair: site(pair.x, "hidden"), {"hidden": Rule(lambda key, x: x)})
    np.testing.assert_array_equal(run(jax.random.key(0), Doubled(X)), X)


def test_sites_lists_a_model_that_changes():
    table = jaxdrop.sites(call, Net(nnx.Rngs(0)), X, rules={match.site("hidden"): RULES["hidden"]})
    assert [row.site for row in table] == ["hidden"]
