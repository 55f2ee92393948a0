"""Methods that drop weights instead of activations: leaves of a pytree, or rows of a table."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Inexact

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.axes import other_axes
from jaxdrop.base.names import fold_in_name, path_name
from jaxdrop.base.types import Key, Rate, Where
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, compute_dtype, poisoned, times, unpack_for, widen
from jaxdrop.core.layout import Layout, mask_layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.core.threshold import Threshold
from jaxdrop.core.words import mark_consumed
from jaxdrop.methods.masked import draw_for, drop, drop_on_grid
from jaxdrop.rescale import checked_rule, expected

Tree = TypeVar("Tree")


def drop_connect(
    key: Key | None,
    params: Tree,
    rate: Rate,
    *,
    where: Where | None = None,
    rescale: Rescale = expected,
) -> Tree:
    """Drops single weights in the leaves of a pytree.

    E[W'] = W and Var[W'] = W^2 p / q for each weight, so the pre-activation W' v
    has mean W v and, with independent entries, variance (p / q) (W o W) (v o v).

    Each leaf has a key of its own, derived from its path. So adding, removing or
    filtering leaves does not change the masks of the others. The masks are those of
    `per_leaf(dropout)`. For one mask per sample, use
    `jax.vmap(drop_connect, in_axes=(0, None, None))` over keys.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      params: a pytree, such as a model's parameters or an equinox module.
      rate: probability of dropping, in [0, 1]; may be traced.
      where: predicate `(path, leaf) -> bool` that picks the leaves to drop from. The
        path is that of `jax.tree_util.tree_map_with_path`. None picks all floating and
        complex arrays. Other leaves pass unchanged.
      rescale: rule for the factor of the survivors.

    Returns:
      A pytree of the structure of `params`.

    Raises:
      TypeError: a leaf that `where` picks is not floating or complex, `key` is
        not one key, or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1].

    Example:
      >>> params = {"kernel": jnp.ones((2, 8)), "bias": jnp.ones(8)}
      >>> drop = partial(drop_connect, rate=0.5, where=lambda path, leaf: leaf.ndim > 1)
      >>> dropped = drop(jax.random.key(0), params)
      >>> sorted(set(dropped["kernel"].ravel().tolist())), bool(dropped["bias"].all())
      ([0.0, 2.0], True)

    References:
      Wan et al., "Regularization of neural networks using DropConnect", ICML
      (2013).
    """
    check = Check("drop_connect")
    key, rate = key_and_rate(check, key, params, rate, name="params")
    on_grid = grid_rate(rate)
    rescale = checked_rule(check, rescale)

    def drop_leaf(key: Key, leaf: Array) -> Array:
        return drop_on_grid(key, leaf, on_grid, (), rescale)

    return _map_leaves(check, drop_leaf, key, on_grid, where, params)


def mixout(
    key: Key | None, params: Tree, rate: Rate, *, target: Tree, where: Where | None = None
) -> Tree:
    """Replaces weights by the weights of a target, and rescales so that the mean is kept.

    W' = (m W + (1 - m) U - p U) / q = U + m (W - U) / q, which is dropout of the
    difference from the target U. So E[W'] = W. If U are the pretrained weights, this
    keeps fine-tuning close to them. With U = 0 it is `drop_connect`, with the same
    keys.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      params: a pytree of weights W.
      rate: probability of replacing, in [0, 1]; may be traced.
      target: a pytree of weights U, of the structure of `params`.
      where: predicate `(path, leaf) -> bool` that picks the leaves to mix, as in
        `drop_connect`. None picks all floating and complex arrays.

    Returns:
      A pytree of the structure of `params`; the target where `rate` is 1.

    Raises:
      TypeError: a leaf that `where` picks is not floating or complex, or is real and
        its target complex, `key` is not one key, or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `target` has another
        structure, or a leaf that does not broadcast to that of `params`.

    Example:
      >>> params, target = {"w": jnp.full(6, 3.0)}, {"w": jnp.ones(6)}
      >>> mixed = mixout(jax.random.key(0), params, 0.5, target=target)
      >>> sorted(set(mixed["w"].tolist()))
      [1.0, 5.0]

    References:
      Lee, Cho and Kang, "Mixout: effective regularization to finetune
      large-scale pretrained language models", arXiv:1909.11299 (2019).
    """
    check = Check("mixout")
    key, rate = key_and_rate(check, key, params, rate, name="params")
    on_grid = grid_rate(rate)
    structure = jax.tree.structure(params)
    if jax.tree.structure(target) != structure:
        raise ValueError(
            f"{check}: target must have the structure of params; got"
            f" {jax.tree.structure(target)} for {structure}."
        )

    def mix(key: Key, leaf: Array, other: Any) -> Array:
        other = check.like("target", other, leaf, "params")
        if on_grid.is_zero or on_grid.is_one:
            return leaf if on_grid.is_zero else other
        return _mix(key, leaf, other, on_grid, mask_layout(leaf.shape, ()))

    return _map_leaves(check, mix, key, on_grid, where, params, target)


def embedding_dropout(
    key: Key | None,
    table: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    axis: int = 0,
    rescale: Rescale = expected,
) -> Inexact[Array, "*shape"]:
    """Drops whole rows of an embedding table, so a dropped word is zero wherever it occurs.

    There is one decision per word of the vocabulary. It holds for every later lookup of
    the word in the result. E[y] = table and Var[y] = table^2 p / q at each element.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      table: floating or complex array, such as (vocabulary, features).
      rate: probability of dropping, in [0, 1]; may be traced.
      axis: axis of the vocabulary; all other axes share its decisions.
      rescale: rule for the factor of the survivors.

    Returns:
      An array with the shape and dtype of `table`; zeros where `rate` is 1.

    Raises:
      TypeError: `table` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `axis` is out of range.

    Example:
      >>> table = embedding_dropout(jax.random.key(0), jnp.ones((10, 4)), 0.5)
      >>> embedded = table[jnp.array([7, 1, 7])]
      >>> bool(jnp.all(embedded[0] == embedded[2]))
      True

    References:
      Gal and Ghahramani, "A theoretically grounded application of dropout in
      recurrent neural networks", arXiv:1512.05287 (2016).
      Merity, Keskar and Socher, "Regularizing and optimizing LSTM language
      models", arXiv:1708.02182 (2017).
    """
    check = Check("embedding_dropout")
    key, rate = key_and_rate(check, key, table, rate, name="table")
    table = check.inexact_array("table", table)
    rows = check.axis("axis", axis, table.ndim)
    return drop(check, key, table, rate, other_axes(table.ndim, (rows,)), rescale)


def _map_leaves(
    check: Check,
    drop_leaf: Callable[..., Array],
    key: Key,
    rate: GridRate,
    where: Where | None,
    params: Tree,
    *others: Tree,
) -> Tree:
    """Calls `drop_leaf(key, leaf, *others)` for each chosen leaf, with a key from its path.

    At a known rate of 0 it checks the leaves, and uses no key.
    """
    if where is not None:
        check.function_of("where", where, "(path, leaf)")
    if not rate.is_zero:
        mark_consumed(key)

    def drop_chosen(path: tuple[Any, ...], leaf: Any, *other: Any) -> Any:
        if not (_is_inexact(leaf) if where is None else where(path, leaf)):
            return leaf
        name = "params" + jax.tree_util.keystr(path)
        leaf = check.inexact_array(name, leaf)
        leaf_key = key if rate.is_zero else fold_in_name(key, path_name(path))
        return drop_leaf(leaf_key, leaf, *other)

    dropped = jax.tree_util.tree_map_with_path(drop_chosen, params, *others)
    return params if rate.is_zero else dropped


def _is_inexact(leaf: Any) -> bool:
    return isinstance(leaf, Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


@partial(jax.jit, static_argnames="layout")
def _mix(key: Key, x: Array, target: Array, rate: GridRate, layout: Layout) -> Array:
    @partial(jax.checkpoint, prevent_cse=False)
    def add(mask: Mask, threshold: Threshold, x: Array, target: Array) -> Array:
        # Where kept, U + (W - U) / q = W + (W - U) p / q. The second form is exactly W
        # at p = 0, and no large terms cancel near p = 0.
        q, p = threshold.probabilities(compute_dtype(x))
        wide, target = widen(x), widen(target)  # once, so that gradients are rounded once
        more = times(wide - target, p / jnp.where(q == 0, 1, q))
        kept = wide + jnp.where(p == 0, jnp.zeros_like(more), more)
        mixed = jnp.where(unpack_for(mask, x), kept, target)
        return poisoned(mask, mixed).astype(x.dtype)

    rate = rate.settle()
    return add(draw_for(key, x, rate, layout), rate.threshold, x, target)
