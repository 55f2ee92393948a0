"""Which tiles are computed, and what that saves: work, memory and compilations."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax
from logs import Compilations
from modes import make_key, quick_jit

from jaxdrop import dot_product_attention
from jaxdrop.methods.attention.arguments import Blocks
from jaxdrop.methods.attention.block_sizes import BUDGET, GPU_BUDGET, block_sizes
from jaxdrop.methods.attention.operands import Inputs, Selection
from jaxdrop.methods.attention.skipping import tiles_to_compute
from jaxdrop.methods.attention.tiling import Tile, Tiling
from jaxdrop.planting.jaxprs import jaxprs_in

SIZE = st.integers(1, 40)
REACH = st.none() | st.integers(0, 50)


@st.composite
def tilings(draw):
    queries, keys = draw(SIZE), draw(SIZE)
    blocks = draw(st.integers(1, queries)), draw(st.integers(1, keys))
    return Tiling(queries, keys, *blocks, draw(REACH), draw(REACH))


def seen(tiling):
    """Which query may see which key, by position."""
    row, column = np.arange(tiling.queries)[:, None], np.arange(tiling.keys)[None, :]
    before = np.inf if tiling.before is None else tiling.before
    after = np.inf if tiling.after is None else tiling.after
    return (row - before <= column) & (column <= row + after)


def seen_tiles(tiling):
    """Where tiles start in which some query may see some key, row by row."""
    visible = seen(tiling)
    corners = itertools.product(
        range(0, tiling.queries, tiling.row_block), range(0, tiling.keys, tiling.column_block)
    )
    return [
        (row, column)
        for row, column in corners
        if visible[row : row + tiling.row_block, column : column + tiling.column_block].any()
    ]


@pytest.mark.quick
@given(tiling=tilings())
def test_tiles_are_exactly_those_with_a_visible_pair(tiling):
    found = [
        (i * tiling.row_block, j * tiling.column_block)
        for i, (first, count) in enumerate(zip(*tiling.seen, strict=True))
        for j in range(first, first + count)
    ]
    assert found == seen_tiles(tiling)
    assert len(found) == tiling.count


def flags_of_tiles(tiling, visible):
    """In which of the tiles that are counted some query sees some key, in some sample."""
    corners = zip(*tiling.numbers, strict=True)
    blocks = tiling.row_block, tiling.column_block
    starts = [[n * size for n, size in zip(pair, blocks, strict=True)] for pair in corners]
    rows, columns = blocks
    return [visible[..., i : i + rows, j : j + columns].any() for i, j in starts]


@pytest.mark.quick
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, None), (None, 0), (5, 2)])
def test_tiles_are_skipped_that_a_window_hides_at_a_traced_start(before, after):
    tiling = Tiling(10, 14, 4, 5, before, after, is_shifted=True)

    @quick_jit
    def computed(shift):
        return tiles_to_compute(tiling, Selection(None, None, None, None, shift=shift))

    for shift in (-12, -4, -1, 0, 3, 7, 20):
        row, column = np.arange(10)[:, None] + shift, np.arange(14)
        visible = row - (99 if before is None else before) <= column
        visible &= column <= row + (99 if after is None else after)
        np.testing.assert_array_equal(computed(np.int32(shift)), flags_of_tiles(tiling, visible))


@pytest.mark.quick
@pytest.mark.parametrize("sign", [1, -1])
def test_tiles_are_skipped_between_documents_of_all_samples(sign):
    """Ids of documents that follow each other may fall too."""
    tiling, random = Tiling(10, 14, 4, 5, None, None), np.random.default_rng(0)

    @quick_jit
    def computed(queries, keys):
        selection = Selection(None, None, None, None, segments=(queries, keys))
        return tiles_to_compute(tiling, selection)

    for _ in range(5):
        steps = [random.random((2, size)) < 0.4 for size in (10, 14)]
        queries, keys = (sign * np.cumsum(each, 1, np.int32) - sign * 3 for each in steps)
        expected = flags_of_tiles(tiling, queries[:, :, None] == keys[:, None])
        np.testing.assert_array_equal(computed(queries, keys), expected)
        assert not all(expected)


def over_tiles(tiling, step, start):
    """What a step makes of all tiles, one after the other, and where these start."""

    def body(carry, number):
        starts = tiling.starts(number)
        return step(carry, Tile(tiling, starts)), starts

    numbers = jnp.arange(tiling.count, dtype=jnp.int32)
    return quick_jit(lambda carry: lax.scan(body, carry, numbers))(start)


@pytest.mark.quick
@settings(max_examples=8)
@given(tiling=tilings())
def test_every_visible_pair_is_in_one_tile(tiling):
    def count(total, tile):
        flags = tile.visible()
        ones = jnp.ones((1, 1, 1, tiling.row_block, tiling.column_block), jnp.int32)
        return tile.add_part(total, ones if flags is None else ones * flags.astype(jnp.int32))

    nothing = jnp.zeros((1, 1, 1, tiling.queries, tiling.keys), jnp.int32)
    total, starts = over_tiles(tiling, count, nothing)
    np.testing.assert_array_equal(total[0, 0, 0], seen(tiling))
    rows, columns = np.array(seen_tiles(tiling)).T
    np.testing.assert_array_equal(starts.new_row, rows)
    np.testing.assert_array_equal(starts.new_column, columns)
    # The last ones end with the axes, and so may start before what is new in them.
    np.testing.assert_array_equal(starts.row, np.minimum(rows, tiling.queries - tiling.row_block))
    np.testing.assert_array_equal(
        starts.column, np.minimum(columns, tiling.keys - tiling.column_block)
    )


def test_parts_add_up_for_every_shape_that_broadcasts():
    tiling = Tiling(6, 8, 2, 4, None, None)  # blocks that divide, so each pair is in one tile
    whole = np.random.default_rng(0).integers(0, 9, (2, 3, 1, 6, 8)).astype(np.int32)
    shapes = [
        tuple(n if varies else 1 for n, varies in zip(whole.shape, axes, strict=True))
        for axes in itertools.product([False, True], [False, True], [False], *[[False, True]] * 2)
    ]

    def add(totals, tile):
        return [tile.add_part(total, tile.part(whole)) for total in totals]

    totals, _ = over_tiles(tiling, add, [jnp.zeros(shape, jnp.int32) for shape in shapes])
    for shape, total in zip(shapes, totals, strict=True):
        shared = tuple(axis for axis in range(5) if shape[axis] == 1)
        np.testing.assert_array_equal(total, whole.sum(shared, keepdims=True))


def sizes_of_tiles(batch, queries, keys, heads, features, asked=(None, None), budget=BUDGET):
    query, key = (jax.ShapeDtypeStruct((batch, n, heads, features), "f4") for n in (queries, keys))
    return block_sizes(Inputs(query, key, key, None, None), Blocks(*asked), budget)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("shape", "on_cpu", "on_gpu"),
    [
        ((1, 4096, 4096, 64, 64), (128, 128), (512, 1024)),
        ((1, 16384, 16384, 1, 64), (512, 1024), (2048, 2048)),
        ((8, 100, 7, 2, 64), (100, 7), (100, 7)),  # no larger than the weights
        ((1, 1000, 5000, 64, 1), (128, 128), (512, 1024)),  # in equal parts of whole words
        ((64, 4096, 4096, 64, 64), (128, 128), (128, 128)),  # no smaller, of many heads
        ((4096, 8, 64, 16, 1), (8, 64), (8, 64)),  # as large as 32 x 32, however many heads
        ((1, 300, 3000, 256, 8), (64, 64), (160, 768)),
    ],
    ids=str,
)
def test_tiles_are_nearly_square_and_larger_on_a_gpu(shape, on_cpu, on_gpu):
    assert sizes_of_tiles(*shape) == on_cpu
    assert sizes_of_tiles(*shape, budget=GPU_BUDGET) == on_gpu


@pytest.mark.quick
def test_tiles_are_as_large_as_asked_but_not_larger_than_the_weights():
    shape = (1, 1000, 5000, 64, 64)
    assert sizes_of_tiles(*shape, asked=(7, 5001)) == (7, 5000)
    assert sizes_of_tiles(*shape, asked=(1001, 7)) == (1000, 7)
    rows, columns = sizes_of_tiles(*shape, asked=(7, None))
    assert (rows, columns) == (7, 1696)  # a third of 5000, in whole words


@pytest.mark.quick
@pytest.mark.parametrize(
    ("keys", "block", "expected"),
    [(64, 32, True), (64, 64, True), (40, 40, True), (64, 16, False), (40, 32, False)],
)
def test_columns_of_tiles_start_at_words_or_not(keys, block, expected):
    assert Tiling(1, keys, 1, block, None, None).columns_start_words == expected


def equations(jaxpr):
    """All equations, at any depth."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in(eqn):
            yield from equations(inner)


def tangent(attend, *xs):
    return jax.jvp(attend, xs, xs)[1]


def gradient(attend, *xs):
    return jax.vjp(attend, *xs)[1](xs[0])


def run(attend, *xs):
    return attend(*xs)


passes = pytest.mark.parametrize("apply", [run, tangent, gradient])


def sizes_like(queries, keys, heads=1):
    return [jax.ShapeDtypeStruct((n, heads, 8), jnp.float32) for n in (queries, keys, keys)]


def program(apply, queries, keys, rate=0.5, block=64, **options):
    """A pass over tiles of one size, as a function of arrays, and their shapes."""
    attend = partial(dot_product_attention, make_key("raw"), rate=rate, **options)
    attend = partial(attend, query_block_size=block, key_block_size=block)
    return partial(apply, attend), sizes_like(queries, keys)


@pytest.mark.quick
@passes
def test_causal_attention_computes_half_of_the_tiles(apply):
    def trips(**options):
        function, shapes = program(apply, 512, 512, rate=0, **options)
        eqns = equations(jax.make_jaxpr(function)(*shapes).jaxpr)
        return {eqn.params["length"] for eqn in eqns if eqn.primitive.name == "scan"}

    assert trips() == {8 * 8}
    assert trips(is_causal=True) == {8 * 9 // 2}
    assert trips(local_window_size=(64, 0)) == {8 + 7}
    assert trips(local_window_size=0) == {8}


@pytest.mark.quick
@passes
def test_no_array_has_the_size_of_the_weights(apply):
    function, shapes = program(apply, 1024, 2048)
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    largest = max(
        math.prod(x.aval.shape) for eqn in equations(jaxpr) for x in (*eqn.invars, *eqn.outvars)
    )
    assert largest <= 2048 * 8  # the keys


@pytest.mark.parametrize("apply", [run, gradient])
def test_memory_grows_with_the_length_and_not_with_its_square(apply):
    def temporaries(length):
        function, shapes = program(apply, length, length)
        compiled = quick_jit(function).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, middle, long = map(temporaries, (512, 1024, 2048))
    four_rows = 4 * 8 * 4  # bytes a query
    assert middle - short <= 512 * four_rows
    assert long - middle <= 1024 * four_rows


def test_backward_pass_keeps_the_operands_the_output_and_two_numbers_a_query():
    function, shapes = program(run, 512, 512)
    pull = jax.eval_shape(lambda *xs: jax.vjp(function, *xs)[1], *shapes)
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull))
    assert kept <= 4 * 512 * (4 * 8 + 2) + 64


def count_attention(compiled):
    return sum("_attention_by" in name for name in compiled.names)


def test_known_rates_compile_at_most_four_programs():
    x = jnp.ones((3, 1, 2))
    with Compilations() as compiled:
        for rate in (*np.linspace(0.01, 0.99, 50), *(2.0**-n for n in range(1, 30))):
            dot_product_attention(make_key("raw"), x, x, x, float(rate))
    assert 1 <= count_attention(compiled) <= 4


def test_changing_traced_rates_compile_nothing():
    x = jnp.ones((4, 1, 2))
    rates = [jnp.float32(rate) for rate in (0.1, 0.0, 0.5, 1e-6, 1.0)]
    dot_product_attention(make_key("raw"), x, x, x, rates[0])
    with Compilations() as compiled:
        for rate in rates:
            dot_product_attention(make_key("raw", 1), x, x, x, rate)
    assert compiled.names == []
