"""Exact laws of `random_erasing`."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, make_key

from jaxdrop import drop_path, random_erasing

KEY = make_key("raw")
KEYS = jax.random.split(make_key("raw", 1), 20_000)


def rectangles(y, fill=0):
    """Top, left, height and width of what is filled in each of several images (n, H, W)."""
    hit = np.asarray(y) == fill
    rows, columns = hit.any(2), hit.any(1)
    np.testing.assert_array_equal(hit, rows[:, :, None] & columns[:, None])  # a rectangle
    sides = []
    for side in (rows, columns):
        assert np.abs(np.diff(np.pad(side, [(0, 0), (1, 1)]).astype(int))).sum(1).max() <= 2
        sides += [side.argmax(1), side.sum(1)]
    return np.stack(sides)[[0, 2, 1, 3]].T


def erase_one(image, keys, **options):
    drop = partial(random_erasing, rate=1, batch_axis=None, channel_axis=None, **options)
    return jax.jit(jax.vmap(drop, in_axes=(0, None)))(keys, image)


def sizes(height, width, area, aspect):
    """All 128 x 128 rectangles, by the docstring."""
    found = {}
    for i in range(128):
        pixels = (area[0] + (area[1] - area[0]) * (i + 0.5) / 128) * height * width
        low, high = (np.clip(end, pixels / width**2, height**2 / pixels) for end in aspect)
        for j in range(128):
            tall = np.exp(np.log(low) + np.log(high / low) * (j + 0.5) / 128)
            rows = int(np.clip(round(np.sqrt(pixels * tall)), 1, height))
            size = rows, int(np.clip(round(pixels / rows), 1, width))
            found[size] = found.get(size, 0) + 2.0**-14
    return found


def covered(n, side):
    """The share of the places of a side at which it covers each position."""
    starts = np.arange(n - side + 1)
    at = np.arange(n)[:, None]
    return ((starts <= at) & (at < starts + side)).mean(1)


@pytest.mark.parametrize(
    ("area", "aspect"), [((0.1, 0.5), (0.4, 2.5)), ((0.3, 0.3), (1, 1)), ((0.6, 1.0), (0.2, 9))]
)
def test_sizes_and_places_are_those_of_the_law_and_all_of_them(area, aspect):
    """Of as many draws as there are, each size comes as often as its chance says: exactly, as
    sizes come from 14 bits of one word, whose frequencies are counted apart.
    """
    found = rectangles(erase_one(jnp.ones((6, 9)), KEYS, area=area, aspect=aspect))
    drawn, wanted = {tuple(map(int, size)) for size in found[:, 2:]}, sizes(6, 9, area, aspect)
    assert drawn <= set(wanted)
    assert drawn >= {size for size, chance in wanted.items() if chance > 0.01}  # e^-200
    for h, w in drawn:
        places = {tuple(map(int, each)) for each in found[(found[:, 2:] == (h, w)).all(1), :2]}
        assert places <= {(i, j) for i in range(6 - h + 1) for j in range(9 - w + 1)}


@pytest.mark.parametrize(("area", "aspect"), [((0.02, 0.33), (0.3, 3.3)), ((0.1, 0.9), (0.9, 4))])
@pytest.mark.parametrize("shape", [(224, 224), (64, 200)])
def test_mean_area_is_the_one_asked_for(shape, area, aspect):
    """Up to rounding to pixels; where an aspect does not fit, none is tried in vain."""
    table = sizes(*shape, area, aspect)
    mean = sum(chance * h * w for (h, w), chance in table.items()) / (shape[0] * shape[1])
    assert abs(mean - np.mean(area)) < 5e-4
    drawn = rectangles(erase_one(jnp.ones(shape), KEYS[:512], area=area, aspect=aspect))
    assert {tuple(map(int, size)) for size in drawn[:, 2:]} <= set(table)


def test_share_erased_of_each_position_by_its_closed_form():
    """Hoeffding's bound over 54 positions, at a false-alarm rate of 1e-9."""
    options, rate = {"area": (0.1, 0.5), "aspect": (0.4, 2.5)}, 0.5
    chance = rate * sum(
        share * np.multiply.outer(covered(6, h), covered(9, w))
        for (h, w), share in sizes(6, 9, *options.values()).items()
    )
    drop = jax.vmap(partial(random_erasing, rate=rate, **options), in_axes=(0, None))
    ones = jnp.ones((8, 6, 9, 1))
    found = np.mean(jax.jit(drop)(KEYS, ones) == 0, axis=(0, 1))[..., 0]
    bound = np.sqrt(np.log(2 * 54 / 1e-9) / (2 * 8 * len(KEYS)))
    assert np.abs(found - chance).max() < bound
    centred = np.full((6, 9), chance.mean())  # a sampler that is alike everywhere is refused
    assert np.abs(found - centred).max() > 2 * bound


@pytest.mark.quick
@pytest.mark.parametrize("rate", [0.3, jnp.float32(0.3)])
def test_images_that_are_hit_are_those_that_drop_path_drops(rate):
    x = jnp.ones((64, 8, 8, 3))
    y = random_erasing(KEY, x, rate)
    hit = jnp.any(y == 0, axis=(1, 2, 3))
    np.testing.assert_array_equal(hit, drop_path(KEY, x, rate)[:, 0, 0, 0] == 0)


def test_integers_noise_and_a_mean_of_each_channel_fill():
    images = jnp.full((8, 9, 7, 3), 7, jnp.uint8)
    plain = random_erasing(KEY, images, 1)
    assert plain.dtype == jnp.uint8
    erased = plain == 0
    means = jnp.arange(3, dtype=jnp.uint8)
    y = random_erasing(KEY, images, 1, fill=means)
    np.testing.assert_array_equal(y, jnp.where(erased, means[None, None, None], images))
    noise = jax.random.normal(jax.random.key(1), images.shape)
    y = random_erasing(KEY, images.astype(jnp.float32), 1, fill=noise)
    np.testing.assert_array_equal(y, jnp.where(erased, noise, 7))


def test_axes_may_be_anywhere():
    x = jnp.ones((5, 6, 8, 3))
    y = random_erasing(KEY, x, 0.7)
    first = random_erasing(KEY, jnp.moveaxis(x, -1, 1), 0.7, channel_axis=1)
    np.testing.assert_array_equal(jnp.moveaxis(first, 1, -1), y)
    last = random_erasing(KEY, jnp.moveaxis(x, 0, -1), 0.7, batch_axis=-1, channel_axis=2)
    np.testing.assert_array_equal(jnp.moveaxis(last, -1, 0), y)
    none = random_erasing(KEY, x[..., 0], 0.7, channel_axis=None)
    np.testing.assert_array_equal(none, y[..., 0])
    keys = jax.random.split(make_key("raw"), 5)
    drop = partial(random_erasing, rate=1, batch_axis=None)
    for key, one in zip(keys, jax.vmap(drop)(keys, x), strict=True):
        np.testing.assert_array_equal(random_erasing(key, x[:1], 1)[0], one)


def test_gradient_passes_where_nothing_is_erased_and_to_the_fill():
    x, fill = jnp.ones((4, 8, 8, 2)), jnp.float32(0)
    y, pull = jax.vjp(lambda x, fill: random_erasing(KEY, x, 1, fill=fill), x, fill)
    of_x, of_fill = pull(jnp.ones_like(y))
    np.testing.assert_array_equal(of_x, y)
    assert int(of_fill) == int((y == 0).sum())
    with enable_x64():
        wide = random_erasing(KEY, jnp.ones((4, 8, 8, 2), jnp.float32), 1)
    np.testing.assert_array_equal(wide, y)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.5, 0.2)}, "area must be two positive numbers up to 1 that do not fall;"
         " got (0.5, 0.2)."),
        ({"area": (0.1, 1.5)}, "area must be two positive numbers up to 1 that do not fall;"
         " got (0.1, 1.5)."),
        ({"area": ()}, "area must be two positive numbers up to 1 that do not fall; got ()."),
        ({"area": (0, 0.2)}, "area must be two positive numbers up to 1 that do not fall;"
         " got (0, 0.2)."),
        ({"aspect": (1, 2, 3)}, "aspect must be two positive numbers that do not fall;"
         " got (1, 2, 3)."),
        ({"aspect": (0.5, jnp.inf)}, "aspect must be at least 0 and finite; got inf."),
        ({"area": 0.2}, "area must be two positive numbers up to 1 that do not fall; got 0.2."),
        ({"aspect": (0, 2)}, "aspect must be two positive numbers that do not fall; got (0, 2)."),
        ({"channel_axis": None}, "x must have two spatial axes; got shape (2, 5, 6, 3)."),
        ({"rate": 1.5}, "rate must lie in [0, 1]; got 1.5."),
    ],
)  # fmt: skip
def test_bad_areas_aspects_and_axes(options, message):
    with pytest.raises(ValueError, match=rf"^random_erasing: {re.escape(message)}$"):
        random_erasing(KEY, jnp.ones((2, 5, 6, 3)), **({"rate": 0.5} | options))


@pytest.mark.quick
def test_key_is_needed_to_place_what_is_erased_for_sure():
    with pytest.raises(TypeError, match=r"^random_erasing: key must be one key; got None"):
        random_erasing(None, jnp.ones((2, 5, 6, 3)), 1)


@pytest.mark.quick
def test_images_without_pixels_and_a_known_rate_of_zero_change_nothing():
    for shape, rate in [((2, 0, 6, 3), 0.5), ((2, 5, 0, 3), 1), ((2, 5, 6, 3), 0)]:
        x = jnp.ones(shape)
        assert random_erasing(KEY, x, rate) is x


@pytest.mark.quick
def test_sizes_must_be_known_and_may_be_of_numpy():
    x = jnp.ones((2, 5, 6, 3))
    with pytest.raises(
        TypeError, match=r"^random_erasing: area must be known while tracing; got f"
    ):
        jax.jit(lambda least: random_erasing(KEY, x, 0.5, area=(least, 1)))(0.1)
    for area in (np.array([0.1, 0.5]), (0.1, np.float64(0.5))):
        found = random_erasing(KEY, x, 1, area=area)
        np.testing.assert_array_equal(found, random_erasing(KEY, x, 1, area=(0.1, 0.5)))
