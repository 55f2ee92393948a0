"""Tiles by platform: what a GPU computes in tiles of its own is what others compute in theirs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lowering import lowered
from meshes import COLLECTIVE, mesh

import jaxdrop
from jaxdrop.methods.attention import tiled
from jaxdrop.methods.attention.block_sizes import Budget

KEY_DATA = np.array([0, 9], np.uint32)
SHAPE = (4, 70, 2, 8)
LARGE, SMALL = Budget(2**20, 2**14, 2**19), Budget(1, 2**10, 2**10)
ARRAYS = jax.random.normal(jax.random.key(0), (4, *SHAPE))
PLATFORMS = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def budgets(monkeypatch):
    """One tile on a CPU and nine on a GPU."""
    monkeypatch.setattr(tiled, "BUDGET", LARGE)
    monkeypatch.setattr(tiled, "GPU_BUDGET", SMALL)
    with jax.default_matmul_precision("highest"):
        yield


def attend(data, query, key, value):
    rng = jax.random.wrap_key_data(data)
    return jaxdrop.dot_product_attention(rng, query, key, value, 0.3, is_causal=True)


def forward(data, *arrays):
    return attend(data, *arrays[:3])


def gradient(data, *arrays, attend=attend):
    y, pull = jax.vjp(partial(attend, data), *arrays[:3])
    return y, pull(arrays[3])


def tangent(data, *arrays):
    return jax.jvp(partial(attend, data), arrays[:3], arrays[1:])


def second(data, *arrays):
    def loss(*arrays):
        return jnp.sum(attend(data, *arrays) ** 2)

    return jax.jvp(jax.grad(loss), arrays[:3], arrays[1:])


def second_in_reverse(data, *arrays):
    def steepness(query):
        return jnp.sum(jax.grad(lambda q: jnp.sum(attend(data, q, *arrays[1:3]) ** 2))(query) ** 2)

    return jax.grad(steepness)(arrays[0])


def mapped(data, *arrays):
    return jax.vmap(gradient, in_axes=(None, 0, 0, 0, 0))(data, *arrays)


def rematerialised(data, *arrays):
    return gradient(data, *arrays, attend=jax.checkpoint(attend))


def scanned(data, *arrays):
    def step(query, _):
        return attend(data, query, *arrays[1:3]), None

    def both(query):
        return jax.lax.scan(step, query, None, length=2)[0]

    y, pull = jax.vjp(both, arrays[0])
    return y, pull(y)


def manual(data, *arrays):
    split = P("a", None, "b")
    specs = {"in_specs": (P(), *[split] * 4), "out_specs": (split, (split,) * 3)}
    return jax.shard_map(gradient, mesh=mesh(), **specs)(data, *arrays)


PROGRAMS = [
    forward,
    gradient,
    tangent,
    second,
    second_in_reverse,
    mapped,
    rematerialised,
    scanned,
    manual,
]


def lower_program(platform, program, arrays=ARRAYS):
    return lowered(platform, program, KEY_DATA, *arrays)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_transform_computes_the_same_in_the_tiles_of_each_platform(program):
    programs = [lower_program(platform, program) for platform in PLATFORMS]
    assert ["x32x32xf32>" in each.as_text() for each in programs] == [False, True]
    of_cpu, of_gpu = (each.compile()(KEY_DATA, *ARRAYS) for each in programs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), of_cpu, of_gpu)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_tiles_of_a_platform_on_a_mesh(kind, platform):
    sharding = NamedSharding(mesh(kind), P("a", None, "b"))
    split = [jax.device_put(x, sharding) for x in ARRAYS]
    program = lower_program(platform, gradient, split).compile()
    wanted = lower_program(platform, gradient).compile()(KEY_DATA, *ARRAYS)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        program(KEY_DATA, *split),
        wanted,
    )
    assert not COLLECTIVE.findall(program.as_text())
