"""Layers that are left out as a whole, and then not computed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.describe import describe
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale, poisoned, times, widen
from jaxdrop.core.bernoulli import bernoulli_mask
from jaxdrop.core.layout import Layout
from jaxdrop.core.mask import Mask
from jaxdrop.core.rate import GridRate, grid_rate
from jaxdrop.rescale import checked_rule, expected, none

Tree = TypeVar("Tree")


def layer_drop(
    key: Key | None,
    x: Tree,
    rate: Rate,
    *,
    layer: Callable[[Tree], Tree],
    rescale: Rescale = expected,
) -> Tree:
    """Leaves out a whole layer for the whole batch, and does not compute it then: LayerDrop.

    With probability `rate` the result is `x` and the layer does not run. Otherwise it is
    x + (layer(x) - x) / q with q = 1 - rate, so that E[y] = layer(x) exactly, and
    Var[y] = (layer(x) - x)^2 p / q. The decision is that of
    `x + drop_path(key, layer(x) - x, rate, batch_axis=None)`. With `rescale.none` it is
    layer(x) itself, as in the paper, and E[y] = x + q (layer(x) - x).

    The layer is the whole step from x to the next x, with its residual connection. It runs
    in a `lax.cond`, so at a rate of .5 half of the layers cost nothing.

    - In a `scan` each step takes a key of its own, and may take a rate of its own.
    - Derivatives, in both modes, skip a layer that was left out too. But in a `scan` JAX
      writes zeros in the place of what it would have saved for its backward pass. Use
      `jax.checkpoint(step)` of the whole step, which saves only `x`; of the layer alone it
      would save copies of the weights. (With it, `benchmarks/layer_drop.py` measures .57
      of a full step with its gradient at rate .5, and .82 without.)
    - Under `vmap` with one key for all, the layer is skipped for all. With a key for each,
      the `cond` becomes a selection: the results are the same, but all of the layers are
      computed, and nothing is saved. For a decision per sample, `drop_path` does the same.
    - Inside `shard_map`, devices with different keys skip different layers. A layer that
      communicates needs one key on all of them.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array, or a pytree of them. With `rescale.none` of any arrays.
      rate: probability of leaving the layer out, in [0, 1]; may be traced, as in a `scan`.
        At a known rate of 1 the layer is not even traced.
      layer: a function of `x` that returns what has the same structure, shapes and dtypes.
        It may close over weights and over keys of its own, and derivatives reach them.
      rescale: rule for the factor of layer(x) - x.

    Returns:
      A pytree like `x`.

    Raises:
      TypeError: a leaf of `x` is not floating or complex and to be rescaled, `key` is not
        one key, `rate` is not a number, `layer` is no function, or it returns anything
        that is not like `x`.
      ValueError: a known `rate` lies outside [0, 1].

    Example:
      A `scan` over layers, of which later ones are left out more often:

      >>> def step(x, operands):
      ...     key, weights, rate = operands
      ...     layer = lambda x: x + jnp.tanh(x @ weights)
      ...     return layer_drop(key, x, rate, layer=layer), None
      >>> keys, weights = jax.random.split(jax.random.key(0), 6), jnp.ones((6, 4, 4))
      >>> rates = jnp.array(jaxdrop.drop_path_rates(0.5, 6))
      >>> y, _ = jax.lax.scan(step, jnp.ones((2, 4)), (keys, weights, rates))
      >>> y.shape
      (2, 4)

    References:
      Fan, Grave and Joulin, "Reducing transformer depth on demand with structured
      dropout", arXiv:1909.11556 (2019); Huang et al., "Deep networks with stochastic
      depth", arXiv:1603.09382 (2016).
    """
    check = Check("layer_drop")
    key, rate = key_and_rate(check, key, x, rate)
    check.function_of("layer", layer, "x")
    rule = checked_rule(check, rescale)
    x = _arrays(check, x, any_kind=rule is none)
    on_grid = grid_rate(rate)
    if on_grid.is_zero:
        return _like(check, layer(x), x)
    if on_grid.is_one:
        return x
    mask = _draw(key, on_grid)

    def run(x: Tree) -> Tree:
        step = partial(_scaled_step, mask, rule)
        return jax.tree.map(step, x, _like(check, layer(x), x))

    return lax.cond(mask.unpack(), run, lambda x: x, x)


def _arrays(check: Check, x: Any, *, any_kind: bool) -> Any:
    """The pytree with its leaves as arrays."""
    accept = check.any_array if any_kind else check.inexact_array

    def accepted(path: Any, leaf: Any) -> Array:
        return accept("x" + jax.tree_util.keystr(path), leaf)

    return jax.tree_util.tree_map_with_path(accepted, x)


def _like(check: Check, y: Any, x: Any) -> Any:
    """What the layer returned, if it has the structure, shapes and dtypes of `x`."""
    given, wanted = jax.tree.structure(y), jax.tree.structure(x)
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(x), strict=False)
    alike = given == wanted and all(
        jnp.shape(new) == old.shape and jnp.result_type(new) == old.dtype for new, old in pairs
    )
    if not alike:
        raise TypeError(f"{check}: layer must return what x is, {describe(x)}; got {describe(y)}.")
    # A layer may return numbers of Python, or arrays of NumPy.
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), y, x)


@jax.jit
def _draw(key: Key, rate: GridRate) -> Mask:
    return bernoulli_mask(key, rate, Layout(()))


def _scaled_step(mask: Mask, rule: Rescale, x: Array, y: Array) -> Array:
    """`x` and the step from it to `y`, times the factor of the rule. A bad rate keeps a layer,
    so that its poison is seen.
    """
    if rule is none:
        return poisoned(mask, y)
    # A rule takes a mask with the number of axes of the array, of the same only word.
    mask = replace(mask, layout=Layout((1,) * x.ndim))
    factor = poisoned(mask, rule(mask, x))
    return (widen(x) + times(widen(y) - widen(x), factor)).astype(x.dtype)
