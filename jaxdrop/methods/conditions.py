"""Methods for conditions, each of which is dropped as a whole."""

import dataclasses
from functools import partial
from typing import Any, TypeVar

import jax
from jax import Array

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.axes import other_axes
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import select
from jaxdrop.core.bernoulli import bernoulli_mask
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.rate import GridRate, grid_rate

Tree = TypeVar("Tree")


def drop_condition(
    key: Key | None,
    condition: Tree,
    rate: Rate,
    *,
    null: Any,
    batch_axis: int | None = 0,
) -> Tree:
    """Replaces whole conditions by the null condition: classifier-free guidance.

    There is one decision per sample, and it holds for all leaves of the sample's condition.
    Nothing is scaled. Gradients reach both the conditions and the null, which may be
    learned.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      condition: a pytree of arrays, each with the samples along `batch_axis`.
      rate: probability of replacing a sample's condition, in [0, 1]; may be traced. If
        a traced rate is out of range, floats become NaN, integers become the integer
        farthest from 0, and booleans become False.
      null: the null condition, such as 0 or a learned embedding. It is a pytree prefix
        of `condition` whose leaves broadcast to the leaves of `condition`.
      batch_axis: axis of the samples. None makes a single decision, for one sample under `vmap`.

    Returns:
      A pytree with the structure, shapes and dtypes of `condition`.

    Raises:
      TypeError: a leaf is not an array, a leaf of `null` is of a wider kind, such
        as a float for integers, `key` is not one key, or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], `null` is no prefix or
        does not broadcast, `batch_axis` is out of range, or leaves differ in
        their number of samples.

    Example:
      >>> condition = {"text": jnp.ones((6, 2)), "label": jnp.arange(1, 7)}
      >>> y = drop_condition(jax.random.key(0), condition, 0.5, null=0)
      >>> bool(jnp.all((y["label"] == 0) == (y["text"][:, 0] == 0)))
      True

    References:
      Ho and Salimans, "Classifier-free diffusion guidance", arXiv:2207.12598
      (2022).
    """
    check = Check("drop_condition")
    key, rate = key_and_rate(check, key, condition, rate, name="condition")
    on_grid = grid_rate(rate)
    leaves, structure = jax.tree.flatten_with_path(condition)
    names = ["condition" + jax.tree_util.keystr(path) for path, _ in leaves]
    arrays = [check.any_array(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    axes, samples = _batches(check, arrays, batch_axis)
    if not arrays:
        return condition
    others = _prefix_leaves(check, null, condition)
    nulls = [check.like("null", *each) for each in zip(others, arrays, names, strict=True)]
    if on_grid.is_zero:
        return condition
    if on_grid.is_one:
        return structure.unflatten(nulls)
    return structure.unflatten(_drop_condition(key, arrays, nulls, on_grid, samples, axes))


def _batches(
    check: Check, arrays: list[Array], batch_axis: int | None
) -> tuple[tuple[int | None, ...], int]:
    """The axis of the samples in each array, and how many samples all of them have."""
    if batch_axis is None:
        return (None,) * len(arrays), 1
    axes = tuple(check.axis("batch_axis", batch_axis, array.ndim) for array in arrays)
    counts = {array.shape[axis] for array, axis in zip(arrays, axes, strict=True)}
    if len(counts) > 1:
        raise ValueError(
            f"{check}: condition must have the same number of samples in each leaf; got"
            f" {sorted(counts)}. Pass batch_axis=None for one sample."
        )
    return axes, next(iter(counts), 1)


def _prefix_leaves(check: Check, prefix: Any, tree: Any) -> list[Any]:
    """The leaves of a prefix, each repeated for all leaves of the tree below it."""
    try:
        return jax.tree.leaves(jax.tree.broadcast(prefix, tree))
    except ValueError as error:
        raise ValueError(f"{check}: null must be a pytree prefix of condition; {error}") from None


@partial(jax.jit, static_argnames=("samples", "axes"))
def _drop_condition(
    key: Key,
    arrays: list[Array],
    nulls: list[Array],
    rate: GridRate,
    samples: int,
    axes: tuple[int | None, ...],
) -> list[Array]:
    mask = bernoulli_mask(key, rate, Layout((samples,)))

    # Makes the decisions of the samples a mask of a leaf. The mask is shared along all
    # axes except that of the samples, so it has the same words in another shape.
    def choose(x: Array, null: Array, axis: int | None) -> Array:
        layout = mask_layout(x.shape, other_axes(x.ndim, (axis,)))
        words = mask.words.reshape(layout.words_shape)
        return select(dataclasses.replace(mask, words=words, layout=layout), x, null)

    return [choose(*each) for each in zip(arrays, nulls, axes, strict=True)]
