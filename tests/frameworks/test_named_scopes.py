"""`named_scopes` of nnx and equinox: residual branches of models that open no scopes.

What is planted is compared bitwise with dropout by hand, with the keys that `site_key`
documents, and what is not planted with the model itself.
"""

import re
import threading
from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdrop import drop_path, dropout, match, plant, site_key, sites
from jaxdrop.frameworks import equinox, nnx as nnx_layers
from jaxdrop.planting.jaxprs import bodies_in

BATCH, SIZE, LAYERS = 6, 4, 3
half = partial(dropout, rate=0.5)
path = partial(drop_path, rate=0.5)
BRANCHES = {match.named_scope("blocks/*/attn"): path}


def a_key():
    """The same key each time, for the checker of key reuse."""
    return jax.random.key(0)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


X = normal(0, BATCH, SIZE)

# One model in both frameworks. A block is a residual branch, and the head is called by a method.


class NNXAttention(nnx.Module):
    def __init__(self, seed):
        self.weight = nnx.Param(normal(seed, SIZE, SIZE))

    def __call__(self, x):
        return jnp.tanh(x @ self.weight[...])


class NNXBlock(nnx.Module):
    def __init__(self, seed):
        self.attn = NNXAttention(seed)

    def __call__(self, x):
        return x + self.attn(x)


class NNXNet(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([NNXBlock(seed) for seed in range(LAYERS)])
        self.heads = nnx.Dict({"main": NNXAttention(7)})

    def __call__(self, x):
        return self.heads["main"](self.encode(x))

    def encode(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class EqxAttention(eqx.Module):
    weight: jax.Array

    def __init__(self, seed):
        self.weight = normal(seed, SIZE, SIZE)

    def __call__(self, x):
        return jnp.tanh(x @ self.weight)

    def twice(self, x):
        return 2 * self(x)


class EqxBlock(eqx.Module):
    attn: EqxAttention

    def __init__(self, seed):
        self.attn = EqxAttention(seed)

    def __call__(self, x):
        return x + self.attn(x)


class EqxNet(eqx.Module):
    blocks: tuple
    heads: dict

    def __init__(self):
        self.blocks = tuple(EqxBlock(seed) for seed in range(LAYERS))
        self.heads = {"main": EqxAttention(7)}

    def __call__(self, x):
        return self.heads["main"](self.encode(x))

    def encode(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def call(model, x):
    return model(x)


FRAMEWORKS = {"nnx": (NNXNet, nnx_layers.named_scopes), "equinox": (EqxNet, equinox.named_scopes)}
in_both = pytest.mark.parametrize(("net", "named_scopes"), FRAMEWORKS.values(), ids=FRAMEWORKS)
SCOPES = {name: scopes for name, (_, scopes) in FRAMEWORKS.items()}


def by_hand(key, model, x):
    for index, block in enumerate(model.blocks):
        x = x + path(site_key(key, f"named_scope:blocks/{index}/attn"), block.attn(x))
    return model.heads["main"](x)


def paths_in(function, *args):
    """The paths of the scopes in a program, with inner ones."""
    found = set()

    def read(jaxpr, around):
        for eqn in jaxpr.eqns:
            stack = "/".join(filter(None, [around, str(eqn.source_info.name_stack)]))
            bodies = [body for group in bodies_in(eqn.params).values() for body in group]
            found.add(stack)
            for body in bodies:
                read(getattr(body, "jaxpr", body), stack)

    read(jax.make_jaxpr(function)(*args).jaxpr, "")
    return found - {""}


def planted(function, *args, rules):
    return [(row.site, row.runs) for row in sites(function, *args, rules=rules) if row.rule]


@pytest.mark.quick
@in_both
def test_residual_branches_have_drop_path_with_the_keys_of_their_paths(net, named_scopes):
    model = net()
    with pytest.raises(KeyError, match="no named_scope matches"):
        plant(call, BRANCHES)(a_key(), model, X)
    train = plant(named_scopes(call), BRANCHES)
    np.testing.assert_array_equal(train(a_key(), model, X), by_hand(a_key(), model, X))
    np.testing.assert_array_equal(
        plant(named_scopes(model), BRANCHES)(a_key(), X), train(a_key(), model, X)
    )
    first, second = (train(key, model, X) for key in jax.random.split(a_key()))
    assert not np.array_equal(first, second)


@in_both
def test_gradients_are_those_by_hand_and_have_the_structure_of_the_model(net, named_scopes):
    model = net()
    train = plant(named_scopes(call), BRANCHES)

    def slopes(function):
        if net is NNXNet:
            return nnx.grad(lambda model: jnp.sum(jnp.sin(function(a_key(), model, X))))(model)
        return jax.grad(lambda model: jnp.sum(jnp.sin(function(a_key(), model, X))))(model)

    ours, theirs = slopes(train), slopes(by_hand)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    chex.assert_trees_all_equal(ours, theirs)
    assert all(leaf.any() for leaf in jax.tree.leaves(ours))


@in_both
def test_the_program_is_that_of_the_model_except_for_names(net, named_scopes):
    model = net()
    scoped = named_scopes(model)
    assert str(jax.make_jaxpr(scoped)(X)) == str(jax.make_jaxpr(model)(X))
    blocks = {f"blocks/{index}" for index in range(LAYERS)}
    attention = {f"{block}/attn" for block in blocks}
    assert paths_in(scoped, X) == blocks | attention | {"heads/main"}
    assert paths_in(model, X) == set()


@in_both
def test_each_method_opens_the_scope(net, named_scopes):
    model = net()
    for run in (
        model.encode,
        partial(net.encode, model),
        partial(lambda x, net: net.encode(x), net=model),
    ):
        assert [site for site, _ in planted(named_scopes(run), X, rules=BRANCHES)] == [
            f"named_scope:blocks/{index}/attn" for index in range(LAYERS)
        ]
    np.testing.assert_array_equal(named_scopes(model.encode)(X), model.encode(X))


@in_both
def test_path_is_spelled_once_whatever_module_calls(net, named_scopes):
    def skipping(model, x):
        return model.blocks[1].attn(x)

    assert paths_in(partial(named_scopes(skipping), net()), X) == {"blocks/1/attn"}


def test_module_that_another_one_calls_lies_below_its_scope():
    class Reader(eqx.Module):
        def __call__(self, other, x):
            return other(x) + 1

    def both(model, x):
        return model["reader"](model["net"].heads["main"], x)

    run = partial(equinox.named_scopes(both), {"reader": Reader(), "net": EqxNet()})
    assert paths_in(run, X) == {"reader", "reader/net/heads/main"}


@in_both
def test_paths_begin_with_arguments_if_several_hold_modules(net, named_scopes):
    def pair(first, x, *others, last):
        return last(others[0](first(x)))

    run = named_scopes(pair)
    model, other, last = net(), net(), net()
    found = paths_in(lambda x: run(model, x, other, last={"it": last}["it"]), X)
    assert {name.partition("/")[0] for name in found} == {"first", "argument_2", "last"}
    found = paths_in(lambda x: run(model, x, jnp.tanh, last=jnp.sin), X)
    assert "blocks/0/attn" in found


@in_both
def test_transforms_inside_keep_the_paths(net, named_scopes):
    model = net()
    jit = nnx.jit if net is NNXNet else eqx.filter_jit

    def transformed(model, x):
        one = jit(lambda model, x: jnp.sum(jnp.sin(model.encode(x))))
        grad = nnx.value_and_grad(one) if net is NNXNet else jax.value_and_grad(one)
        value, slopes = grad(model, x)
        return value, jax.tree.leaves(slopes), jax.vmap(model)(x)

    ours, theirs = (run(model, X) for run in (named_scopes(transformed), transformed))
    chex.assert_trees_all_equal(ours, theirs)
    found = paths_in(named_scopes(transformed), model, X)
    for transform in ("vmap", "jvp", "transpose"):
        # As in vmap(blocks/2)/attn.
        bare = [re.sub(r"\w*\(|\)", "", name) for name in found if transform in name]
        assert any(name.endswith("blocks/2/attn") for name in bare)
    assert not any("blocks" in name for name in paths_in(transformed, model, X))


@in_both
def test_transforms_outside_see_one_function(net, named_scopes):
    model, train = net(), plant(named_scopes(call), BRANCHES)
    expected = train(a_key(), model, X)
    with jax.debug_key_reuse(False):
        jit = nnx.jit if net is NNXNet else eqx.filter_jit
        chex.assert_trees_all_close(jit(train)(a_key(), model, X), expected, rtol=1e-6)
        train_all = jax.vmap(train, (None, None, 0))
        np.testing.assert_allclose(train_all(a_key(), model, X[None])[0], expected, rtol=1e-6)


def test_equinox_compiles_once_for_all_calls():
    traced = []

    @eqx.filter_jit
    def inner(model, x):
        traced.append(type(model))
        return model(x)

    run = equinox.named_scopes(inner)
    for _ in range(2):
        run(EqxNet(), X)
    assert len(traced) == 1
    inner(EqxNet(), X)
    assert traced[1] is EqxNet
    assert issubclass(traced[0], EqxNet)


def test_what_is_no_method_of_an_instance_stays():
    class Other(EqxAttention):
        @staticmethod
        def twice(x):  # a method of the class above
            return 3 * x

        @classmethod
        def name(cls):
            return cls.__name__

        @property
        def doubled(self):
            return 2 * self.weight

    def use(parts, x):
        (one,) = parts
        assert isinstance(one, Other)
        assert one.name() == "Other"
        return one.twice(x) @ one.doubled

    run = equinox.named_scopes(use)
    np.testing.assert_array_equal(run((Other(0),), X), 3 * X @ (2 * Other(0).weight))


@in_both
def test_it_may_be_called_inside_where_a_module_is_put_together(net, named_scopes):
    model = net()
    if net is NNXNet:
        graph, params = nnx.split(model)
        put_together = partial(nnx.merge, graph)
    else:
        params, rest = eqx.partition(model, eqx.is_array)

        def put_together(params):
            return eqx.combine(params, rest)

    train = plant(lambda params, x: named_scopes(put_together(params))(x), BRANCHES)
    np.testing.assert_array_equal(train(a_key(), params, X), by_hand(a_key(), model, X))


@in_both
def test_users_do_not_learn_of_subclasses(net, named_scopes):
    known = []

    class Registered(net):
        def __init_subclass__(cls, known_as, **options):  # an argument that is needed
            known.append(known_as)
            super().__init_subclass__(**options)

    class Named(Registered, known_as="named"):
        pass

    model = Named()
    assert "blocks/0/attn" in paths_in(partial(named_scopes(call), {"a": model}["a"]), X)
    assert "a/blocks/0/attn" in paths_in(
        partial(named_scopes(lambda d, x: d["a"](x)), {"a": model}), X
    )
    assert known == ["named"]


# Layers that are stacked, under a scan


def stacked_equinox():
    blocks = [EqxBlock(seed) for seed in range(LAYERS)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def scanned_equinox(stack, x):
    return jax.lax.scan(lambda x, block: (block(x), None), x, stack["blocks"])[0]


def stacked_nnx():
    return nnx.vmap(NNXBlock)(jnp.arange(LAYERS))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_steps_of_a_scan_have_the_masks_of_layers_one_by_one(framework, monkeypatch):
    if framework == "nnx":
        monkeypatch.setattr(NNXAttention, "__init__", make_from_traced_seed)
        stack = {"blocks": stacked_nnx()}

        def scanned(stack, x):
            step = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return step(x, stack["blocks"])

        weights = stack["blocks"].attn.weight[...]
    else:
        stack, scanned = {"blocks": stacked_equinox()}, scanned_equinox
        weights = stack["blocks"].attn.weight
    rules = {match.named_scope("blocks/attn"): path}
    run = SCOPES[framework](scanned)
    assert planted(run, stack, X, rules=rules) == [("named_scope:blocks/attn", LAYERS)]
    x = X
    for index, weight in enumerate(weights):
        x = x + path(site_key(a_key(), "named_scope:blocks/attn", index), jnp.tanh(x @ weight))
    np.testing.assert_allclose(plant(run, rules)(a_key(), stack, X), x, rtol=1e-5)


def make_from_traced_seed(self, seed):
    self.weight = nnx.Param(jax.random.normal(jax.random.key(seed), (SIZE, SIZE)))


# What the caller sees


@in_both
def test_errors_leave_nothing_behind(net, named_scopes):
    class Stop(Exception):  # noqa: N818 - it stops, and is no error
        pass

    def failing(model, x):
        model.blocks[0].attn(x)
        # In the scope of a block, so that scopes are open when it fails.
        type(model.blocks[1]).__call__(model.blocks[1], Fails())

    class Fails:
        def __add__(self, other):
            raise Stop

        def __matmul__(self, other):
            raise Stop

        __array__ = __matmul__

    model = net()
    before = {
        cls: dict(vars(cls)) for cls in (net, type(model.blocks[0]), type(model.blocks[0].attn))
    }
    with pytest.raises(Stop):
        named_scopes(failing)(model, X)
    assert {cls: dict(vars(cls)) for cls in before} == before
    assert [type(model), type(model.blocks[0]), type(model.blocks[0].attn)] == list(before)
    assert paths_in(model, X) == set()
    last = named_scopes(lambda model, x: model.blocks[1].attn(x))
    assert paths_in(partial(last, model), X) == {"blocks/1/attn"}  # where it failed


@in_both
def test_other_threads_see_nothing(net, named_scopes):
    meet = threading.Barrier(2, timeout=60)

    def waiting(model, x):
        meet.wait()  # both are inside
        found = paths_in(model, x)
        meet.wait()
        return found

    model, found = net(), {}

    def plain():
        found["plain"] = waiting(model, X)

    thread = threading.Thread(target=plain)
    thread.start()
    named_scopes(lambda model, x: found.setdefault("scoped", waiting(model, x)))(model, X)
    thread.join()
    assert found["plain"] == set()
    assert "blocks/0/attn" in found["scoped"]


def test_nnx_modules_are_changed_as_without():
    class Stateful(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(SIZE, rngs=nnx.Rngs(0))
            self.parts = nnx.List([NNXAttention(0), NNXAttention(1)])
            self.pair = nnx.data((NNXAttention(2), NNXAttention(3)))
            self.twin = self.parts[0]
            self.old, self.count = "old", 0

        def __call__(self, x):
            assert self.twin is self.parts[0]
            self.count += 1
            self.new = NNXAttention(4)
            self.parts.append(self.parts[1])
            self.seen = nnx.Variable(x)
            del self.old
            return self.norm(self.new(self.twin(x))), self.parts[2], self.new, self.pair

    models = Stateful(), Stateful()
    pair = models[0].pair
    (y, *parts), (expected, *_) = nnx_layers.named_scopes(models[0])(X), models[1](X)
    np.testing.assert_array_equal(y, expected)
    (graph, state), (same_graph, same_state) = map(nnx.split, models)
    assert graph == same_graph
    chex.assert_trees_all_equal(state, same_state)
    model = models[0]
    assert parts[0] is model.parts[1] is model.parts[2]
    assert parts[1] is model.new
    assert (type(model.new), model.count) == (NNXAttention, 1)
    assert model.pair is pair
    assert parts[2] == pair
    assert model.twin is model.parts[0]
    assert model.norm.mean[...].any()


def test_nnx_objects_that_are_no_modules_may_hold_some():
    class Holder(nnx.Pytree):
        def __init__(self):
            self.net, self.rngs = NNXNet(), nnx.Rngs(0)

    def held(holder, x, rngs):
        assert isinstance(rngs, nnx.Rngs)
        return holder.net(x)

    holder = Holder()
    run = nnx_layers.named_scopes(held)
    assert "net/blocks/0/attn" in paths_in(lambda x: run(holder, x, nnx.Rngs(1)), X)
    assert type(holder.net) is NNXNet
    with pytest.raises(TypeError, match="named_scopes: fn must be a module"):
        nnx_layers.named_scopes(lambda rngs: 0)(nnx.Rngs(0))


def test_changes_of_others_are_kept():
    model = NNXNet()
    model.flag, model.parts = "old", nnx.data([model.blocks[0]])

    def changing(copy, x):
        model.flag = "of another thread"
        copy.mine = "new"
        copy.parts.append(copy.blocks[1])
        return copy(x)

    nnx_layers.named_scopes(changing)(model, X)
    assert (model.flag, model.mine) == ("of another thread", "new")
    assert [id(part) for part in model.parts] == [id(block) for block in model.blocks][:2]


def test_nnx_modules_that_a_jit_returns_have_their_class_again():
    @nnx.jit
    def inside(model):
        return {"block": model.blocks[0], "new": NNXBlock(9)}

    found = nnx_layers.named_scopes(lambda model: inside(model))(NNXNet())
    for block in found.values():
        assert (type(block), type(block.attn)) == (NNXBlock, NNXAttention)
        assert {name for name in vars(block) if not name.startswith("_pytree")} == {"attn"}


def test_nnx_module_at_two_paths_has_the_one_below_its_caller():
    model = NNXNet()
    model.again = model.blocks[1]
    model.blocks[0].more = model.blocks[0]  # a circle

    def twice(model, x):
        assert model.again is model.blocks[1]
        return model.encode(model.again(x))

    blocks = {f"blocks/{index}" for index in (0, 2)}
    found = {"again", "again/attn", *blocks, *(f"{block}/attn" for block in blocks)}
    assert paths_in(partial(nnx_layers.named_scopes(twice), model), X) == found
    model.heads.main = model.blocks[0].attn
    found = paths_in(nnx_layers.named_scopes(model), X)
    assert {"blocks/0/attn", "again/attn", "heads/main"} & found == {"blocks/0/attn", "again/attn"}


def test_equinox_module_at_two_places_has_the_path_of_each():
    shared = EqxAttention(0)
    run = equinox.named_scopes(lambda pair, x: pair["a"](x) + pair["b"](x))
    assert paths_in(partial(run, {"a": shared, "b": shared}), X) == {"a", "b"}


def test_nnx_modules_that_are_no_pytrees():
    class Plain(nnx.Module, pytree=False):
        def __init__(self):
            self.parts = [NNXAttention(0)]

        def __call__(self, x):
            return self.parts[0](x)

    assert paths_in(nnx_layers.named_scopes(Plain()), X) == {"parts/0"}
    assert paths_in(partial(nnx_layers.named_scopes(call), Plain()), X) == {"parts/0"}


@pytest.mark.parametrize("inside", [False, True])
def test_nnx_plant_updates_statistics_with_scopes(inside):
    class Normed(NNXNet):
        def __init__(self):
            super().__init__()
            self.norm = nnx.BatchNorm(SIZE, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(self.encode(x))

    rules = {match.named_scope("blocks/*/attn"): lambda key, x: 0 * x}
    if inside:
        train = nnx_layers.named_scopes(nnx_layers.plant(call, rules))
    else:
        train = nnx_layers.plant(nnx_layers.named_scopes(call), rules)
    model = Normed()
    train(a_key(), model, X)
    np.testing.assert_allclose(model.norm.mean[...], 0.01 * X.mean(0), rtol=1e-5)
    assert type(model.blocks[0]) is NNXBlock


def test_equinox_modules_that_are_returned_have_their_class_again():
    model = EqxNet()

    def train_step(model, x):
        model = eqx.tree_at(lambda net: net.heads["main"].weight, model, x[:SIZE])
        return model, {"method": model.encode, "block": model.blocks[0]}

    new, more = equinox.named_scopes(train_step)(model, X)
    chex.assert_trees_all_equal(new, train_step(model, X)[0])
    assert jax.tree.structure(new) == jax.tree.structure(model)
    assert type(more["block"]) is EqxBlock
    assert type(more["method"].__self__) is EqxNet
    np.testing.assert_array_equal(more["method"](X), model.encode(X))
    assert paths_in(more["method"], X) == set()


def test_equinox_state_goes_through_and_is_not_dropped():
    class Normed(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            y, state = self.norm(x, state)
            return y + 1, state

    def batched(model, xs, state):
        run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return run(xs, state)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        make = eqx.nn.make_with_state(lambda: Normed(eqx.nn.BatchNorm(SIZE, "batch", mode="batch")))
        model, state = make()
        expected, after = batched(model, X, state)
        scoped = equinox.named_scopes(batched)
        y, same = scoped(model, X, state)
        chex.assert_trees_all_equal((y, jax.tree.leaves(same)), (expected, jax.tree.leaves(after)))
        rules = {match.named_scope("norm"): lambda key, x: 0 * x}
        y, same = plant(scoped, rules)(a_key(), model, X, state)
    np.testing.assert_array_equal(y, jnp.ones_like(X))
    chex.assert_trees_all_close(jax.tree.leaves(same), jax.tree.leaves(after), rtol=1e-6)


def test_equinox_methods_that_are_jitted_or_passed_or_partial():
    class Jitted(EqxNet):
        activation: object = jnp.sin  # a default that is a function, and no method

        def __init__(self):
            super().__init__()
            self.activation = jnp.sin

        @eqx.filter_jit
        def encode(self, x):
            return self.activation(super().encode(x))

    model = Jitted()
    names = {f"blocks/{index}/attn" for index in range(LAYERS)}
    runs = [
        (equinox.named_scopes(model.encode), X),
        (partial(equinox.named_scopes(lambda method, x: method(x)), model.encode), X),
        (equinox.named_scopes(eqx.Partial(lambda net, x: net.encode(x), model)), X),
    ]
    for run, x in runs:
        assert names <= {name.replace("jit(encode)/", "") for name in paths_in(run, x)}
        np.testing.assert_array_equal(run(x), model.encode(x))


def test_scopes_of_equinox_itself_are_not_in_the_paths():
    with jax.debug_key_reuse(False):
        attention = eqx.nn.MultiheadAttention(2, SIZE, key=jax.random.key(1))
        mlp = eqx.nn.MLP(SIZE, SIZE, 8, 2, key=jax.random.key(1))

    def both(parts, x):
        h = parts["attn"](x, x, x)
        return jax.vmap(parts["mlp"])(h)

    parts = {"attn": attention, "mlp": mlp}
    rules = {match.named_scope("*/query_proj"): half, match.named_scope("mlp/layers/[01]"): half}
    with jax.numpy_rank_promotion("allow"):
        found = planted(equinox.named_scopes(both), parts, X, rules=rules)
    assert sorted(site for site, _ in found) == [
        "named_scope:attn/query_proj",
        "named_scope:mlp/layers/0",
        "named_scope:mlp/layers/1",
    ]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_functions_in_which_no_module_is_seen_are_refused(framework):
    net, named_scopes = FRAMEWORKS[framework]
    model = net()
    closed = named_scopes(lambda x: model(x))
    with pytest.raises(TypeError, match="named_scopes: fn must be a module, a method of one, or"):
        closed(X)
    with pytest.raises(TypeError, match=r"named_scopes: fn must be callable; got 3\."):
        named_scopes(3)
    jit = nnx.jit if framework == "nnx" else eqx.filter_jit
    with pytest.raises(TypeError, match="put jit around the result"):
        named_scopes(jit(model))(X)
