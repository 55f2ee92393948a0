"""`dropout_sites`: the dropout layers that a model has, but that are off, are sites.

Planted with the function of the framework's own layer, they give what the model gives
with its layers on, bit for bit, if each layer is handed the key of its site.
"""

from functools import partial

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

from jaxdrop import dropout, match, plant, site_key, sites
from jaxdrop.frameworks import equinox, haiku, linen, nnx as nnx_layers

SIZE, LAYERS = 8, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, SIZE)).astype(np.float32))
W = jnp.asarray(np.random.default_rng(1).normal(size=(LAYERS, SIZE, SIZE)).astype(np.float32))


@pytest.fixture(autouse=True)
def settings_of_users():
    """`hk.dropout` promotes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def own_drop(key, x):
    """What the dropout layers of all frameworks do at this rate."""
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)


def a_key():
    return jax.random.key(0)


# One model in each framework: three layers with dropout behind them, a function of (x, keys),
# where keys switch the layers on.


class LinenNet(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, keys=None):
        for index in range(LAYERS):
            drop = nn.Dropout(self.rate, deterministic=keys is None, name=f"drop_{index}")
            x = drop(jnp.tanh(x @ W[index]), rng=None if keys is None else keys[index])
        return x


class NNXNet(nnx.Module):
    def __init__(self, rate=0.5):
        self.drops = nnx.List([nnx.Dropout(rate) for _ in range(LAYERS)])
        self.eval()

    def __call__(self, x, keys=None):
        for index, drop in enumerate(self.drops):
            on = {} if keys is None else {"deterministic": False, "rngs": keys[index]}
            x = drop(jnp.tanh(x @ W[index]), **on)
        return x


class EqxNet(eqx.Module):
    drops: list

    def __init__(self, rate=0.5):
        self.drops = [eqx.nn.Dropout(rate, inference=True) for _ in range(LAYERS)]

    def __call__(self, x, keys=None):
        for index, drop in enumerate(self.drops):
            on = {} if keys is None else {"inference": False, "key": keys[index]}
            x = drop(jnp.tanh(x @ W[index]), **on)
        return x


class HaikuDropout(hk.Module):
    """A module around the function, as users of haiku write it."""

    def __init__(self, rate, name):
        super().__init__(name)
        self.rate = rate

    def __call__(self, x, key):
        return x if key is None else hk.dropout(key, self.rate, x)


class HaikuNet(hk.Module):
    def __init__(self, rate):
        super().__init__("net")
        self.drops = [HaikuDropout(rate, name=f"drop_{index}") for index in range(LAYERS)]

    def __call__(self, x, keys=None):
        for index, drop in enumerate(self.drops):
            x = drop(jnp.tanh(x @ W[index]), None if keys is None else keys[index])
        return x


def haiku_net(rate=0.5):
    run = hk.transform(lambda x, keys=None: HaikuNet(rate)(x, keys)).apply
    return partial(run, {}, None)


MODELS = {
    "linen": (lambda rate=0.5: partial(LinenNet(rate).apply, {}), linen.dropout_sites),
    "nnx": (NNXNet, nnx_layers.dropout_sites),
    "equinox": (EqxNet, equinox.dropout_sites),
    "haiku": (haiku_net, partial(haiku.dropout_sites, layers=HaikuDropout)),
}
NAMES = {"linen": "drop_{}", "nnx": "drops/{}", "equinox": "drops/{}", "haiku": "net/drop_{}"}
in_every_framework = pytest.mark.parametrize("framework", MODELS)


def names_of(framework):
    return [NAMES[framework].format(index) for index in range(LAYERS)]


@pytest.mark.quick
@in_every_framework
def test_planted_layers_give_what_they_give_when_they_are_on(framework):
    make, dropout_sites = MODELS[framework]
    model, rules = make(), {NAMES[framework].format("*"): own_drop}
    with pytest.raises(KeyError, match="no site matches"):
        plant(model, rules)(a_key(), X)
    y = plant(dropout_sites(model), rules)(a_key(), X)
    keys = [site_key(a_key(), name) for name in names_of(framework)]
    np.testing.assert_array_equal(y, model(X, keys))
    assert (np.asarray(y) == 0).any()
    assert not (np.asarray(model(X)) == 0).any()


@in_every_framework
def test_layers_of_rate_zero_are_sites_too(framework):
    make, dropout_sites = MODELS[framework]
    half = partial(dropout, rate=0.5)
    y = plant(dropout_sites(make(0.0)), {NAMES[framework].format(1): half})(a_key(), X)
    x = jnp.tanh(jnp.tanh(X @ W[0]) @ W[1])
    dropped = half(site_key(a_key(), names_of(framework)[1]), x)
    np.testing.assert_allclose(y, jnp.tanh(dropped @ W[2]), rtol=1e-5, atol=1e-6)


@in_every_framework
def test_what_layers_give_that_are_on_is_marked(framework):
    make, dropout_sites = MODELS[framework]
    keys = list(jax.random.split(jax.random.key(1), LAYERS))
    with jax.debug_key_reuse(False):
        rules = {names_of(framework)[2]: lambda key, x: x + 1}  # behind what they drop
        y = plant(dropout_sites(make()), rules)(a_key(), X, keys)
        np.testing.assert_array_equal(y, make()(X, keys) + 1)


@in_every_framework
def test_gradient_goes_through_the_mask(framework):
    make, dropout_sites = MODELS[framework]
    train = plant(dropout_sites(make()), {NAMES[framework].format(2): own_drop})
    slope = jax.grad(lambda x: train(a_key(), x).sum())(X)
    key = site_key(a_key(), names_of(framework)[2])

    def by_hand(x):
        for index in range(LAYERS):
            x = jnp.tanh(x @ W[index])
        return own_drop(jax.random.clone(key), x).sum()

    np.testing.assert_allclose(slope, jax.grad(by_hand)(X), rtol=1e-5, atol=1e-6)


@in_every_framework
def test_nothing_is_added_to_what_is_not_planted(framework):
    make, dropout_sites = MODELS[framework]
    model = make()
    marked = dropout_sites(model)
    assert str(jax.make_jaxpr(marked)(X)) == str(jax.make_jaxpr(model)(X))
    np.testing.assert_array_equal(marked(X), model(X))
    assert [row.site for row in sites(marked, X)] == names_of(framework)
    assert len(sites(model, X)) == 0  # the marks are gone with the call


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox", "haiku"])
def test_drop_of_this_library_is_a_dropout_layer(framework):
    keep = partial(dropout, rate=0.5)
    name = "layer"
    if framework == "linen":

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return linen.Drop(keep, deterministic=True, name="layer")(x)

        model = linen.dropout_sites(partial(Net().apply, {}))
    elif framework == "haiku":
        net = hk.transform(lambda x: haiku.Drop(keep, name="layer")(x, is_training=False))
        model = haiku.dropout_sites(partial(net.apply, {}, None))
    else:
        module = nnx_layers if framework == "nnx" else equinox
        layer = (
            nnx_layers.Drop(keep, deterministic=True)
            if framework == "nnx"
            else equinox.Drop(keep, inference=True)
        )
        model = module.dropout_sites(layer)
        name = "Drop"  # the whole model has no path
    assert [row.site for row in sites(model, X)] == [name]


def test_linen_layer_that_is_the_whole_model_has_the_name_of_its_class():
    for layer in (nn.Dropout(0.5), linen.Drop(own_drop)):
        run = linen.dropout_sites(partial(layer.apply, {}, deterministic=True))
        assert [row.site for row in sites(run, X)] == ["Dropout"]


def test_weights_that_linen_attention_drops_are_matched_by_the_softmax():
    layer = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shapes = jax.eval_shape(layer.init, jax.random.key(0), X)
        variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
        run = linen.dropout_sites(partial(layer.apply, variables))
        (row,) = sites(run, X, rules={match.function("softmax"): own_drop})
    assert (row.site, row.runs) == ("function:softmax", 1)


def test_haiku_modules_that_a_constructor_makes_have_plain_names_and_functions_have_none():
    class Net(hk.Module):
        def __init__(self):
            super().__init__("net")
            self.drop = haiku.Drop(own_drop)

        def __call__(self, x):
            return hk.dropout(hk.next_rng_key(), 0.5, self.drop(x, is_training=False))

    apply = hk.transform(lambda x: Net()(x)).apply
    run = haiku.dropout_sites(partial(apply, {}, jax.random.key(0)))
    with jax.numpy_dtype_promotion("standard"):
        assert [row.site for row in sites(run, X)] == ["net/drop"]


@pytest.mark.parametrize("framework", ["linen", "haiku"])
def test_what_was_jitted_and_traced_before_is_traced_again(framework):
    make, dropout_sites = MODELS[framework]
    model = make()
    jitted = jax.jit(lambda x: model(x))
    marked = dropout_sites(jitted)
    for _ in range(2):
        assert len(sites(jitted, X)) == 0
        assert [row.site for row in sites(marked, X)] == names_of(framework)


def test_linen_modules_that_are_jitted_or_checkpointed():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=True)(jnp.tanh(x))

    for wrap in (nn.jit, nn.remat):

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, wrap=wrap):
                return wrap(Layer)(name="second")(wrap(Layer)(name="first")(x))

        run = linen.dropout_sites(partial(Net().apply, {}))
        assert [row.site for row in sites(run, X)] == ["first/Dropout_0", "second/Dropout_0"]


def test_layers_under_linen_scan_have_the_key_of_their_step():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, w):
            return nn.Dropout(0.5, deterministic=True)(jnp.tanh(x @ w)), None

    scanned = nn.scan(Layer, length=LAYERS)(name="layers")
    train = plant(linen.dropout_sites(scanned.apply), {"Dropout_0": own_drop})
    x = X
    for index in range(LAYERS):
        x = own_drop(site_key(a_key(), "Dropout_0", index), jnp.tanh(x @ W[index]))
    np.testing.assert_allclose(train(a_key(), {}, X, W)[0], x, rtol=1e-5, atol=1e-6)


def test_examples_of_a_vmap_have_masks_of_their_own():
    model = EqxNet()
    train = plant(
        equinox.dropout_sites(lambda model, xs: jax.vmap(model)(xs)), {"drops/2": own_drop}
    )
    same = jnp.broadcast_to(X[0], (5, SIZE))
    rows = np.asarray(train(a_key(), model, same)) == 0
    keys = [jax.random.fold_in(site_key(a_key(), "drops/2"), index) for index in range(5)]
    expected = [np.asarray(own_drop(key, model(X[0]))) == 0 for key in keys]
    np.testing.assert_array_equal(rows, expected)
    assert len(np.unique(rows, axis=0)) > 1


def test_dropout_inside_of_equinox_attention_is_found():
    attention = eqx.nn.MultiheadAttention(
        2, SIZE, dropout_p=0.1, inference=True, key=jax.random.key(1)
    )
    run = equinox.dropout_sites(lambda attention, x: attention(x, x, x))
    with jax.numpy_rank_promotion("allow"):
        (row,) = sites(run, attention, X)
    assert (row.site, row.shape) == ("dropout", (4, 4))


def test_any_class_of_modules_can_be_marked():
    class Twice(eqx.Module):
        def __call__(self, x):
            return {"y": 2 * x}

    run = equinox.dropout_sites(
        lambda parts, x: parts[0](x)["y"] + parts[1](x), layers=(Twice, eqx.nn.Dropout)
    )
    parts = (Twice(), eqx.nn.Dropout(inference=True))
    assert {row.site for row in sites(run, parts, X)} == {"0['y']", "1"}

    class Branch(nnx.Module):
        def __call__(self, x):
            return 3 * x

    model = nnx.Sequential(Branch(), Branch())
    run = nnx_layers.dropout_sites(model, layers=Branch)
    assert [row.site for row in sites(run, X)] == ["layers/0", "layers/1"]
    rules = {"layers/*": lambda key, x: 0 * x}
    np.testing.assert_array_equal(plant(run, rules)(a_key(), X), 0 * X)


@pytest.mark.parametrize("base", [nnx.Module, eqx.Module])
def test_a_class_that_cannot_be_called_has_no_mark(base):
    class Other(base):
        def use(self, x):
            return x + 1

    class Net(base):
        other: Other = Other() if base is eqx.Module else None

        def __call__(self, x):
            return self.other.use(x)

    model = Net()
    if base is nnx.Module:
        model.other = nnx.data(Other())
    module = nnx_layers if base is nnx.Module else equinox
    run = module.dropout_sites(model, layers=Other)
    np.testing.assert_array_equal(run(X), X + 1)
    assert len(sites(run, X)) == 0


def test_a_layer_of_nnx_that_is_shared_has_one_name_and_several_runs():
    model = NNXNet()
    for index in (1, 2):
        model.drops[index] = model.drops[0]
    (row,) = sites(nnx_layers.dropout_sites(model), X)
    assert (row.site, row.runs) == ("drops/0", LAYERS)


@pytest.mark.parametrize("outer", ["scopes", "marks"])
@pytest.mark.parametrize("framework", ["nnx", "equinox"])
def test_marks_and_scopes_go_together(framework, outer):
    make, dropout_sites = MODELS[framework]
    module = nnx_layers if framework == "nnx" else equinox

    class Wrapped(make.__mro__[1]):
        net: make

        def __init__(self):
            self.net = make()

        def __call__(self, x):
            return self.net(x) + 1

    first, second = dropout_sites, module.named_scopes
    if outer == "marks":
        first, second = second, first

    def call(model, x):
        return model(x), model

    rules = {"net/drops/0": own_drop, match.named_scope("net"): lambda key, x: 0 * x}
    model = Wrapped()
    y, same = plant(second(first(call)), rules)(a_key(), model, X)
    np.testing.assert_array_equal(y, jnp.ones_like(X))
    assert type(same) is Wrapped
    assert type(same.net) is make
    assert jax.tree.structure(same) == jax.tree.structure(model)


@in_every_framework
def test_bad_arguments_are_refused(framework):
    module = {"linen": linen, "nnx": nnx_layers, "equinox": equinox, "haiku": haiku}[framework]
    with pytest.raises(TypeError, match="dropout_sites: fn must be callable; got None"):
        module.dropout_sites(None)
    for wrong in (0.5, (), (nn.Dropout, "Dropout")):
        with pytest.raises(TypeError, match="dropout_sites: layers must be a class or a tuple"):
            module.dropout_sites(lambda x: x, layers=wrong)


@in_every_framework
def test_errors_leave_no_marks(framework):
    make, dropout_sites = MODELS[framework]
    model = make()
    with pytest.raises(TypeError):
        dropout_sites(model)("no array")
    assert len(sites(model, X)) == 0
    chex.assert_trees_all_equal(dropout_sites(model)(X), model(X))
