"""Marks of dropout layers by the interceptors of linen and haiku."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, TypeAlias

import jax

from jaxdrop.planting import site
from jaxdrop.planting.mark import planting
from jaxdrop.planting.tracing import refuse_uncallable

Interceptor: TypeAlias = Callable[[Callable[..., Any], Any, Any, Any], Any]
"""What a framework runs in the place of a method: `(method, args, kwargs, context) -> result`."""

# Which layers are marked. It is part of the key of JAX's caches, so that a function which was
# jitted and traced without these marks is traced again.
_marked_layers = jax.make_user_context(())


def on_interceptor(
    fn: Any,
    layers: type | tuple[type, ...],
    name_of: Callable[[Any], str],
    intercept: Callable[[Interceptor], AbstractContextManager[Any]],
) -> Callable[..., Any]:
    """A function that marks what layers give, while `fn` runs.

    Args:
      fn: the function.
      layers: the classes of the layers.
      name_of: the name of the site of a layer.
      intercept: how the framework intercepts methods.
    """
    refuse_uncallable("dropout_sites", fn)
    classes = classes_of_layers("dropout_sites", layers)

    def mark(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y, layer = call(*args, **kwargs), context.module
        is_layer = context.method_name == "__call__" and isinstance(layer, classes)
        return site(y, name_of(layer)) if is_layer else y

    @wraps(fn, updated=())
    def marked(*args: Any, **kwargs: Any) -> Any:
        if planting.value is None:  # a mark would add nothing
            return fn(*args, **kwargs)
        with _marked_layers((*_marked_layers.value, classes)), intercept(mark):
            return fn(*args, **kwargs)

    return marked


def classes_of_layers(caller: str, layers: Any) -> tuple[type, ...]:
    """Classes of layers as a tuple; refuses what is no class."""
    classes = layers if isinstance(layers, tuple) else (layers,)
    if not classes or not all(isinstance(one, type) for one in classes):
        raise TypeError(f"{caller}: layers must be a class or a tuple of classes; got {layers!r}.")
    return classes
