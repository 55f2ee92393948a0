"""`Drop` in the place of each framework's dropout layer: its keys, its conventions, any method.

What the frameworks' own tests of dropout state is stated here more sharply: a mask is compared
with the mask of the key, and not by the number of zeros.
"""

from functools import partial

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import jaxdrop
from jaxdrop import chain, drop_tokens, dropout, per_sample, shake_drop, zoneout
from jaxdrop.frameworks import equinox, haiku, linen, nnx as nnx_layers

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32))
OLD = X[::-1]
FRAMEWORKS = ["linen", "nnx", "equinox", "haiku"]
in_every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def bernoulli_drop(key, x):
    """What the frameworks do, as a drop."""
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)


def layer_of(framework, drop, **options):
    """A layer as a function of a key and arguments; without a key it is test time."""
    if framework == "linen":
        layer = linen.Drop(drop, **options)
        return lambda key, *args, **more: layer.apply(
            {}, *args, key is None, rngs={} if key is None else {"dropout": key}, **more
        )
    if framework == "nnx":
        layer = nnx_layers.Drop(drop, **options)
        return lambda key, *args, **more: layer(
            *args,
            deterministic=key is None,
            rngs=None if key is None else nnx.Rngs(dropout=key),
            **more,
        )
    if framework == "equinox":
        layer = equinox.Drop(drop, **options)
        return lambda key, *args, **more: layer(*args, key=key, inference=key is None, **more)
    return lambda key, *args, **more: hk.transform(
        lambda: haiku.Drop(drop, **options)(*args, key is not None, **more)
    ).apply({}, key)


def key_of(framework, key):
    """The key that the layer above draws with."""
    keys = []
    layer_of(framework, lambda key, x: keys.append(key) or x)(jax.random.clone(key), X)
    return jax.random.clone(keys[0])


# Two layers of dropout in each framework, its own and ours with the same function.


class LinenNet(nn.Module):
    make: type

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = self.make()(nn.Dense(8)(x))
        return x


class NNXNet(nnx.Module):
    def __init__(self, make, rngs):
        self.linear = nnx.Linear(8, 8, rngs=rngs)
        self.drops = nnx.List([make(rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        for drop in self.drops:
            x = drop(self.linear(x))
        return x


def linen_net(ours):
    make = partial(linen.Drop, bernoulli_drop) if ours else partial(nn.Dropout, 0.5)
    net = LinenNet(partial(make, deterministic=False))
    params = net.init(jax.random.key(1), X)
    return net.apply(params, X, rngs={"dropout": jax.random.key(2)})


def nnx_net(ours):
    make = partial(nnx_layers.Drop, bernoulli_drop) if ours else partial(nnx.Dropout, 0.5)
    net = NNXNet(make, nnx.Rngs(params=1, dropout=2))
    return jnp.stack([net(X), net(X)])  # the stream goes on


def equinox_net(ours):
    layer = equinox.Drop(bernoulli_drop) if ours else eqx.nn.Dropout(0.5)
    net = eqx.nn.Sequential([eqx.nn.Linear(8, 8, key=jax.random.key(1)), layer, layer])
    keys = jax.random.split(jax.random.key(2), 6)
    return jax.vmap(lambda x, key: net(x, key=key))(X[0], keys)


def haiku_net(ours):
    def net(x):
        for _ in range(2):
            x = hk.Linear(8)(x)
            if ours:
                x = haiku.Drop(bernoulli_drop)(x, is_training=True)
            else:
                x = hk.dropout(hk.next_rng_key(), 0.5, x)
        return x

    net = hk.transform(net)
    params = net.init(jax.random.key(1), X)
    return net.apply(params, jax.random.key(2), X)


@pytest.mark.parametrize("net", [linen_net, nnx_net, equinox_net, haiku_net])
def test_keys_are_those_of_the_layer_that_is_replaced(net):
    with jax.debug_key_reuse(False), jax.numpy_dtype_promotion("standard"):
        np.testing.assert_array_equal(net(ours=True), net(ours=False))


METHODS = {
    "dropout": (partial(dropout, rate=0.5), {}),
    "drop_path": (partial(jaxdrop.drop_path, rate=0.5), {}),
    "gaussian_dropout": (partial(jaxdrop.gaussian_dropout, rate=0.5), {}),
    "drop_connect": (partial(jaxdrop.drop_connect, rate=0.5), {}),
    "mixout": (partial(jaxdrop.mixout, rate=0.5), {"target": OLD}),
    "drop_condition": (partial(jaxdrop.drop_condition, rate=0.5, null=0.0), {}),
    "cutout": (partial(jaxdrop.cutout, size=2), {}),
    "concrete_dropout": (jaxdrop.concrete_dropout, {"rate_logit": 0.0}),
    "scheduled": (jaxdrop.scheduled(dropout, lambda step: 0.1 * step), {"step": 5}),
    "chain": (chain(partial(dropout, rate=0.5), partial(dropout, rate=0.25)), {}),
    "zoneout": (partial(zoneout, rate=0.5), {"old": OLD}),
    "shake_drop": (partial(shake_drop, rate=0.5), {}),
    "drop_tokens": (partial(drop_tokens, rate=0.5), {}),
}
AT_TEST = {
    "zoneout": (X + OLD) / 2,
    "shake_drop": X / 2,
    "drop_tokens": (X, jnp.tile(jnp.arange(6), (4, 1))),
}


@in_every_framework
@pytest.mark.parametrize("name", METHODS)
def test_any_method_drops_with_the_key_and_keeps_its_law_at_test_time(framework, name):
    drop, arguments = METHODS[name]
    layer, key = layer_of(framework, drop), jax.random.key(3)
    drop_key = key_of(framework, key)
    jax.tree.map(
        np.testing.assert_array_equal,
        layer(key, X, **arguments),
        drop(drop_key, X, **arguments),
    )
    jax.tree.map(np.testing.assert_array_equal, layer(None, X, **arguments), AT_TEST.get(name, X))


@in_every_framework
def test_at_test_says_what_other_drops_give_at_test_time(framework):
    both = chain(partial(shake_drop, rate=0.5), partial(dropout, rate=0.5))
    layer = layer_of(framework, both, at_test=lambda x: x / 2)
    np.testing.assert_array_equal(layer(None, X), X / 2)
    assert layer(jax.random.key(0), X).shape == X.shape


@in_every_framework
@pytest.mark.parametrize(
    "drop",
    [
        chain(partial(dropout, rate=0.5), partial(shake_drop, rate=0.5)),
        per_sample(partial(shake_drop, rate=0.5, batch_axis=None)),
    ],
)
def test_methods_without_identity_inside_of_others_need_at_test(framework, drop):
    message = "Drop: at_test must be a function of x, since shake_drop inside of another drop"
    with pytest.raises(ValueError, match=message):
        layer_of(framework, drop)(None, X)


@in_every_framework
def test_what_is_no_function_is_refused(framework):
    with pytest.raises(TypeError, match=r"Drop: drop must be a function of \(key, x\); got 0\.5"):
        layer_of(framework, 0.5)(None, X)
    with pytest.raises(TypeError, match="Drop: at_test must be a function of x; got 0"):
        layer_of(framework, partial(dropout, rate=0.5), at_test=0)(None, X)


@in_every_framework
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_gradients_are_those_of_the_method_also_at_rate_one(framework, rate):
    layer, key = layer_of(framework, partial(dropout, rate=rate)), jax.random.key(0)
    y, slope = jax.value_and_grad(lambda x: layer(key, x).sum())(X)
    expected = dropout(key_of(framework, key), jnp.ones_like(X), rate)
    np.testing.assert_array_equal(slope, expected)
    assert jnp.isfinite(y)


@pytest.mark.parametrize("rate", [0, 0.0])
def test_a_rate_known_to_be_zero_needs_no_key(rate):
    drop = partial(dropout, rate=rate)
    assert linen.Drop(drop, deterministic=False).apply({}, X) is X
    assert nnx_layers.Drop(drop)(X) is X
    assert equinox.Drop(drop)(X) is X
    assert hk.transform(lambda: haiku.Drop(drop)(X, is_training=True)).apply({}, None) is X


@in_every_framework
def test_at_test_is_for_test_time_alone_also_at_a_rate_of_zero(framework):
    for drop, arguments in (
        (partial(dropout, rate=0), {}),
        (partial(zoneout, rate=0.0), {"old": OLD}),
    ):
        layer = layer_of(framework, drop, at_test=lambda x, **_: -x)
        np.testing.assert_array_equal(layer(jax.random.key(0), X, **arguments), X)
        np.testing.assert_array_equal(layer(None, X, **arguments), -X)


# What each framework alone has.


def test_linen_takes_a_key_by_hand_and_from_another_collection():
    layer, key = linen.Drop(bernoulli_drop), jax.random.key(5)
    with jax.debug_key_reuse(False):
        by_hand = layer.apply({}, X, deterministic=False, rng=key)
        np.testing.assert_array_equal(by_hand, bernoulli_drop(key, X))
        other = linen.Drop(bernoulli_drop, rng_collection="other", deterministic=False)
        own = nn.Dropout(0.5, rng_collection="other", deterministic=False)
        rngs = {"other": key}
        np.testing.assert_array_equal(other.apply({}, X, rngs=rngs), own.apply({}, X, rngs=rngs))


def test_linen_must_be_told_whether_to_drop_and_needs_a_key():
    layer = linen.Drop(partial(dropout, rate=0.5))
    with pytest.raises(ValueError, match="deterministic"):
        layer.apply({}, X, rngs={"dropout": jax.random.key(0)})
    with pytest.raises(Exception, match="dropout"):
        layer.apply({}, X, deterministic=False)


def test_nnx_takes_keys_from_the_call_before_its_own():
    layer, key = nnx_layers.Drop(bernoulli_drop, rngs=nnx.Rngs(dropout=1)), jax.random.key(5)
    with jax.debug_key_reuse(False):
        expected = bernoulli_drop(nnx.Rngs(dropout=key).dropout(), X)
        for rngs in (nnx.Rngs(dropout=key), nnx.Rngs(dropout=key).dropout):
            np.testing.assert_array_equal(layer(X, rngs=rngs), expected)
        np.testing.assert_array_equal(layer(X, rngs=key), bernoulli_drop(key, X))
        from_stream = nnx_layers.Drop(bernoulli_drop, rngs=nnx.Rngs(dropout=1).dropout)
        np.testing.assert_array_equal(layer(X), from_stream(X))


def test_nnx_takes_keys_from_the_stream_that_is_named():
    rngs = nnx.Rngs(dropout=1, other=2)
    options = {"rng_collection": "other"}
    with jax.debug_key_reuse(False):
        expected = bernoulli_drop(nnx.Rngs(other=2).other.fork()(), X)
        made = nnx_layers.Drop(bernoulli_drop, rngs=rngs, **options)
        np.testing.assert_array_equal(made(X), expected)
        called = nnx_layers.Drop(bernoulli_drop, **options)
        expected = bernoulli_drop(nnx.Rngs(other=2).other(), X)
        np.testing.assert_array_equal(called(X, rngs=nnx.Rngs(dropout=1, other=2)), expected)


def test_nnx_layer_is_told_by_a_view_whether_to_drop():
    layer = nnx_layers.Drop(bernoulli_drop, rngs=nnx.Rngs(dropout=1))
    layer.set_view(deterministic=True)
    layer.set_view()
    np.testing.assert_array_equal(layer(X), X)
    layer.set_view(deterministic=False)
    assert not np.array_equal(layer(X), X)


def test_nnx_has_modes_and_counts_keys_under_jit():
    layer = nnx_layers.Drop(partial(dropout, rate=0.5), rngs=nnx.Rngs(dropout=1))
    run = nnx.jit(lambda layer, x: layer(x))
    assert not np.array_equal(run(layer, X), run(layer, X))
    layer.eval()
    np.testing.assert_array_equal(run(layer, X), X)
    assert not np.array_equal(layer(X, deterministic=False), X)
    layer.train()
    assert not np.array_equal(run(layer, X), X)


@pytest.mark.parametrize(
    ("options", "name"), [({}, "rngs"), ({"deterministic": None}, "deterministic")]
)
def test_nnx_says_what_is_missing(options, name):
    layer = nnx_layers.Drop(partial(dropout, rate=0.5), **options)
    with pytest.raises(ValueError, match=f"Drop: {name} must be given to the layer or to the"):
        layer(X)


def test_equinox_has_inference_mode_and_says_that_a_key_is_missing():
    layer = equinox.Drop(partial(dropout, rate=0.5))
    with pytest.raises(RuntimeError, match="Drop: key must be given, unless inference is True"):
        layer(X)
    model = eqx.nn.inference_mode(eqx.nn.Sequential([layer, layer]))
    np.testing.assert_array_equal(model(X), X)
    off, key = equinox.Drop(bernoulli_drop, inference=True), jax.random.key(5)
    np.testing.assert_array_equal(off(X, key=jax.random.key(5)), X)
    with jax.debug_key_reuse(False):
        np.testing.assert_array_equal(off(X, key=key, inference=False), bernoulli_drop(key, X))
    assert not np.array_equal(layer(X, key=jax.random.key(0)), X)


def test_equinox_trains_what_is_in_a_drop():
    """A drop is a field, so its arrays are leaves."""
    rate = jax.tree_util.Partial(lambda p, key, x: dropout(key, x, p), jnp.float32(0.5))
    layer = equinox.Drop(rate)
    run = eqx.filter_jit(lambda layer, key: layer(X, key=key))
    ones = eqx.tree_at(lambda layer: layer.drop.args[0], layer, jnp.float32(0.0))
    np.testing.assert_array_equal(run(ones, jax.random.key(0)), X)
    assert not np.array_equal(run(layer, jax.random.key(0)), X)


def test_haiku_module_has_the_name_that_it_is_given():
    drop = partial(dropout, rate=0.5)
    for options, name in (({}, "drop"), ({"name": "own"}, "own")):
        named = hk.transform(lambda options=options: haiku.Drop(drop, **options).module_name)
        assert named.apply({}, None) == name


def test_haiku_draws_no_key_at_test_time():
    model = hk.transform(lambda: haiku.Drop(partial(dropout, rate=0.5))(X, is_training=False))
    np.testing.assert_array_equal(model.apply({}, None), X)
