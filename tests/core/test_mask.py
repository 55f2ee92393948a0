import operator
from dataclasses import FrozenInstanceError, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from modes import assert_check_failed, enable_x64

import jaxdrop
from jaxdrop import Mask, rescale

pytestmark = pytest.mark.quick


def test_mask_is_a_pytree_of_words_and_keep_probability(key):
    mask = jaxdrop.draw_mask(key, (3, 40), 0.25)
    words, keep_prob = jax.tree.leaves(mask)
    assert (words.dtype, keep_prob.shape) == (jnp.uint32, ())
    again = jax.tree.unflatten(jax.tree.structure(mask), [words, keep_prob])
    np.testing.assert_array_equal(again.unpack(), mask.unpack())


def test_one_mask_used_twice_drops_the_same_elements(key):
    mask = jaxdrop.draw_mask(key, (4, 5), 0.5)
    a, b = jnp.ones((4, 5)), jnp.full((4, 5), 3.0)
    kept = jaxdrop.apply_mask(mask, a) != 0
    np.testing.assert_array_equal(kept, jaxdrop.apply_mask(mask, b) != 0)


def test_mask_passes_through_transforms(key):
    mask, x = jaxdrop.draw_mask(key, (3, 40), 0.5), jnp.ones((3, 40))
    plain = jaxdrop.apply_mask(mask, x)
    through = jax.jit(lambda mask: mask)(mask)
    np.testing.assert_array_equal(jaxdrop.apply_mask(through, x), plain)
    remat = jax.checkpoint(jaxdrop.apply_mask)
    np.testing.assert_array_equal(jax.grad(lambda x: remat(mask, x).sum())(x), plain)
    steps = jax.lax.scan(lambda m, _: (m, jaxdrop.apply_mask(m, x)), mask, None, length=3)[1]
    np.testing.assert_array_equal(steps, jnp.stack([plain] * 3))
    out = jax.lax.cond(True, lambda m: jaxdrop.apply_mask(m, x), lambda m: x, mask)
    np.testing.assert_array_equal(out, plain)


def test_masks_drawn_under_vmap_unpack_with_the_batch_in_front():
    keys = jax.random.split(jax.random.key(0), 6)
    masks = jax.vmap(lambda key: jaxdrop.draw_mask(key, (3, 40), 0.5))(keys)
    keys = jax.random.split(jax.random.key(0), 6)
    each = jnp.stack([jaxdrop.draw_mask(key, (3, 40), 0.5).unpack() for key in keys])
    assert masks.shape == (6, 3, 40)
    np.testing.assert_array_equal(masks.unpack(), each)
    y = jax.vmap(jaxdrop.apply_mask)(masks, jnp.ones((6, 3, 40)))
    np.testing.assert_array_equal(y != 0, each)
    _, scanned = jax.lax.scan(lambda c, m: (c, m.unpack()), 0, masks)
    np.testing.assert_array_equal(scanned, each)


def test_mask_drawn_under_vmap_must_be_applied_under_vmap():
    keys = jax.random.split(jax.random.key(0), 6)
    masks = jax.vmap(lambda key: jaxdrop.draw_mask(key, (3,), 0.5))(keys)
    with pytest.raises(
        ValueError, match=r"^apply_mask: mask must be one mask; got a batch of shape \(6,\)"
    ):
        jaxdrop.apply_mask(masks, jnp.ones((6, 3)))


@pytest.mark.parametrize("x", [(4, 5), (3, 4), (6, 5), (1, 5), (5, 3), (3, 5, 1), (5,), ()])
def test_mask_of_another_shape_is_refused(x, key):
    mask = jaxdrop.draw_mask(key, (3, 5), 0.5)
    with pytest.raises(ValueError, match=r"^apply_mask: mask must have the shape of x, or size 1"):
        jaxdrop.apply_mask(mask, jnp.ones(x))


@pytest.mark.parametrize("mask", [None, jnp.ones(3, bool), 0.5])
def test_apply_mask_takes_masks_only(mask):
    with pytest.raises(TypeError, match=r"^apply_mask: mask must be a Mask; got .*Use Mask\.pack"):
        jaxdrop.apply_mask(mask, jnp.ones(3))


def test_apply_mask_rejects_integers(key):
    mask = jaxdrop.draw_mask(key, 3, 0.5)
    with pytest.raises(TypeError, match=r"^apply_mask: x must be floating or complex; got int32"):
        jaxdrop.apply_mask(mask, jnp.arange(3))


@pytest.mark.parametrize("keep", [jnp.ones(3), jnp.arange(2), None, [True]])
def test_pack_takes_booleans_only(keep):
    with pytest.raises(TypeError, match=r"^Mask\.pack: keep must be boolean; got"):
        Mask.pack(keep, 0.5)


def test_shared_mask_applies_to_any_size_along_the_shared_axis(key):
    mask = jaxdrop.draw_mask(key, (7, 5), 0.5, broadcast_dims=(0,))
    for n in (0, 1, 3):
        y = jaxdrop.apply_mask(mask, jnp.ones((n, 5)))
        np.testing.assert_array_equal(y != 0, np.repeat(mask.unpack(), n, axis=0))


def test_gradient_does_not_reach_the_keep_probability(key):
    mask = jaxdrop.draw_mask(key, (7,), 0.5)
    slopes = jax.grad(lambda m: jaxdrop.apply_mask(m, jnp.ones(7)).sum(), allow_int=True)(mask)
    assert slopes.keep_prob == 0


def test_repr_shows_the_shape_and_the_keep_probability(key):
    assert repr(jaxdrop.draw_mask(key, (2, 3), 0.3)) == "Mask(shape=(2, 3), keep_prob=0.699996948)"
    drawn = jax.vmap(lambda key: jaxdrop.draw_mask(key, 3, 0.5))(
        jax.random.split(jax.random.key(1), 6)
    )
    assert repr(drawn) == "Mask(shape=(6, 3), keep_prob=float32[6])"
    assert (drawn.ndim, drawn.batch_shape) == (2, (6,))
    shown = []
    jax.jit(lambda mask: shown.append(repr(mask)))(jaxdrop.draw_mask(jax.random.key(2), 3, 0.5))
    assert shown == ["Mask(shape=(3,), keep_prob=float32[])"]


def test_masks_combine_as_their_booleans_do(key):
    a, b = (jaxdrop.draw_mask(k, (3, 40), r) for k, r in zip(split(key), (0.25, 0.5), strict=True))
    for found, keep, keep_prob in (
        (~a, ~a.unpack(), 0.25),
        (a & b, a.unpack() & b.unpack(), 0.375),
        (a | b, a.unpack() | b.unpack(), 0.875),
    ):
        np.testing.assert_array_equal(found, keep)
        assert found.keep_prob == keep_prob


def split(key):
    return jax.random.split(key)


def test_masks_of_other_shapes_or_kinds_do_not_combine(key):
    mask = jaxdrop.draw_mask(key, (3, 5), 0.5)
    with pytest.raises(
        ValueError, match=r"^Mask: other must have the shape \(3, 5\); got \(5, 3\)"
    ):
        mask & Mask.pack(jnp.ones((5, 3), bool), 0.5)
    for combine in (operator.and_, operator.or_):
        with pytest.raises(TypeError, match="unsupported operand"):
            combine(mask, True)


def test_batches_of_masks_combine_with_batches_of_their_size_alone():
    def draw(seed, count):
        keys = jax.random.split(jax.random.PRNGKey(seed), count)
        return jax.vmap(lambda key: jaxdrop.draw_mask(key, (3, 5), 0.5))(keys)

    a, b, one = draw(0, 4), draw(1, 4), draw(2, 1)
    np.testing.assert_array_equal((a | b).unpack(), a.unpack() | b.unpack())
    np.testing.assert_array_equal((~a).unpack(), ~a.unpack())
    for combine in (operator.and_, operator.or_):
        with pytest.raises(ValueError, match=r"^Mask: other must have the shape \(4, 3, 5\); got"):
            combine(a, one)


def test_numpy_sees_booleans(key):
    mask = jaxdrop.draw_mask(key, (3, 5), 0.5)
    assert np.asarray(mask).dtype == bool
    np.testing.assert_array_equal(np.asarray(mask, np.float32), mask.unpack())
    with pytest.raises(ValueError, match=r"^Mask: copy must not be False"):
        mask.__array__(copy=False)


def test_flax_keeps_masks(key):
    from flax import serialization

    mask, other = (jaxdrop.draw_mask(k, (3, 5), 0.5) for k in split(key))
    state = serialization.to_bytes({"mask": mask})
    again = serialization.from_bytes({"mask": other}, state)["mask"]
    np.testing.assert_array_equal(again, mask)
    assert again.keep_prob == mask.keep_prob
    with pytest.raises(
        ValueError, match=r"^Mask: state must be of a mask of shape \(15,\); got \(3, 5\)"
    ):
        serialization.from_bytes({"mask": Mask.pack(jnp.ones(15, bool), 0.5)}, state)


RATES = np.array([0, 1e-6, 0.1, 0.3, 0.5, 0.75, 1 - 1e-6, 1], np.float32)


@pytest.mark.parametrize("shape", [(8, 5), (8, 40), (8, 2, 32)])
def test_each_rate_of_an_array_draws_as_it_does_alone(shape, key):
    rates = RATES.reshape(-1, *(1,) * (len(shape) - 1))
    mask = jaxdrop.draw_mask(jax.random.clone(key), shape, rates)
    for i, rate in enumerate(RATES):
        alone = jaxdrop.draw_mask(jax.random.clone(key), shape, jnp.asarray(rate))
        np.testing.assert_array_equal(mask.unpack()[i], alone.unpack()[i])
        assert mask.keep_prob[(i,) + (0,) * (len(shape) - 1)] == alone.keep_prob
        scaled = jaxdrop.apply_mask(mask, jnp.ones(shape))[i]
        np.testing.assert_array_equal(scaled, jaxdrop.apply_mask(alone, jnp.ones(shape))[i])


@pytest.mark.parametrize("rule", [rescale.expected, rescale.none, rescale.realized(-1)])
def test_bad_rate_of_an_array_gives_nan_in_its_own_elements(rule, key):
    mask = jaxdrop.draw_mask(key, (2, 3), jnp.array([0.0, jnp.nan, 2.0]))
    y = jaxdrop.apply_mask(mask, jnp.ones((2, 3)), rescale=rule)
    np.testing.assert_array_equal(jnp.isnan(y), [[False, True, True]] * 2)


def test_packed_masks_scale_each_element_by_its_own_probability():
    keep_prob = np.array([0.5, 0.25, 1.0])
    mask = Mask.pack(jnp.array([[True, True, True], [False, True, False]]), keep_prob)
    y = jaxdrop.apply_mask(mask, jnp.ones((2, 3)))
    np.testing.assert_array_equal(y, [[2, 4, 1], [0, 4, 0]])
    for bad in (np.array([0.5, 1.5, 0]), np.ones(2)):
        with pytest.raises(ValueError, match=r"^Mask\.pack: keep_prob must (lie in|broadcast to)"):
            Mask.pack(mask.unpack(), bad)


@pytest.mark.parametrize("wide", [False, True])
def test_packed_probabilities_are_of_the_default_dtype(wide):
    with enable_x64(wide):
        for keep_prob in (0.3, 1, np.float32(0.3), np.array([0.3, 0, 1])):
            mask = Mask.pack(np.ones(3, bool), keep_prob)
            assert mask.keep_prob.dtype == (jnp.float64 if wide else jnp.float32)
            np.testing.assert_allclose(mask.keep_prob, keep_prob, rtol=1e-7)


@pytest.mark.parametrize(
    ("rates", "options", "error", "message"),
    [
        (np.ones(2) / 2, {}, ValueError, r"rate must broadcast to the mask; got \(2,\) for \(4, 3"),
        (np.array([0, 0.5, 1.5]), {}, ValueError, r"rate must lie in \[0, 1\]; got \[0"),
        (np.array([0, 0.5, np.nan]), {}, ValueError, r"rate must lie in \[0, 1\]; got \[0"),
        (np.ones(3, bool), {}, TypeError, "rate must be real; got bool"),
        (jnp.ones(3, jnp.complex64), {}, TypeError, "rate must be real; got complex64"),
        ([0.5, 0.5, 0.5], {}, TypeError, "rate must be a real number; got"),
        (
            np.ones(3) / 2,
            {"part": jaxdrop.Part((0, 0), (9, 3))},
            ValueError,
            r"rate must be a scalar for a part; got float32\[1, 3\]",
        ),
        (
            np.ones((4, 1)) / 2,
            {"broadcast_dims": 0},
            ValueError,
            r"rate must broadcast to the mask; got \(4, 1\) for \(1, 3\)",
        ),
    ],
)
def test_bad_arrays_of_rates_are_named(rates, options, error, message, key):
    with pytest.raises(error, match=f"^draw_mask: {message}"):
        jaxdrop.draw_mask(key, (4, 3), rates, **options)


def test_arrays_of_integers_are_rates(key):
    mask = jaxdrop.draw_mask(key, (4, 3), jnp.array([0, 1, 0]))
    assert mask.unpack().all(0).tolist() == [True, False, True]
    assert not mask.unpack()[:, 1].any()


def test_bad_rate_of_an_array_fails_under_checkify(key):
    draw = checkify.checkify(lambda key, rates: jaxdrop.draw_mask(key, (2, 3), rates).words)
    error, _ = draw(key, jnp.array([0.0, 0.5, 2.0]))
    assert_check_failed(error, r"rate must lie in \[0, 1\]; got")


def test_masks_are_immutable_and_equal_to_themselves_only(key):
    mask = jaxdrop.draw_mask(key, 3, 0.5)
    with pytest.raises(FrozenInstanceError):
        mask.keep_prob = 1.0
    assert {mask: 0}[mask] == 0
    assert mask != replace(mask)
