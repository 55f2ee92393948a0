"""Exact laws of `drop_spans`."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import outputs_by_mask
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meshes import COLLECTIVE, mesh
from modes import enable_x64, make_key
from scipy import optimize

from jaxdrop import chain, drop_spans, per_sample, rescale
from jaxdrop.methods.spans import _known_starts, _starts

KEY = make_key("raw")
UNITS = 2**32


def wider(width):
    """The probability that a span is wider than 0, 1, ..."""
    return np.array([np.mean(np.arange(width[0], width[1] + 1) > d) for d in range(width[1])])


def factors(n, **options):
    """What survivors of ones become at each of n positions under the rule `expected`.

    The largest over keys, for most are dropped by some.
    """
    with enable_x64():
        keys = jax.random.split(make_key("raw", 1), 256)
        drop = partial(drop_spans, axis=0, batch_axis=None, rescale=rescale.expected, **options)
        return np.asarray(jax.vmap(lambda key: drop(key, jnp.ones(n)))(keys).max(0))


def all_starts(n, width, begin):
    """Every outcome of the spans that can reach n positions: what is kept, and how likely it is."""
    least, most = width
    chances = [1 - begin] + [begin / (most - least + 1)] * (most - least + 1)
    for lengths in itertools.product([0, *range(least, most + 1)], repeat=n + most - 1):
        kept = np.ones(n, bool)
        for start, length in enumerate(lengths, -(most - 1)):
            kept[max(start, 0) : max(start + length, 0)] = False
        yield kept, np.prod([chances[0 if w == 0 else w - least + 1] for w in lengths])


def all_places(n, width, number):
    """Every outcome of so many spans that lie inside of n positions."""
    widths = range(width[0], width[1] + 1)
    one = [(w, s, 1 / len(widths) / (n - w + 1)) for w in widths for s in range(n - w + 1)]
    for chosen in itertools.product(one, repeat=number):
        kept = np.ones(n, bool)
        for length, start, _ in chosen:
            kept[start : start + length] = False
        yield kept, np.prod([chance for *_, chance in chosen])


def means(outcomes):
    """The probabilities that a position, and that a pair of them, is kept."""
    kept, chance = (np.array(each) for each in zip(*outcomes, strict=True))
    np.testing.assert_allclose(chance.sum(), 1, rtol=1e-12)
    return chance @ kept, np.einsum("o,oi,oj->ij", chance, kept, kept)


@pytest.mark.parametrize(
    ("width", "n"), [((1, 1), 4), ((3, 3), 3), ((1, 2), 4), ((1, 3), 3), ((2, 3), 4), ((2, 4), 2)]
)
@pytest.mark.parametrize("rate", [1e-3, 0.15, 0.5, 0.97])
def test_rate_is_that_of_each_position_over_all_starts_and_widths(width, n, rate):
    spared = lambda begin: 1 - begin * wider(width)  # noqa: E731
    found = 1 / factors(n, rate=rate, width=width)
    assert len(set(found)) == 1  # alike at the borders
    begin = optimize.brentq(lambda b: np.prod(spared(b)) - found[0], 0, 1, xtol=1e-16)
    begin = round(begin * UNITS) / UNITS
    np.testing.assert_allclose(np.prod(spared(begin)), found[0], rtol=1e-12)
    # The grid of the starts alone is between what is asked for and what is dropped.
    assert abs(1 - found[0] - rate) <= wider(width).sum() / 2 / UNITS + 1e-15
    alone, both = means(all_starts(n, width, begin))
    np.testing.assert_allclose(alone, found, rtol=1e-12)
    for i, j in itertools.combinations(range(n), 2):
        np.testing.assert_allclose(
            both[i, j], found[0] * np.prod(spared(begin)[: j - i]), rtol=1e-12
        )


@pytest.mark.parametrize("width", [(1, 1), (7, 7), (1, 1000)])
def test_spans_of_traced_rates_begin_as_often_as_those_of_known_ones(width):
    for rate in np.array([1e-6, 1e-3, 0.5, 0.97, 0.9999], np.float32):
        known = _known_starts(float(rate), width)
        traced = _starts(jnp.asarray(rate), width, jnp)
        begin = [UNITS - int(starts.threshold.digits) for starts in (known, traced)]
        assert abs(begin[1] - begin[0]) <= 1 + 1e-5 * begin[0]
        np.testing.assert_allclose(traced.keep_prob, known.keep_prob, rtol=2e-5)
        grid = wider(width).sum() / 2 / UNITS
        assert abs(1 - known.keep_prob - float(rate)) <= grid + 1e-15


@pytest.mark.parametrize(("width", "number"), [((0, 3), 2), ((2, 2), 3), ((1, 4), 1), ((0, 9), 2)])
def test_number_of_spans_keeps_each_position_as_over_all_places(width, number):
    n = 5
    found = 1 / factors(n, num_spans=number, width=width)
    cut = tuple(min(w, n) for w in width)
    width_uniform = [min(w, n) for w in range(width[0], width[1] + 1)]
    if width[1] <= n:
        covered = np.zeros(n)
        for w in width_uniform:
            for i in range(n):
                starts = [s for s in range(n - w + 1) if s <= i < s + w]
                covered[i] += len(starts) / (n - w + 1) / len(width_uniform)
        np.testing.assert_allclose(found, (1 - covered) ** number, rtol=1e-12)
    alone, _ = means(all_places(n, cut, number))
    np.testing.assert_allclose(alone, found, rtol=1e-12)


def test_number_of_spans_makes_each_mask_that_there_is_and_no_other():
    n, width, number = 5, (0, 3), 2
    possible = {kept.tobytes() for kept, _ in all_places(n, width, number)}
    drop = partial(drop_spans, num_spans=number, width=width, axis=0, batch_axis=None)
    masks, _ = outputs_by_mask(drop, jnp.arange(1.0, 6.0), len(possible))
    assert {mask.tobytes() for mask in masks} == possible


def test_spans_of_a_rate_begin_where_those_of_one_position_lie():
    n, width, rate = 40, 4, 0.4
    begin = 1 - (1 - rate) ** (1 / width)
    starts = drop_spans(KEY, jnp.ones((3, n + width - 1)), begin, width=1) == 0
    dropped = np.zeros((3, n + width - 1), bool)
    for sample, start in np.argwhere(starts):
        dropped[sample, start : start + width] = True
    y = drop_spans(KEY, jnp.ones((3, n, 2)), rate, width=width)
    np.testing.assert_array_equal(y[..., 0] == 0, dropped[:, width - 1 :])
    np.testing.assert_array_equal(y[..., 0], y[..., 1])


@pytest.mark.parametrize("amount", [{"rate": 0.4}, {"num_spans": 2}])
def test_tokens_are_replaced_where_they_may_be(amount):
    ids = jnp.arange(1, 61).reshape(3, 20)
    allowed = jnp.arange(20)[None] < jnp.array([[20], [11], [0]])
    drop = partial(drop_spans, KEY, width=(1, 3), fill=-7, **amount)
    plain, y = drop(ids), drop(ids, where=allowed)
    assert y.dtype == ids.dtype
    assert jnp.any(plain == -7)
    np.testing.assert_array_equal(y, jnp.where(allowed, plain, ids))


def test_a_learned_vector_fills_and_gets_the_gradient_of_what_it_fills():
    x, token = jnp.ones((2, 30, 4)), jnp.arange(4.0)
    drop = partial(drop_spans, KEY, rate=0.4, width=(2, 5))
    y, pull = jax.vjp(lambda x, token: drop(x, fill=token), x, token)
    dropped = drop(x)[..., 0] == 0
    np.testing.assert_array_equal(y, jnp.where(dropped[..., None], token, x))
    of_x, of_token = pull(jnp.ones_like(y))
    np.testing.assert_array_equal(of_x, jnp.where(dropped[..., None], 0, x))
    np.testing.assert_array_equal(of_token, np.full(4, dropped.sum()))


@pytest.mark.parametrize("amount", [{"rate": 0.3}, {"num_spans": 3}])
def test_elements_that_must_stay_are_not_scaled(amount):
    x, may = jnp.ones((4, 30)), jnp.arange(30) % 3 > 0
    drop = partial(drop_spans, KEY, width=2, rescale=rescale.expected, **amount)
    np.testing.assert_array_equal(drop(x, where=may), jnp.where(may, drop(x), x))


def test_realized_keeps_the_sum_of_a_constant_line():
    y = drop_spans(KEY, jnp.ones((5, 40, 3)), 0.3, width=(2, 6), rescale=rescale.realized(1))
    np.testing.assert_allclose(y.sum(1), 40, rtol=1e-6)
    own = lambda mask, x: jnp.float32(3)  # noqa: E731, a rule that is not cached
    y = drop_spans(KEY, jnp.ones((5, 40, 3)), 0.3, width=(2, 6), rescale=own)
    assert set(np.unique(y)) == {0, 3}


@pytest.mark.parametrize("amount", [{"rate": 0.5}, {"num_spans": 1}])
def test_axes_that_are_named_have_spans_of_their_own(amount):
    x = jnp.ones((6, 5, 16, 3))
    drop = partial(drop_spans, KEY, x, width=4, **amount)
    for axis, batch_axis in [(2, 0), (-2, (1, 0)), (3, None), (1, (-1, 0)), (0, (1, 2, 3))]:
        y = np.asarray(drop(axis=axis, batch_axis=batch_axis)) == 0
        own = () if batch_axis is None else tuple(a % 4 for a in np.atleast_1d(batch_axis))
        for other in set(range(4)) - {axis % 4, *own}:
            assert (y == y.take([0], other)).all()
        for sample in own:
            assert (y != y.take([0], sample)).any()


@pytest.mark.parametrize("amount", [{"rate": 0.5}, {"num_spans": 2}])
def test_one_sample_under_vmap(amount):
    keys, x = jax.random.split(make_key("raw"), 5), jnp.ones((5, 30, 2))
    drop = partial(drop_spans, width=(1, 4), axis=0, batch_axis=None, **amount)
    y = jax.vmap(drop)(keys, x)
    for key, x_one, y_one in zip(keys, x, y, strict=True):
        np.testing.assert_array_equal(drop(key, x_one), y_one)
        first = drop_spans(key, x_one[None], width=(1, 4), **amount)[0]
        np.testing.assert_array_equal(first, y_one)
    np.testing.assert_array_equal(per_sample(drop)(make_key("raw"), x), y)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a"), P(("a", "b")), P("a", None, "b"), P("a", "b")], ids=str)
def test_spans_of_a_number_on_devices(kind, spec):
    drop = jax.jit(partial(drop_spans, num_spans=2, width=(0, 9), axis=1, rescale=rescale.expected))
    x = jnp.ones((16, 40, 4))
    split = jax.device_put(x, NamedSharding(mesh(kind), spec))
    y = drop(make_key("raw"), split)
    np.testing.assert_array_equal(y, drop(make_key("raw"), x))
    assert y.sharding.is_equivalent_to(split.sharding, y.ndim)
    if len(spec) < 2 or spec[1] is None:
        text = drop.lower(make_key("raw"), split).compile().as_text()
        assert not COLLECTIVE.findall(text)


def test_spans_of_a_number_are_the_same_in_every_mode():
    x = jnp.ones((4, 50, 3))
    drop = partial(drop_spans, num_spans=3, width=(0, 9), rescale=rescale.expected)
    y, pull = jax.vjp(lambda x: drop(KEY, x), x)
    np.testing.assert_array_equal(jax.jit(drop)(KEY, x), y)
    np.testing.assert_array_equal(pull(x)[0], y)
    np.testing.assert_array_equal(jax.jvp(lambda x: drop(KEY, x), (x,), (x,))[1], y)
    with enable_x64():
        wide = drop(KEY, jnp.ones((4, 50, 3), jnp.float32))
    np.testing.assert_array_equal(wide, y)
    low = drop(KEY, x.astype(jnp.bfloat16))
    np.testing.assert_array_equal(low, y.astype(jnp.bfloat16))


def test_backward_pass_keeps_a_bit_a_position():
    x = jax.ShapeDtypeStruct((8, 1024, 64), jnp.bfloat16)
    for amount in ({"rate": 0.3}, {"num_spans": 3}):
        drop = partial(drop_spans, KEY, width=(2, 9), **amount)
        pull = jax.eval_shape(lambda x, drop=drop: jax.vjp(drop, x)[1], x)
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))
        own_probabilities = 4 * 1024  # of the positions, which one number of spans shares
        assert kept <= 8 * 1024 / 8 + own_probabilities


def test_spans_of_nothing_and_of_all():
    x = jnp.arange(24.0).reshape(2, 12)
    for amount in ({"rate": 0}, {"num_spans": 0}):
        np.testing.assert_array_equal(drop_spans(None, x, width=3, **amount), x)
    np.testing.assert_array_equal(drop_spans(KEY, x, num_spans=2, width=0), x)
    np.testing.assert_array_equal(drop_spans(KEY, x, num_spans=1, width=99, fill=5), 5)
    y = drop_spans(None, x, 1, width=3, fill=5, where=jnp.arange(12) < 3)
    np.testing.assert_array_equal(y, jnp.where(jnp.arange(12) < 3, 5, x))


def test_masks_of_time_and_frequency_make_spec_augment():
    one = partial(drop_spans, num_spans=2, width=(0, 5))
    y = chain(partial(one, axis=1), partial(one, axis=2))(KEY, jnp.ones((8, 30, 20)))
    zero = np.asarray(y) == 0
    rows, columns = zero.all(2), zero.all(1)
    np.testing.assert_array_equal(zero, rows[:, :, None] | columns[:, None])
    assert rows.any()
    assert columns.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rate or num_spans must be given, and not both; got none of them."),
        ({"rate": 0.5, "num_spans": 2}, "rate or num_spans must be given, and not both; got 0.5"
         " and 2."),
        ({"rate": 0.5, "width": (3, 2)}, "width must be one number, or the least and the most;"
         " got (3, 2)."),
        ({"rate": 0.5, "width": (1, 2, 3)}, "width must be one number, or the least and the most;"
         " got (1, 2, 3)."),
        ({"rate": 0.5, "width": (0, 2)}, "width must be at least 1; got (0, 2)."),
        ({"num_spans": 1, "width": -1}, "width must be at least 0; got -1."),
        ({"num_spans": -1}, "num_spans must be at least 0; got -1."),
        ({"rate": 0.5, "batch_axis": 1}, "axis and batch_axis must differ; got 1 and 1 for 2"
         " axes."),
        ({"rate": 0.5, "axis": 2}, "axis must lie in [-2, 2) for 2 axes; got 2."),
    ],
)  # fmt: skip
def test_bad_amounts_widths_and_axes(options, message):
    with pytest.raises(ValueError, match=rf"^drop_spans: {re.escape(message)}$"):
        drop_spans(KEY, jnp.ones((2, 9)), **({"width": 2} | options))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_bad_traced_rate_poisons_what_must_stay_too(dtype):
    ids = jnp.ones((2, 9), dtype)
    drop = partial(drop_spans, KEY, ids, width=2, where=jnp.arange(9) > 3)
    y = jax.jit(drop)(1.5)
    poison = jnp.nan if dtype == "float32" else jnp.iinfo(dtype).min
    np.testing.assert_array_equal(y, jnp.full_like(ids, poison))


def test_integers_are_not_rescaled():
    with pytest.raises(TypeError, match=r"^drop_spans: x must be floating or complex; got int32"):
        drop_spans(KEY, jnp.ones((2, 9), int), 0.5, width=2, rescale=rescale.expected)
