"""Several masks in one training step: views that should agree, and averages over masks.

Sample i has the key `jax.random.fold_in(key, i)`, as in `monte_carlo`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxdrop.base.averages import centred_mean
from jaxdrop.base.describe import describe
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import widen
from jaxdrop.core.mask import Mask
from jaxdrop.transforms.monte_carlo import batch_of

P = ParamSpec("P")
Out = TypeVar("Out")


def two_views(
    fn: Callable[Concatenate[Key, P], Out],
) -> Callable[Concatenate[Key, P], tuple[Out, Out]]:
    """Runs a function with two keys, for losses that compare two masks of one input.

    For R-Drop, take `symmetric_kl` of two views of the logits. For contrastive
    learning, as in SimCSE, take two views of the embeddings; the two views of one
    example are a positive pair. Both runs are computed together, under `vmap`. (The
    example below takes the mean of the two cross-entropies. The paper of R-Drop adds
    them, so the weight here is half of the paper's weight.)

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays.

    Returns:
      A function `(key, *args, **kwargs)` that returns a pair, the samples 0 and 1 of
      `monte_carlo(fn, 2)`.

    Raises:
      TypeError: `fn` is no function; or when called, if `key` is not one key.

    Example:
      >>> def logits(key, params, x):
      ...     return jaxdrop.dropout(key, x, 0.5) @ params
      >>> def r_drop(params, key, x, labels, weight=1.0):
      ...     views = two_views(logits)(key, params, x)
      ...     entropy = optax.softmax_cross_entropy_with_integer_labels
      ...     loss = sum(entropy(view, labels) for view in views) / 2
      ...     return (loss + weight * jaxdrop.symmetric_kl(*views)).mean()
      >>> params, x, labels = jnp.zeros((4, 3)), jnp.ones((2, 4)), jnp.array([0, 1])
      >>> round(float(r_drop(params, jax.random.key(0), x, labels)), 4)  # ln 3
      1.0986

    References:
      Liang et al., "R-Drop: regularized dropout for neural networks",
      arXiv:2106.14448 (2021); Gao, Yao and Chen, "SimCSE: simple contrastive
      learning of sentence embeddings", arXiv:2104.08821 (2021).
    """
    Check("two_views").function_of("fn", fn, "(key, ...)")
    return partial(_views, fn)


def complementary_views(
    fn: Callable[Concatenate[Any, P], Out],
) -> Callable[Concatenate[Any, P], tuple[Out, Out]]:
    """Runs a function with masks, and with their complements: what one view keeps, the other drops.

    Let f be linear in what is dropped, f = sum of a_i m_i / q over masks m with keep
    probability q, and p = 1 - q. The view of `~mask` divides by p. So both views have the
    mean A = sum of a_i, their covariance is -sum of a_i^2, and their average has the
    variance (p - q)^2 / (4 p q) times the sum of a_i^2. At a rate of .5 the average is A
    itself in every draw. Two independent masks of rate p give p / (2 q) times the sum of
    a_i^2, which is more if p > 1 / (2 + sqrt 2) = .293, and less below.

    Args:
      fn: a function `(masks, *args, **kwargs)` that returns a pytree of arrays, and that
        uses the masks by `apply_mask`.

    Returns:
      A function `(masks, *args, **kwargs)` of a `Mask` or a pytree of them, which returns
      the results for the masks and for their complements.

    Raises:
      TypeError: `fn` is no function; or when called, if a leaf of `masks` is no `Mask`.

    Example:
      >>> mask = jaxdrop.draw_mask(jax.random.key(0), (4,), 0.5)
      >>> views = complementary_views(lambda mask, x: jaxdrop.apply_mask(mask, x) @ x)
      >>> first, second = views(mask, jnp.ones(4))
      >>> float(first + second) / 2
      4.0

    References:
      Hammersley and Morton, "A new Monte Carlo technique: antithetic variates",
      Mathematical Proceedings of the Cambridge Philosophical Society 52 (1956).
    """
    Check("complementary_views").function_of("fn", fn, "(masks, ...)")
    return partial(_complementary, fn)


def multi_sample(
    fn: Callable[Concatenate[Key, P], Out], num_samples: int
) -> Callable[Concatenate[Key, P], Out]:
    """Averages a function over several masks. Multi-sample dropout is this average of the loss.

    Let `fn` be the dropout and the layers after it, so that the body of the network
    runs only once. The samples are computed together, under `vmap`. If they do not fit
    into memory, use `monte_carlo_moments(...).mean`.

    Args:
      fn: a function `(key, *args, **kwargs)` that returns a pytree of arrays, such
        as the loss of a head with dropout.
      num_samples: how many samples, at least 1.

    Returns:
      A function `(key, *args, **kwargs)` that returns the mean over the samples of
      `monte_carlo(fn, num_samples)`. It is computed in float32 or wider and rounded
      once to the dtype of the samples; the mean of integers is float32.

    Raises:
      TypeError: `fn` is no function, or `num_samples` not an integer; or when called, if
        `key` is not one key.
      ValueError: `num_samples` is below 1.

    Example:
      >>> def head_loss(key, head, features, labels):
      ...     logits = jaxdrop.dropout(key, features, 0.5) @ head
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      >>> features, labels = jnp.ones((2, 4)), jnp.array([0, 1])  # features of any network
      >>> loss = multi_sample(head_loss, 8)
      >>> round(float(loss(jax.random.key(0), jnp.zeros((4, 3)), features, labels)), 4)  # ln 3
      1.0986

    References:
      Inoue, "Multi-sample dropout for accelerated training and better
      generalization", arXiv:1905.09788 (2019).
    """
    check = Check("multi_sample")
    check.function_of("fn", fn, "(key, ...)")
    return partial(_averaged, fn, check.whole_number("num_samples", num_samples, 1))


def symmetric_kl(
    logits: Float[ArrayLike, "*shape"], other_logits: Float[ArrayLike, "*shape"], *, axis: int = -1
) -> Float[Array, "*batch"]:
    """Mean of the two Kullback-Leibler divergences between two softmaxes, in nats.

    (KL(p || r) + KL(r || p)) / 2 = sum (p - r)(ln p - ln r) / 2, the consistency loss
    of R-Drop. It is never negative, exactly 0 for equal logits, and accurate for nearly
    equal logits. If each view has small independent noise of covariance S in its
    logits, the divergence is about trace(F S) on average, with F = diag(p) - p p^T.

    Args:
      logits: real floating array of scores, not normalised. A class with score -inf in
        both views adds 0. If its score is -inf in only one view, the divergence is
        infinite.
      other_logits: the same for the other view.
      axis: the axis of the classes.

    Returns:
      The divergence of each example, without the axis of the classes, in float32 or
      wider. Average it and add it to the loss, times a weight.

    Raises:
      TypeError: an array is not real and floating.
      ValueError: the shapes differ, or `axis` is out of range.

    Example:
      >>> a, b = jnp.array([0.0, 0.0]), jnp.array([0.0, jnp.log(3.0)])
      >>> round(float(symmetric_kl(a, b)), 4)  # (1/4)(ln 3) / 2
      0.1373

    References:
      Jeffreys, "An invariant form for the prior probability in estimation
      problems", Proc. R. Soc. A 186 (1946); Liang et al., arXiv:2106.14448 (2021).
    """
    check = Check("symmetric_kl")
    logits = widen(check.real_array("logits", logits))
    other = widen(check.real_array("other_logits", other_logits))
    if logits.shape != other.shape:
        raise ValueError(
            f"{check}: other_logits must have the shape of logits; got {other.shape} for"
            f" {logits.shape}."
        )
    dtype = max(logits.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    logits, other = logits.astype(dtype), other.astype(dtype)
    axis = check.axis("axis", axis, logits.ndim)
    in_neither = (logits == -jnp.inf) & (other == -jnp.inf)
    no_class = jnp.all(in_neither, axis, keepdims=True)  # such a row is 0, as both views agree
    log_p, log_r = (
        jax.nn.log_softmax(jnp.where(no_class, 0, scores), axis) for scores in (logits, other)
    )
    apart = jnp.where(in_neither, 0, log_p) - jnp.where(in_neither, 0, log_r)
    # p - r = -p (e^-d - 1) = r (e^d - 1) with d = ln p - ln r. The code takes the form
    # whose exponent is negative, which neither cancels nor overflows.
    p_is_larger = apart > 0
    below = -jnp.exp(log_p) * jnp.expm1(jnp.where(p_is_larger, -apart, 0))
    above = jnp.exp(log_r) * jnp.expm1(jnp.where(p_is_larger, 0, apart))
    return jnp.sum(jnp.where(p_is_larger, below, above) * apart, axis) / 2


# What the functions above return are these three, with their first arguments bound, so that it
# can be pickled if `fn` can.
def _views(fn: Callable[..., Any], /, key: Key, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    pair = _samples(Check("two_views"), fn, 2, key, args, kwargs)
    return jax.tree.map(lambda x: x[0], pair), jax.tree.map(lambda x: x[1], pair)


def _complementary(
    fn: Callable[..., Any], /, masks: Any, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    leaves, tree = jax.tree.flatten(masks, is_leaf=lambda leaf: isinstance(leaf, Mask))
    for leaf in leaves:
        if not isinstance(leaf, Mask):
            raise TypeError(f"complementary_views: masks must be Masks; got {describe(leaf)}.")
    others = tree.unflatten([~leaf for leaf in leaves])
    return fn(masks, *args, **kwargs), fn(others, *args, **kwargs)


def _averaged(fn: Callable[..., Any], count: int, /, key: Key, *args: Any, **kwargs: Any) -> Any:
    return jax.tree.map(_mean, _samples(Check("multi_sample"), fn, count, key, args, kwargs))


def _mean(x: Array) -> Array:
    average = centred_mean(widen(x))
    return average.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else average


def _samples(
    check: Check,
    fn: Callable[..., Any],
    count: int,
    key: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    return batch_of(fn, check.one_key(key), args, kwargs)(jnp.uint32(0), count)
