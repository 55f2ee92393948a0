"""Combinators for drops: they use one drop on batches, on pytrees and with schedules.

Two things need no combinator. One mask for a whole batch is `jax.vmap(drop,
in_axes=(None, 0))`, and a fixed rate is `functools.partial(dropout, rate=0.1)`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxdrop.base.names import fold_in_name, path_name
from jaxdrop.base.sharding import sharded_along
from jaxdrop.base.types import Drop, Key, Where
from jaxdrop.base.validate import Check
from jaxdrop.core.words import mark_consumed

Tree = TypeVar("Tree")
Method: TypeAlias = Callable[[Key, Array, Any], Array]
"""A method without its options: `(key, x, rate) -> y`."""


def per_sample(drop: Drop, *, axis: int = 0) -> Drop:
    """Draws an independent mask for each sample of a batch.

    The key is split along the batch axis, so sample i has the key
    `jax.random.split(key, batch)[i]`. Use it if samples must share nothing, or if each
    sample must be reproducible by itself.

    Args:
      drop: a function `(key, sample) -> sample`.
      axis: the batch axis.

    Returns:
      A function `(key, batch) -> batch`.

    Raises:
      TypeError: `drop` is no function, or `axis` no integer; or when called, if `key` is
        not one key, or `x` not an array.
      ValueError: when called, if `axis` is out of range.

    Example:
      >>> drop = partial(dropout, rate=0.5, broadcast_dims=(0,))
      >>> y = per_sample(drop)(jax.random.key(0), jnp.ones((6, 3, 4)))
      >>> bool(jnp.all(y == y[:, :1])), bool(jnp.all(y == y[:1]))
      (True, False)
    """
    check = Check("per_sample")
    check.function_of("drop", drop, "(key, x)")
    check.whole_number("axis", axis)
    return partial(_drop_batch, drop, axis)


def per_leaf(drop: Drop, *, where: Where | None = None) -> Callable[[Key, Tree], Tree]:
    """Drops from the arrays of a pytree, with a key for each.

    The key of a leaf is derived from its path, so adding or removing leaves does not
    change the masks of the others. The path contains the `repr` of dictionary keys,
    so use strings or numbers.

    Args:
      drop: a function `(key, array) -> array`.
      where: predicate `(path, leaf) -> bool` that picks the leaves to drop from, as in
        `drop_connect`. None picks all arrays. Other leaves pass unchanged.

    Returns:
      A function `(key, tree) -> tree`.

    Raises:
      TypeError: `drop` or `where` is no function; or when called, if `key` is not one
        key, or `drop` refuses a leaf.

    Example:
      >>> drop = per_leaf(partial(dropout, rate=0.5))
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
      >>> dropped = drop(jax.random.key(0), params)
      >>> alone = drop(jax.random.key(0), {"b": jnp.ones(3)})
      >>> bool(jnp.all(dropped["b"] == alone["b"]))
      True
    """
    check = Check("per_leaf")
    check.function_of("drop", drop, "(key, x)")
    if where is not None:
        check.function_of("where", where, "(path, leaf)")
    return partial(_drop_tree, drop, where)


def chain(*drops: Drop) -> Drop:
    """Applies several drops one after the other, each with its own key.

    Drop i uses `jax.random.fold_in(key, i)`.

    Args:
      *drops: functions `(key, x) -> y`.

    Returns:
      A function `(key, x) -> y`.

    Raises:
      TypeError: one of them is no function; or when called, if `key` is not one key.

    Example:
      >>> both = chain(partial(dropout, rate=0.5), partial(dropout, rate=0.25))
      >>> y = both(jax.random.key(0), jnp.ones(6))
      >>> bool(jnp.all((y == 0) | jnp.isclose(y, 1 / (0.5 * 0.75))))
      True
    """
    check = Check("chain")
    for drop in drops:
        check.function_of("drops", drop, "(key, x)")
    return partial(_drop_all, drops)


def scheduled(
    method: Method, schedule: optax.Schedule
) -> Callable[[Key, Array, chex.Numeric], Array]:
    """Takes the rate from a schedule, at a step that may be traced.

    Any Optax schedule works. If the step is traced, the rate is traced too, so a
    training step is compiled once for all rates.

    Args:
      method: a function `(key, x, rate) -> y`, such as `dropout`.
      schedule: a function from the step to a rate in [0, 1].

    Returns:
      A function `(key, x, step) -> y`.

    Raises:
      TypeError: `method` or `schedule` is no function.

    Example:
      >>> warm_up = optax.linear_schedule(0.0, 0.5, transition_steps=100)
      >>> drop = jax.jit(scheduled(dropout, warm_up))
      >>> float(drop(jax.random.key(0), jnp.ones(1000), 0).min())
      1.0
    """
    check = Check("scheduled")
    check.function_of("method", method, "(key, x, rate)")
    check.function_of("schedule", schedule, "the step")
    return partial(_drop_at, method, schedule)


def early_dropout_schedule(rate: float, steps: int, *, linear: bool = False) -> optax.Schedule:
    """A schedule that drops only in the first steps, which helps underfitted networks.

    Args:
      rate: the rate at step 0.
      steps: the step from which the rate is 0.
      linear: whether the rate falls linearly, instead of in one step.

    Returns:
      A function from the step to the rate.

    Raises:
      TypeError: `rate` is not a known number, or `steps` not an integer.
      ValueError: `rate` lies outside [0, 1], or `steps` is negative.

    Example:
      >>> schedule = early_dropout_schedule(0.25, 10)
      >>> float(schedule(9)), float(schedule(10))
      (0.25, 0.0)

    References:
      Liu et al., "Dropout reduces underfitting", arXiv:2303.01500 (2023).
    """
    check = Check("early_dropout_schedule")
    rate = check.known_probability("rate", rate)
    steps = check.whole_number("steps", steps, 0)
    # A linear schedule of Optax without steps stays at its first value.
    return partial(_linear if linear and steps else _in_one_step, rate, 0.0, steps)


def late_dropout_schedule(rate: float, start: int) -> optax.Schedule:
    """A schedule that starts to drop late, which helps networks that overfit at the end.

    Args:
      rate: the rate from step `start` on.
      start: the first step that drops.

    Returns:
      A function from the step to the rate.

    Raises:
      TypeError: `rate` is not a known number, or `start` not an integer.
      ValueError: `rate` lies outside [0, 1], or `start` is negative.

    Example:
      >>> schedule = late_dropout_schedule(0.25, 10)
      >>> float(schedule(9)), float(schedule(10))
      (0.0, 0.25)

    References:
      Liu et al., "Dropout reduces underfitting", arXiv:2303.01500 (2023).
    """
    check = Check("late_dropout_schedule")
    rate = check.known_probability("rate", rate)
    start = check.whole_number("start", start, 0)
    return partial(_in_one_step, 0.0, rate, start)


def curriculum_dropout_schedule(rate: float, gamma: float) -> optax.Schedule:
    """A schedule that grows from 0 to a limit: rate * (1 - exp(-gamma * step)).

    Args:
      rate: the limit.
      gamma: speed of the growth per step; the paper takes 10 / (number of steps).

    Returns:
      A function from the step to the rate.

    Raises:
      TypeError: `rate` is not a known number, or `gamma` is not a number.
      ValueError: `rate` lies outside [0, 1], or a known `gamma` is negative or infinite.

    Example:
      >>> schedule = curriculum_dropout_schedule(0.5, 0.1)
      >>> float(schedule(0)), round(float(schedule(10)), 4)
      (0.0, 0.3161)

    References:
      Morerio et al., "Curriculum dropout", arXiv:1703.06229 (2017).
    """
    check = Check("curriculum_dropout_schedule")
    rate = check.known_probability("rate", rate)
    return partial(_curriculum, rate, check.amount("gamma", gamma))


# What the functions above return are these, with their first arguments bound, so that it
# can be pickled if its parts can.
def _drop_batch(drop: Drop, axis: int, /, key: Key, x: Array) -> Array:
    check = Check("per_sample")
    key = check.one_key(key)
    x = check.any_array("x", x)
    (batch_axis,) = check.axes("axis", axis, x.ndim)
    keys = sharded_along(jax.random.split(key, x.shape[batch_axis]), x, batch_axis)
    return jax.vmap(drop, in_axes=(0, batch_axis), out_axes=batch_axis)(keys, x)


def _drop_tree(drop: Drop, where: Where | None, /, key: Key, tree: Tree) -> Tree:
    key = Check("per_leaf").one_key(key)
    mark_consumed(key)  # the key reuse checker does not count `fold_in` as a use

    def drop_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        chosen = isinstance(leaf, Array | np.ndarray) if where is None else where(path, leaf)
        return drop(fold_in_name(key, path_name(path)), leaf) if chosen else leaf

    return jax.tree_util.tree_map_with_path(drop_leaf, tree)


def _drop_all(drops: tuple[Drop, ...], /, key: Key, x: Array) -> Array:
    key = Check("chain").one_key(key)
    mark_consumed(key)
    for i, drop in enumerate(drops):
        x = drop(jax.random.fold_in(key, i), x)
    return x


def _drop_at(
    method: Method, schedule: optax.Schedule, /, key: Key, x: Array, step: chex.Numeric
) -> Array:
    return method(key, x, schedule(step))


def _linear(first: float, last: float, steps: int, /, count: ArrayLike) -> ArrayLike:
    return optax.linear_schedule(first, last, steps)(count)


def _in_one_step(before: float, after: float, step: int, /, count: ArrayLike) -> ArrayLike:
    return jnp.where(jnp.asarray(count) < step, before, after)


def _curriculum(rate: float, gamma: float | Array, /, count: ArrayLike) -> ArrayLike:
    step = jnp.asarray(count)
    if not jnp.issubdtype(step.dtype, jnp.floating):
        step = step.astype(jnp.result_type(float))
    return -rate * jnp.expm1(-gamma * step)  # exact for small gamma * step too
