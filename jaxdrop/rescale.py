"""Rules for the factor that the survivors of a dropout are multiplied by.

A rule is any function `(mask, x) -> factor`. The factor broadcasts to `x`, and
survivors are multiplied by it. Let x be fixed, with n elements, of which S are kept,
each with probability q = 1 - p:

| | `expected` | `realized` | `preserve_sum` | `preserve_norm` | `none` |
|---|---|---|---|---|---|
| factor | 1/q | n/S | sum x / sum of kept x | norm x / norm of kept x | 1 |
| E[y] | x | (1 - p^n) x | biased | biased | q x |
| Var[sum y] | (p/q) sum x^2 | (R-1) n s^2 | 0 | | p q sum x^2 |
| E norm(y)^2 | norm(x)^2 / q | R norm(x)^2 | | norm(x)^2 | q norm(x)^2 |

Here R = E[n/S | S > 0], and s^2 is the sample variance of x. Four entries hold under
the condition S > 0: both with R, and those of `preserve_sum` and `preserve_norm` in the
last two rows.

Rules of this module with equal settings compare equal. So eager calls of `dropout` with
`realized(axis=0)` are compiled once.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdrop.base.compat import decided
from jaxdrop.base.types import Axes, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import (
    Rescale,
    compute_dtype,
    count_flags,
    inverse_keep_prob,
    times,
    unpack_for,
    widen,
)
from jaxdrop.core.mask import Mask
from jaxdrop.core.rate import grid_rate

__all__ = [
    "Rescale",
    "expected",
    "inference_scale",
    "none",
    "preserve_norm",
    "preserve_sum",
    "realized",
]


def __dir__() -> list[str]:
    return __all__


Tree = TypeVar("Tree")


def expected(mask: Mask, x: Array) -> Array:
    """Divides by the keep probability: inverted dropout, the default.

    Keeps the mean of every element, E[y] = x, and adds variance x^2 p / q. q is the
    probability that the mask was drawn with, already rounded to the grid, so this is
    exact.

    Args:
      mask: the mask about to be applied.
      x: the array it will be applied to.

    Returns:
      1 / q, for each element if q is; 0 where q is 0. In float32, or float64 for an
      array of 64 bits, as the factors of all rules are; those of `preserve_sum` are
      complex for a complex array.

    Example:
      >>> mask = jaxdrop.draw_mask(jax.random.key(0), 4, 0.75)
      >>> float(expected(mask, jnp.ones(4)))
      4.0

    References:
      Srivastava et al., "Dropout", JMLR 15 (2014), section 10.
    """
    return inverse_keep_prob(mask.keep_prob, compute_dtype(x))


def none(mask: Mask, x: Array) -> Array:
    """Leaves survivors as they are, so E[y] = q x. Dropout was first published in this form.

    At test time, networks that were trained with it need `inference_scale` on the
    weights that follow the dropout.

    Args:
      mask: the mask about to be applied.
      x: the array it will be applied to.

    Returns:
      1, as a scalar.

    Example:
      >>> mask = jaxdrop.draw_mask(jax.random.key(0), 4, 0.75)
      >>> float(none(mask, jnp.ones(4)))
      1.0

    References:
      Hinton et al., "Improving neural networks by preventing co-adaptation of
      feature detectors", arXiv:1207.0580 (2012).
    """
    del mask
    return jnp.ones((), compute_dtype(x))


def realized(axis: Axes = None) -> Rescale:
    """Makes a rule that divides by the fraction that was really kept: the factor is n / S.

    The sum does not vary with the number of survivors, so a constant input keeps its
    sum exactly. E[y] = (1 - p^n) x, since the result is 0 where all n elements are
    dropped. If elements are counted over a whole batch, the samples of the batch are
    not independent, and for many elements the factor differs little from that of
    `expected`. `axis=-1` counts within each row.

    Args:
      axis: axes over which elements are counted; None for all.

    Returns:
      A rule; its factor is 0 where nothing was kept.

    Raises:
      TypeError: `axis` is not made of integers.
      ValueError: when applied, if an axis is out of range or repeated, or if
        2^32 or more elements would be counted together.

    Example:
      >>> x = jnp.ones(10)
      >>> y = jaxdrop.dropout(jax.random.key(1), x, 0.5, rescale=realized())
      >>> round(float(y.sum()), 5)
      10.0

    References:
      Kish, "Survey Sampling" (1965), section 2.7 on ratio estimation.
    """
    return _Realized(_canonical(_Realized.check, axis))


def preserve_sum(axis: Axes = None, *, tolerance: float = 1e-3) -> Rescale:
    """Makes a rule by which the survivors add up to the sum of the input, in every draw.

    The mean of each element is biased, and gradients run through the factor. The
    factor is undefined where the kept elements cancel, and is very large where they
    nearly do. So the rule falls back to `expected` wherever the sum of the kept
    elements is at most `tolerance` times the sum of their magnitudes.

    Args:
      axis: axes over which the sum is kept; None for all.
      tolerance: the rule falls back at or below this ratio of the two sums; 0 for exact
        cancellation only.

    Returns:
      A rule. A NaN anywhere in the sum, kept or dropped, makes all survivors NaN.

    Raises:
      TypeError: `axis` is not made of integers, or `tolerance` is not a known number.
      ValueError: `tolerance` lies outside [0, 1]; or when applied, if an axis
        is out of range or repeated.

    Example:
      >>> x = jnp.array([2.0, 4.0, 4.0, 2.0])
      >>> y = jaxdrop.dropout(jax.random.key(1), x, 0.5, rescale=preserve_sum())
      >>> round(float(y.sum()), 5)
      12.0

    References:
      Kish, "Survey Sampling" (1965), section 2.7 on ratio estimation.
    """
    check = _PreserveSum.check
    tolerance = check.known_probability("tolerance", tolerance)
    return _PreserveSum(_canonical(check, axis), tolerance)


def preserve_norm(axis: Axes = None) -> Rescale:
    """Makes a rule by which the survivors have the 2-norm of the input, in every draw.

    The mean of each element is biased, and gradients run through the factor. The rule
    falls back to `expected` where all kept elements are 0.

    Args:
      axis: axes over which the norm is kept; None for all.

    Returns:
      A rule. A NaN anywhere in the norm, kept or dropped, makes all survivors NaN.

    Raises:
      TypeError: `axis` is not made of integers.
      ValueError: when applied, if an axis is out of range or repeated.

    Example:
      >>> x = jnp.array([3.0, 4.0, 12.0])
      >>> y = jaxdrop.dropout(jax.random.key(0), x, 0.5, rescale=preserve_norm())
      >>> round(float(jnp.linalg.norm(y)), 4)
      13.0

    References:
      Salimans and Kingma, "Weight normalization", arXiv:1602.07868 (2016), for
      keeping a norm apart from a direction.
    """
    return _PreserveNorm(_canonical(_PreserveNorm.check, axis))


def inference_scale(tree: Tree, rate: Rate) -> Tree:
    """Multiplies weights by the keep probability, for use at test time.

    Use it for networks that were trained with the rule `none`: the next layer then sees
    its expected input. Pass the weights that the dropped activations are multiplied
    with, and not the biases.

    Args:
      tree: a pytree of floating or complex arrays.
      rate: the probability of dropping that was trained with; may be traced.

    Returns:
      The tree with each array times q, in its own dtype.

    Raises:
      TypeError: a leaf is not floating or complex.
      ValueError: a known `rate` lies outside [0, 1].

    Example:
      >>> inference_scale({"w": jnp.ones(2)}, 0.25)
      {'w': Array([0.75, 0.75], dtype=float32)}

    References:
      Srivastava et al., "Dropout", JMLR 15 (2014), figure 2.
    """
    check = Check("inference_scale")
    rate = check.probability("rate", rate)
    # The masks were drawn with the rounded probability, so the weights need the same.
    keep_prob = jnp.asarray(grid_rate(rate).threshold.keep_prob)

    def scale(path: Any, leaf: Any) -> Array:
        name = "tree" + jax.tree_util.keystr(path)
        leaf = check.inexact_array(name, leaf)
        return times(leaf, keep_prob).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(scale, tree)


def is_own_rule(rule: Rescale) -> bool:
    """Whether a rule is from this module, so that it is pure and equals rules with the
    same settings.

    Only such a rule may be compiled into a cached program. Another rule may read what
    changes between calls, or close over traced values.
    """
    made_here = isinstance(rule, _Realized | _PreserveSum | _PreserveNorm)
    return made_here or rule is expected or rule is none


def checked_rule(check: Check, rule: Rescale) -> Rescale:
    """Returns a rule if it can be called with (mask, x)."""
    if is_own_rule(rule):
        return rule
    if not callable(rule):
        raise TypeError(f"{check}: rescale must be a function of (mask, x); got {rule!r}.")
    try:
        inspect.signature(rule).bind(None, None)
    except TypeError:
        name = getattr(rule, "__name__", repr(rule))
        raise TypeError(
            f"{check}: rescale must be a function of (mask, x); got {name}."
            f" If it makes a rule, call it, as in {name}()."
        ) from None
    except ValueError:
        pass  # a builtin without a signature
    return rule


@dataclass(frozen=True)
class _Realized:
    check: ClassVar = Check("realized")
    axis: tuple[int, ...] | None

    def __call__(self, mask: Mask, x: Array) -> Array:
        axes = _axes(self.check, self.axis, x)
        size = math.prod([mask.shape[axis] for axis in axes])
        if decided(lambda: size >= 2**32):  # counts are uint32; a symbolic batch is smaller
            raise ValueError(
                f"{self.check}: axis must span fewer than 2^32 elements; got {size}."
                " Name the axes to count over."
            )
        kept = count_flags(unpack_for(mask, x), axes).astype(compute_dtype(x))
        # Divides by 1 where nothing is kept: an infinite quotient would make the gradient NaN.
        some_kept = kept != 0
        return jnp.where(some_kept, size / jnp.where(some_kept, kept, 1), 0)


@dataclass(frozen=True)
class _PreserveSum:
    check: ClassVar = Check("preserve_sum")
    axis: tuple[int, ...] | None
    tolerance: float

    def __call__(self, mask: Mask, x: Array) -> Array:
        axes = _axes(self.check, self.axis, x)
        x = widen(x)
        kept = jnp.where(unpack_for(mask, x), x, jnp.zeros_like(x))
        kept_sum = jnp.sum(kept, axes, keepdims=True)
        magnitude = jnp.sum(jnp.abs(kept), axes, keepdims=True)
        cancels = jnp.abs(kept_sum) <= self.tolerance * magnitude  # False for a NaN, which stays
        factor = jnp.sum(x, axes, keepdims=True) / jnp.where(cancels, 1, kept_sum)
        return jnp.where(cancels, expected(mask, x).astype(factor.dtype), factor)


@dataclass(frozen=True)
class _PreserveNorm:
    check: ClassVar = Check("preserve_norm")
    axis: tuple[int, ...] | None

    def __call__(self, mask: Mask, x: Array) -> Array:
        axes = _axes(self.check, self.axis, x)
        x = widen(x)
        kept_norm = _norm(jnp.where(unpack_for(mask, x), x, jnp.zeros_like(x)), axes)
        all_zero = kept_norm == 0
        factor = _norm(x, axes) / jnp.where(all_zero, 1, kept_norm)
        return jnp.where(all_zero, expected(mask, x), factor)


def _norm(x: Array, axes: tuple[int, ...]) -> Array:
    """The 2-norm, without overflow or underflow and differentiable at 0."""
    # In units of the largest element, all squares lie in [0, 1]. The unit has no gradient,
    # since the result does not depend on it.
    largest = jnp.max(lax.stop_gradient(jnp.abs(x)), axes, keepdims=True, initial=0)
    unit = jnp.where(largest == 0, 1, largest)
    parts = (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)
    squares = sum(jnp.sum(jnp.square(part / unit), axes, keepdims=True) for part in parts)
    return jnp.where(largest == 0, 0, unit * jnp.sqrt(jnp.where(largest == 0, 1, squares)))


def _canonical(check: Check, axis: Axes) -> tuple[int, ...] | None:
    return None if axis is None else check.integers("axis", axis)


def _axes(check: Check, axis: tuple[int, ...] | None, x: Array) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else check.axes("axis", axis, x.ndim)
