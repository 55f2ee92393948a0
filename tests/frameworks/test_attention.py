"""`attention_fn` inside the layers of flax: all that they pass is honoured or refused by name."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

from jaxdrop import draw_mask
from jaxdrop.frameworks import linen, nnx as nnx_layers
from jaxdrop.frameworks.attention import _precision as precision_of
from jaxdrop.planting.jaxprs import bodies_in

T, SIZE, HEADS = 12, 16, 4
OURS = {nn: linen.attention_fn, nnx: nnx_layers.attention_fn}
THEIRS = {nn: nn.dot_product_attention, nnx: nnx.dot_product_attention}
FLAX = pytest.mark.parametrize("flax", [nn, nnx], ids=["linen", "nnx"])


@pytest.fixture(autouse=True)
def settings_of_users():
    """Functions of flax promote dtypes and ranks, and use a key twice."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_key_reuse(False),
    ):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.fixture
def same_masks(monkeypatch):
    """Flax's own function draws the masks of this library. Its keep_prob is on the grid."""

    def bernoulli(key, p, shape):
        return draw_mask(key, shape, 1 - p).unpack()

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)


def nnx_layer(attention_fn, **options):
    return nnx.MultiHeadAttention(
        HEADS,
        SIZE,
        dropout_rate=0.25,
        attention_fn=attention_fn,
        decode=False,
        rngs=nnx.Rngs(params=0),
        keep_rngs=False,
        **options,
    )


def layer_of(flax, attention_fn, x, **options):
    """An attention layer, `(*inputs, deterministic, **arguments) -> y`, with fixed weights."""
    if flax is nnx:
        layer = nnx_layer(attention_fn, **options)
        return lambda *inputs, deterministic, **arguments: layer(
            *inputs, deterministic=deterministic, rngs=nnx.Rngs(dropout=1), **arguments
        )
    layer = nn.MultiHeadDotProductAttention(
        HEADS, dropout_rate=0.25, attention_fn=attention_fn, **options
    )
    params = layer.init(jax.random.key(0), x, deterministic=True)
    return lambda *inputs, deterministic, **arguments: layer.apply(
        params,
        *inputs,
        deterministic=deterministic,
        dropout_rng=nnx.Rngs(dropout=1).dropout(),  # that of nnx
        **arguments,
    )


KEYS = normal(1, 2, 7, SIZE)
CALLS = {
    "self": ((), {}, {}),
    "cross": ((KEYS, KEYS), {}, {}),
    "keys": ((KEYS,), {}, {}),
    "causal mask": ((), {"mask": nn.make_causal_mask(jnp.ones((2, T)))}, {}),
    "mask of booleans": ((), {"mask": jnp.arange(T) % 3 > 0}, {}),
    "mask of integers": ((), {"mask": jnp.tri(T, dtype=jnp.int32)[None, None]}, {}),
    "one mask for each head": ((), {}, {"broadcast_dropout": False}),
    "normalized": ((), {}, {"normalize_qk": True}),
    "bfloat16": ((), {}, {"dtype": jnp.bfloat16}),
    "precision": ((), {}, {"precision": jax.lax.Precision.HIGHEST}),
}


@FLAX
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_layers_compute_what_they_do_with_the_function_of_flax(
    flax, call, deterministic, same_masks
):
    x = normal(0, 2, T, SIZE)
    inputs, arguments, options = CALLS[call]
    ours, theirs = (
        layer_of(flax, fn[flax], x, **options)(x, *inputs, deterministic=deterministic, **arguments)
        for fn in (OURS, THEIRS)
    )
    assert ours.dtype == theirs.dtype
    # Flax rounds logits and weights to bfloat16.
    atol = 0.02 if call == "bfloat16" else 2e-6
    close(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol)


@FLAX
def test_what_is_dropped_is_seen_in_the_result(flax):
    x = normal(0, 2, T, SIZE)
    layer = layer_of(flax, OURS[flax], x)
    assert not np.allclose(layer(x, deterministic=False), layer(x, deterministic=True), atol=1e-2)


@FLAX
@pytest.mark.parametrize("shape", [(T,), (2, 3, T)])
@pytest.mark.parametrize("shared", [True, False])
def test_there_may_be_no_batch_or_more_axes_of_it(flax, shape, shared, same_masks):
    x = normal(0, *shape, SIZE)
    for deterministic in (True, False):
        ours, theirs = (
            layer_of(flax, fn[flax], x, broadcast_dropout=shared)(x, deterministic=deterministic)
            for fn in (OURS, THEIRS)
        )
        close(ours, theirs)


@FLAX
@pytest.mark.parametrize("deterministic", [True, False])
def test_causal_layers_do_not_see_what_comes_later(flax, deterministic):
    x = normal(0, 2, T, SIZE)
    takes_it = "is_causal" in inspect.signature(nnx.MultiHeadAttention.__call__).parameters
    named = flax is nnx and takes_it  # layers of flax 0.12.0 do not
    causal = {"is_causal": True} if named else {"mask": nn.make_causal_mask(x[..., 0])}
    run = partial(layer_of(flax, OURS[flax], x), deterministic=deterministic, **causal)
    before, after = run(x), run(x.at[:, -1].add(1.0))
    np.testing.assert_array_equal(after[:, :-1], before[:, :-1])
    assert not np.allclose(after[:, -1], before[:, -1])


@pytest.mark.parametrize("masked", [False, True])
def test_is_causal_is_the_mask_of_that_name(masked, same_masks):
    query, key, value = (normal(seed, 2, T, HEADS, 8) for seed in range(3))
    mask = jnp.broadcast_to(jnp.arange(T) != 3, (2, HEADS, T, T)) if masked else None
    options = {"dropout_rng": jax.random.key(0), "dropout_rate": 0.25}
    ours = OURS[nnx](query, key, value, mask=mask, is_causal=True, **options)
    causal = nn.combine_masks(mask, jnp.tri(T, dtype=bool)[None, None], dtype=bool)
    close(ours, THEIRS[nnx](query, key, value, mask=causal, **options))


@FLAX
def test_a_bias_is_added_to_the_logits(flax, same_masks):
    query, key, value = (normal(seed, 2, T, HEADS, 8) for seed in range(3))
    for bias in (normal(3, 1, HEADS, T, T), jnp.arange(T)):
        ours, theirs = (
            fn[flax](query, key, value, bias, dropout_rng=jax.random.key(0), dropout_rate=0.25)
            for fn in (OURS, THEIRS)
        )
        close(ours, theirs)


def decoded(flax, attention_fn, x):
    if flax is nnx:
        layer = nnx.MultiHeadAttention(
            HEADS, SIZE, attention_fn=attention_fn, decode=True, rngs=nnx.Rngs(params=0)
        )
        layer.init_cache(x.shape)
        return [layer(x[:, [t]]) for t in range(T)]
    layer = nn.MultiHeadDotProductAttention(HEADS, attention_fn=attention_fn, decode=True)
    variables = layer.init(jax.random.key(0), x)
    ys = []
    for t in range(T):
        y, cache = layer.apply(variables, x[:, [t]], mutable=["cache"])
        variables = {**variables, **cache}
        ys.append(y)
    return ys


@FLAX
def test_layers_decode_token_by_token(flax):
    x = normal(0, 2, T, SIZE)
    ours, theirs = (decoded(flax, fn[flax], x) for fn in (OURS, THEIRS))
    close(jnp.stack(ours), jnp.stack(theirs))


def sown(flax, attention_fn, x, deterministic):
    if flax is nnx:
        layer = nnx_layer(attention_fn)
        rngs = nnx.Rngs(dropout=1)
        y = layer(x, sow_weights=True, deterministic=deterministic, rngs=rngs)
        return y, jax.tree.leaves(nnx.pop(layer, nnx.Intermediate))[0]
    run = layer_of(nn, attention_fn, x)
    y, state = run(x, sow_weights=True, deterministic=deterministic, mutable=["intermediates"])
    return y, state["intermediates"]["attention_weights"][0]


@FLAX
@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")  # its other way is new
@pytest.mark.parametrize("deterministic", [True, False])
def test_weights_are_sown_before_they_are_dropped(flax, deterministic, same_masks):
    x = normal(0, 2, T, SIZE)
    ours, theirs = (sown(flax, fn[flax], x, deterministic) for fn in (OURS, THEIRS))
    assert ours[1].shape == (2, HEADS, T, T)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def precisions(jaxpr):
    """The precision of each product in a program."""
    found = []
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "dot_general":
            found.append(eqn.params["precision"])
        for bodies in bodies_in(eqn.params).values():
            found += [precision for body in bodies for precision in precisions(body)]
    return found


@FLAX
@pytest.mark.parametrize("implementation", ["tiled", "whole"])
def test_precision_is_that_of_all_products_of_the_derivative_too(flax, implementation):
    x = normal(0, 2, T, HEADS, 8)
    attend = partial(
        OURS[flax],
        dropout_rng=jax.random.key(0),
        dropout_rate=0.25,
        precision="highest",
        implementation=implementation,
    )
    step = jax.make_jaxpr(jax.grad(lambda x: attend(x, x, x).sum()))(x)
    found = precisions(step)
    assert len(found) >= 4
    assert all(str(p).count("HIGHEST") == 2 for p in found), found


@pytest.mark.parametrize(
    ("precision", "set_as"),
    [
        (None, None),
        ("fastest", "default"),
        ("bfloat16_3x", "high"),
        ("BF16_BF16_F32", "BF16_BF16_F32"),
        (jax.lax.Precision.HIGH, "high"),
        (("highest", "highest"), "highest"),
        (jax.lax.DotAlgorithmPreset.F32_F32_F32, "F32_F32_F32"),
        (jax.lax.DotAlgorithmPreset.DEFAULT, None),
    ],
    ids=str,
)
def test_precision_has_the_forms_that_it_has_in_flax(precision, set_as):
    with precision_of(precision):
        assert jax.config.jax_default_matmul_precision == set_as


@FLAX
def test_arguments_are_those_of_flax_with_the_same_defaults(flax):
    ours, theirs = (inspect.signature(fn[flax]).parameters for fn in (OURS, THEIRS))
    for name, parameter in theirs.items():
        assert name in ours
        assert ours[name].default == parameter.default, name
    shared = [name for name in ours if name in theirs]
    assert shared == list(theirs)


@FLAX
def test_implementation_is_passed_on_and_queries_that_see_nothing_give_zeros(flax):
    x, mask = normal(0, 2, T, HEADS, 8), jnp.arange(T)[:, None] != 3
    y = OURS[flax](x, x, x, mask=mask, implementation="whole")
    np.testing.assert_array_equal(y[:, 3], jnp.zeros((2, HEADS, 8)))
    assert jnp.all(jnp.any(y != 0, -1).sum(1) == T - 1)
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        OURS[flax](x, x, x, implementation="other")


def test_inputs_are_promoted_by_the_function_that_nnx_passes():
    def promote(arrays, *, dtype):
        assert dtype == jnp.bfloat16
        return tuple(x.astype(jnp.float16) for x in arrays)

    x = normal(0, 2, T, HEADS, 8)
    attend = partial(nnx_layers.attention_fn, promote_dtype=promote, dtype=jnp.bfloat16)
    assert jax.eval_shape(attend, x, x, x).dtype == jnp.float16


@FLAX
def test_what_cannot_be_honoured_is_refused_by_name(flax):
    x, attend = jnp.ones((2, T, HEADS, 8)), OURS[flax]
    with pytest.raises(TypeError, match="unexpected keyword argument 'new_argument'"):
        attend(x, x, x, new_argument=1)
    with pytest.raises(NotImplementedError, match="attention_fn: precision must be one for both"):
        attend(x, x, x, precision=("high", "highest"))


@pytest.mark.parametrize(
    "name", ["einsum_dot_general", "qk_attn_weights_einsum", "attn_weights_value_einsum"]
)
def test_linen_einsums_are_refused_by_name(name):
    x = jnp.ones((2, T, HEADS, 8))
    with pytest.raises(NotImplementedError, match=f"attention_fn: {name} must be None; got"):
        linen.attention_fn(x, x, x, **{name: jnp.einsum})


@FLAX
def test_a_missing_key_is_an_error(flax):
    x = jnp.ones((2, T, HEADS, 8))
    with pytest.raises(TypeError, match="rng must be"):
        OURS[flax](x, x, x, dropout_rate=0.25)
