"""Drops as layers of equinox, and named scopes and marks for models of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx

from jaxdrop.base.types import Key
from jaxdrop.frameworks.copies import on_copies
from jaxdrop.frameworks.drops import AnyDrop, at_test_time, drops_nothing, with_any_key
from jaxdrop.frameworks.equinox_copies import with_marks, with_scopes
from jaxdrop.frameworks.marks import classes_of_layers

__all__ = ["Drop", "dropout_sites", "named_scopes"]


def __dir__() -> list[str]:
    return __all__


class Drop(eqx.Module):
    """Any drop in the place of `eqx.nn.Dropout`.

    At test time, which `eqx.nn.inference_mode` sets, it gives its input; `zoneout` and
    `shake_drop` give their mean, and `drop_tokens` all tokens.

    Args:
      drop: a function `(key, x) -> y`, or one with more arguments, such as `zoneout`.
      inference: whether nothing is dropped.
      at_test: a function of x for test time; None for what stands above.

    Raises:
      TypeError: `drop` or `at_test` is no function.
      ValueError: one of the methods named above is inside of another drop, and there is
        no `at_test`.
      RuntimeError: when called, if a key is needed and there is none.

    Example:
      >>> from jaxdrop.frameworks import equinox
      >>> layer = equinox.Drop(partial(jaxdrop.drop_path, rate=0.5, batch_axis=None))
      >>> layer(jnp.ones(3), key=jax.random.key(0)).shape
      (3,)
    """

    drop: AnyDrop
    inference: bool
    at_test: AnyDrop | None

    def __init__(
        self, drop: AnyDrop, inference: bool = False, *, at_test: AnyDrop | None = None
    ) -> None:
        at_test_time(drop, at_test)
        self.drop, self.inference, self.at_test = drop, inference, at_test

    def __call__(
        self, x: Any, *, key: Key | None = None, inference: bool | None = None, **arguments: Any
    ) -> Any:
        """Drops from `x`; the keyword arguments that no layer knows go to the drop."""
        if inference is None:
            inference = self.inference
        if inference:
            return at_test_time(self.drop, self.at_test)(x, **arguments)
        if drops_nothing(self.drop):
            return with_any_key(self.drop, x, **arguments)
        if key is None:
            raise RuntimeError("Drop: key must be given, unless inference is True; got None.")
        return self.drop(key, x, **arguments)


def named_scopes(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Runs each module of a model in a named scope of its path, such as `blocks/3/attn`.

    `match.named_scope("blocks/*/attn")` then matches what a residual branch gives. All
    methods of a module open its scope. The path of a module is that of its attribute in
    the model, with slashes in it, whatever module calls it. The scope of a module that is
    called by one elsewhere lies below the scope of that one. Layers of `eqx.nn` do not open
    the scopes of their own, such as `eqx.nn.Linear`.

    In a `vmap`, a scope gives the whole batch, along whatever axis `vmap` has chosen. To
    drop from each example, mark modules by `dropout_sites(fn, layers=...)`.

    Args:
      fn: a module, a method of one, or a function with modules among its arguments. If
        several arguments hold modules, paths begin with the name of the argument.

    Returns:
      A function with the arguments and the results of `fn`. The modules of the caller are
      not changed, and neither are their classes. While it runs, a module is a pytree of
      another structure, by its path. So stack layers before, and where `fn` itself puts a
      module together, by `eqx.combine`, call `named_scopes(module)(x)` inside.

    Raises:
      TypeError: `fn` is not callable; when called, if no module is seen.

    Example:
      >>> from jaxdrop.frameworks import equinox
      >>> mlp = eqx.nn.MLP(3, 2, 8, depth=2, key=jax.random.key(0))
      >>> rules = {match.named_scope("layers/[01]"): partial(dropout, rate=0.5)}
      >>> train = plant(equinox.named_scopes(mlp), rules)
      >>> train(jax.random.key(1), jnp.ones(3)).shape
      (2,)
    """
    return on_copies("named_scopes", fn, with_scopes)


def dropout_sites(
    fn: Callable[..., Any], *, layers: type | tuple[type, ...] = (eqx.nn.Dropout, Drop)
) -> Callable[..., Any]:
    """Marks what dropout layers give by `jaxdrop.site`, also where they are off.

    The name of a site is the path of its layer in the model, such as `blocks/3/dropout`.
    So dropout can be planted where the author of a model wanted it, whether it has
    `inference=True`, a rate of 0, or drops something itself.

    Args:
      fn: a module, a method of one, or a function with modules among its arguments. If
        several arguments hold modules, paths begin with the name of the argument.
      layers: the classes of the layers that are marked. Other classes than those of
        dropout do as well: each example of a `vmap` has a mask of its own.

    Returns:
      A function with the arguments and the results of `fn`.

    Raises:
      TypeError: `fn` is not callable, or `layers` are no classes; when called, if no
        module is seen.

    Example:
      >>> from jaxdrop.frameworks import equinox
      >>> model = eqx.nn.Sequential([eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(inference=True)])
      >>> train = plant(equinox.dropout_sites(model), {"layers/1": partial(dropout, rate=1.0)})
      >>> float(train(jax.random.key(1), jnp.ones(3)).sum())
      0.0
    """
    classes = classes_of_layers("dropout_sites", layers)
    return on_copies("dropout_sites", fn, partial(with_marks, classes))
