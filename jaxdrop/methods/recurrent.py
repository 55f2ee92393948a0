"""Methods for recurrent networks: one mask for all time steps, and states that keep elements."""

import jax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Inexact

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, compute_dtype, weighted
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.methods.masked import drop, replace_with
from jaxdrop.rescale import expected


def locked_dropout(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    time_axis: int,
    rescale: Rescale = expected,
) -> Inexact[Array, "*shape"]:
    """Drops the same elements at all time steps: variational dropout of a sequence.

    E[y] = x and Var[y] = x^2 p / q at each element. An element that is dropped at
    one step is dropped at all steps.

    The state of a recurrent network does not exist before the `scan`. Draw its mask
    outside and apply it inside, as in the second example. If you draw inside, from a
    key that the step closes over, the mask is the same but the work is repeated at each
    step.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array with all time steps.
      rate: probability of dropping, in [0, 1]; may be traced.
      time_axis: axis of the time steps. It is 0 for what `scan` stacks, and often 1, as
        in (batch, time, features).
      rescale: rule for the factor of the survivors.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `time_axis` is out of
        range.

    Example:
      >>> y = locked_dropout(jax.random.key(0), jnp.ones((3, 7, 4)), 0.5, time_axis=1)
      >>> bool(jnp.all(y == y[:, :1]))
      True

      A recurrent mask, drawn once and used at each step:

      >>> mask = draw_mask(jax.random.key(0), (4,), 0.5)
      >>> def step(state, x):
      ...     state = jnp.tanh(x + apply_mask(mask, state))
      ...     return state, state
      >>> _, states = jax.lax.scan(step, jnp.zeros(4), jnp.ones((7, 4)))
      >>> states.shape
      (7, 4)

    References:
      Gal and Ghahramani, "A theoretically grounded application of dropout in
      recurrent neural networks", arXiv:1512.05287 (2016).
      Merity, Keskar and Socher, "Regularizing and optimizing LSTM language
      models", arXiv:1708.02182 (2017).
    """
    check = Check("locked_dropout")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    time = check.axis("time_axis", time_axis, x.ndim)
    return drop(check, key, x, rate, (time,), rescale)


def zoneout(
    key: Key | None,
    new: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    old: Inexact[ArrayLike, "*shape"],
) -> Inexact[Array, "*shape"]:
    """Leaves elements of a recurrent state as they were, with probability `rate`.

    y = m new + (1 - m) old. Nothing is scaled: E[y] = q new + p old. Without a key, for
    test time, the result is this mean.

    Args:
      key: one random key, consumed here; None for the mean, at test time.
      new: floating or complex array, the state that the cell computed.
      rate: probability of keeping the old state, in [0, 1]; may be traced.
      old: the state before this step, which broadcasts to `new`.

    Returns:
      An array with the shape and dtype of `new`; `old` where `rate` is 1.

    Raises:
      TypeError: `new` is not floating or complex, or is real and `old` complex,
        `key` is not one key, or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `old` does not
        broadcast to the shape of `new`.

    Example:
      >>> new, old = jnp.ones(5), -jnp.ones(5)
      >>> y = zoneout(jax.random.key(0), new, 0.25, old=old)
      >>> bool(jnp.all(jnp.abs(y) == 1))
      True
      >>> zoneout(None, new, 0.25, old=old)
      Array([0.5, 0.5, 0.5, 0.5, 0.5], dtype=float32)

    References:
      Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden
      activations", arXiv:1606.01305 (2016).
    """
    check = Check("zoneout")
    if key is None:
        p = check.probability("rate", rate)
    else:
        key, p = key_and_rate(check, key, new, rate, name="new")
    new = check.inexact_array("new", new)
    old = check.like("old", old, new, "new")
    if key is None:
        return _mean(new, old, grid_rate(p))
    return replace_with(key, new, old, p)


@jax.jit
def _mean(new: Array, old: Array, rate: GridRate) -> Array:
    keep_prob, drop_prob = rate.threshold.probabilities(compute_dtype(new))
    return (weighted(new, keep_prob) + weighted(old, drop_prob)).astype(new.dtype)
