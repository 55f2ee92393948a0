"""Rates that rise with depth, in layers of four frameworks, against dropout by hand."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx
from jax import lax

from jaxdrop import Rule, dropout, match, plant, site_key, sites

LAYERS, WIDTH = 4, 8
RATES = [0.6 * i / (LAYERS - 1) for i in range(LAYERS)]
RULES = {match.function("relu"): Rule(dropout, rate=(0.0, 0.6))}
X = jnp.linspace(-1.0, 1.0, 3 * WIDTH).reshape(3, WIDTH)


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.relu(nn.Dense(WIDTH)(x)), None


class LinenNet(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            split = {"params": True}
            layers = nn.scan(LinenLayer, {"params": 0}, split_rngs=split, length=LAYERS)
            return layers(name="layers")(x, None)[0]
        for i in range(LAYERS):
            x, _ = LinenLayer(name=f"layer_{i}")(x)
        return x


def linen(scanned):
    net = LinenNet(scanned)
    params = net.init(jax.random.key(1), X)
    if scanned:
        dense = params["params"]["layers"]["Dense_0"]
        return net.apply, params, list(zip(dense["kernel"], dense["bias"], strict=True))
    dense = [params["params"][f"layer_{i}"]["Dense_0"] for i in range(LAYERS)]
    return net.apply, params, [(one["kernel"], one["bias"]) for one in dense]


class NnxLayer(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.dense(x))


def of_nnx(scanned):
    layers = [NnxLayer(nnx.Rngs(i)) for i in range(LAYERS)]
    weights = [(one.dense.kernel[...], one.dense.bias[...]) for one in layers]
    run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)

    def unrolled(layers, x):
        for layer in layers:
            x = layer(x)
        return x

    if scanned:
        states = [nnx.state(layer) for layer in layers]
        stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
        return lambda layers, x: run(x, layers), nnx.merge(nnx.graphdef(layers[0]), stack), weights
    return unrolled, layers, weights


def equinox(scanned):
    keys = jax.random.split(jax.random.key(1), LAYERS)
    layers = [eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in keys]
    weights = [(layer.weight.T, layer.bias) for layer in layers]

    def step(x, layer):
        return x + jax.nn.relu(jax.vmap(layer)(x)), None

    def unrolled(layers, x):
        for layer in layers:
            x, _ = step(x, layer)
        return x

    if scanned:
        stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)
        return lambda stack, x: lax.scan(step, x, stack)[0], stack, weights
    return unrolled, layers, weights


def haiku(scanned):
    def net(x):
        def layer(x):
            return x + jax.nn.relu(hk.Linear(WIDTH)(x))

        if scanned:
            return hk.experimental.layer_stack(LAYERS)(layer)(x)
        for _ in range(LAYERS):
            x = layer(x)
        return x

    model = hk.without_apply_rng(hk.transform(net))
    params = model.init(jax.random.key(1), X)
    if scanned:
        (dense,) = params.values()
        return model.apply, params, list(zip(dense["w"], dense["b"], strict=True))
    return model.apply, params, [(one["w"], one["b"]) for one in params.values()]


def by_hand(key, weights, x):
    for i, (w, b) in enumerate(weights):
        run_key = site_key(key, "function:relu", i)
        x = x + dropout(run_key, jax.nn.relu(x @ w + b[None]), jnp.float32(RATES[i]))
    return x


FRAMEWORKS = pytest.mark.parametrize("build", [linen, of_nnx, equinox, haiku])
SCANNED = pytest.mark.parametrize("scanned", [False, True])


@FRAMEWORKS
@SCANNED
def test_each_layer_has_the_mask_and_the_rate_of_its_depth(build, scanned):
    apply, params, weights = build(scanned)
    key = jax.random.key(0)
    y = plant(apply, RULES)(key, params, X)
    np.testing.assert_allclose(y, by_hand(key, weights, X), rtol=1e-5, atol=1e-6)
    assert not np.allclose(y, apply(params, X))
    assert sum(row.runs for row in sites(apply, params, X, rules=RULES)) == LAYERS


@FRAMEWORKS
@SCANNED
def test_each_layer_keeps_its_share_and_the_mean(build, scanned):
    apply, params, _ = build(scanned)
    shares, rates = [], []

    def noting(key, x, rate):
        y = dropout(key, x, rate)
        jax.debug.callback(lambda *seen: (shares.append(seen[0]), rates.append(seen[1])), y, rate)
        return jnp.ones_like(x)

    rule = Rule(
        lambda key, x, rate: noting(key, jnp.ones((64, *x.shape)), rate)[0], rate=(0.0, 0.6)
    )
    plant(apply, {match.function("relu"): rule})(jax.random.key(3), params, X)
    jax.effects_barrier()
    order = np.argsort(rates)
    np.testing.assert_allclose(np.asarray(rates)[order], RATES, rtol=1e-6)
    for index, rate in zip(order, RATES, strict=True):
        y = np.asarray(shares[index])
        kept = 1 - rate
        # Six standard deviations: a false alarm in 5e8 draws of a share, for eight layers.
        bound = 6 * np.sqrt(rate / kept / y.size) + 1e-6
        assert abs(y.mean() - 1) <= bound
        assert abs((y != 0).mean() - kept) <= bound * kept
