"""The programs that GPUs and TPUs are given: of another form than the CPU's, with the same masks.

They are lowered for those platforms and run here, so that a fault in them shows
without such a device.
"""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_masks import BERNOULLI, GOLDEN_METHODS, encoded, stored
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lowering import lowered
from meshes import COLLECTIVE, mesh
from table.methods import RECORDS

import jaxdrop
from jaxdrop.core.bernoulli import bernoulli_mask
from jaxdrop.core.layout import Layout
from jaxdrop.core.rate import GridRate, grid_rate

GPUS = ("cuda", "rocm")
OTHERS = ("cuda", "tpu")  # of another form than the CPU's, each of its own

# Newer versions of JAX lower `jnp.cumsum` for a GPU to what no CPU compiles.
RUN_HERE = [m for m in RECORDS if jax.__version_info__ < (0, 11) or not m.cumulative]
KEY_DATA = np.array([0, 42], np.uint32)


def lower_dropout(platform, rate):
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    return lowered(platform, partial(dropped, rate=rate), KEY_DATA, x).as_text()


def dropped(data, x, rate):
    return jaxdrop.dropout(jax.random.wrap_key_data(data), x, rate)


@pytest.mark.parametrize("platform", GPUS)
@pytest.mark.parametrize(("rate", "pairs"), [(0.5, 2), (0.1, 8), (1e-5, 16)])
def test_pairs_are_reduced_where_a_loop_would_start_kernels(platform, rate, pairs):
    text = lower_dropout(platform, rate)
    assert "stablehlo.while" not in text
    assert f"(tensor<{pairs}x512xui64>, tensor<ui64>) -> tensor<512xui64>" in text
    xors = len(re.findall(f"xor .*tensor<{pairs}x512xui32>", text))
    assert 20 <= xors <= 32  # one block, not many


@pytest.mark.parametrize(
    ("platform", "rate", "loops"),
    [("cpu", 0.5, 1), ("cpu", 0.1, 1), ("cpu", 1e-5, 1), ("tpu", 0.1, 0), ("tpu", 1e-5, 1)],
)
def test_pairs_are_a_loop_on_a_cpu_and_on_a_tpu_if_they_are_many(platform, rate, loops):
    assert lower_dropout(platform, rate).count("stablehlo.while") == loops


@cache
def mask_program(shape, pairs, implementation):
    """A mask of key data and a threshold, as a GPU draws it."""

    def mask(data, threshold):
        key = jax.random.wrap_key_data(data, impl=implementation)
        return bernoulli_mask(key, GridRate(threshold, pairs), Layout(shape)).unpack()

    data = np.zeros(2 if implementation == "threefry2x32" else 4, np.uint32)
    threshold = grid_rate(0.3).threshold
    return lowered(GPUS[0], mask, data, threshold).compile()


def test_every_golden_mask():
    def drawn(case):
        rate = grid_rate(np.float64(case["rate"]))
        program = mask_program(tuple(case["shape"]), rate.pairs, case["impl"])
        return program(np.array(case["key"], np.uint32), rate.threshold)

    wrong = [case for case in BERNOULLI if not np.array_equal(drawn(case), stored(case))]
    assert BERNOULLI
    assert not wrong


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0, 1e-6])
def test_masks_at_traced_rates(rate):
    def kept(data, rate):
        return jaxdrop.draw_mask(jax.random.wrap_key_data(data), (3, 40), rate).unpack()

    operands = KEY_DATA, jnp.float32(rate)
    other = lowered(GPUS[0], kept, *operands).compile()(*operands)
    np.testing.assert_array_equal(other, jax.jit(kept)(*operands))


@pytest.mark.parametrize("method", RUN_HERE, ids=lambda method: method.name)
def test_every_method_drops_the_same(method):
    def run(data, x):
        return method.run(jax.random.wrap_key_data(data), x, 0.3)

    operands = KEY_DATA, jnp.ones(method.shape)
    y = lowered(GPUS[0], run, *operands).compile()(*operands)
    assert encoded(method.decisions(y, 0.3)) == GOLDEN_METHODS[method.name]


@pytest.mark.parametrize("platform", OTHERS)
def test_masks_under_vmap_and_their_gradients(platform):
    def both(data, xs):
        keys = jax.random.split(jax.random.wrap_key_data(data), 3)
        y, pull = jax.vjp(jax.vmap(partial(jaxdrop.dropout, rate=0.1)), keys, xs)
        return y, pull(xs)[1]

    operands = KEY_DATA, jnp.arange(3 * 70.0).reshape(3, 70)
    other = lowered(platform, both, *operands).compile()(*operands)
    jax.tree.map(np.testing.assert_array_equal, other, jax.jit(both)(*operands))


@pytest.mark.parametrize("platform", OTHERS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("a", "b")], ids=str)
def test_masks_on_meshes_are_drawn_without_communication(platform, kind, spec):
    x = jnp.arange(256 * 2048.0).reshape(256, 2048)
    split = jax.device_put(x, NamedSharding(mesh(kind), spec))
    program = lowered(platform, partial(dropped, rate=0.1), KEY_DATA, split).compile()
    y = program(KEY_DATA, split)
    np.testing.assert_array_equal(y, dropped(KEY_DATA, x, 0.1))
    assert y.sharding.is_equivalent_to(split.sharding, y.ndim)
    assert not COLLECTIVE.findall(program.as_text())
    # Where JAX does not say how columns are split, each device draws the words of all.
    if kind is AxisType.Explicit or spec[0]:
        assert not re.findall(r"u32\[\d*,?(16384|256,64|64,256)\]", program.as_text())


@pytest.mark.parametrize("platform", OTHERS)
def test_attention_drops_the_same_weights(platform):
    def both(data, query, key, value):
        def attend(*arrays):
            rng = jax.random.wrap_key_data(data)
            return jaxdrop.dot_product_attention(rng, *arrays, 0.3)

        y, pull = jax.vjp(attend, query, key, value)
        return y, pull(y)

    arrays = jax.random.normal(jax.random.key(0), (3, 2, 70, 2, 8))
    other = lowered(platform, both, KEY_DATA, *arrays).compile()(KEY_DATA, *arrays)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        other,
        jax.jit(both)(KEY_DATA, *arrays),
    )


def test_one_exported_program_serves_several_platforms():
    exported = export.export(jax.jit(partial(dropped, rate=0.1)), platforms=("cpu", "cuda", "tpu"))(
        KEY_DATA, jnp.ones((64, 256))
    )
    y = exported.call(KEY_DATA, jnp.ones((64, 256)))
    np.testing.assert_array_equal(y, dropped(KEY_DATA, jnp.ones((64, 256)), 0.1))
