"""Drops as layers of equinox."""

from typing import Any

import equinox as eqx

from jaxdrop.base.types import Key
from jaxdrop.frameworks.drops import AnyDrop, at_test_time, drops_nothing


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
        if inference or drops_nothing(self.drop):
            return at_test_time(self.drop, self.at_test)(x, **arguments)
        if key is None:
            raise RuntimeError("Drop: key must be given, unless inference is True; got None.")
        return self.drop(key, x, **arguments)
