"""Views and averages are those of samples; the divergence is that of the softmaxes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from enumeration import moments, probabilities, subsets
from jax.errors import KeyReuseError
from modes import enable_x64, make_key, quick_jit
from scipy import special

from jaxdrop import (
    Mask,
    apply_mask,
    complementary_views,
    draw_mask,
    dropout,
    monte_carlo,
    multi_sample,
    site,
    sites,
    symmetric_kl,
    two_views,
)

X = jnp.asarray(np.random.default_rng(0).integers(-9, 10, size=(3, 8)), jnp.float32)


def network(key, x, scale=1.0):
    """Whole numbers and halves, so that no program rounds."""
    y = dropout(key, x, 0.5) * scale
    return {"y": y, "kept": (y != 0).sum()}


@pytest.mark.quick
def test_views_are_the_first_two_samples():
    first, second = quick_jit(two_views(network))(make_key("raw"), X)
    samples = quick_jit(monte_carlo(network, 2))(make_key("raw"), X)
    for i, view in enumerate((first, second)):
        alone = network(jax.random.fold_in(make_key("raw"), i), X)
        for name in alone:
            np.testing.assert_array_equal(view[name], alone[name])
            np.testing.assert_array_equal(view[name], samples[name][i])
    assert (first["y"] != second["y"]).any()


@pytest.mark.quick
@pytest.mark.parametrize("count", [1, 4])
def test_average_is_that_of_the_samples(count):
    mean = quick_jit(multi_sample(network, count))(make_key("raw"), X, scale=2.0)
    samples = monte_carlo(network, count)(make_key("raw"), X, scale=2.0)
    for name, x in samples.items():
        np.testing.assert_array_equal(mean[name], np.mean(np.asarray(x), 0, dtype=np.float32))


@pytest.mark.quick
def test_samples_are_computed_together():
    calls = []

    def fn(key, x, *, scale):
        calls.append(key)
        return dropout(key, x, 0.5) * scale

    views = two_views(fn)(make_key("raw"), X, scale=2.0)
    mean = multi_sample(fn, 2)(make_key("raw"), X, scale=2.0)
    np.testing.assert_array_equal(mean, sum(views) / 2)
    assert len(calls) == 2  # one for each of the two


def test_views_are_no_more_samples_than_two():
    def model(x):
        return two_views(lambda key: site(dropout(key, x, 0.5), "h"))(make_key("raw"))

    (row,) = sites(model, X)
    assert (row.where, row.shape) == ("vmap[2]", X.shape)


def test_average_of_equal_samples_is_each_of_them():
    x = jax.random.normal(make_key("raw"), (1000,))
    same = multi_sample(lambda key, x: dropout(key, x, 0.0), 3)(make_key("raw"), x)
    np.testing.assert_array_equal(same, x)


def test_average_is_rounded_once_to_the_dtype_of_the_samples():
    mean = multi_sample(lambda key, x: x + dropout(key, x, 0.5), 64)
    narrow = mean(make_key("raw"), X.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, mean(make_key("raw"), X).astype(jnp.bfloat16))
    counts = multi_sample(lambda key: jax.random.randint(key, (), 0, 100), 8)(make_key("raw"))
    assert counts.dtype == jnp.float32
    turned = multi_sample(lambda key, x: x.astype(jnp.complex64) * 1j, 2)(make_key("raw"), X)
    assert turned.dtype == jnp.complex64


def test_gradient_of_the_average_is_the_average_of_gradients():
    def loss(key, x):
        return jnp.sum(dropout(key, x, 0.5) ** 2)

    found = jax.grad(lambda x: multi_sample(loss, 4)(make_key("raw"), x))(X)
    each = monte_carlo(jax.grad(loss, argnums=1), 4)(make_key("raw"), X)
    np.testing.assert_array_equal(found, each.mean(0))


def test_gradient_reaches_both_views():
    # d/dw of (w a - w b)^2, a and b the two masks of x.
    def distance(w, key):
        first, second = two_views(lambda key, w: w * dropout(key, X, 0.5))(key, w)
        return jnp.sum((first - second) ** 2)

    keys = [jax.random.fold_in(make_key("raw"), i) for i in range(2)]
    a, b = (dropout(key, X, 0.5) for key in keys)
    slope = jax.grad(distance)(3.0, make_key("raw"))
    np.testing.assert_allclose(slope, 6 * jnp.sum((a - b) ** 2), rtol=1e-6)


def test_contrastive_pairs_fit_the_loss_of_optax():
    """Two masks of a sample are its only positive pair; equal masks would be at the minimum."""
    embed = lambda key, x: dropout(key, x, 0.2)  # noqa: E731
    first, second = two_views(embed)(
        make_key("raw"), jax.random.normal(make_key("raw", 1), (4, 64))
    )
    both, pairs = jnp.concatenate([first, second]), jnp.tile(jnp.arange(4), 2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        right = optax.losses.ntxent(both, pairs, temperature=0.1)
        wrong = optax.losses.ntxent(both, jnp.roll(pairs, 1).at[4:].set(pairs[4:]), temperature=0.1)
    assert right < wrong


@pytest.mark.quick
@pytest.mark.parametrize("transform", [two_views, lambda fn: multi_sample(fn, 2)])
def test_key_is_consumed_and_must_be_one(transform):
    key = jax.random.key(0)
    transform(network)(key, X)
    with pytest.raises(KeyReuseError):
        transform(network)(key, X)
    with pytest.raises(TypeError, match=r"^\w+: key must be one key; got a batch"):
        transform(network)(jax.random.split(make_key("raw")), X)


@pytest.mark.quick
def test_number_of_samples_is_checked():
    with pytest.raises(ValueError, match=r"^multi_sample: num_samples must be at least 1; got 0"):
        multi_sample(network, 0)


# The divergence.


def reference(a, b):
    p, r = special.softmax(a, -1), special.softmax(b, -1)
    return (special.rel_entr(p, r) + special.rel_entr(r, p)).sum(-1) / 2


LOGITS = np.random.default_rng(1).normal(size=(2, 50, 7)) * 3


@pytest.mark.quick
def test_divergence_is_the_mean_of_both():
    a, b = jnp.asarray(LOGITS, jnp.float32)
    np.testing.assert_allclose(symmetric_kl(a, b), reference(*LOGITS), rtol=1e-5)
    for other in (b, a + b / 10):
        np.testing.assert_array_equal(symmetric_kl(a, other), symmetric_kl(other, a))
    turned = symmetric_kl(jnp.moveaxis(a, -1, 0), jnp.moveaxis(b, -1, 0), axis=0)
    np.testing.assert_allclose(turned, symmetric_kl(a, b), rtol=1e-6)


def test_divergence_of_nearly_equal_logits_does_not_cancel():
    a, b = LOGITS[0], LOGITS[0] + 1e-3 * LOGITS[1]
    with enable_x64():
        exact = symmetric_kl(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(exact, reference(a, b), rtol=1e-6)
    # In float32 only what the logits themselves lose in rounding: 1e-7 of 1e-3.
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    wide = reference(np.asarray(a, np.float64), np.asarray(b, np.float64))
    np.testing.assert_allclose(symmetric_kl(a, b), wide, rtol=2e-3)
    assert (symmetric_kl(a, b) >= 0).all()


def test_divergence_of_equal_logits_is_zero_with_its_second_derivative():
    a = jnp.asarray(LOGITS[0, 0], jnp.float32)
    value, slope = jax.value_and_grad(symmetric_kl)(a, a)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)
    p = jax.nn.softmax(a)
    fisher = jnp.diag(p) - jnp.outer(p, p)
    np.testing.assert_allclose(jax.hessian(symmetric_kl)(a, a), fisher, atol=1e-6)


def test_mean_divergence_of_small_noise_is_the_trace():
    # Over all pairs of masks of two units: exact but for terms of fourth order.
    logits, effect = LOGITS[0, 0], 1e-2 * LOGITS[1, :2]  # of each unit on the logits
    masks = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) / 0.5 - 1
    views = logits + masks @ effect
    with enable_x64():
        pairs = [symmetric_kl(jnp.asarray(a), jnp.asarray(b)) for a in views for b in views]
    p = special.softmax(logits)
    fisher, covariance = np.diag(p) - np.outer(p, p), effect.T @ effect
    np.testing.assert_allclose(np.mean(pairs), np.trace(fisher @ covariance), rtol=1e-2)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_divergence_of_far_logits_is_finite_with_its_gradient(scale):
    a, b = jnp.array([scale, 0.0, -scale]), jnp.array([-scale, 0.0, scale])
    value, slopes = jax.value_and_grad(symmetric_kl, (0, 1))(a, b)
    np.testing.assert_allclose(value, 2 * scale, rtol=1e-6)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


def test_classes_that_neither_view_allows_count_nothing():
    a, b = jnp.asarray(LOGITS[:, 0], jnp.float32)
    masked = [x.at[2].set(-jnp.inf) for x in (a, b)]
    value, slope = jax.value_and_grad(symmetric_kl)(*masked)
    np.testing.assert_allclose(value, reference(*np.delete(LOGITS[:, 0], 2, -1)), rtol=1e-5)
    assert jnp.isfinite(slope).all()
    assert slope[2] == 0
    assert symmetric_kl(a, masked[1]) == symmetric_kl(masked[0], b) == jnp.inf
    nothing = jnp.full(3, -jnp.inf)
    value, slope = jax.value_and_grad(symmetric_kl)(nothing, nothing)
    np.testing.assert_array_equal((value, *slope), 0)


def test_divergence_of_two_dtypes_is_that_of_the_wider():
    with enable_x64():
        a, b = jnp.asarray(LOGITS[0], jnp.float32), jnp.asarray(LOGITS[1])
        wide = symmetric_kl(a.astype(jnp.float64), b)
        np.testing.assert_array_equal(symmetric_kl(a, b), wide)


def test_divergence_of_low_precision_is_computed_wide():
    a, b = jnp.asarray(LOGITS, jnp.bfloat16)
    found = symmetric_kl(a, b)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, symmetric_kl(a.astype(jnp.float32), b.astype(jnp.float32)))


def test_gradient_is_the_finite_difference():
    with enable_x64():
        a, b = jnp.asarray(LOGITS[:, 0])
        step = 1e-6 * jnp.eye(7)
        rise = jax.vmap(lambda d: symmetric_kl(a + d, b) - symmetric_kl(a - d, b))(step) / 2e-6
        np.testing.assert_allclose(jax.grad(symmetric_kl)(a, b), rise, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.1875, 0.75])
def test_complementary_views_of_a_linear_function_over_all_masks(rate):
    a, p, q = np.array([2.0, -1.0, 0.5, 3.0]), rate, 1 - rate
    with enable_x64():
        views = complementary_views(lambda mask, x: apply_mask(mask, x).sum())
        masks = subsets(4)
        pairs = [views(Mask.pack(jnp.asarray(mask), q), jnp.asarray(a)) for mask in masks]
    outputs, chances = np.array(pairs, float), probabilities(masks, q)
    mean, covariance = moments(chances, outputs)
    squares = np.sum(a**2)
    np.testing.assert_allclose(mean, [a.sum()] * 2, rtol=1e-12)
    expected = squares * np.array([[p / q, -1], [-1, q / p]])
    np.testing.assert_allclose(covariance, expected, rtol=1e-12)
    average = outputs.mean(1)
    variance = chances @ (average - a.sum()) ** 2
    wanted = (p - q) ** 2 / (4 * p * q) * squares
    np.testing.assert_allclose(variance, wanted, rtol=1e-12, atol=1e-12)
    assert (wanted < p / (2 * q) * squares) == (p > 1 / (2 + 2**0.5))
    if rate == 0.5:
        np.testing.assert_allclose(average, a.sum(), rtol=1e-12)


def test_complementary_views_of_several_masks_keep_what_the_others_drop():
    masks = {
        "a": draw_mask(make_key("raw"), (3, 8), 0.5),
        "b": draw_mask(make_key("raw"), (1, 8), 0.25),
    }

    def model(masks, x, *, scale):
        return scale * apply_mask(masks["b"], apply_mask(masks["a"], x))

    first, second = quick_jit(complementary_views(model))(masks, X, scale=2.0)
    np.testing.assert_array_equal(first, model(masks, X, scale=2.0))
    others = {name: ~mask for name, mask in masks.items()}
    np.testing.assert_array_equal(second, model(others, X, scale=2.0))
    assert not jnp.any((first != 0) & (second != 0))


@pytest.mark.quick
def test_complementary_views_want_masks():
    with pytest.raises(TypeError, match=r"^complementary_views: masks must be Masks; got float"):
        complementary_views(lambda mask, x: x)({"a": X}, X)
