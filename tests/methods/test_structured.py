"""Exact laws of the methods that drop feature maps, branches, blocks and squares."""

import itertools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import subsets
from jax.experimental import checkify
from modes import assert_check_failed, enable_x64, make_key
from reference.methods import Key

from jaxdrop import (
    cutout,
    draw_mask,
    drop_block,
    drop_block_gamma,
    drop_path,
    drop_path_rates,
    dropout,
    per_sample,
    plant,
    rescale,
    shake_drop,
    site,
    site_key,
    spatial_dropout,
)
from jaxdrop.core.noise import signed_uniform, unit_uniform

KEY = make_key("raw")
BRANCH = jnp.linspace(1, 2, 60).reshape(20, 3)


@pytest.mark.quick
@pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)])
def test_spatial_dropout_shares_the_mask_over_1_to_3_axes(spatial):
    x = jnp.linspace(1, 2, 6 * math.prod(spatial)).reshape(2, *spatial, 3)
    y = spatial_dropout(KEY, x, 0.5)
    between = tuple(range(1, 1 + len(spatial)))
    np.testing.assert_array_equal(y, dropout(KEY, x, 0.5, broadcast_dims=between))
    first = spatial_dropout(KEY, jnp.moveaxis(x, -1, 1), 0.5, channel_axis=1)
    np.testing.assert_array_equal(jnp.moveaxis(first, 1, -1), y)


def test_spatial_dropout_of_one_sample_under_vmap():
    x, keys = jnp.ones((5, 4, 6, 3)), jax.random.split(make_key("raw"), 5)
    y = jax.vmap(partial(spatial_dropout, rate=0.5, batch_axis=None))(keys, x)
    assert jnp.all(y == y[:, :1, :1])
    assert len(np.unique(y[:, 0, 0], axis=0)) > 1


@pytest.mark.quick
def test_drop_path_at_rate_one_leaves_the_identity_path():
    x = jnp.arange(12.0).reshape(3, 4)

    def network(key, x, rate):
        for block in range(3):
            branch = jnp.tanh(x) / (block * 0.0)  # infinite, and NaN at zero
            x = x + drop_path(jax.random.fold_in(key, block), branch, rate)
        return x

    for rate in (1, 1.0, jnp.float32(1)):
        np.testing.assert_array_equal(network(KEY, x, rate), x)
    np.testing.assert_array_equal(jax.jit(network)(KEY, x, 1.0), x)


@pytest.mark.quick
def test_drop_path_decides_for_each_sample_or_for_the_batch():
    x = jnp.ones((64, 3, 2))
    by_sample = drop_path(KEY, x, 0.5)
    assert jnp.all(by_sample == by_sample[:, :1, :1])
    assert set(np.unique(by_sample)) == {0, 2}
    np.testing.assert_array_equal(by_sample, dropout(KEY, x, 0.5, broadcast_dims=(1, 2)))
    batches = [drop_path(make_key("raw", i), x, 0.5, batch_axis=None) for i in range(8)]
    assert {tuple(np.unique(y)) for y in batches} == {(0,), (2,)}


def test_drop_path_without_rescale_is_the_paper():
    y = drop_path(KEY, jnp.ones((64, 2)), 0.5, rescale=rescale.none)
    assert set(np.unique(y)) == {0, 1}


def shaken_by_numpy(x, rate):
    """What samples are multiplied by under KEY, forward and back, rebuilt from their words."""
    words = Key("threefry2x32", (0, 0)).fold_in_name("factors").pair((len(x), 1))
    kept = np.asarray(drop_path(KEY, x, rate) != 0)
    forward = (words[0].view(np.int32) + 0.5) / 2**31
    backward = (words[1] + 0.5) / 2**32
    return np.where(kept, 1, forward), np.where(kept, 1, backward)


@pytest.mark.quick
@pytest.mark.parametrize("rate", [0.3, 1.0, jnp.float32(0.3)])
def test_shake_drop_goes_forward_and_back_by_factors_of_their_own(rate):
    forward, backward = shaken_by_numpy(BRANCH, rate)
    assert rate == 1 or set((forward == 1)[:, 0]) == {True, False}
    y, pull = jax.vjp(lambda x: shake_drop(KEY, x, rate), BRANCH)
    np.testing.assert_allclose(y, BRANCH * forward, rtol=1e-6)
    np.testing.assert_allclose(pull(BRANCH)[0], BRANCH * backward, rtol=1e-6)
    tangent = jax.jvp(lambda x: shake_drop(KEY, x, rate), (BRANCH,), (BRANCH,))[1]
    np.testing.assert_array_equal(tangent, pull(BRANCH)[0])


def test_factors_of_shake_drop_have_32_bits_in_float64():
    forward, backward = shaken_by_numpy(BRANCH, 0.3)
    with enable_x64():
        y, pull = jax.vjp(lambda x: shake_drop(KEY, x, 0.3), jnp.ones(BRANCH.shape))
        np.testing.assert_allclose(y, np.broadcast_to(forward, y.shape), rtol=1e-15)
        slope = pull(jnp.ones(BRANCH.shape))[0]
        np.testing.assert_allclose(slope, np.broadcast_to(backward, y.shape), rtol=1e-15)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_shake_drop_has_the_stated_moments_over_all_decisions_and_evenly_spread_words(rate):
    parts = 2**12
    middle = np.arange(parts, dtype=np.uint32) * np.uint32(2**20) + np.uint32(2**19)
    with enable_x64():
        pairs = np.concatenate([middle, ~middle])  # so that means are exact
        forward, backward = (
            np.asarray(uniform(jnp.asarray(pairs), np.float64))
            for uniform in (signed_uniform, unit_uniform)
        )
    assert abs(forward.mean()) < 1e-15
    keep_prob, drop_prob = 1 - rate, rate
    mean = keep_prob + drop_prob * forward.mean()
    variance = keep_prob + drop_prob * (forward**2).mean() - mean**2
    np.testing.assert_allclose(mean, keep_prob, atol=1e-15)
    of_the_law = keep_prob + drop_prob / 3 - keep_prob**2
    np.testing.assert_allclose(variance, of_the_law, atol=1 / parts**2)
    slope = keep_prob + drop_prob * backward.mean()
    np.testing.assert_allclose(slope, keep_prob + drop_prob / 2, atol=1e-15)


def test_shake_drop_without_a_key_is_its_mean():
    for rate in (0.25, jnp.float32(0.25)):
        y, pull = jax.vjp(lambda x, rate=rate: shake_drop(None, x, rate), BRANCH)
        np.testing.assert_array_equal(y, 0.75 * BRANCH)
        np.testing.assert_array_equal(pull(BRANCH)[0], 0.75 * BRANCH)
    narrow = shake_drop(None, BRANCH.astype(jnp.bfloat16), 0.3)
    wide = shake_drop(None, BRANCH.astype(jnp.bfloat16).astype(jnp.float32), 0.3)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    assert not shake_drop(None, jnp.full((2, 3), jnp.inf), 1).any()
    with pytest.raises(ValueError, match=r"^shake_drop: rate must lie in \[0, 1\]; got 2\.0\.$"):
        shake_drop(None, BRANCH, 2.0)
    assert jnp.isnan(jax.jit(shake_drop)(None, BRANCH, jnp.nan)).all()


def test_gradient_of_shake_drop_at_a_bad_traced_rate_is_nan():
    gradient = jax.grad(lambda x, rate: shake_drop(KEY, x, rate).sum())
    assert jnp.isnan(jax.jit(gradient)(BRANCH, 1.5)).all()


@pytest.mark.quick
def test_shake_drop_of_one_sample_is_that_of_a_batch_of_one():
    keys = jax.random.split(jax.random.key(3), len(BRANCH))
    samples = jax.vmap(partial(shake_drop, rate=0.5, batch_axis=None))(keys, BRANCH)
    alone = [shake_drop(key, x[None], 0.5)[0] for key, x in zip(keys, BRANCH, strict=True)]
    np.testing.assert_array_equal(samples, jnp.stack(alone))
    drop = partial(shake_drop, rate=0.5, batch_axis=None)
    np.testing.assert_array_equal(per_sample(drop)(jax.random.key(3), BRANCH), samples)


def test_shake_drop_keeps_one_factor_a_sample_for_the_backward_pass():
    x = jax.ShapeDtypeStruct((64, 1024), jnp.bfloat16)
    pull = jax.eval_shape(lambda x: jax.vjp(lambda x: shake_drop(KEY, x, 0.5), x)[1], x)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull)) <= 4 * 64


def test_planted_shake_drop_is_that_of_the_key_of_its_site():
    def model(x):
        return jnp.sum(x + site(jnp.tanh(x), "branch"))

    def by_hand(key, x):
        return jnp.sum(x + shake_drop(site_key(key, "branch"), jnp.tanh(x), 0.5))

    planted = plant(model, {"branch": partial(shake_drop, rate=0.5)})
    found = [jax.value_and_grad(run, 1)(KEY, BRANCH) for run in (planted, by_hand)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *found)


def test_drop_path_rates_rise_linearly_to_the_last():
    for rate in (0.5, np.float32(0.5), np.array(0.5)):
        assert drop_path_rates(rate, 5) == (0.1, 0.2, 0.3, 0.4, 0.5)
        assert {type(each) for each in drop_path_rates(rate, 5)} == {float}
    np.testing.assert_allclose(
        jax.jit(drop_path_rates, static_argnums=1)(0.5, 5), drop_path_rates(0.5, 5), rtol=1e-6
    )
    kept = sum(1 - rate for rate in drop_path_rates(0.5, 54))
    np.testing.assert_allclose(kept, 54 - 0.5 * 55 / 2)  # 40.25 of the paper's 54
    with pytest.raises(ValueError, match=r"^drop_path_rates: depth must be at least 1; got 0\.$"):
        drop_path_rates(0.5, 0)


@pytest.mark.quick
@pytest.mark.parametrize(
    "rates",
    [partial(drop_path_rates, depth=3), partial(drop_block_gamma, shape=(8,), block_size=3)],
)
def test_bad_traced_rate_of_what_only_computes_rates_is_seen(rates):
    for rate in (-0.1, 1.5, jnp.nan):
        assert jnp.isnan(rates(jnp.float32(rate))).all()
        error, _ = checkify.checkify(rates)(jnp.float32(rate))
        assert_check_failed(error, r"rate must lie in \[0, 1\]; got")


@pytest.mark.quick
def test_rates_computed_from_narrow_ones_are_of_32_bits():
    for dtype in (jnp.bfloat16, jnp.float16):
        rate = jnp.asarray(0.3, dtype)
        np.testing.assert_allclose(
            drop_path_rates(rate, 7), drop_path_rates(float(rate), 7), rtol=1e-6
        )


def spread(seeds, blocks):
    """Dropped positions, by the definition: all that a seed's block covers."""
    dropped = np.zeros([s + b - 1 for s, b in zip(seeds.shape, blocks, strict=True)], bool)
    for corner in np.argwhere(seeds):
        dropped[tuple(slice(c, c + b) for c, b in zip(corner, blocks, strict=True))] = True
    return dropped


def expected_keep(gamma, sizes, blocks):
    """The expected share kept, over all sets of seeds."""
    shape = [f - b + 1 for f, b in zip(sizes, blocks, strict=True)]
    total = 0.0
    for seeds in subsets(int(np.prod(shape))):
        chance = gamma ** seeds.sum() * (1 - gamma) ** (~seeds).sum()
        total += chance * (1 - spread(seeds.reshape(shape), blocks).mean())
    return total


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [
        ((6,), (3,)),
        ((9,), (2,)),
        ((4, 4), (2, 2)),
        ((5, 4), (3, 1)),
        ((3, 3, 3), (2, 2, 2)),
        ((3, 4), (3, 4)),
    ],
)
@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 0.99])
def test_exact_gamma_keeps_the_asked_share_over_all_sets_of_seeds(sizes, blocks, rate):
    gamma = drop_block_gamma(rate, sizes, blocks)
    np.testing.assert_allclose(expected_keep(gamma, sizes, blocks), 1 - rate, rtol=1e-12)


@pytest.mark.quick
@pytest.mark.parametrize("rate", [1e-12, 1 - 2**-20, 1 - 2**-32])
def test_exact_gamma_keeps_the_asked_share_near_zero_and_one(rate):
    cover = np.outer([1, 2, 3, 3, 3, 3, 2, 1], [1, 2, 3, 3, 3, 3, 2, 1])
    gamma = drop_block_gamma(rate, (8, 8), 3)
    if rate < 0.5:
        np.testing.assert_allclose(-np.expm1(cover * np.log1p(-gamma)).mean(), rate, rtol=1e-12)
    else:  # 1 - gamma has few digits
        np.testing.assert_allclose(np.mean((1 - gamma) ** cover), 1 - rate, rtol=1e-5)


@pytest.mark.quick
def test_gamma_of_the_paper_misses_the_asked_share():
    cover = np.array([1, 2, 3, 3, 3, 3, 2, 1])
    kept = lambda gamma: np.mean((1 - gamma) ** np.outer(cover, cover))  # noqa: E731
    published = drop_block_gamma(0.5, (8, 8), 3, exact=False)
    exact = drop_block_gamma(0.5, (8, 8), 3)
    assert type(published) is type(exact) is float
    assert (round(kept(published), 3), round(exact, 4)) == (0.614, 0.1421)
    np.testing.assert_allclose(kept(exact), 0.5, rtol=1e-14)
    np.testing.assert_allclose(drop_block_gamma(0.1, (14, 14), 7), 0.006764, atol=5e-7)


@pytest.mark.quick
def test_traced_gamma_is_the_known_one():
    rates = np.array([0.0, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0])
    for options in [((8, 8), 3), ((14, 14), 7), ((16,), (5,)), ((6, 6, 6), 2)]:
        for exact in (True, False):
            gamma = partial(drop_block_gamma, shape=options[0], block_size=options[1], exact=exact)
            traced = jax.jit(jax.vmap(gamma))(jnp.asarray(rates, jnp.float32))
            # The root is found in float32, and 0.999 leaves it few digits to tell from 1.
            np.testing.assert_allclose(traced, [gamma(rate) for rate in rates], rtol=2e-5)
            assert traced[-1] == 1 or not exact


@pytest.mark.parametrize(
    ("spatial", "blocks"),
    [((9,), (4,)), ((8, 7), (3, 3)), ((7, 8), (2, 5)), ((4, 5, 6), (2, 3, 4)), ((6, 6), (7, 1))],
)
@pytest.mark.parametrize("channels", [3, 32])
def test_drop_block_drops_the_blocks_of_its_seeds(spatial, blocks, channels):
    cut = tuple(min(b, f) for b, f in zip(blocks, spatial, strict=True))
    seed_shape = tuple(f - b + 1 for f, b in zip(spatial, cut, strict=True))
    gamma = drop_block_gamma(0.4, spatial, blocks)
    seeds = drop_block(KEY, jnp.ones((2, *seed_shape, channels)), gamma, block_size=1) == 0
    y = np.asarray(drop_block(KEY, jnp.ones((2, *spatial, channels)), 0.4, block_size=blocks))
    for sample, channel in itertools.product(range(2), range(channels)):
        dropped = spread(np.asarray(seeds[sample, ..., channel]), cut)
        kept = y[sample, ..., channel]
        np.testing.assert_array_equal(kept == 0, dropped)
        if not dropped.all():
            np.testing.assert_allclose(kept[~dropped], dropped.size / (~dropped).sum(), rtol=1e-6)


def test_seeds_of_drop_block_are_independent_decisions():
    seeds = drop_block(KEY, jnp.ones((2, 6, 32)), 0.25, block_size=1) != 0
    mask = draw_mask(KEY, (6, 2, 32), 0.25).unpack()
    np.testing.assert_array_equal(jnp.moveaxis(seeds, 1, 0), mask)


@pytest.mark.quick
def test_drop_block_takes_channels_first_or_none():
    x = jnp.arange(1.0, 1 + 2 * 6 * 5 * 3).reshape(2, 6, 5, 3)
    y = drop_block(KEY, x, 0.3, block_size=2)
    first = drop_block(KEY, jnp.moveaxis(x, -1, 1), 0.3, block_size=2, channel_axis=1)
    np.testing.assert_array_equal(jnp.moveaxis(first, 1, -1), y)
    alone = drop_block(KEY, x[..., :1], 0.3, block_size=2)
    none = drop_block(KEY, x[..., 0], 0.3, block_size=2, channel_axis=None)
    np.testing.assert_array_equal(alone[..., 0], none)


def test_drop_block_keeps_the_sum_of_a_constant_map_in_every_draw():
    y = drop_block(KEY, jnp.ones((8, 12, 12, 5)), 0.3, block_size=4)
    sums = np.asarray(y.sum((1, 2)))
    np.testing.assert_allclose(sums[sums != 0], 144, rtol=1e-5)


def test_drop_block_drops_a_map_of_one_element():
    assert not drop_block(KEY, jnp.ones((1, 1, 1, 1)), 1, block_size=3).any()


def centres(size, spatial, keys):
    """Squares that `cutout` leaves out of ones, by the centre that explains each."""
    found = {}
    squares = {}
    for centre in itertools.product(*map(range, spatial)):
        covered = [
            (np.arange(n) >= c - size // 2) & (np.arange(n) < c - size // 2 + size)
            for c, n in zip(centre, spatial, strict=True)
        ]
        squares[centre] = ~(covered[0][:, None] & covered[1][None, :])
    ys = jax.vmap(lambda key: cutout(key, jnp.ones((1, *spatial, 2)), size))(keys)
    for y in np.asarray(ys):
        matches = [c for c, square in squares.items() if (y[0] == square[..., None]).all()]
        assert matches
        for centre in matches:
            found[centre] = found.get(centre, 0) + 1
    return squares, found


@pytest.mark.quick
@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutout_cuts_a_clipped_square_around_every_position(size):
    squares, found = centres(size, (4, 5), jax.random.split(make_key("raw"), 512))
    assert set(found) == set(squares)


def test_cutout_keeps_dtype_and_takes_integers_and_edges_for_each_axis():
    images = jnp.full((2, 6, 8, 3), 7, jnp.uint8)
    y = cutout(KEY, images, (99, 1))
    assert y.dtype == jnp.uint8
    assert jnp.all((y == 0).sum((1, 2, 3)) == 6 * 1 * 3)
    np.testing.assert_array_equal(cutout(KEY, images, 0), images)


def test_cutout_differs_between_samples_and_hides_what_it_covers():
    x = jnp.ones((16, 6, 6))
    y = cutout(KEY, x, 3, channel_axis=None)
    assert len(np.unique(np.asarray(y), axis=0)) > 1
    y, pull = jax.vjp(lambda x: cutout(KEY, x, 3, channel_axis=None), x)
    hidden = jnp.where(y == 0, jnp.nan, x)
    np.testing.assert_array_equal(cutout(KEY, hidden, 3, channel_axis=None), y)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], y)


def test_cutout_of_one_sample_under_vmap():
    x, keys = jnp.ones((5, 6, 6, 2)), jax.random.split(make_key("raw"), 5)
    y = jax.vmap(partial(cutout, size=2, batch_axis=None))(keys, x)
    for key, x_one, y_one in zip(keys, x, y, strict=True):
        np.testing.assert_array_equal(cutout(key, x_one[None], 2)[0], y_one)


def test_cutout_is_the_same_with_x64():
    plain = cutout(KEY, jnp.ones((2, 6, 6, 1)), 3)
    with enable_x64():
        np.testing.assert_array_equal(cutout(KEY, jnp.ones((2, 6, 6, 1), jnp.float32), 3), plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: spatial_dropout(KEY, x, 0.5, batch_axis=3),
            "spatial_dropout: batch_axis and channel_axis must differ; got 3 and -1 for 4 axes.",
        ),
        (
            lambda x: spatial_dropout(KEY, x[0, 0], 0.5),
            "spatial_dropout: x must have a spatial axis besides batch_axis and channel_axis;"
            " got shape (5, 3). Pass batch_axis=None for one sample.",
        ),
        (
            lambda x: drop_block(KEY, x, 0.5, block_size=(2, 2, 2)),
            "drop_block: block_size must be one number, or one for each of 2 axes; got (2, 2, 2).",
        ),
        (
            lambda x: drop_block(KEY, x, 0.5, block_size=0),
            "drop_block: block_size must be at least 1; got 0.",
        ),
        (
            lambda x: drop_path(KEY, x, 0.5, batch_axis=4),
            "drop_path: batch_axis must lie in [-4, 4) for 4 axes; got 4.",
        ),
        (lambda x: cutout(KEY, x, -1), "cutout: size must be at least 0; got -1."),
        (
            lambda x: drop_path(KEY, x, 0.5, batch_axis=(0, 1)),
            "drop_path: batch_axis must be one axis; got (0, 1).",
        ),
    ],
)
def test_bad_axes_and_sizes(call, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        call(jnp.ones((2, 4, 5, 3)))
