"""Recipes with a rate for each unit obey the laws of the papers that they come from."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, make_key
from reference import masks as reference
from scipy import special

from jaxdrop import Mask

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def recipes():
    """What the section of the page defines, after the imports of the page."""
    page, defined = (ROOT / "docs/recipes.md").read_text(), {}
    section = page.split("## A rate for each unit")[1].split("\n## ")[0]
    blocks = [re.search(r"```python\n(.*?)```", text, re.S)[1] for text in (page, section)]
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        exec(compile("".join(blocks), "docs/recipes.md", "exec"), defined)
    return defined


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.quick
def test_standout_keeps_a_unit_where_a_uniform_number_is_below_the_network_s(recipes):
    h, logits = numbers(7, 9), 3 * numbers(9, 7).T
    y = recipes["standout"](make_key("raw"), jnp.asarray(h), jnp.asarray(logits))
    keep = reference.uniforms((0, 0), h.shape) / 2**32
    chance = special.expit(logits.astype(float))
    sure = np.abs(keep - chance) > 2**-16  # the grid of the rates
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(np.asarray(y)[sure], np.where(keep < chance, h, 0)[sure])


def test_mean_of_standout_is_what_it_has_in_tests(recipes, monkeypatch):
    """By all masks of six units, each with its probability, in the place of the one drawn."""
    h, logits = np.arange(1.0, 7), np.linspace(-2, 2, 6)
    with enable_x64():
        h, logits, mean = jnp.asarray(h), jnp.asarray(logits), np.zeros(6)
        chance = np.asarray(jax.nn.sigmoid(logits))
        for keep in itertools.product([False, True], repeat=6):

            def given(key, shape, rate, keep=keep):
                np.testing.assert_allclose(rate, 1 - chance, rtol=1e-12)
                return Mask.pack(jnp.array(keep), 1 - rate)

            monkeypatch.setitem(recipes, "draw_mask", given)
            y = recipes["standout"](make_key("raw"), h, logits)
            mean += np.where(keep, chance, 1 - chance).prod() * np.asarray(y)
        np.testing.assert_allclose(mean, h * jax.nn.sigmoid(logits), rtol=1e-12)


def test_no_gradient_reaches_the_network_of_standout_through_the_mask(recipes):
    h, logits = map(jnp.asarray, (numbers(3, 4), numbers(4, 3).T))
    loss = lambda h, logits: recipes["standout"](make_key("raw"), h, logits).sum()  # noqa: E731
    of_h, of_logits = jax.grad(loss, (0, 1))(h, logits)
    np.testing.assert_array_equal(of_logits, 0)
    np.testing.assert_array_equal(
        of_h, recipes["standout"](make_key("raw"), jnp.ones((3, 4)), logits)
    )


@pytest.mark.quick
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_targeted_dropout_drops_only_the_smallest_weights(recipes, share):
    w = jnp.asarray(numbers(10, 6))
    sizes = np.abs(np.asarray(w))
    # The published threshold: below the weight at this place in order of size.
    count = int(share * 10)
    threshold = np.append(np.sort(sizes, axis=0), np.full((1, 6), np.inf), axis=0)[count]
    candidates = sizes < threshold[None]
    assert (candidates.sum(0) == count).all()
    pruned = recipes["targeted_dropout"](make_key("raw"), w, 1.0, share)
    np.testing.assert_array_equal(pruned, np.where(candidates, 0, w))
    some = recipes["targeted_dropout"](make_key("raw"), w, 0.5, share)
    keep = reference.mask((0, 0), w.shape, 0.5)
    np.testing.assert_array_equal(some, np.where(candidates & ~keep, 0, w))
    np.testing.assert_array_equal(recipes["targeted_dropout"](make_key("raw"), w, 0.0, share), w)


@pytest.mark.quick
def test_max_dropout_drops_the_top_of_the_range(recipes):
    x = numbers(5, 6)
    for rate in (0.0, 0.1, 0.6):
        within = (x - x.min()) / (x.max() - x.min())
        expected = np.where(within > 1 - rate, 0, x)
        np.testing.assert_array_equal(recipes["max_dropout"](jnp.asarray(x), rate), expected)
    assert (recipes["max_dropout"](jnp.ones((2, 3)), 0.5) == 1).all()  # no range, no top
