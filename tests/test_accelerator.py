"""On a GPU or TPU: the masks of the CPU, gradients, sharding, and what is compiled there.

    pytest -m accelerator

They are skipped where there is none. `--accelerator cpu` runs them on a CPU all
the same, to try them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_masks import BERNOULLI, FIXED, GOLDEN_METHODS, draw, encoded, key_of, stored
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import COLLECTIVE
from table.methods import METHODS, RECORDS

import jaxdrop
from jaxdrop import dropout

pytestmark = pytest.mark.accelerator


@pytest.fixture(autouse=True)
def device(request):
    asked = request.config.getoption("--accelerator")
    if not asked and jax.default_backend() == "cpu":
        pytest.skip("needs a GPU or a TPU, and JAX finds only CPUs")
    found = jax.devices(asked or jax.default_backend())[-1]
    with jax.default_device(found), jax.default_matmul_precision("highest"):
        yield found


def on_cpu(function, *operands):
    operands = jax.device_put(operands, jax.devices("cpu")[0])
    return jax.device_get(jax.jit(function)(*operands))


def new_key():
    return jax.random.key(3)


def assert_golden(cases, drawn, device):
    masks = [drawn(case) for case in cases]
    assert masks
    assert all(mask.devices() == {device} for mask in masks)
    pairs = zip(masks, cases, strict=True)
    assert all(np.array_equal(mask, stored(case)) for mask, case in pairs)


@pytest.mark.parametrize("cases", [BERNOULLI, FIXED], ids=["bernoulli", "fixed count"])
def test_masks_are_those_of_the_cpu(cases, device):
    assert_golden(cases, lambda case: draw(key_of(case), case), device)


def test_masks_at_traced_rates_and_under_vmap_are_those_of_the_cpu(device):
    @partial(jax.jit, static_argnums=2)
    def batched(keys, rate, shape):
        return jax.vmap(lambda key: jaxdrop.draw_mask(key, shape, rate).unpack())(keys)

    def drawn(case):
        key = key_of(case)
        keys = jnp.stack([key, jax.random.clone(key)])
        return batched(jax.random.clone(keys), jnp.float32(case["rate"]), tuple(case["shape"]))[1]

    assert_golden([case for case in BERNOULLI if 1e-3 < case["rate"] < 0.998], drawn, device)


@pytest.mark.parametrize("method", RECORDS, ids=lambda method: method.name)
def test_every_method_drops_what_it_drops_on_the_cpu(method):
    key = jax.random.wrap_key_data(np.array([0, 42], np.uint32))
    assert encoded(method.pattern(key)) == GOLDEN_METHODS[method.name]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(64, 1024), (7, 1000), (3, 5, 77)])
def test_dropout_and_its_gradient_are_bitwise_those_of_the_cpu(dtype, rate, shape):
    def both(x, cotangent):
        y, pull = jax.vjp(lambda x: dropout(new_key(), x, rate), x)
        return y, pull(cotangent)[0]

    random = np.random.default_rng(0)
    operands = [random.normal(size=shape).astype(dtype) for _ in range(2)]
    there = jax.device_get(jax.jit(both)(*operands))
    jax.tree.map(np.testing.assert_array_equal, there, on_cpu(both, *operands))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_gradient_of_every_method_is_that_of_the_cpu(method):
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(method.run(new_key(), x, 0.3) * jnp.cos(x)))(x)

    x = np.random.default_rng(0).normal(size=method.shape).astype(np.float32)
    there = jax.jit(gradient)(x)
    np.testing.assert_allclose(there, on_cpu(gradient, x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("implementation", ["tiled", "kernel"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", [100, 512])
def test_attention_and_its_gradients_are_those_of_the_weights_in_memory(
    length, is_causal, implementation
):
    def both(attend, query, key, value):
        attend = partial(attend, new_key(), rate=0.1, is_causal=is_causal)
        y, pull = jax.vjp(attend, query, key, value)
        return y, pull(jnp.cos(y))

    arrays = np.random.default_rng(0).normal(size=(3, 2, length, 4, 32)).astype(np.float32)
    found, whole = (
        jax.jit(partial(both, partial(jaxdrop.dot_product_attention, implementation=name)))(*arrays)
        for name in (implementation, "whole")
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, whole)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a"), P(None, "a")], ids=str)
def test_dropout_split_over_all_devices_is_that_of_one_without_collectives(kind, spec, device):
    devices = jax.devices(device.platform)
    mesh = jax.make_mesh((len(devices),), ("a",), (kind,), devices=devices)
    x = np.random.default_rng(0).normal(size=(256, 2048)).astype(np.float32)
    split = jax.device_put(x, NamedSharding(mesh, spec))
    drop = jax.jit(partial(dropout, rate=0.1))
    data = np.array([0, 3], np.uint32)
    y = drop(data, split)
    np.testing.assert_array_equal(y, drop(data, x))
    assert y.sharding.is_equivalent_to(split.sharding, y.ndim)
    assert not COLLECTIVE.findall(drop.lower(data, split).compile().as_text())


def test_only_packed_words_are_written_out(device):
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    data = jax.ShapeDtypeStruct((2,), jnp.uint32)
    compiled = jax.jit(partial(dropout, rate=0.1)).lower(data, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 8 * 2**20
    assert (" while(" in compiled.as_text()) == (device.platform != "gpu")
