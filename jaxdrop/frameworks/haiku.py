"""Drops as modules of haiku, and marks for its models."""

from collections.abc import Callable
from typing import Any

import haiku as hk

from jaxdrop.frameworks.drops import AnyDrop, at_test_time, drops_nothing, with_any_key
from jaxdrop.frameworks.marks import on_interceptor

__all__ = ["Drop", "dropout_sites"]


def __dir__() -> list[str]:
    return __all__


class Drop(hk.Module):
    """Any drop, with the key that `hk.dropout(hk.next_rng_key(), ...)` would have in its place.

    At test time it gives its input; `zoneout` and `shake_drop` give their mean, and
    `drop_tokens` all tokens.

    Args:
      drop: a function `(key, x) -> y`, or one with more arguments, such as `zoneout`.
      at_test: a function of x for test time; None for what stands above.
      name: the name of the module.

    Raises:
      TypeError: `drop` or `at_test` is no function.
      ValueError: one of the methods named above is inside of another drop, and there is
        no `at_test`.

    Example:
      >>> import haiku as hk
      >>> from jaxdrop.frameworks import haiku
      >>> drop = partial(jaxdrop.drop_path, rate=0.5)
      >>> model = hk.transform(lambda x: haiku.Drop(drop)(x, is_training=True))
      >>> model.apply({}, jax.random.key(0), jnp.ones((4, 3))).shape
      (4, 3)
    """

    def __init__(
        self, drop: AnyDrop, *, at_test: AnyDrop | None = None, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.drop = drop
        self.at_test = at_test_time(drop, at_test)

    def __call__(self, x: Any, is_training: bool, **arguments: Any) -> Any:
        """Drops from `x`; the keyword arguments that no layer knows go to the drop."""
        if not is_training:
            return self.at_test(x, **arguments)
        if drops_nothing(self.drop):
            return with_any_key(self.drop, x, **arguments)
        return self.drop(hk.next_rng_key(), x, **arguments)


def dropout_sites(
    fn: Callable[..., Any], *, layers: type | tuple[type, ...] = Drop
) -> Callable[..., Any]:
    """Marks what dropout modules give by `jaxdrop.site`, also at test time.

    The name of a site is the path of its module, as named scopes have it, such as
    `mlp/drop`. `hk.dropout` is a function and no module, so what it gives cannot be marked,
    and where it is not called nothing can. A module that calls it can be named in `layers`.

    Args:
      fn: a function that calls modules, such as `hk.transform(net).apply`.
      layers: the classes of the modules that are marked. Other classes than those of
        dropout do as well.

    Returns:
      A function with the arguments and the results of `fn`.

    Raises:
      TypeError: `fn` is not callable, or `layers` are no classes.

    Example:
      >>> import haiku as hk
      >>> from jaxdrop.frameworks import haiku
      >>> layer = lambda x: haiku.Drop(partial(dropout, rate=0.5))(x, is_training=False)
      >>> model = hk.without_apply_rng(hk.transform(layer))
      >>> rules = {"drop": partial(dropout, rate=1.0)}
      >>> train = plant(haiku.dropout_sites(model.apply), rules)
      >>> float(train(jax.random.key(1), {}, jnp.ones(3)).sum())
      0.0
    """
    return on_interceptor(fn, layers, _name_of, hk.intercept_methods)


def _name_of(module: hk.Module) -> str:
    # A module that another one makes in its constructor has a "~" in its path.
    return "/".join(part for part in module.module_name.split("/") if part != "~")
