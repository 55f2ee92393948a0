"""Random erasing: rectangles of random area and aspect in images."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Shaped

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.axes import other_axes
from jaxdrop.base.names import fold_in_name
from jaxdrop.base.sharding import explicit_sharding
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import poisoned, unpack_for
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.words import ThreefryKey, Words, below, draw_pair, grid_address, threefry_key
from jaxdrop.methods.masked import draw_for

_SIZE_BITS = 7  # 128 areas, each with 128 aspects


def random_erasing(
    key: Key | None,
    x: Shaped[ArrayLike, "*shape"],
    rate: Rate,
    *,
    area: Sequence[float] = (0.02, 0.33),
    aspect: Sequence[float] = (0.3, 3.3),
    fill: Any = 0,
    batch_axis: int | None = 0,
    channel_axis: int | None = -1,
) -> Shaped[Array, "*shape"]:
    """Erases a rectangle of random area and aspect from some of the images.

    Each sample is hit with probability `rate`, as by `drop_path`. A rectangle is the same
    in all channels and lies inside of the image, each place equally likely. Its area is
    one of 128 shares of the image, the middles of equal steps of `area`. Its aspect, the
    height over the width, is one of 128, the middles of equal steps of ln aspect. Where an
    area would not fit into the image with some aspects of the range, the range is cut to
    those with which it does, or to the nearest that does. So no area is tried in vain, and
    a sample loses `rate` times the mean of `area` on average, except for rounding: the
    height is rounded first, and then the width that makes the area.

    A position (i, j) is erased with the probability rate E[a_h(i) b_w(j) / ((H - h + 1)
    (W - w + 1))], where a_h(i) and b_w(j) are the places along each axis that cover it.
    Nothing is rescaled.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0.
      x: array of any numbers, such as (batch, height, width, channels).
      rate: probability that an image is erased, in [0, 1]; may be traced.
      area: the least and the most share of the image, in (0, 1].
      aspect: the least and the most of height / width, positive.
      fill: what stands in the rectangle: a number, or an array that broadcasts to `x`,
        such as the mean of each channel, or noise of another key.
      batch_axis: axis of the samples; None for one sample, as under `vmap`.
      channel_axis: axis of the channels; None if there is none.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not an array, `key` is not one key, `fill` is of a wider kind,
        such as a float for integers, or another argument is no known number.
      ValueError: a known `rate` lies outside [0, 1], `area` or `aspect` are not two rising
        numbers in their range, an axis is out of range, both are the same, they do not
        leave two, or `fill` does not broadcast to `x`.

    Example:
      >>> images = jnp.full((4, 32, 32, 3), 7, jnp.uint8)
      >>> y = random_erasing(jax.random.key(0), images, 1.0, area=(0.25, 0.25))
      >>> bool(jnp.all(jnp.abs(jnp.mean(y == 0, axis=(1, 2, 3)) - 0.25) < 0.02))
      True

      Normal noise in the rectangles:

      >>> erase, draw = jax.random.split(jax.random.key(0))
      >>> photos = jnp.ones((4, 32, 32, 3))
      >>> random_erasing(erase, photos, 0.5, fill=jax.random.normal(draw, photos.shape)).shape
      (4, 32, 32, 3)

    References:
      Zhong et al., "Random erasing data augmentation", arXiv:1708.04896 (2017). The paper
      draws the aspect uniformly; its logarithm is uniform here, as in torchvision.
    """
    check = Check("random_erasing")
    key, rate = key_and_rate(check, key, x, rate, idle=(0,))
    x = check.any_array("x", x)
    spatial = check.spatial_axes(x, batch_axis, channel_axis)
    if len(spatial) != 2:
        raise ValueError(f"{check}: x must have two spatial axes; got shape {x.shape}.")
    areas = _range(check, "area", area, most=1)
    aspects = _range(check, "aspect", aspect)
    fill = check.like("fill", fill, x, "x")
    on_grid = grid_rate(rate)
    if on_grid.is_zero or x.size == 0:
        return x
    height, width = (x.shape[axis] for axis in spatial)
    sizes = _sizes(height, width, areas, aspects)
    samples = check.distinct_axes(x, batch_axis=batch_axis)
    layout = mask_layout(x.shape, other_axes(x.ndim, samples))
    return _erase(key, x, fill, on_grid, sizes, spatial, layout)


def _range(check: Check, name: str, values: Any, most: float | None = None) -> tuple[float, float]:
    """Two positive numbers that do not fall, at most `most`."""
    given = tuple(values) if isinstance(values, Sequence | np.ndarray) else (values,)
    bounds = [check.known_amount(name, value) for value in given]
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= (most or float("inf")):
        limit = "" if most is None else f" up to {most}"
        raise ValueError(
            f"{check}: {name} must be two positive numbers{limit} that do not fall; got {values}."
        )
    return bounds[0], bounds[1]


@lru_cache(maxsize=64)
def _sizes(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> np.ndarray:
    """The height and width of each of the equally likely rectangles.

    In NumPy's float64, so that they are the same everywhere.
    """
    number = 2**_SIZE_BITS
    middles = (np.arange(number) + 0.5) / number
    pixels = (area[0] + (area[1] - area[0]) * middles[:, None]) * height * width
    # An area fits into the image with these aspects.
    fitting = pixels / width**2, height**2 / pixels
    low, high = (np.log(np.clip(end, *fitting)) for end in aspect)
    rows = np.sqrt(pixels * np.exp(low + (high - low) * middles))
    rows = np.clip(np.rint(rows), 1, height)
    columns = np.clip(np.rint(pixels / rows), 1, width)
    return np.stack([rows, columns], -1).astype(np.int32).reshape(-1, 2)


@partial(jax.jit, static_argnames=("spatial", "layout"))
def _erase(
    key: Key,
    x: Array,
    fill: Array,
    rate: GridRate,
    sizes: Array,
    spatial: tuple[int, ...],
    layout: Layout,
) -> Array:
    mask = draw_for(key, x, rate, layout)
    # The mask has used the words of this key, so the rectangles use those of another key.
    words_key = threefry_key(fold_in_name(key, "rectangles"))
    address = grid_address(layout.shape, layout.sharding(explicit_sharding(x)))
    which, _ = draw_pair(words_key, address, jnp.uint32(0))
    # `checkify.index_checks` takes no gather under `checkpoint`.
    edges = [_lookup(table, which >> np.uint32(32 - 2 * _SIZE_BITS)) for table in sizes.T]

    @partial(jax.checkpoint, prevent_cse=False)  # keeps the sizes, not the rectangles
    def erase(
        words_key: ThreefryKey, edges: list[Array], mask: Mask, x: Array, fill: Array
    ) -> Array:
        places = draw_pair(words_key, address, jnp.uint32(1))
        hit = _rectangles(edges, places, x, spatial) & ~unpack_for(mask, x)
        return poisoned(mask, jnp.where(hit, fill, x))

    return erase(words_key, edges, mask, x, fill)


def _rectangles(
    sizes: Sequence[Array], places: Sequence[Words], x: Array, spatial: tuple[int, ...]
) -> Array:
    """True inside of one rectangle for each sample."""
    inside = jnp.ones((1,) * x.ndim, bool)
    for axis, size, word in zip(spatial, sizes, places, strict=True):
        start = below(word, (x.shape[axis] - size + 1).astype(jnp.uint32)).astype(jnp.int32)
        line = tuple(n if j == axis else 1 for j, n in enumerate(x.shape))
        offset = lax.broadcasted_iota(jnp.int32, line, axis) - start
        inside = inside & (offset >= 0) & (offset < size)
    return inside


def _lookup(table: Array, index: Array) -> Array:
    """The entries of a table at indices, which are split over devices as they are."""
    sharding = explicit_sharding(index)
    if sharding is None:
        return table.at[index].get(mode="promise_in_bounds")
    return table.at[index].get(out_sharding=sharding)
