"""Masksembles: the exact law of the families by enumeration, and what a member sees."""

import itertools
from collections import Counter
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, make_key
from reference.ensembles import covers, kept_features
from scipy import stats

from jaxdrop import draw_masksembles, masksembles, uncertainty
from jaxdrop.methods.ensembles import new_feature_weights

FAMILIES = [(4, 2, 3), (5, 3, 2), (6, 2, 3), (5, 2, 4), (6, 3, 2), (4, 4, 2), (3, 1, 4)]


def masks_of(count, features):
    return [frozenset(mask) for mask in itertools.combinations(range(features), count)]


def covering(features, count, num_masks):
    """All families in which each feature is kept by some mask."""
    families = itertools.product(masks_of(count, features), repeat=num_masks)
    return [family for family in families if len(frozenset().union(*family)) == features]


# The law.


@pytest.mark.quick
@pytest.mark.parametrize(("features", "count", "num_masks"), FAMILIES)
def test_every_family_that_uses_all_features_is_equally_likely(features, count, num_masks):
    """By the chances of each step, for every family there is."""
    families = covering(features, count, num_masks)

    def chance_of(uncovered, left):
        with enable_x64():
            found = new_feature_weights(jnp.int32(uncovered), features, count, left)
            return np.asarray(found / found.sum())

    chances = {
        (u, left): chance_of(u, left) for u in range(features + 1) for left in range(num_masks)
    }
    for family in families:
        uncovered, chance = set(range(features)), 1.0
        for i, mask in enumerate(family):
            u, new = len(uncovered), len(mask & uncovered)
            ways = comb(u, new) * comb(features - u, count - new)
            chance *= chances[u, num_masks - 1 - i][new] / ways
            uncovered -= mask
        np.testing.assert_allclose(chance, 1 / len(families), rtol=1e-12)


def test_families_of_many_keys_are_equally_likely():
    """Chi-squared of 20,000 draws over all families, with a false-alarm rate of 1e-9."""
    features, num_masks, draws = 5, 3, 20_000
    assert kept_features(features, num_masks, 100.0) == 2
    names = {str([sorted(mask) for mask in family]) for family in covering(features, 2, num_masks)}
    draw = jax.jit(jax.vmap(lambda key: draw_masksembles(key, features, num_masks, scale=100.0)))
    drawn = [
        [np.flatnonzero(mask).tolist() for mask in family]
        for family in np.asarray(draw(jax.random.split(make_key("raw"), draws)))
    ]

    def surprise(families):
        found, expected = Counter(map(str, families)), draws / len(names)
        assert set(found) <= names
        statistic = sum((found[name] - expected) ** 2 / expected for name in names)
        return stats.chi2.sf(statistic, len(names) - 1)

    assert surprise(drawn) > 1e-9
    # A sampler that adds as few features as it can, as if no other number were possible.
    few = [family if len({*family[0], *family[1]}) == 3 else drawn[0] for family in drawn]
    assert surprise(few) < 1e-9


@pytest.mark.quick
@pytest.mark.parametrize(
    ("features", "num_masks"), [*itertools.product((1, 2, 37), (1, 2, 5)), (300, 5)]
)
def test_each_mask_keeps_the_published_number_and_together_they_keep_all(features, num_masks):
    for scale in (1.0, 1.3, 2, 3.7, 1e6):
        masks = draw_masksembles(make_key("raw"), features, num_masks, scale=scale)
        assert masks.shape == (num_masks, features)
        assert masks.dtype == bool
        np.testing.assert_array_equal(masks.sum(1), kept_features(features, num_masks, scale))
        assert masks.any(0).all()
    assert draw_masksembles(make_key("raw"), features, num_masks, scale=1).all()


def test_large_scale_makes_masks_disjoint():
    masks = draw_masksembles(make_key("raw"), 40, 5, scale=1e12)
    np.testing.assert_array_equal(masks.sum(0), 1)


def overlap_chances(features, count, num_masks):
    """The chance that two masks share k features, by the docstring's formula."""

    def contain(others):
        if others < 0:
            return 0.0
        return covers(features, count, num_masks - 2, others) / comb(features, count) ** (
            num_masks - 2
        )

    ways = np.array(
        [
            comb(count, k) * comb(features - count, count - k) * contain(features - 2 * count + k)
            for k in range(count + 1)
        ]
    )
    return ways / ways.sum()


@pytest.mark.quick
@pytest.mark.parametrize(("features", "count", "num_masks"), FAMILIES)
def test_overlap_of_two_masks_has_the_law_that_is_stated(features, count, num_masks):
    families = covering(features, count, num_masks)
    for pair in itertools.combinations(range(num_masks), 2):
        shared = Counter(len(family[pair[0]] & family[pair[1]]) for family in families)
        exact = [shared[k] / len(families) for k in range(count + 1)]
        found = overlap_chances(features, count, num_masks)
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-15)
    kept = Counter(feature for family in families for feature in family[-1])
    assert len(set(kept.values())) == 1  # each mask by itself is uniform


@pytest.mark.parametrize("scale", [1.5, 2.0, 3.0])
def test_two_masks_share_a_scale_th_of_what_they_keep(scale):
    for features, num_masks in ((128, 4), (256, 3), (512, 8)):
        count = kept_features(features, num_masks, scale)
        mean = overlap_chances(features, count, num_masks) @ np.arange(count + 1)
        np.testing.assert_allclose(mean, count / scale, rtol=0.05)


def test_masks_are_the_same_under_jit_and_vmap_and_with_x64():
    keys = jax.random.split(make_key("raw"), 3)
    draw = lambda key: draw_masksembles(key, 20, 4)  # noqa: E731
    each = jnp.stack([draw(key) for key in keys])
    np.testing.assert_array_equal(jax.vmap(draw)(keys), each)
    np.testing.assert_array_equal(jax.jit(draw)(keys[1]), each[1])
    with enable_x64():
        np.testing.assert_array_equal(draw(keys[2]), each[2])


# Members.

MASKS = jnp.array(
    [[True, True, False, False], [False, True, True, False], [True, False, False, True]]
)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


@pytest.mark.quick
def test_one_index_applies_one_mask_and_many_one_to_each_sample():
    for i in range(3):
        expected = np.where(MASKS[i], X, 0)
        np.testing.assert_array_equal(masksembles(MASKS, X, i), expected)
        np.testing.assert_array_equal(jax.jit(masksembles)(MASKS, X, jnp.int32(i)), expected)
    index = np.array([2, 0, 1, 1, 0])
    expected = np.where(np.asarray(MASKS)[index], X, 0)
    np.testing.assert_array_equal(masksembles(MASKS, X, index), expected)
    np.testing.assert_array_equal(masksembles(MASKS, X, jnp.asarray(index, jnp.uint8)), expected)


@pytest.mark.parametrize(
    ("batch_axis", "feature_axis"), [(0, -1), (0, 1), (2, 1), (1, 0), (-1, -3)]
)
def test_axes_are_those_that_are_named(batch_axis, feature_axis):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4)), jnp.float32)
    index = jnp.array([2, 0, 1, 1])
    axes = {"batch_axis": batch_axis, "feature_axis": feature_axis}
    found = jnp.moveaxis(masksembles(MASKS, x, index, **axes), (batch_axis, feature_axis), (0, 1))
    moved = jnp.moveaxis(x, (batch_axis, feature_axis), (0, 1))
    expected = jnp.stack([masksembles(MASKS, m.T, i).T for m, i in zip(moved, index, strict=True)])
    np.testing.assert_array_equal(found, expected)
    one = jnp.moveaxis(masksembles(MASKS, x, 2, feature_axis=feature_axis), feature_axis, -1)
    expected = jnp.where(MASKS[2], jnp.moveaxis(x, feature_axis, -1), 0)
    np.testing.assert_array_equal(one, expected)


@pytest.mark.quick
def test_what_is_dropped_is_hidden_and_has_no_gradient():
    x = X.at[:, 3].set(jnp.nan)
    y, pull = jax.vjp(lambda x: masksembles(MASKS, x, 0), x)
    assert jnp.isfinite(y).all()
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], jnp.broadcast_to(MASKS[0], X.shape))
    narrow = masksembles(MASKS, X.astype(jnp.bfloat16), 1)
    assert narrow.dtype == jnp.bfloat16


def test_traced_index_out_of_range_gives_nan_to_its_sample():
    y = jax.jit(masksembles)(MASKS, X, jnp.array([0, 3, -1, 2, 1]))
    assert jnp.isnan(y).all(1).tolist() == [False, True, True, False, False]
    assert jnp.isnan(y).any(1).tolist() == [False, True, True, False, False]


@pytest.mark.quick
def test_index_of_any_width_is_judged_as_it_is():
    many = jnp.arange(600).reshape(200, 3) % 2 == 0
    y = jax.jit(masksembles)(many, jnp.ones((3, 3)), jnp.array([1, 100, -1], jnp.int8))
    np.testing.assert_array_equal(y[:2], many[jnp.array([1, 100])])
    assert jnp.isnan(y[2]).all()
    with enable_x64():
        y = jax.jit(masksembles)(MASKS, jnp.ones((3, 4)), jnp.array([2, 2**32, -(2**32)]))
        assert jnp.isnan(y).all(1).tolist() == [False, True, True]


@pytest.mark.quick
def test_complex_features_are_dropped_and_spoilt_whole():
    x = jnp.full((2, 4), 1 + 2j)
    y = jax.jit(masksembles)(MASKS, x, jnp.array([1, 3]))
    np.testing.assert_array_equal(y[0], jnp.where(MASKS[1], 1 + 2j, 0))
    assert jnp.isnan(y[1].real).all()


def test_examples_may_be_split_over_explicit_axes():
    kind, spec = jax.sharding.AxisType.Explicit, jax.sharding.PartitionSpec("data")
    x, index = jnp.asarray(np.ones((16, 4), np.float32)), jnp.arange(16) % 3
    expected = masksembles(MASKS, x, index)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        split = jax.device_put(x, spec), jax.device_put(index, spec)
        found = jax.jit(masksembles)(MASKS, *split)
        assert jax.typeof(found).sharding.spec[0] == "data"
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            jax.jit(masksembles)(MASKS, split[0], 1), masksembles(MASKS, x, 1)
        )


@pytest.mark.quick
def test_members_are_samples_for_all_of_uncertainty():
    masks = draw_masksembles(make_key("raw"), 4, 3)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    model = lambda x, i: jax.nn.softmax(masksembles(masks, x, i) @ weights)  # noqa: E731
    samples = jax.vmap(model, (None, 0))(X, jnp.arange(3))
    assert samples.shape == (3, 5, 3)
    parts = uncertainty.classification(samples)
    np.testing.assert_allclose(parts.total, parts.aleatoric + parts.epistemic, rtol=1e-5)
    assert (parts.epistemic > 0).all()
    everything = draw_masksembles(make_key("raw"), 4, 3, scale=1)
    alike = jax.vmap(lambda i: masksembles(everything, X, i))(jnp.arange(3))
    np.testing.assert_array_equal(uncertainty.regression(alike).epistemic, 0)


@pytest.mark.quick
def test_bad_arguments_are_named():
    key = make_key("raw")
    for call, error, message in (
        (
            lambda: draw_masksembles(key, 0, 4),
            ValueError,
            "draw_masksembles: features must be at least 1",
        ),
        (
            lambda: draw_masksembles(key, 8, 0),
            ValueError,
            "draw_masksembles: num_masks must be at least",
        ),
        (
            lambda: draw_masksembles(key, 8, 4, scale=0.5),
            ValueError,
            "draw_masksembles: scale must be at least 1; got 0.5",
        ),
        (
            lambda: jax.jit(lambda s: draw_masksembles(key, 8, 4, scale=s))(2.0),
            TypeError,
            "draw_masksembles: scale must be known while tracing",
        ),
        (
            lambda: masksembles(MASKS, X, 3),
            ValueError,
            r"masksembles: index must lie in \[0, 3\); got 3",
        ),
        (
            lambda: masksembles(MASKS, X, np.array([0, 0, -1, 0, 0])),
            ValueError,
            r"masksembles: index must lie in \[0, 3\); got \[",
        ),
        (
            lambda: masksembles(MASKS, X, jnp.zeros(4, int)),
            ValueError,
            r"masksembles: index must be a scalar or have shape \(5,\); got shape \(4,\)",
        ),
        (
            lambda: masksembles(MASKS[:, :3], X, 0),
            ValueError,
            r"masksembles: masks must have shape \(masks, 4\); got \(3, 3\)",
        ),
        (
            lambda: masksembles(MASKS[0], X, 0),
            ValueError,
            r"masksembles: masks must have shape \(masks, 4\); got \(4,\)",
        ),
        (
            lambda: masksembles(MASKS[:0], X, 0),
            ValueError,
            r"masksembles: masks must have shape \(masks, 4\); got \(0, 4\)",
        ),
        (
            lambda: masksembles(MASKS, X, 0, feature_axis=2),
            ValueError,
            r"masksembles: feature_axis must lie in \[-2, 2\) for 2 axes; got 2",
        ),
        (
            lambda: draw_masksembles(key, 8, 4, scale=float("nan")),
            ValueError,
            "draw_masksembles: scale must be at least 0 and finite; got nan",
        ),
        (
            lambda: masksembles(MASKS.astype(int), X, 0),
            TypeError,
            "masksembles: masks must be boolean; got int32",
        ),
        (
            lambda: masksembles(MASKS, X, 0.0),
            TypeError,
            "masksembles: index must be integers; got fl",
        ),
        (
            lambda: masksembles(MASKS, X, jnp.zeros(5, int), feature_axis=0),
            ValueError,
            r"masksembles: masks must have shape \(masks, 5\)",
        ),
        (
            lambda: masksembles(MASKS, X.T, jnp.zeros(4, int), feature_axis=0),
            ValueError,
            "masksembles: batch_axis and feature_axis must differ",
        ),
    ):
        with pytest.raises(error, match=f"^{message}"):
            call()
