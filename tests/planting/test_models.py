"""Models of flax, equinox, haiku and stax, which know nothing of dropout, planted from outside.

Each is compared bitwise, with its gradients, with a twin in which `dropout` was
put by hand, with the keys that `site_key` documents.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.example_libraries import stax

import jaxdrop
from jaxdrop import dropout, match, plant, site, site_key

BATCH, TIME, SIZE, HEADS, LAYERS = 3, 4, 8, 2, 3
half, quarter = partial(dropout, rate=0.5), partial(dropout, rate=0.25)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def small_integers(seed, tree):
    """Arrays of numbers so small that sums and products are exact in any order."""
    random = np.random.default_rng(seed)

    def replace(leaf):
        if not hasattr(leaf, "shape"):
            return leaf
        return jnp.asarray(random.integers(-1, 2, leaf.shape).astype(np.float32))

    return jax.tree.map(replace, tree)


def outputs_and_gradients(function, params, *args, of_loss=jnp.sin):
    """The results of `function(key, params, *args)`, and the gradients of a loss of the first."""

    def loss(params, key):
        results = function(key, params, *args)
        return jnp.sum(of_loss(jax.tree.leaves(results)[0])), results

    compiled = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))
    return compiled(params, jax.random.key(0))


def assert_same(model, rules, by_hand, params, *args):
    planted = outputs_and_gradients(plant(model, rules), params, *args)
    twin = outputs_and_gradients(by_hand, params, *args)
    chex.assert_trees_all_equal(planted, twin)
    assert any(leaf.any() for leaf in jax.tree.leaves(planted[1]))


def planted_sites(model, *args, rules):
    """Name, shape and runs of what is planted."""
    table = jaxdrop.sites(model, *args, rules=rules)
    return [(row.site, row.shape, row.runs) for row in table if row.rule]


# flax.linen


class Block(linen.Module):
    @linen.compact
    def __call__(self, x):
        attention = linen.MultiHeadDotProductAttention(HEADS, name="attention")
        x = x + attention(linen.LayerNorm(name="norm1")(x))
        y = linen.Dense(2 * SIZE, name="up")(linen.LayerNorm(name="norm2")(x))
        return x + linen.Dense(SIZE, name="down")(linen.gelu(y))


class BlockByHand(linen.Module):
    @linen.compact
    def __call__(self, key, x):
        def drop(method, name, x):
            return method(site_key(key, name), x)

        def attend(query, key, value):
            weights = linen.dot_product_attention_weights(query, key)
            weights = drop(quarter, "function:softmax", weights)
            return jnp.einsum("...hqk,...khd->...qhd", weights, value)

        attention = linen.MultiHeadDotProductAttention(HEADS, name="attention", attention_fn=attend)
        y = attention(linen.LayerNorm(name="norm1")(x))
        x = x + drop(half, "named_scope:Block/attention", y)
        y = linen.Dense(2 * SIZE, name="up")(linen.LayerNorm(name="norm2")(x))
        y = drop(half, "named_scope:Block/up", y)
        return x + linen.Dense(SIZE, name="down")(linen.gelu(y))


def test_linen_transformer_drops_outputs_of_layers_and_attention_probabilities():
    x = normal(0, BATCH, TIME, SIZE)
    params = jax.jit(Block().init)(jax.random.key(1), x)
    rules = {
        match.named_scope("*/up"): half,
        match.named_scope("Block/attention"): half,
        match.function("softmax"): quarter,
    }
    assert sorted(planted_sites(Block().apply, params, x, rules=rules)) == [
        ("function:softmax", (BATCH, HEADS, TIME, TIME), 1),
        ("named_scope:Block/attention", (BATCH, TIME, SIZE), 1),
        ("named_scope:Block/up", (BATCH, TIME, 2 * SIZE), 1),
    ]
    assert_same(
        Block().apply,
        rules,
        lambda key, params, x: BlockByHand().apply(params, key, x),
        params,
        x,
    )


class Layer(linen.Module):
    """One that is marked, in the form in which flax scans."""

    @linen.compact
    def __call__(self, x, _):
        h = site(linen.Dense(SIZE)(x), "hidden")
        return x + linen.relu(h), None


def stacked_layers(remat):
    """Layers with their parameters stacked, under `nn.scan`."""
    layer = linen.remat(Layer, prevent_cse=False) if remat else Layer
    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    return linen.scan(layer, length=LAYERS, **axes)(name="layers")


class Unrolled(linen.Module):
    remat: bool

    @linen.compact
    def __call__(self, x, _):
        layer = linen.remat(Layer) if self.remat else Layer
        for index in range(LAYERS):
            x, _ = layer(name=f"layer_{index}")(x, None)
        return x, None


def unstacked(params):
    layers = range(LAYERS)
    return {
        "params": {
            f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["params"]) for i in layers
        }
    }


@cache
def layers_by_hand(name):
    """Stacked parameters, an input, and what layers give that were dropped by hand."""
    x = jax.ShapeDtypeStruct((BATCH, SIZE), jnp.float32)
    shapes = jax.eval_shape(stacked_layers(remat=False).init, jax.random.key(1), x, None)
    params, x = small_integers(1, (shapes, x))

    def by_hand(key, params, x):
        for index in range(LAYERS):
            dense = {"params": params["params"][f"layer_{index}"]["Dense_0"]}
            h = linen.Dense(SIZE).apply(dense, x)
            x = x + linen.relu(half(site_key(key, name, index), h))
        return x, None

    expected = outputs_and_gradients(by_hand, unstacked(params), x, of_loss=jnp.square)
    assert all(leaf.any() for leaf in jax.tree.leaves(expected))
    return params, x, expected


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ({"hidden": half}, "hidden"),
        ({match.named_scope("layers/Dense_0"): half}, "named_scope:layers/Dense_0"),
    ],
)
def test_linen_layers_under_scan_have_the_masks_of_layers_one_by_one(remat, rules, name):
    params, x, expected = layers_by_hand(name)
    model = stacked_layers(remat)
    table = planted_sites(model.apply, params, x, None, rules=rules)
    assert table == [(name, (BATCH, SIZE), LAYERS)]
    results, slopes = outputs_and_gradients(
        plant(model.apply, rules), params, x, None, of_loss=jnp.square
    )
    chex.assert_trees_all_equal((results, unstacked(slopes)), expected)


@pytest.mark.parametrize("remat", [False, True])
def test_linen_layers_in_a_loop_of_python_have_the_masks_of_layers_one_by_one(remat):
    params, x, expected = layers_by_hand("hidden")
    model, params, rules = Unrolled(remat), unstacked(params), {"hid*": half}
    assert sum(runs for _, _, runs in planted_sites(model.apply, params, x, None, rules=rules)) == 3
    planted = plant(model.apply, rules)
    results = outputs_and_gradients(planted, params, x, None, of_loss=jnp.square)
    chex.assert_trees_all_equal(results, expected)


# flax.nnx


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(SIZE, 2 * SIZE, rngs=rngs)
        self.norm = nnx.BatchNorm(2 * SIZE, rngs=rngs)
        self.second = nnx.Linear(2 * SIZE, 2 * SIZE, rngs=rngs)
        self.last = nnx.Linear(2 * SIZE, SIZE, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.first(x)))
        return self.last(nnx.relu(self.second(x)))


def perceptron_by_hand(key, model, x):
    x = nnx.gelu(model.norm(model.first(x)))
    x = quarter(site_key(key, "function:gelu"), x)
    x = half(site_key(key, "jit:relu"), nnx.relu(model.second(x)))
    return model.last(x)


NNX_RULES = {match.function("gelu"): quarter, match.jit("relu"): half}


def test_nnx_perceptron_drops_activations_and_updates_its_statistics():
    x = normal(0, BATCH, SIZE)
    graph, params, rest = nnx.split(Perceptron(nnx.Rngs(1)), nnx.Param, ...)

    def functional(call):
        def apply(key, params, rest, x):
            model = nnx.merge(graph, params, rest, copy=True)
            y = call(key, model, x)
            return y, nnx.state(model, nnx.BatchStat)

        return apply

    def model(params, rest, x):
        return functional(lambda _, model, x: model(x))(None, params, rest, x)

    assert sorted(planted_sites(model, params, rest, x, rules=NNX_RULES)) == [
        ("function:gelu", (BATCH, 2 * SIZE), 1),
        ("jit:relu", (BATCH, 2 * SIZE), 1),
    ]
    assert_same(model, NNX_RULES, functional(perceptron_by_hand), params, rest, x)


def test_nnx_module_is_an_argument_like_any_other():
    x, model = normal(0, BATCH, SIZE), Perceptron(nnx.Rngs(1))
    model.eval()
    planted = plant(lambda model, x: model(x), NNX_RULES)
    np.testing.assert_array_equal(
        nnx.jit(planted)(jax.random.key(0), model, x),
        nnx.jit(perceptron_by_hand)(jax.random.key(0), model, x),
    )


# equinox

LINEAR = "named_scope:eqx.nn.MLP/eqx.nn.Linear"
EQUINOX_RULES = {match.named_scope("eqx.nn.MLP/eqx.nn.Linear"): half, match.jit("relu"): half}


def batched(model, xs):
    return jax.vmap(model)(xs)


def mlp_by_hand(key, model, xs):
    *hidden, last = model.layers
    for index, layer in enumerate(hidden):
        xs = half(site_key(key, LINEAR, index), jax.vmap(layer)(xs))
        xs = half(site_key(key, "jit:relu", index), jax.nn.relu(xs))
    return half(site_key(key, LINEAR, len(hidden)), jax.vmap(last)(xs))


def test_equinox_mlp_with_leaves_that_are_no_arrays_and_transforms_inside():
    xs = normal(0, BATCH, SIZE)
    # The key reuse checker of JAX 0.7.2 takes the last of several keys for a used one.
    with jax.debug_key_reuse(False):
        model = eqx.nn.MLP(SIZE, 2, 16, depth=2, key=jax.random.key(1))
    model, xs = small_integers(1, (model, xs))

    @eqx.filter_jit
    def transformed(model, xs):
        return eqx.filter_vmap(eqx.filter_checkpoint(model))(xs)

    expected = outputs_and_gradients(mlp_by_hand, model, xs, of_loss=jnp.square)
    assert all(leaf.any() for leaf in jax.tree.leaves(expected))
    for function in (batched, transformed):
        assert sorted(planted_sites(function, model, xs, rules=EQUINOX_RULES)) == [
            ("jit:relu", (BATCH, 16), 2),
            (LINEAR, (BATCH, 2), 1),
            (LINEAR, (BATCH, 16), 2),
        ]
        planted = plant(function, EQUINOX_RULES)
        planted = outputs_and_gradients(planted, model, xs, of_loss=jnp.square)
        chex.assert_trees_all_equal(planted, expected)


class Marked(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    activation: Callable
    name: str  # a leaf, and no array

    def __call__(self, x):  # one sample
        h = site(self.activation(self.first(x)), f"{self.name}/hidden")
        return self.last(h)


def test_marks_in_equinox_modules_have_a_mask_for_each_example():
    first, last = jax.random.split(jax.random.key(1))
    model = Marked(
        eqx.nn.Linear(SIZE, 16, key=first), eqx.nn.Linear(16, 2, key=last), jnp.tanh, "net"
    )
    xs, rules = normal(0, BATCH, SIZE), {"net/*": half}

    def by_hand(key, model, xs):
        def one(index, x):
            example = jax.random.fold_in(site_key(key, "net/hidden"), index)
            return model.last(half(example, model.activation(model.first(x))))

        return jax.vmap(one)(jnp.arange(BATCH), xs)

    assert planted_sites(batched, model, xs, rules=rules) == [("net/hidden", (16,), 1)]
    assert_same(batched, rules, by_hand, model, xs)


# haiku and stax


def test_haiku_mlp_that_is_given_no_key_of_its_own():
    def network(x):
        return hk.nets.MLP([16, 16, 2])(x)

    with_key, without = hk.transform(network), hk.without_apply_rng(hk.transform(network))
    x = normal(0, BATCH, SIZE)
    params = jax.jit(without.init)(jax.random.key(1), x)
    rules = {match.named_scope("mlp/linear_[01]"): quarter, match.jit("relu"): half}

    def by_hand(key, params, x):
        layers = [params[f"mlp/~/linear_{index}"] for index in range(3)]
        for index, layer in enumerate(layers[:-1]):
            x = jnp.dot(x, layer["w"]) + jnp.broadcast_to(layer["b"], (BATCH, 16))
            x = quarter(site_key(key, f"named_scope:mlp/linear_{index}"), x)
            x = half(site_key(key, "jit:relu", index), jax.nn.relu(x))
        return jnp.dot(x, layers[-1]["w"]) + jnp.broadcast_to(layers[-1]["b"], (BATCH, 2))

    table = planted_sites(without.apply, params, x, rules=rules)
    assert sorted(table) == [
        ("jit:relu", (BATCH, 16), 2),
        ("named_scope:mlp/linear_0", (BATCH, 16), 1),
        ("named_scope:mlp/linear_1", (BATCH, 16), 1),
    ]
    assert planted_sites(with_key.apply, params, None, x, rules=rules) == table
    assert_same(without.apply, rules, by_hand, params, x)


def test_stax_network_has_no_scopes_but_functions():
    init, apply = stax.serial(stax.Dense(16), stax.Relu, stax.Dense(4), stax.LogSoftmax)
    _, params = init(jax.random.key(1), (-1, SIZE))
    x = normal(0, BATCH, SIZE)
    rules = {match.jit("relu"): half, match.primitive("dot_general"): quarter}

    def by_hand(key, params, x):
        (w1, b1), _, (w2, b2), _ = params
        x = quarter(site_key(key, "primitive:dot_general", 0), jnp.dot(x, w1)) + b1
        x = half(site_key(key, "jit:relu"), jax.nn.relu(x))
        x = quarter(site_key(key, "primitive:dot_general", 1), jnp.dot(x, w2)) + b2
        return jax.nn.log_softmax(x)

    with jax.numpy_rank_promotion("allow"):  # stax adds its biases so
        assert planted_sites(apply, params, x, rules=rules) == [
            ("primitive:dot_general", (BATCH, 16), 1),
            ("jit:relu", (BATCH, 16), 1),
            ("primitive:dot_general", (BATCH, 4), 1),
        ]
        assert_same(apply, rules, by_hand, params, x)


# What is no array, and what a planted function says of itself


def test_leaves_that_are_no_arrays_stay_what_they_are():
    def model(x, scale, flag, mode, nothing, *, options):
        assert (type(scale), flag, mode, nothing) == (float, True, "train", None)
        assert type(options["steps"]) is int
        y = site(x, "hidden")
        return {"y": y * scale, "mode": mode, "activation": jnp.tanh, "more": (None, flag, 3, 0.5)}

    planted = plant(model, {"hidden": half})
    args = (np.ones(SIZE, np.float32), 2.0, True, "train", None)
    y = planted(jax.random.key(0), *args, options={"steps": 3})
    dropped = half(site_key(jax.random.key(0), "hidden"), jnp.ones(SIZE))
    np.testing.assert_array_equal(y.pop("y"), dropped * 2)
    assert y == {"mode": "train", "activation": jnp.tanh, "more": (None, True, 3, 0.5)}


def test_planted_function_has_a_name_and_a_signature_with_a_key_in_front():
    def model(params, x, *, train: bool = False):
        """What it does."""
        return site(x, "hidden")

    planted = plant(model, {"hidden": half})
    assert (planted.__name__, planted.__doc__) == ("model", "What it does.")
    assert not hasattr(planted, "__wrapped__")
    key, *others = inspect.signature(planted).parameters.values()
    assert (key.name, key.kind) == ("key", inspect.Parameter.POSITIONAL_ONLY)
    assert others == list(inspect.signature(model).parameters.values())


def test_function_without_a_signature_is_planted_all_the_same():
    class Odd:
        __signature__ = 3

        def __call__(self, x):
            return site(x, "hidden")

    y = plant(Odd(), {"hidden": half})(jax.random.key(0), jnp.ones(SIZE))
    np.testing.assert_array_equal(y, half(site_key(jax.random.key(0), "hidden"), jnp.ones(SIZE)))


def test_function_may_take_a_key_of_its_own():
    def model(x, key):
        return site(x, "hidden") + jax.random.normal(key, x.shape)

    planted = plant(model, {"hidden": half})
    assert list(inspect.signature(planted).parameters) == ["plant_key", "x", "key"]
    y = planted(jax.random.key(0), jnp.ones(SIZE), key=jax.random.key(1))
    dropped = half(site_key(jax.random.key(0), "hidden"), jnp.ones(SIZE))
    np.testing.assert_array_equal(y, dropped + jax.random.normal(jax.random.key(1), (SIZE,)))
