"""Drops as modules of haiku."""

from typing import Any

import haiku as hk

from jaxdrop.frameworks.drops import AnyDrop, at_test_time, drops_nothing


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
        if not is_training or drops_nothing(self.drop):
            return self.at_test(x, **arguments)
        return self.drop(hk.next_rng_key(), x, **arguments)
