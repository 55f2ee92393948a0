"""The methods inside models of flax.linen, flax.nnx, equinox and haiku, a few lines each.

A model drops where it has a key and not where it has none, so that it serves
for training and for use. All that a framework is taught is where keys come from.
"""

from functools import cache, partial
from types import SimpleNamespace

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxdrop import (
    apply_mask,
    draw_mask,
    drop_block,
    drop_condition,
    drop_connect,
    drop_heads,
    drop_key,
    drop_path,
    drop_tokens,
    dropout,
    embedding_dropout,
    locked_dropout,
    mixout,
    restore_tokens,
    spatial_dropout,
    zoneout,
)

FRAMEWORKS = ["linen", "nnx", "equinox", "haiku"]
BATCH, TIME, SIZE, HEADS, WORDS = 4, 6, 8, 2, 10
in_every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]


def first_keys(framework, key, count):
    """The keys that a framework hands out to a model that was given `key`."""
    key = jax.random.clone(key)  # the key reuse checker counts what is handed out twice
    if framework == "linen":
        make_rng = linen.Dense(1).bind({}, rngs={"dropout": key}).make_rng
        return [make_rng("dropout") for _ in range(count)]
    if framework == "nnx":
        rngs = nnx.Rngs(dropout=key)
        return [rngs.dropout() for _ in range(count)]
    if framework == "haiku":
        sequence = hk.PRNGSequence(key)
        return [next(sequence) for _ in range(count)]
    return list(jax.random.split(key, count))


# Transformers: keys and heads of attention, activations, residual branches.


def attention(qkv, drop, **axes):
    q, k, v = jnp.moveaxis(qkv, -3, 0)
    logits = drop(drop_key, jnp.einsum("...qhd,...khd->...hqk", q, k))
    y = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(logits), v)
    return drop(drop_heads, y, **axes)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, rate):
        def drop(method, x):
            has_key = self.has_rng("dropout")
            return method(self.make_rng("dropout"), x, rate) if has_key else x

        y = linen.DenseGeneral((3, HEADS, SIZE // HEADS))(linen.LayerNorm()(x))
        y = linen.DenseGeneral(SIZE, axis=(-2, -1))(attention(y, drop))
        x = x + drop(drop_path, y)
        y = drop(dropout, linen.gelu(linen.Dense(2 * SIZE)(linen.LayerNorm()(x))))
        return x + drop(drop_path, linen.Dense(SIZE)(y))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(SIZE, rngs=rngs), nnx.LayerNorm(SIZE, rngs=rngs)
        self.qkv = nnx.LinearGeneral(SIZE, (3, HEADS, SIZE // HEADS), rngs=rngs)
        self.out = nnx.LinearGeneral((HEADS, SIZE // HEADS), SIZE, axis=(-2, -1), rngs=rngs)
        self.up, self.down = nnx.Linear(SIZE, 16, rngs=rngs), nnx.Linear(16, SIZE, rngs=rngs)

    def __call__(self, x, rate, rngs=None):
        def drop(method, x):
            return x if rngs is None else method(rngs.dropout(), x, rate)

        x = x + drop(drop_path, self.out(attention(self.qkv(self.norm1(x)), drop)))
        y = drop(dropout, nnx.gelu(self.up(self.norm2(x))))
        return x + drop(drop_path, self.down(y))


class EquinoxBlock(eqx.Module):
    norms: list[eqx.nn.LayerNorm]
    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        sizes = [(SIZE, 3 * SIZE), (SIZE, SIZE), (SIZE, 16), (16, SIZE)]
        keys = jax.random.split(key, 4)
        linears = [eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, keys, strict=True)]
        self.norms = [eqx.nn.LayerNorm(SIZE) for _ in range(2)]
        self.qkv, self.out, self.up, self.down = linears

    def __call__(self, x, rate, key=None):  # one sample
        keys = iter([] if key is None else jax.random.split(key, 5))

        def drop(method, x, **options):
            return x if key is None else method(next(keys), x, rate, **options)

        qkv = jax.vmap(self.qkv)(jax.vmap(self.norms[0])(x)).reshape(TIME, 3, HEADS, -1)
        y = jax.vmap(self.out)(attention(qkv, drop, batch_axis=None).reshape(TIME, SIZE))
        x = x + drop(drop_path, y, batch_axis=None)
        y = drop(dropout, jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norms[1])(x))))
        return x + drop(drop_path, jax.vmap(self.down)(y), batch_axis=None)


def haiku_block(x, rate):
    def drop(method, x):
        key = hk.maybe_next_rng_key()
        return x if key is None else method(key, x, rate)

    def normed(x):
        return hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)

    qkv = hk.Linear(3 * SIZE)(normed(x)).reshape(*x.shape[:-1], 3, HEADS, -1)
    x = x + drop(drop_path, hk.Linear(SIZE)(attention(qkv, drop).reshape(x.shape)))
    y = drop(dropout, jax.nn.gelu(hk.Linear(2 * SIZE)(normed(x))))
    return x + drop(drop_path, hk.Linear(SIZE)(y))


@cache
def transformer(framework):
    """Parameters of a block, and it as a function `(params, xs, rate, key)`; key may be None."""
    key, xs = jax.random.key(1), jnp.zeros((BATCH, TIME, SIZE))
    if framework == "linen":
        block = LinenBlock()
        return jax.jit(block.init)(key, xs, 0.0), lambda params, xs, rate, key: block.apply(
            params, xs, rate, rngs={} if key is None else {"dropout": key}
        )
    if framework == "nnx":
        graph, state = nnx.split(NNXBlock(nnx.Rngs(params=key)))
        return state, lambda state, xs, rate, key: nnx.merge(graph, state)(
            xs, rate, rngs=None if key is None else nnx.Rngs(dropout=key)
        )
    if framework == "haiku":
        block = hk.transform(haiku_block)
        return jax.jit(block.init)(key, xs, 0.0), lambda params, xs, rate, key: block.apply(
            params, key, xs, rate
        )

    def apply(block, xs, rate, key):
        keys = None if key is None else jax.random.split(key, len(xs))
        return jax.vmap(block, (0, None, None if key is None else 0))(xs, rate, keys)

    return EquinoxBlock(key), apply


@in_every_framework
def test_transformer_drops_by_its_key_and_nothing_without_one_or_at_rate_zero(framework):
    xs = normal(0, BATCH, TIME, SIZE)
    params, model = transformer(framework)
    model = jax.jit(partial(model, params, xs))  # compiled once for all rates
    without_key, first, second, at_rate_zero = (
        model(rate, None if seed is None else jax.random.key(seed))
        for rate, seed in [(0.3, None), (0.3, 0), (0.3, 1), (0.0, 2)]
    )
    close(at_rate_zero, without_key)
    assert not np.allclose(first, without_key)
    assert not np.allclose(first, second)


@in_every_framework
def test_transformer_at_rate_one_is_the_identity_and_learns_nothing(framework, key):
    xs = normal(0, BATCH, TIME, SIZE)
    params, model = transformer(framework)

    @jax.jit
    def run(params):
        y, pull_back = jax.vjp(lambda params: model(params, xs, 1.0, key), params)
        return y, pull_back(xs)

    y, slopes = run(params)
    np.testing.assert_array_equal(y, xs)
    assert not any(leaf.any() for leaf in arrays(slopes))


@in_every_framework
def test_transformer_learns(framework, key):
    xs = normal(0, BATCH, TIME, SIZE)
    params, model = transformer(framework)
    optimizer = optax.sgd(0.3)

    def loss(params, key=None):
        return jnp.mean((model(params, xs, 0.1, key) - xs[:, ::-1]) ** 2)

    def step(state, key):
        params, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(params, key), memory)
        return (optax.apply_updates(params, updates), memory), None

    @jax.jit
    def train(params, keys):
        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return loss(params), loss(trained)

    before, after = train(params, jax.random.split(key, 30))
    assert after < 0.5 * before


# Convolutions: feature maps and blocks of them, channels last, in equinox first.


class LinenConvolution(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(SIZE, (3, 3))(x))
        x = spatial_dropout(self.make_rng("dropout"), x, 0.3)
        return drop_block(self.make_rng("dropout"), x, 0.3, block_size=2)


class NNXConvolution(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, SIZE, (3, 3), rngs=rngs)

    def __call__(self, x, rngs):
        x = spatial_dropout(rngs.dropout(), nnx.relu(self.conv(x)), 0.3)
        return drop_block(rngs.dropout(), x, 0.3, block_size=2)


class EquinoxConvolution(eqx.Module):
    conv: eqx.nn.Conv2d

    def __call__(self, x, key):  # one sample, (channels, height, width)
        first, second = jax.random.split(key)
        axes = {"batch_axis": None, "channel_axis": 0}
        x = spatial_dropout(first, jax.nn.relu(self.conv(x)), 0.3, **axes)
        return drop_block(second, x, 0.3, block_size=2, **axes)


def haiku_convolution(x):
    x = spatial_dropout(hk.next_rng_key(), jax.nn.relu(hk.Conv2D(SIZE, 3)(x)), 0.3)
    return drop_block(hk.next_rng_key(), x, 0.3, block_size=2)


def assert_maps_and_blocks_are_dropped(y, convolved, keys):
    x = spatial_dropout(keys[0], jax.nn.relu(convolved), 0.3)
    np.testing.assert_array_equal(y, drop_block(keys[1], x, 0.3, block_size=2))
    maps = np.moveaxis(np.asarray(y), -1, 1).reshape(-1, *y.shape[1:3])
    assert 0 < sum(not each.any() for each in maps) < len(maps)


def test_convolution_in_linen(key):
    images, model = normal(0, BATCH, 5, 5, 3), LinenConvolution()
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    params = jax.jit(model.init)(keys, images)
    y = jax.jit(model.apply)(params, images, rngs={"dropout": key})
    convolved = linen.Conv(SIZE, (3, 3)).apply({"params": params["params"]["Conv_0"]}, images)
    assert_maps_and_blocks_are_dropped(y, convolved, first_keys("linen", key, 2))


def test_convolution_in_nnx(key):
    images, model = normal(0, BATCH, 5, 5, 3), NNXConvolution(nnx.Rngs(1))
    y = nnx.jit(model)(images, nnx.Rngs(dropout=key))
    assert_maps_and_blocks_are_dropped(y, model.conv(images), first_keys("nnx", key, 2))


def test_convolution_in_haiku(key):
    images, model = normal(0, BATCH, 5, 5, 3), hk.transform(haiku_convolution)
    params = jax.jit(model.init)(jax.random.key(1), images)
    y = jax.jit(model.apply)(params, key, images)
    convolved = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(SIZE, 3)(x)))
    keys = first_keys("haiku", key, 2)
    assert_maps_and_blocks_are_dropped(y, convolved.apply(params, images), keys)


def test_convolution_in_equinox(key):
    images = normal(0, BATCH, 3, 5, 5)
    model = EquinoxConvolution(eqx.nn.Conv2d(3, SIZE, 3, padding=1, key=jax.random.key(1)))
    keys = jax.random.split(key, BATCH)
    ys = jax.jit(jax.vmap(model))(images, keys)
    whole = jax.jit(jax.vmap(model.conv))(images)  # alone, an image may be summed otherwise
    for key, y, convolved in zip(jax.random.clone(keys), ys, whole, strict=True):
        # Channels first, one sample: the masks of channels last in a batch of one.
        y, convolved = (jnp.moveaxis(each, 0, -1)[None] for each in (y, convolved))
        assert_maps_and_blocks_are_dropped(y, convolved, first_keys("equinox", key, 2))


# Weights: of any framework's parameters, by a predicate over paths and leaves.


@cache
def perceptron(framework):
    """Parameters of a perceptron, it as a function `(params, x)`, and which are kernels."""
    key, x = jax.random.key(1), jnp.zeros(SIZE)
    if framework == "linen":
        model = linen.Sequential([linen.Dense(SIZE), jnp.tanh, linen.Dense(3)])
        params = jax.jit(model.init)(key, x)
        return params, model.apply, lambda path, leaf: path[-1].key == "kernel"
    if framework == "nnx":
        rngs = nnx.Rngs(params=key)
        layers = nnx.Linear(SIZE, SIZE, rngs=rngs), jnp.tanh, nnx.Linear(SIZE, 3, rngs=rngs)
        graph, state = nnx.split(nnx.Sequential(*layers))
        return (
            state,
            lambda state, x: nnx.merge(graph, state)(x),
            lambda path, leaf: path[-2].key == "kernel",
        )
    if framework == "haiku":
        model = hk.without_apply_rng(
            hk.transform(lambda x: hk.Sequential([hk.Linear(SIZE), jnp.tanh, hk.Linear(3)])(x))
        )
        params = jax.jit(model.init)(key, x)
        return params, model.apply, lambda path, leaf: path[-1].key == "w"
    first, second = jax.random.split(key)
    layers = [
        eqx.nn.Linear(SIZE, SIZE, key=first),
        eqx.nn.Lambda(jnp.tanh),  # a leaf that is no array
        eqx.nn.Linear(SIZE, 3, key=second),
    ]
    return (
        eqx.nn.Sequential(layers),
        lambda model, x: model(x),
        lambda path, leaf: path[-1].name == "weight",
    )


@in_every_framework
def test_drop_connect_drops_weights_and_their_gradients(framework, key):
    params, model, is_kernel = perceptron(framework)

    def loss(params):
        dropped = drop_connect(key, params, 0.5, where=is_kernel)
        return jnp.sum(model(dropped, normal(0, SIZE)) ** 2), dropped

    slopes, dropped = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))(params)
    for weight, left, slope in zip(*map(arrays, (params, dropped, slopes)), strict=True):
        is_kernel = weight.ndim == 2
        np.testing.assert_array_equal((left != weight).any(), is_kernel)
        kept = left != 0 if is_kernel else np.ones_like(left, bool)
        np.testing.assert_array_equal(left, np.where(kept, weight * (1 + is_kernel), 0))
        assert slope.any()
        assert not slope[~kept].any()


@in_every_framework
def test_drop_connect_has_a_mask_for_each_sample_under_vmap(framework):
    params, model, is_kernel = perceptron(framework)
    xs, keys = normal(0, 3, SIZE), jax.random.split(jax.random.key(1), 3)

    def drop_and_run(key, x):
        return model(drop_connect(key, params, 0.5, where=is_kernel), x)

    ys = jax.jit(jax.vmap(drop_and_run))(keys, xs)
    close(ys[2], drop_and_run(jax.random.clone(keys)[2], xs[2]))


@in_every_framework
def test_mixout_moves_weights_and_gradients_towards_pretrained_ones(framework, key):
    pretrained, model, _ = perceptron(framework)
    params = jax.tree.map(lambda leaf: leaf + 1 if eqx.is_array(leaf) else leaf, pretrained)

    def loss(params):
        mixed = mixout(key, params, 0.5, target=pretrained)
        return jnp.sum(model(mixed, normal(0, SIZE)) ** 2), mixed

    slopes, mixed = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))(params)
    for weight, old, new, slope in zip(
        *map(arrays, (params, pretrained, mixed, slopes)), strict=True
    ):
        kept = new != old
        close(new, np.where(kept, 2 * weight - old, old))
        assert not slope[~kept].any()
    assert any(slope.any() for slope in arrays(slopes))
    at_rate_one = mixout(jax.random.key(1), params, 1.0, target=pretrained)
    jax.tree.map(np.testing.assert_array_equal, arrays(at_rate_one), arrays(pretrained))


# Embeddings: whole words.


class LinenEmbedder(linen.Module):
    @linen.compact
    def __call__(self, ids):
        table = linen.Embed(WORDS, SIZE).embedding
        return embedding_dropout(self.make_rng("dropout"), table, 0.5)[ids]


class NNXEmbedder(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(WORDS, SIZE, rngs=rngs)

    def __call__(self, ids, rngs):
        return embedding_dropout(rngs.dropout(), self.embed.embedding[...], 0.5)[ids]


class EquinoxEmbedder(eqx.Module):
    embed: eqx.nn.Embedding

    def __call__(self, ids, key):
        (key,) = jax.random.split(key, 1)
        return embedding_dropout(key, self.embed.weight, 0.5)[ids]


def haiku_embedder(ids):
    return embedding_dropout(hk.next_rng_key(), hk.Embed(WORDS, SIZE).embeddings, 0.5)[ids]


def embedder(framework, ids):
    """The parameters, whose one leaf is the table, and the model `(params, key) -> vectors`."""
    key = jax.random.key(1)
    if framework == "linen":
        model = LinenEmbedder()
        params = model.init({"params": key, "dropout": jax.random.key(2)}, ids)
        return params, lambda params, key: model.apply(params, ids, rngs={"dropout": key})
    if framework == "nnx":
        graph, state = nnx.split(NNXEmbedder(nnx.Rngs(params=key)))
        return state, lambda state, key: nnx.merge(graph, state)(ids, nnx.Rngs(dropout=key))
    if framework == "haiku":
        model = hk.transform(haiku_embedder)
        return model.init(key, ids), lambda params, key: model.apply(params, key, ids)
    model = EquinoxEmbedder(eqx.nn.Embedding(WORDS, SIZE, key=key))
    return model, lambda model, key: model(ids, key)


@in_every_framework
def test_embedding_dropout_drops_words_everywhere_and_their_gradients(framework, key):
    ids = jnp.array([[0, 3, 3, 7], [1, 2, 3, 0]])
    params, model = embedder(framework, ids)
    vectors, pull_back = jax.vjp(partial(model, key=key), params)
    (table,), (slope,) = jax.tree.leaves(params), jax.tree.leaves(pull_back(vectors))
    dropped = embedding_dropout(first_keys(framework, key, 1)[0], table, 0.5)
    np.testing.assert_array_equal(vectors, dropped[ids])
    np.testing.assert_array_equal(vectors, jax.jit(model)(params, jax.random.clone(key)))
    kept = dropped.any(axis=1)
    used = jnp.zeros(WORDS, bool).at[ids].set(True)
    np.testing.assert_array_equal(slope.any(axis=1), kept & used)


# Recurrent networks: masks that last over time, drawn outside the scan, and states that do.


class LinenRecurrent(linen.Module):
    @linen.compact
    def __call__(self, xs):  # (time, batch, features)
        xs = locked_dropout(self.make_rng("dropout"), xs, 0.5, time_axis=0)
        mask = draw_mask(self.make_rng("dropout"), (BATCH, SIZE), 0.5, broadcast_dims=0)

        def step(cell, old, x):
            new, _ = cell(apply_mask(mask, old), x)
            new = zoneout(cell.make_rng("dropout"), new, 0.25, old=old)
            return new, new

        split = {"params": False, "dropout": True}
        scan = linen.scan(step, variable_broadcast="params", split_rngs=split)
        return scan(linen.GRUCell(SIZE), jnp.zeros((BATCH, SIZE)), xs)[1]


class NNXRecurrent(nnx.Module):
    def __init__(self, rngs):
        self.cell = nnx.GRUCell(SIZE, SIZE, rngs=rngs)

    def __call__(self, xs, rngs):  # (time, batch, features)
        xs = locked_dropout(rngs.dropout(), xs, 0.5, time_axis=0)
        mask = draw_mask(rngs.dropout(), (BATCH, SIZE), 0.5, broadcast_dims=0)

        def step(old, inputs):
            x, key = inputs
            new = zoneout(key, self.cell(apply_mask(mask, old), x)[0], 0.25, old=old)
            return new, new

        keys = jax.random.split(rngs.dropout(), len(xs))
        return jax.lax.scan(step, jnp.zeros((BATCH, SIZE)), (xs, keys))[1]


class EquinoxRecurrent(eqx.Module):
    cell: eqx.nn.GRUCell

    def __call__(self, xs, key):  # one sample, (time, features)
        inputs_key, mask_key, key = jax.random.split(key, 3)
        xs = locked_dropout(inputs_key, xs, 0.5, time_axis=0)
        mask = draw_mask(mask_key, SIZE, 0.5)

        def step(old, inputs):
            x, key = inputs
            new = zoneout(key, self.cell(x, apply_mask(mask, old)), 0.25, old=old)
            return new, new

        keys = jax.random.split(key, len(xs))
        return jax.lax.scan(step, jnp.zeros(SIZE), (xs, keys))[1]


def haiku_recurrent(xs):  # (time, batch, features)
    xs = locked_dropout(hk.next_rng_key(), xs, 0.5, time_axis=0)
    mask = draw_mask(hk.next_rng_key(), (BATCH, SIZE), 0.5, broadcast_dims=0)
    cell = hk.GRU(SIZE)

    def core(x, old):
        new = zoneout(hk.next_rng_key(), cell(x, apply_mask(mask, old))[0], 0.25, old=old)
        return new, new

    return hk.dynamic_unroll(core, xs, jnp.zeros((BATCH, SIZE)))[0]


def recurrent(framework, xs):
    """Parameters, the model `(params, key, xs)`, its cell `(params, old, x)` and its kernel.

    The kernel is what states are multiplied by, with a row for each unit.
    """
    key = jax.random.key(1)
    if framework == "linen":
        model, cell = LinenRecurrent(), linen.GRUCell(SIZE)
        params = jax.jit(model.init)({"params": key, "dropout": jax.random.key(2)}, xs)
        return SimpleNamespace(
            params=params,
            model=lambda params, key, xs: model.apply(params, xs, rngs={"dropout": key}),
            cell=lambda old, x: cell.apply({"params": params["params"]["GRUCell_0"]}, old, x)[0],
            kernel=lambda params: params["params"]["GRUCell_0"]["hn"]["kernel"],
        )
    if framework == "nnx":
        graph, state = nnx.split(NNXRecurrent(nnx.Rngs(params=key)))
        return SimpleNamespace(
            params=state,
            model=lambda state, key, xs: nnx.merge(graph, state)(xs, nnx.Rngs(dropout=key)),
            cell=lambda old, x: nnx.merge(graph, state).cell(old, x)[0],
            kernel=lambda state: state["cell"]["dense_h"]["kernel"][...],
        )
    if framework == "haiku":
        model = hk.transform(haiku_recurrent)
        params = jax.jit(model.init)(key, xs)
        cell = hk.without_apply_rng(hk.transform(lambda old, x: hk.GRU(SIZE)(x, old)[0]))
        return SimpleNamespace(
            params=params,
            model=model.apply,
            cell=partial(cell.apply, params),
            kernel=lambda params: params["gru"]["w_h"],
        )
    model = EquinoxRecurrent(eqx.nn.GRUCell(SIZE, SIZE, key=key))
    return SimpleNamespace(
        params=model,
        model=lambda model, key, xs: jax.vmap(model, (1, None), 1)(xs, key),  # one mask for all
        cell=jax.vmap(lambda old, x: model.cell(x, old)),
        kernel=lambda model: model.cell.weight_hh.T,
    )


@in_every_framework
def test_recurrent_masks_last_over_time_and_zoneout_keeps_old_states(framework, key):
    xs = normal(0, TIME, BATCH, SIZE)
    net = recurrent(framework, xs)

    @jax.jit
    def run(params, key):
        states, pull_back = jax.vjp(lambda params, xs: net.model(params, key, xs), params, xs)
        return states, *pull_back(states)

    states, slopes, x_slopes = run(net.params, key)
    inputs_key, mask_key, *_ = first_keys(framework, key, 3)
    mask = draw_mask(mask_key, (BATCH, SIZE), 0.5, broadcast_dims=0)
    kept = mask.unpack()[0]
    assert 0 < kept.sum() < SIZE
    np.testing.assert_array_equal(net.kernel(slopes).any(axis=1), kept)

    if framework != "equinox":  # where a sample is dropped from alone
        xs = locked_dropout(inputs_key, xs, 0.5, time_axis=0)
    else:
        xs = jax.vmap(partial(locked_dropout, inputs_key, rate=0.5, time_axis=0), 1, 1)(xs)
    np.testing.assert_array_equal(x_slopes != 0, xs != 0)

    olds = jnp.concatenate([jnp.zeros((1, BATCH, SIZE)), states[:-1]])
    news = jax.vmap(lambda old, x: net.cell(apply_mask(mask, old), x))(olds, xs)
    zoned_out = states == olds
    close(states, jnp.where(zoned_out, olds, news))
    assert 0.1 < zoned_out.mean() < 0.4
    assert (zoned_out[1:] != zoned_out[:-1]).any()  # a key for each step


# Tokens and conditions.


class LinenVisionTransformer(linen.Module):
    @linen.compact
    def __call__(self, patches):
        first = self.param("class_token", linen.initializers.normal(), (1, 1, SIZE))
        x = jnp.concatenate([jnp.tile(first, (BATCH, 1, 1)), linen.Dense(SIZE)(patches)], axis=1)
        x = x + self.param("positions", linen.initializers.normal(), (1, TIME + 1, SIZE))
        if self.has_rng("dropout"):
            x, _ = drop_tokens(self.make_rng("dropout"), x, 0.5, prefix=1)
        return linen.Dense(3)(linen.MultiHeadDotProductAttention(HEADS)(x)[:, 0])


def test_vision_transformer_in_linen_sees_only_the_kept_patches(key):
    patches, model = normal(0, BATCH, TIME, SIZE), LinenVisionTransformer()
    params = jax.jit(model.init)(jax.random.key(1), patches)
    tokens_key = first_keys("linen", key, 1)[0]

    @jax.jit
    def run(patches):
        y, pull_back = jax.vjp(
            lambda patches: model.apply(params, patches, rngs={"dropout": key}), patches
        )
        return y, pull_back(y)[0]

    y, slope = run(patches)
    _, positions = drop_tokens(tokens_key, jnp.zeros((BATCH, TIME + 1)), 0.5, axis=1, prefix=1)
    assert positions.shape == (BATCH, 1 + TIME // 2)
    assert not positions[:, 0].any()
    kept = jax.nn.one_hot(positions[:, 1:] - 1, TIME).any(axis=1)
    np.testing.assert_array_equal(slope.any(axis=-1), kept)
    np.testing.assert_array_equal(run(jnp.where(kept[..., None], patches, jnp.nan))[0], y)


class EquinoxAutoencoder(eqx.Module):
    encoder: eqx.nn.Linear
    decoder: eqx.nn.Linear
    masked: jax.Array

    def __call__(self, patches, key):  # one sample
        tokens, positions = drop_tokens(key, jax.vmap(self.encoder)(patches), 0.5)
        tokens = restore_tokens(tokens, positions, len(patches), fill=self.masked)
        return jax.vmap(self.decoder)(tokens), positions


def test_masked_autoencoder_in_equinox_decodes_one_token_for_all_dropped(key):
    patches, keys = normal(0, BATCH, TIME, SIZE), jax.random.split(key, BATCH)
    encoder, decoder = (eqx.nn.Linear(SIZE, SIZE, key=k) for k in jax.random.split(keys[0]))
    model = EquinoxAutoencoder(encoder, decoder, masked=normal(1, SIZE))
    y, positions = jax.jit(jax.vmap(model))(patches, jax.random.clone(keys))
    kept = jax.nn.one_hot(positions, TIME).any(axis=1)
    np.testing.assert_array_equal(kept.sum(axis=1), TIME // 2)
    encoded = jnp.where(kept[..., None], jax.vmap(jax.vmap(encoder))(patches), model.masked)
    close(y, jax.vmap(jax.vmap(decoder))(encoded))


class NNXDenoiser(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(WORDS + 1, SIZE, rngs=rngs)  # the last one stands for no label
        self.linear = nnx.Linear(2 * SIZE, SIZE, rngs=rngs)

    def __call__(self, x, labels, rngs=None):
        if rngs is not None:
            labels = drop_condition(rngs.dropout(), labels, 0.5, null=WORDS)
        return self.linear(jnp.concatenate([x, self.embed(labels)], axis=-1))


def test_denoiser_in_nnx_forgets_labels(key):
    x, labels, model = normal(0, 16, SIZE), jnp.arange(16) % WORDS, NNXDenoiser(nnx.Rngs(1))
    y = nnx.jit(model)(x, labels, nnx.Rngs(dropout=key))
    forgotten = drop_condition(first_keys("nnx", key, 1)[0], labels, 0.5, null=WORDS) == WORDS
    assert 0 < forgotten.sum() < 16
    close(y, jnp.where(forgotten[:, None], model(x, jnp.full(16, WORDS)), model(x, labels)))


def haiku_denoiser(x, condition, rate):
    null = hk.get_parameter("null", (SIZE,), init=hk.initializers.RandomNormal())
    condition = drop_condition(hk.next_rng_key(), condition, rate, null={"text": null, "size": 0})
    inputs = [x, condition["text"], condition["size"]]
    return hk.Linear(SIZE)(jnp.concatenate(inputs, axis=-1))


def test_denoiser_in_haiku_learns_what_stands_for_no_condition(key):
    condition = {"text": normal(1, 16, SIZE), "size": normal(2, 16, 1)}
    model = hk.transform(haiku_denoiser)
    params = model.init(jax.random.key(1), normal(0, 16, SIZE), condition, 0.5)

    @jax.jit
    def slopes(key, rate):
        def loss(params, condition):
            return jnp.sum(model.apply(params, key, normal(0, 16, SIZE), condition, rate) ** 2)

        slopes, of_condition = jax.grad(loss, (0, 1))(params, condition)
        return slopes["~"]["null"], of_condition

    null, of_condition = slopes(key, 0.5)
    kept = of_condition["text"].any(axis=1)
    assert null.any()
    assert 0 < kept.sum() < 16
    np.testing.assert_array_equal(of_condition["size"].any(axis=1), kept)
    assert not slopes(jax.random.key(1), 0.0)[0].any()
    assert not any(leaf.any() for leaf in slopes(jax.random.key(1), 1.0)[1].values())
