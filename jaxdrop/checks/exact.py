"""Assertions that need no statistics: they hold or fail for one key."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdrop.base.describe import describe
from jaxdrop.base.types import Drop, Key
from jaxdrop.base.validate import Check
from jaxdrop.checks.sampling import arguments, outputs, require_array, require_finite, wide
from jaxdrop.core.words import unconsumed

_ROWS_PROBED = 256  # rows of the Jacobian; each row takes a backward pass


def assert_shape_and_dtype_kept(drop: Drop, key: Key, x: ArrayLike) -> None:
    """Asserts that the output has the shape and dtype of the input.

    It notices any difference, and nothing is left to chance. The drop is traced and not
    run.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key.
      x: an input, of any dtype.

    Raises:
      AssertionError: the shape or the dtype differs, or the output is not one array.
      TypeError: `drop` is no function, `key` is not one key, or `x` is not an array.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_shape_and_dtype_kept(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    check = Check("assert_shape_and_dtype_kept")
    check.function_of("drop", drop, "(key, x)")
    key, x = check.one_key(key), check.any_array("x", x)
    y = jax.eval_shape(drop, key, x)
    require_array(check, y)
    chex.assert_shape(y, x.shape, custom_message=str(check))
    if y.dtype != x.dtype:
        raise AssertionError(f"{check}: the output is {y.dtype}, the input {x.dtype}.")


def assert_same_under_jit(drop: Drop, key: Key, x: ArrayLike) -> None:
    """Asserts that `jit` does not change the mask, and changes values only by rounding.

    It notices a single element that is dropped in one of the two outputs and not in the
    other, and a value that differs by more than 4 times the `eps` of the dtype, relative
    to the larger of output and input. It compares one draw.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key.
      x: an input.

    Raises:
      AssertionError: the outputs differ, or are not finite.
      TypeError: `drop` is no function, `key` is not one key, or `x` is not floating or complex.
      ValueError: `x` is empty or not finite.

    Example:
      >>> drop = partial(dropout, rate=0.1)
      >>> assert_same_under_jit(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    check = Check("assert_same_under_jit")
    key, x = arguments(check, drop, key, x)
    eager, jitted = (run(unconsumed(key), x) for run in (drop, jax.jit(drop)))
    require_array(check, eager)
    eager, jitted = np.asarray(eager), np.asarray(jitted)
    require_finite(check, eager)
    if (eager.shape, eager.dtype) != (jitted.shape, jitted.dtype):
        raise AssertionError(
            f"{check}: the output is {describe(eager)} eagerly and {describe(jitted)} under jit."
        )
    if np.any((eager == 0) != (jitted == 0)):
        share = np.mean((eager == 0) != (jitted == 0))
        raise AssertionError(
            f"{check}: {share:.3g} of the elements are dropped eagerly or under jit, but not both."
        )
    off, allowed = _relative_difference(eager, jitted, x), 4 * float(jnp.finfo(x.dtype).eps)
    if not np.all(off <= allowed):  # NaN fails too
        at = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
        raise AssertionError(
            f"{check}: at output {at} the value is {wide(eager)[at]:.9g} eagerly and"
            f" {wide(jitted)[at]:.9g} under jit: they differ by {off[at]:.3g}, where"
            f" {allowed:.3g} is allowed."
        )


def _relative_difference(eager: np.ndarray, jitted: np.ndarray, x: Array) -> np.ndarray:
    """How far two outputs differ, relative to the larger of input and output."""
    # A sum of terms that cancel, such as a scale and a shift, has the rounding of the terms.
    size = np.abs(wide(eager))
    if eager.shape == x.shape:
        size = np.maximum(size, np.abs(wide(x)))
    return np.abs(wide(jitted) - wide(eager)) / np.where(size == 0, 1, size)


def assert_gradient_uses_same_mask(drop: Drop, key: Key, x: ArrayLike) -> None:
    """Asserts that the gradient is that of the forward pass with the same key.

    Compares rows of the Jacobian, from `jax.vjp`, with central differences of the
    forward pass under one key. All rows are compared up to 256 elements; for larger
    outputs, 256 evenly spread rows.

    It notices a derivative that is off by 0.12 % in float32, or 10 % in dtypes of 16
    bits, of the largest change of an output. If the backward pass draws a fresh mask at
    rate p, each row agrees by chance with probability q^2 + p^2. So it notices this if
    (q^2 + p^2)^rows is at most .01: with 256 rows at rates from .009, with 7 at rate .5.

    Args:
      drop: a function `(key, x) -> y`, differentiable in x.
      key: one random key.
      x: a floating input; float32 or wider gives a sharper test.

    Raises:
      AssertionError: a derivative differs from the central difference.
      TypeError: `drop` is no function, `key` is not one key, or `x` is not floating or complex.
      ValueError: `x` is empty or not finite.

    Example:
      >>> drop = partial(dropout, rate=0.5)
      >>> assert_gradient_uses_same_mask(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    check = Check("assert_gradient_uses_same_mask")
    key, x = arguments(check, drop, key, x)

    def forward(x: Array) -> Array:
        return drop(unconsumed(key), x)

    travelled, difference = _central_difference(forward, x)
    y, pull = jax.vjp(forward, x)
    require_array(check, y)
    probed = np.unique(np.linspace(0, max(y.size - 1, 0), min(y.size, _ROWS_PROBED)).astype(int))
    scale = np.max(np.abs(difference), initial=0.0)
    # 50 times the error of a central difference. Dtypes of 16 bits have a larger error;
    # there it is 0.1.
    tolerance = min(0.1, 50 * float(jnp.finfo(x.dtype).eps) ** (2 / 3))
    for row in probed:
        cotangent = jnp.zeros(y.size, y.dtype).at[row].set(1).reshape(y.shape)
        slope = np.sum(wide(pull(cotangent)[0]) * travelled)
        if not abs(slope - difference.ravel()[row]) <= tolerance * scale:  # NaN fails too
            raise AssertionError(
                f"{check}: at output {np.unravel_index(row, y.shape)} the"
                f" gradient predicts a change of {slope:.6g}, the forward pass with the same key"
                f" changes by {difference.ravel()[row]:.6g}."
            )


def _central_difference(
    forward: Callable[[Array], Array], x: Array
) -> tuple[np.ndarray, np.ndarray]:
    """How far `x` was moved along one direction, and by how much the result changed."""
    # A central difference has an error of step^2, and an error of eps / step from
    # rounding. Their sum is least, about eps^(2/3), for a step of about eps^(1/3).
    eps = float(jnp.finfo(x.dtype).eps)
    step = eps ** (1 / 3) * max(1.0, float(np.max(np.abs(wide(x)), initial=0.0)))
    # All elements move at once, each by a different amount, so two passes are enough for all rows.
    direction = np.random.default_rng(0).uniform(0.5, 1.0, x.shape)
    moved = [np.asarray(wide(x) + sign * step * direction).astype(x.dtype) for sign in (1, -1)]
    ahead, behind = (wide(forward(jnp.asarray(point))) for point in moved)
    # The dtype rounds the step, so the distance is what really remains of it.
    return wide(moved[0]) - wide(moved[1]), ahead - behind


def assert_key_determines_output(
    drop: Drop, key: Key, x: ArrayLike, *, num_samples: int = 64
) -> None:
    """Asserts that equal keys give equal outputs, and that the key matters.

    It notices a drop that gives the same for all keys. If it draws anew for an equal key,
    two masks of n elements are equal with probability (q^2 + p^2)^n. So it notices this
    if there are 24 elements at rate .1, or 7 at rate .5.

    Args:
      drop: a function `(key, x) -> y`.
      key: one random key, split into one for each draw.
      x: an input, large enough that two draws rarely agree.
      num_samples: number of different keys.

    Raises:
      AssertionError: one key gave two outputs, or all keys gave the same output. A
        correct drop fails with the probability that all draws agree: surely at rates 0
        and 1. For n independent elements, the probability that all draws keep
        everything is (1 - p)^(n num_samples).
      TypeError: `drop` is no function, `key` is not one key, `x` is not floating or
        complex, or `num_samples` is not an integer.
      ValueError: `x` is empty or not finite, or `num_samples` is below 2.

    Example:
      >>> drop = partial(dropout, rate=0.5)
      >>> assert_key_determines_output(drop, jax.random.key(0), jnp.ones((2, 3)))
    """
    check = Check("assert_key_determines_output")
    key, x = arguments(check, drop, key, x)
    first, again = (np.asarray(drop(unconsumed(key), x)) for _ in range(2))
    require_finite(check, first)
    chex.assert_trees_all_equal(
        wide(first),
        wide(again),
        custom_message=f"{check}: one key gave two outputs",
    )
    draws = outputs(check, drop, key, x, num_samples)
    samples = np.concatenate([wide(samples) for samples in draws])
    if np.all(samples == samples[:1]):
        raise AssertionError(f"{check}: {num_samples} different keys gave the same output.")
