"""What reaches XLA: compilations, memory, residuals and operations, counted and not timed."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logs import Compilations
from modes import make_key
from table.methods import METHODS

import jaxdrop
from jaxdrop import alpha_dropout, dropout, rescale

MIB = 2**20


def test_eager_call_compiles_one_program_and_then_none():
    x = jnp.ones((3, 37))
    with Compilations() as first:
        dropout(make_key("raw"), x, 0.11)
    with Compilations() as second:
        dropout(make_key("raw"), x, 0.11)
    assert [name for name in first.names if "_drop" in name] == first.names[-1:]
    assert second.names == []


@pytest.mark.parametrize(
    "method", [m for m in METHODS if not m.compiles_anew], ids=lambda method: method.name
)
def test_a_second_eager_call_of_any_method_compiles_nothing(method):
    x = jnp.ones(method.shape)
    method.run(make_key("raw"), x, 0.3)
    with Compilations() as compiled:
        method.run(make_key("raw", 1), x, 0.3)
    assert compiled.names == []


def test_changing_known_rates_compile_at_most_four_programs():
    x = jnp.ones((3, 38))
    with Compilations() as compiled:
        for rate in np.linspace(0, 1, 101):
            dropout(make_key("raw"), x, float(rate))
        for exponent in range(1, 30):
            dropout(make_key("raw"), x, 2.0**-exponent)
    assert 1 <= sum("_drop" in name for name in compiled.names) <= 4


def test_masks_at_known_rates_compile_at_most_four_programs_with_zero_and_one():
    with Compilations() as compiled:
        for rate in (0.0, 1.0, 0.5, 0.1, 0.3, 1e-5, 1e-6):
            jaxdrop.draw_mask(make_key("raw"), (7, 41), rate)
    assert 1 <= sum("_draw_mask" in name for name in compiled.names) <= 4


def test_changing_traced_rate_compiles_nothing():
    drop, x = jax.jit(dropout), jnp.ones((3, 39))
    drop(make_key("raw"), x, jnp.float32(0.1))
    rates = [jnp.float32(rate) for rate in (0.0, 0.5, 1e-6, 1.0)]
    with Compilations() as compiled:
        for rate in rates:
            drop(make_key("raw"), x, rate)
            dropout(make_key("raw"), x, rate)
    assert sum("_drop" in name for name in compiled.names) <= 1  # the eager one, once


def test_eager_rules_with_equal_settings_compile_once():
    x = jnp.ones((3, 41))
    dropout(make_key("raw"), x, 0.3, rescale=rescale.realized(0))
    with Compilations() as compiled:
        dropout(make_key("raw"), x, 0.3, rescale=rescale.realized(0))
    assert compiled.names == []


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_temporaries_of_a_64_mib_input_stay_below_8_mib(rate, dtype):
    x = jax.ShapeDtypeStruct((4096, 4096), dtype)
    compiled = jax.jit(lambda key, x: dropout(key, x, rate)).lower(make_key("raw"), x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 8 * MIB


def kept_bytes(drop, x):
    """Bytes that the backward pass keeps, by `eval_shape` of the vjp function."""
    pull = jax.eval_shape(lambda x: jax.vjp(drop, x)[1], x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


@pytest.mark.parametrize(
    "shape", [(4096, 4096), (512, 1000), (4096, 10), (64, 56, 56, 3), (999, 77)]
)
@pytest.mark.parametrize("rule", [rescale.expected, rescale.none, rescale.realized(-1)])
@pytest.mark.parametrize("rate", [0.1, jnp.float32(0.1)])
def test_backward_pass_keeps_a_bit_an_element(shape, rule, rate):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    drop = partial(dropout, make_key("raw"), rate=rate, rescale=rule)
    assert kept_bytes(lambda x: drop(x), x) <= 0.13 * x.size


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.keeps_words_alone], ids=lambda method: method.name
)
def test_every_method_keeps_at_most_a_bit_an_element(method):
    x = jax.ShapeDtypeStruct(tuple(8 * n for n in method.large), jnp.bfloat16)
    assert kept_bytes(lambda x: method.run(make_key("raw"), x, 0.1), x) <= 0.13 * x.size


def test_drop_key_keeps_a_bit_a_logit_and_a_number_a_query():
    x = jax.ShapeDtypeStruct((8, 128, 1024), jnp.bfloat16)
    kept = kept_bytes(lambda x: jaxdrop.drop_key(make_key("raw"), x, 0.1), x)
    assert kept <= 0.13 * x.size


def drawn_words(drop, x):
    """How many words the largest Threefry block of a program fills."""
    text = jax.jit(drop).lower(make_key("raw"), x).as_text()
    shapes = re.findall(r"stablehlo.shift_left %\S+, %\S+ : tensor<([0-9x]*)x?ui32>", text)
    return max(math.prod(int(n) for n in shape.split("x") if n) for shape in shapes)


@pytest.mark.parametrize(
    ("drop", "shape", "decisions"),
    [
        (jaxdrop.dropout, (64, 256), 64 * 256),
        (jaxdrop.spatial_dropout, (64, 56, 56, 256), 64 * 256),
        (jaxdrop.drop_path, (64, 56, 56, 256), 64),
        (jaxdrop.embedding_dropout, (32000, 512), 32000),
        (partial(jaxdrop.locked_dropout, time_axis=0), (100, 64, 512), 64 * 512),
        (jaxdrop.drop_heads, (64, 128, 8, 64), 64 * 8),
        (jaxdrop.drop_nodes, (3200, 512), 3200),
        (partial(jaxdrop.drop_condition, null=0), (64, 77, 768), 64),
        (partial(jaxdrop.drop_block, block_size=7), (16, 56, 56, 64), 50 * 50 * 16 * 64),
    ],
    ids=lambda value: getattr(getattr(value, "func", value), "__name__", None),
)
def test_a_shared_mask_draws_only_what_it_needs(drop, shape, decisions):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    assert drawn_words(lambda key, x: drop(key, x, 0.1), x) == -(-decisions // 32)


def test_gaussian_noise_is_drawn_again_in_the_backward_pass():
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)

    def gradient(key, x):
        return jax.vjp(lambda x: jaxdrop.gaussian_dropout(key, jnp.sin(x), 0.1), x)[1](x)[0]

    assert kept_bytes(lambda x: jaxdrop.gaussian_dropout(make_key("raw"), x, 0.1), x) <= 64
    compiled = jax.jit(gradient).lower(make_key("raw"), x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= MIB / 4


def test_gaussian_noise_is_not_kept_where_forward_and_backward_pass_are_one_program():
    def gradient(key, x):
        y, pull = jax.vjp(lambda x: jaxdrop.gaussian_dropout(key, x, 0.1), x)
        return pull(jnp.full_like(x, y.sum()))[0]  # after all of the forward pass

    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    compiled = jax.jit(gradient).lower(make_key("raw"), x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * MIB  # one array, of 4 MiB


def test_eager_vjp_keeps_a_bit_an_element():
    x = jnp.ones((256, 256))
    _, pull = jax.vjp(lambda x: dropout(make_key("raw"), x, 0.1), x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) <= 0.13 * x.size


def test_scan_over_layers_keeps_a_bit_an_element():
    def forward(x):
        keys = jax.random.split(make_key("raw"), 4)
        return jax.lax.scan(lambda x, key: (dropout(key, x, 0.1), None), x, keys)[0]

    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    assert kept_bytes(forward, x) <= 4 * 0.13 * x.size


def test_training_step_materialises_no_boolean_or_float_mask():
    def loss(x, w1, w2, key):
        h = dropout(key, jnp.tanh(x @ w1), 0.1)
        return jnp.sum((h @ w2) ** 2)

    def plain(x, w1, w2, key):
        return jnp.sum((jnp.tanh(x @ w1) @ w2) ** 2)

    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2048, 256), (256, 256)))
    temporaries = {}
    for name, fn in {"dropout": loss, "plain": plain}.items():
        step = jax.jit(jax.grad(fn, argnums=(1, 2)))
        compiled = step.lower(x, w, w, make_key("raw")).compile()
        temporaries[name] = compiled.memory_analysis().temp_size_in_bytes
    words = 2048 * 256 // 8
    activation = 2048 * 256 * 4
    assert temporaries["dropout"] - temporaries["plain"] <= activation + 3 * words


def test_known_rate_zero_returns_the_input_itself_and_draws_nothing():
    x = jnp.ones(3)
    assert dropout(make_key("raw"), x, 0) is x
    assert dropout(make_key("raw"), x, 0.0) is x
    assert dropout(make_key("raw"), x, 0, rescale=lambda mask, x: jnp.float32(3)) is x
    assert alpha_dropout(make_key("raw"), x, 0) is x
    text = str(jax.make_jaxpr(lambda k, x: dropout(k, x, 0.0))(make_key("raw"), x))
    assert "jit" not in text


def test_key_reuse_marker_compiles_to_nothing():
    x = jnp.ones((64, 64))
    texts = []
    for implementation in ("raw", "threefry2x32"):
        lowered = jax.jit(lambda k, x: dropout(k, x, 0.1)).lower(make_key(implementation), x)
        texts.append(lowered.compile().cost_analysis()["flops"])
    assert texts[0] == texts[1]


def test_rbg_keys_draw_no_hardware_bits():
    lowered = jax.jit(lambda k, x: dropout(k, x, 0.1)).lower(make_key("rbg"), jnp.ones((64, 64)))
    assert "rng-bit-generator" not in lowered.compile().as_text()


def test_mask_is_drawn_once_for_forward_and_backward():
    def step(key, x):
        y, pull = jax.vjp(lambda x: dropout(key, x, 0.1), x)
        return y, pull(y)

    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    text = jax.jit(step).lower(make_key("raw"), x).compile().as_text()
    assert text.count(" while(") == 1


def test_jaxdrop_needs_no_x64_and_leaves_no_weak_types(key):
    mask = jaxdrop.draw_mask(key, (3,), 0.1)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(mask))
    assert not dropout(make_key("raw"), jnp.ones(3), 0.1).weak_type
