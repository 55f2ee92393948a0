from dataclasses import FrozenInstanceError, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdrop
from jaxdrop import Mask

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


@pytest.mark.parametrize("x", [(4, 5), (3, 4), (6, 5), (5, 3), (3, 5, 1), (5,), ()])
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


def test_repr_shows_the_shape(key):
    assert repr(jaxdrop.draw_mask(key, (2, 3), 0.5)) == "Mask(shape=(2, 3))"


def test_masks_are_immutable_and_equal_to_themselves_only(key):
    mask = jaxdrop.draw_mask(key, 3, 0.5)
    with pytest.raises(FrozenInstanceError):
        mask.keep_prob = 1.0
    assert {mask: 0}[mask] == 0
    assert mask != replace(mask)
