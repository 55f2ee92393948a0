"""Attention by kernels in Pallas's interpreter: the mask of `dropout`, the numbers of the whole."""

import contextlib
import re
import warnings
from dataclasses import replace
from functools import partial
from itertools import chain, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import cases
from directions import ORDERS, forwards
from hypothesis import given, settings, strategies as st
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lowering import lowered
from meshes import COLLECTIVE, mesh
from modes import enable_x64, make_key, make_keys, quick_jit
from scripts import run as run_process

from jaxdrop import Part, dot_product_attention, dropout
from jaxdrop.core.layout import WORD_BITS
from jaxdrop.methods.attention.kernel.blocks import _SIZES, LEAST_WIDTH
from jaxdrop.methods.attention.kernel.call import Dims, Launch, call, load, store
from jaxdrop.methods.attention.kernel.operands import Operands
from jaxdrop.methods.attention.kernel.spans import spans_of_documents
from jaxdrop.methods.attention.kernel.tiles import KernelTiles

RATE = 0.5
kernel = partial(dot_product_attention, implementation="kernel")
whole = partial(dot_product_attention, implementation="whole")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(found, expected, tolerance=1e-5):
    """Equal except for rounding, in units of the largest number."""
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        nothing_seen = np.isneginf(theirs)  # a log-sum-exp
        np.testing.assert_array_equal(np.isneginf(ours), nothing_seen)
        ours, theirs = (np.where(nothing_seen, 0, x) for x in (ours, theirs))
        assert np.isfinite(ours).all()
        atol = tolerance * np.max(np.abs(theirs), initial=1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def output_and_pull(attend, query, key, value, cotangent, rng=None, rate=0.3, **options):
    rng = make_key("raw") if rng is None else rng
    out, pull = jax.vjp(partial(attend, rng, rate=rate, **options), query, key, value)
    return out, *pull(cotangent)


# The mask


def identity(*batch, keys, heads):
    """Values with which the output is the weights themselves."""
    return jnp.broadcast_to(jnp.eye(keys)[:, None], (*batch, keys, heads, keys))


def dropped(rng, shape, key_heads, rate=RATE, **options):
    *batch, heads, queries, keys = shape
    value = identity(*batch, keys=keys, heads=key_heads)
    query = jnp.zeros((*batch, queries, heads, keys))
    return kernel(rng, query, jnp.zeros_like(value), value, rate, **options).swapaxes(-3, -2) == 0


def dropped_by_dropout(rng, shape, rate=RATE, **options):
    found = dropout(rng, jnp.ones(shape), rate, **options) == 0
    assert 0.05 < np.mean(found) < 0.95
    return np.broadcast_to(found, shape)


@pytest.mark.parametrize(
    ("shape", "key_heads", "shared", "blocks"),
    [
        ((2, 3, 9, 5), 3, (), (None, None)),  # all axes merged
        ((4, 11, 7), 2, (0,), (32, 32)),
        ((3, 2, 7, 40), 1, (1,), (32, 32)),
        ((2, 4, 70, 64), 2, (), (32, 32)),  # each tile starts at a word
        ((1, 2, 70, 100), 2, (0, 2), (64, 32)),
        ((2, 2, 40, 70), 1, (), (32, 64)),
        ((2, 2, 5, 40), 1, (3,), (None, None)),
    ],
    ids=str,
)
def test_mask_is_that_of_dropout(shape, key_heads, shared, blocks):
    sizes = {"query_block_size": blocks[0], "key_block_size": blocks[1]}
    run = partial(dropped, shape=shape, key_heads=key_heads, broadcast_dims=shared, **sizes)
    expected = dropped_by_dropout(make_key("raw"), shape, broadcast_dims=shared)
    np.testing.assert_array_equal(quick_jit(run)(make_key("raw")), expected)


@pytest.mark.parametrize("rate", [0.1, 0.0003])  # of 16 and of 32 digits
@pytest.mark.parametrize("is_traced", [False, True])
def test_mask_is_that_of_dropout_at_every_kind_of_rate(rate, is_traced):
    shape = 1, 2, 33, 70
    found = quick_jit(lambda rng, traced: dropped(rng, shape, 1, traced if is_traced else rate))
    expected = dropout(make_key("rbg", 5), jnp.ones(shape), rate) == 0
    np.testing.assert_array_equal(found(make_key("rbg", 5), jnp.float32(rate)), expected)


@pytest.mark.parametrize(
    ("larger", "start"), [((2, 3, 40, 90), (1, 1, 5, 7)), ((2, 3, 20, 96), (1, 1, 0, 7))], ids=str
)
def test_mask_of_a_part_is_that_of_the_larger_weights(larger, start):
    shape = (1, 2, 20, 40)
    found = quick_jit(partial(dropped, shape=shape, key_heads=1, part=Part(start, larger)))
    spans = (slice(first, first + size) for first, size in zip(start, shape, strict=True))
    expected = dropped_by_dropout(make_key("raw"), larger)[tuple(spans)]
    np.testing.assert_array_equal(found(make_key("raw")), expected)


def test_derivatives_have_the_mask_of_the_output():
    shape, rng = (2, 2, 70, 70), make_key("raw")
    values = identity(2, keys=70, heads=2)

    @quick_jit
    def cotangents(value):
        zeros = jnp.zeros_like(value)
        attend = partial(kernel, rng, rate=RATE, query_block_size=32, key_block_size=32)
        # Those of the values are the transposed weights.
        return jax.vjp(partial(attend, zeros, zeros), value)[1](value)[0].transpose(0, 3, 2, 1)

    found = cotangents(values).swapaxes(1, 2) == 0
    np.testing.assert_array_equal(found, dropped_by_dropout(rng, shape))


def test_slopes_of_queries_and_keys_have_the_mask_of_the_output():
    """Where the cotangent meets dropped weights alone, all slopes of logits are 0."""
    shape, rng = (1, 1, 70, 70), make_key("raw")
    lost = dropped_by_dropout(rng, shape).astype(np.float32)
    value = identity(1, keys=70, heads=1)

    @quick_jit
    def slopes(query, key):
        attend = partial(kernel, rng, value=value, rate=RATE)
        return jax.vjp(attend, query, key)[1](jnp.asarray(lost).swapaxes(1, 2))

    for found in slopes(normal(*value.shape), normal(*value.shape, seed=1)):
        np.testing.assert_array_equal(found, np.zeros_like(found))


# Agreement with the whole


@st.composite
def larger(draw):
    """Cases of attention of a few tiles of a kernel, or of a part of one."""
    case = draw(cases())
    blocks = st.sampled_from([None, 32, 64])
    return replace(
        case,
        queries=draw(st.sampled_from([case.queries, 32, 70])),
        keys=draw(st.sampled_from([case.keys, 70, 100])),
        features=draw(st.sampled_from([case.features, 16, 20])),
        query_block=draw(blocks),
        key_block=draw(blocks),
    )


@settings(max_examples=6)
@given(case=larger())
def test_output_and_gradients_are_those_of_the_whole(case):
    moving, fixed = case.moving("float32"), case.fixed()
    arrays = [moving.pop(name) for name in ("query", "key", "value")]

    @quick_jit
    def both(arrays, moving, fixed, cotangent, rng, rate):
        rate = rate if case.rate_is_traced else case.rate
        options = {"rng": rng, "rate": rate, **moving, **fixed, **case.static()}
        run = partial(output_and_pull, query=arrays[0], key=arrays[1], value=arrays[2])
        run = partial(run, cotangent=cotangent, **options)
        return run(kernel, **case.blocks), run(whole)

    rng, rate, cotangent = make_key("raw", 3), jnp.float32(case.rate), case.cotangent("float32")
    found, expected = both(arrays, moving, fixed, cotangent, rng, rate)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("dtype", "features"),
    [*product(("float32", "bfloat16"), (32, 64, 80, 256)), ("float16", 64)],
)
def test_all_head_sizes_and_dtypes(dtype, features):
    """With tiles as they are chosen for them, once filled up with zeros: 80 features to 128."""
    arrays = [normal(1, 70, 1, features, seed=seed).astype(dtype) for seed in range(4)]
    found, expected = (
        quick_jit(partial(output_and_pull, attend, is_causal=True))(*arrays)
        for attend in (kernel, whole)
    )
    assert_close(found, expected, {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.004}[dtype])


def test_documents_that_end_in_other_tiles_of_queries_than_of_keys():
    query, key, value, cotangent = (
        normal(1, size, 1, 16, seed=seed) for seed, size in enumerate((100, 200, 200, 100))
    )
    ids = jnp.arange(200)[None] // 50
    options = {"segment_ids": (ids[:, 1::2] + 1, ids)}  # queries see the document that follows
    found, expected = (
        quick_jit(partial(output_and_pull, attend, **options, **sizes))(
            query, key, value, cotangent
        )
        for attend, sizes in ((kernel, {"query_block_size": 32, "key_block_size": 32}), (whole, {}))
    )
    assert_close(found, expected)


def test_rows_beyond_the_last_add_nothing_at_a_large_bias():
    """And what a bias of minus infinity hides adds nothing either."""
    arrays = [normal(1, 35, 1, 4, seed=seed) for seed in range(4)]
    bias = jnp.full((35, 35), 1000, jnp.float32).at[:, 5].set(-jnp.inf).at[7].set(-jnp.inf)
    found, expected = (
        quick_jit(partial(output_and_pull, attend, bias=bias))(*arrays)
        for attend in (kernel, whole)
    )
    assert_close(found, expected, 1e-3)  # logits near 1000 are rounded to 6e-5


def test_bad_traced_rate_gives_nan():
    x = normal(1, 33, 1, 16)
    out = output_and_pull(kernel, x, x, x, x, rate=jnp.float32(1.5))
    assert all(np.isnan(y).all() for y in out)


# Blocks that are computed


def some_tiles(**changes):
    sizes = {"queries": 128, "keys": 192, "query_features": 16, "value_features": 16, "groups": 1}
    sizes |= {"rows": 32, "columns": 64, "window": (None, None), "soft_cap": None, "pairs": 1}
    return KernelTiles(**{"layout": None, "batch": (1,), "at_words": True} | sizes | changes)


@pytest.mark.parametrize("window", [(None, None), (0, 0), (37, None), (None, 0), (5, 70), (200, 3)])
@pytest.mark.parametrize("lengths", [None, (40, 70), (0, 33)])
def test_blocks_are_those_that_a_window_reaches_and_in_which_something_is_real(window, lengths):
    """Of keys for each block of queries, and of queries for each block of keys."""
    tiles = some_tiles(window=window)
    queries, keys, rows, columns = tiles.queries, tiles.keys, tiles.rows, tiles.columns
    row, column = np.arange(queries)[:, None], np.arange(keys)
    before, after = (10**6 if reach is None else reach for reach in window)
    seen = (row - before <= column) & (column <= row + after)
    real = {}
    if lengths is not None:
        names = "query_lengths", "key_lengths"
        real = {name: np.asarray(n, np.int32) for name, n in zip(names, lengths, strict=True)}
    arrays = Operands(None, None, None, None, **real)

    real_queries, real_keys = lengths or (queries, keys)

    def assert_are(found, reached, size, real):
        first, end = map(int, found)
        there = size * np.arange(reached.size) < real
        np.testing.assert_array_equal(range(first, max(first, end)), np.nonzero(reached & there)[0])

    for start in range(0, queries, rows):
        reached = seen[start : start + rows].reshape(rows, -1, columns).any((0, 2))
        found = tiles.key_blocks(arrays, np.int32(start))
        assert_are(found, reached, columns, real_keys)
    for start in range(0, keys, columns):
        reached = seen[:, start : start + columns].reshape(-1, rows, columns).any((1, 2))
        found = tiles.query_blocks(arrays, np.int32(start))
        assert_are(found, reached, rows, real_queries)


@pytest.mark.parametrize("sign", [1, -1])
def test_blocks_span_all_that_have_a_document_in_common(sign):
    tiles, random = replace(some_tiles(), rows=4, columns=8), np.random.default_rng(0)

    @quick_jit
    def spans(queries, keys):
        operands = Operands(None, None, None, None, query_segments=queries, key_segments=keys)
        return [spans_of_documents(operands, tiles, over_queries=flag) for flag in (False, True)]

    steps = [random.random((2, size)) < 0.3 for size in (20, 30)]
    queries, keys = (sign * np.cumsum(each, 1, np.int32) - sign * 4 for each in steps)
    seen = np.pad(queries[:, :, None] == keys[:, None], ((0, 0), (0, 0), (0, 2)))
    blocks = seen.reshape(2, 5, 4, 4, 8).any((2, 4))
    found_both = map(np.asarray, spans(queries, keys))
    for found, reached in zip(found_both, (blocks, blocks.swapaxes(1, 2)), strict=True):
        number = np.arange(reached.shape[2])
        inside = (number >= found[..., :1]) & (number < found[..., 1:])
        np.testing.assert_array_equal(inside, reached)
        assert not reached.all()


def test_tiles_are_of_sizes_that_a_gpu_computes():
    """Powers of two, no smaller than tensor cores need, and columns of whole words."""
    assert set(_SIZES) == set(product((2, 4), (32, 64, 128, 256)))
    for sizes in chain(*_SIZES.values()):
        assert sizes.rows >= LEAST_WIDTH
        assert sizes.columns >= WORD_BITS
        powers = sizes.rows, sizes.columns, sizes.warps, sizes.parts
        assert [n.bit_count() for n in powers] == [1, 1, 1, 1]


def test_stores_write_only_what_is_seen():
    """What a block has beyond the end of an array belongs to others on a GPU."""

    def body(x, y):
        every, seen = ((0, 4),), jax.lax.iota(jnp.int32, 4) < np.int32(3)
        store(y, every, load(x, every, None), None)
        store(y, every, 5 - load(x, every, seen), seen)

    launch = Launch("stores", (1, 1, 1), heads_per_key=1, blocks={}, warps=1, stages=1)
    results = [Dims("w", (4,), jnp.float32)]
    (found,) = call(body, launch, [("w", jnp.arange(4.0))], results, interpret=True)
    np.testing.assert_array_equal(found, [5, 4, 3, 3])


# Transforms


def loss(attend, moving):
    out = attend(make_key("raw"), rate=0.3, is_causal=True, **moving)
    return jnp.sum(jnp.sin(out + 1))


def small():
    names = ("query", "key", "value")
    return {name: normal(1, 35, 2, 4, seed=seed) for seed, name in enumerate(names)}


# Tangents are computed in tiles, whose own derivatives `test_transforms` has.
DERIVATIVES = {"forwards": forwards, "of bias and scale": jax.grad}
DERIVATIVES |= {name: ORDERS[name] for name in ORDERS if name.endswith("of backwards")}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_what_tiles_compute_fits_what_kernels_compute(name):
    at = small()
    if name == "of bias and scale":
        at |= {"bias": normal(2, 1, 35), "scale": jnp.float32(0.4)}
    found, expected = (
        quick_jit(DERIVATIVES[name](partial(loss, attend)))(at) for attend in (kernel, whole)
    )
    assert_close(found, expected)


def test_vmap_over_calls_that_differ_in_everything():
    rates, lengths = jnp.array([0.2, 0.5, 0.8]), jnp.array([40, 2, 33])
    arrays = [normal(3, 2, 40, 2, 8, seed=seed) for seed in range(4)]
    biases, scales, masks = normal(3, 40), normal(3), normal(3, 1, 40, 40) > -1

    def single(attend, rng, rate, length, bias, scale, mask, key, query, value, cotangent):
        options = {"key_value_seq_lengths": length, "bias": bias, "scale": scale, "mask": mask}
        return output_and_pull(attend, query, key, value, cotangent, rng, rate, **options)

    axes = (0, 0, 0, 0, 0, 0, None, 0, 0, 0)  # keys are shared
    operands = rates, lengths, biases, scales, masks, arrays[1][0], arrays[0], *arrays[2:]
    found, expected = (
        quick_jit(jax.vmap(partial(single, attend), axes))(make_keys("raw", 3), *operands)
        for attend in (kernel, whole)
    )
    assert_close(found, expected)


def test_layers_under_scan_and_checkpoint():
    x = normal(1, 35, 2, 4)

    def model(attend, x, rngs):
        def layer(x, rng):
            return x + jnp.sin(attend(rng, x, x, x, 0.5)), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, rngs)[0] ** 2)

    found, expected = (
        quick_jit(jax.grad(partial(model, attend)))(x, make_keys("raw", 2))
        for attend in (kernel, whole)
    )
    assert_close(found, expected)


# Meshes

MESH_SHAPE = (8, 40, 8, 8)
causal = partial(output_and_pull, is_causal=True)


@pytest.fixture(scope="module")
def expected():
    return quick_jit(partial(causal, whole))(*four())


def four():
    return [normal(*MESH_SHAPE, seed=seed) for seed in range(4)]


@pytest.mark.parametrize("spec", [P("a"), P(None, None, ("a", "b")), P("a", None, "b")], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_splits_over_batch_and_heads_need_no_collective(kind, spec, expected):
    arrays = [jax.device_put(x, NamedSharding(mesh(kind), spec)) for x in four()]
    program = jax.jit(partial(causal, kernel)).lower(*arrays).compile()
    found = program(*arrays)
    assert_close(found, expected)
    assert all(x.sharding.is_equivalent_to(arrays[0].sharding, 4) for x in found)
    assert not COLLECTIVE.findall(program.as_text())


@pytest.mark.parametrize("spec", [P("a", None, "b"), P("b", None, "a")], ids=str)
def test_grouped_heads_and_other_operands_on_a_mesh(spec):
    """Two heads of keys can be split over two devices, and not over four."""
    query, key, value, cotangent = four()
    options = {
        "bias": normal(8, 1, 40),
        "mask": normal(8, 1, 1, 40) > -1,
        "key_value_seq_lengths": jnp.arange(33, 41),
    }
    arrays = [query, key[:, :, ::4], value[:, :, ::4], cotangent]
    plain = quick_jit(partial(causal, whole, **options))(*arrays)
    splits = [NamedSharding(mesh(), spec), NamedSharding(mesh(), P(spec[0]))]
    if spec[2] == "b":
        splits[1] = splits[0]
    placed = [jax.device_put(x, splits[x.shape[2] == 2]) for x in arrays]
    program = jax.jit(partial(causal, kernel, **options)).lower(*placed).compile()
    assert_close(program(*placed), plain)
    assert bool(COLLECTIVE.findall(program.as_text())) == (spec[2] == "a")


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    """Every device has a mask of its own; cotangents of keys that are shared are summed."""
    query, key, value, _ = four()

    def total(attend, query, key, value):
        return (attend(make_key("raw"), query, key, value, 0.3) ** 2).sum()

    def split(query, key, value):
        attend = partial(kernel, make_key("raw"), rate=0.3)
        out = jax.shard_map(
            attend,
            mesh=mesh(),
            in_specs=(P("a"), P(), P()),
            out_specs=P("a"),
            check_vma=check_vma,
        )(query, key, value)
        return (out**2).sum()

    def by_hand(query, *pair):
        return sum(total(whole, query[i : i + 2], *pair) for i in range(0, 8, 2))

    arrays = query, key[:2], value[:2]
    found, expected = (jax.jit(jax.grad(f, (0, 1, 2)))(*arrays) for f in (split, by_hand))
    assert_close(found, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_shard_map_over_some_axes_of_a_mesh_is_served_by_tiles(kind):
    query, key, value, _ = four()
    split = NamedSharding(mesh(kind), P("a", None, "b"))
    arrays = [jax.device_put(x, split) for x in (query, key, value)]

    def local(attend, *arrays):
        return jax.grad(lambda *x: (attend(make_key("raw"), *x, 0.3) ** 2).sum())(*arrays)

    spread = jax.shard_map(
        partial(local, kernel),
        mesh=mesh(kind),
        in_specs=P("a"),
        out_specs=P("a"),
        axis_names={"a"},
    )
    parts = [local(whole, *(x[i : i + 2] for x in (query, key, value))) for i in range(0, 8, 2)]
    assert_close(jax.jit(spread)(*arrays), jnp.concatenate(parts))


# Programs


@contextlib.contextmanager
def described_gpu():
    """From 0.12 on Pallas must be told for which GPU it lowers, and warns of Triton's end."""
    if jax.__version_info__ < (0, 12):
        yield
        return
    described = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
    kinds = {"axis_types": (AxisType.Auto,), "abstract_device": described}
    one = jax.sharding.AbstractMesh((1,), ("one",), **kinds)
    with jax.sharding.use_abstract_mesh(one), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


KERNELS = re.compile("xla.gpu.triton")


@pytest.mark.parametrize(
    ("function", "kernels"),
    [(lambda attend, *x: attend(make_key("raw"), *x[:3], 0.3), 1), (causal, 3)],
    ids=["forward", "gradient"],
)
def test_program_for_a_gpu_has_one_kernel_forward_and_two_backward(function, kernels):
    """Beside the sum of rows, which XLA makes one kernel of."""
    arrays = four()
    with described_gpu():
        program = lowered("cuda", partial(function, kernel), *arrays).as_text()
    assert len(KERNELS.findall(program)) == kernels
    assert not KERNELS.findall(lowered("cpu", partial(function, kernel), *arrays).as_text())


@pytest.mark.parametrize("platforms", [["cpu"], ["cuda"], ["cpu", "cuda"]], ids=str)
def test_exported_program_has_tiles(platforms, expected):
    arrays = four()
    exported = export.export(jax.jit(partial(causal, kernel)), platforms=platforms)(*arrays)
    assert "triton" not in exported.mlir_module()
    if "cpu" in platforms:
        assert_close(exported.call(*arrays), expected)


def test_default_uses_tiles_and_loads_no_pallas():
    code = """
import sys
import jax
import jaxdrop
x = jax.numpy.ones((1, 4, 1, 2))
for implementation in (None, "kernel"):
    how = {"implementation": implementation}
    jaxdrop.dot_product_attention(jax.random.key(0), x, x, x, 0.5, **how)
    print("jax.experimental.pallas" in sys.modules)
"""
    assert run_process("-c", code).stdout.split() == ["False", "True"]


# Errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"query": np.zeros((1, 2, 1, 4), np.float64)},
            TypeError,
            "query must be float32, bfloat16 or float16 with implementation='kernel'; got"
            " float64. Cast it, or use implementation='tiled'.",
        ),
        (
            {"query": np.zeros((1, 2, 1, 300), np.float32)},
            ValueError,
            "query must have at most 256 features with implementation='kernel'; got 300."
            " Use implementation='tiled'.",
        ),
        (
            {"value": np.zeros((1, 2, 1, 257), np.float32)},
            ValueError,
            "value must have at most 256 features with implementation='kernel'; got 257."
            " Use implementation='tiled'.",
        ),
        *(
            (
                {f"{name}_block_size": size},
                ValueError,
                f"{name}_block_size must be a power of two of at least 32 with"
                f" implementation='kernel'; got {size}. Leave it out, or use"
                " implementation='tiled'.",
            )
            for name, size in (("query", 16), ("key", 48))
        ),
    ],
    ids=["float64", "300 features", "wide values", "small block", "block that is no power of two"],
)
def test_what_kernels_cannot_serve_is_an_error(changes, kind, message):
    changes = dict(changes)
    query = changes.pop("query", np.zeros((1, 2, 1, 4), np.float32))
    value = changes.pop("value", query)
    with enable_x64(), pytest.raises(kind, match=f"^dot_product_attention: {re.escape(message)}$"):
        kernel(make_key("raw"), query, query, value, 0.5, **changes)
