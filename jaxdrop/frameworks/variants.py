"""Modules of nnx and equinox whose methods do more: they open a scope, or mark what they return.

A variant is a subclass with changed methods, and an instance of it knows its paths in
the model. Both frameworks keep class and paths when they take a module apart, to compile
it for example, and put it together again. No class is changed, so other threads and
other models see nothing.
"""

import inspect
import threading
import types
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeAlias

import jax

from jaxdrop.planting import site

Method: TypeAlias = Callable[..., Any]
Subclass: TypeAlias = Callable[[type, dict[str, Any]], type]
"""Makes a subclass with these attributes, whose instances keep the attribute `PATHS`."""

PATHS = "_jaxdrop_paths"


class Variants:
    """A variant of each class, made when it is first needed.

    Args:
      subclass: how the framework makes a subclass.
      methods: the changed methods of a class.
    """

    def __init__(self, subclass: Subclass, methods: Callable[[type], dict[str, Method]]) -> None:
        self._subclass, self._methods = subclass, methods
        self._made: dict[type, type] = {}
        self._origins: dict[type, type] = {}
        self._lock = threading.Lock()

    def of(self, cls: type) -> type:
        """The variant of a class: always the same, so that compiled programs are found again.

        A class without methods, which a framework may ask for by `is`, is its own variant.
        """
        with self._lock:
            if cls not in self._made and (methods := self._methods(cls)):
                like = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
                variant = self._subclass(cls, {**like, **methods})
                self._made[cls], self._origins[variant] = variant, cls
            return self._made.get(cls, cls)

    def origin(self, cls: type) -> type | None:
        """The class of which this is a variant, or None."""
        return self._origins.get(cls)


def quiet_subclass(cls: type, attributes: dict[str, Any], base: type, **options: Any) -> type:
    """A subclass that is made without the `__init_subclass__` of a user's class.

    Such a method may enter each subclass into a register, or need arguments. Instead of it
    runs that of the base class of modules, with these options.
    """

    def quietly(new: type, **options: Any) -> None:
        last = new.__mro__[new.__mro__.index(base) - 1]
        super(last, new).__init_subclass__(**options)

    quiet = type("Quiet", (), {"__slots__": (), "__init_subclass__": classmethod(quietly)})
    return types.new_class(
        cls.__name__, (quiet, cls), options, lambda made: made.update(attributes)
    )


def opening_scopes(
    base: type, own_scopes: Callable[[type], bool] = lambda cls: False
) -> Callable[[type], dict[str, Method]]:
    """All methods that a class adds to the base class of modules, each in a scope.

    Args:
      base: the base class.
      own_scopes: whether the methods of a class are decorated with scopes of its own, which
        would be in the paths of modules inside.
    """

    def methods(cls: type) -> dict[str, Method]:
        parents = [parent for parent in reversed(cls.__mro__) if parent not in base.__mro__]
        found: dict[str, Method] = {}
        for parent in parents:
            has_own = own_scopes(parent) and PATHS not in vars(parent)
            found = {name: found[name] for name in found.keys() - vars(parent).keys()}
            for name, method in _methods_of(parent):
                found[name] = inspect.unwrap(method) if has_own else method
        fields = getattr(cls, "__dataclass_fields__", {})  # a default may be a function
        return {name: _in_scope(found[name]) for name in found.keys() - fields.keys()}

    return methods


def marking_results(cls: type) -> dict[str, Method]:
    """`__call__` of a class, with its results marked by `site`."""
    # Not `cls.__call__`: that of a class without one is the constructor.
    calls = [vars(parent)["__call__"] for parent in cls.__mro__ if "__call__" in vars(parent)]
    if not calls:
        return {}
    call = calls[0]

    @wraps(call, updated=())
    def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
        y = call.__get__(self, type(self))(*args, **kwargs)
        return site(y, _paths_of(self)[0] or cls.__name__)

    return {"__call__": marked}


def _methods_of(cls: type) -> Iterable[tuple[str, Method]]:
    for name, value in vars(cls).items():
        is_method = callable(value) and hasattr(type(value), "__get__")
        is_other = isinstance(value, type | staticmethod | classmethod)
        is_magic = name.startswith("__") and name != "__call__"
        if is_method and not (is_other or is_magic):
            yield name, value


def _in_scope(method: Any) -> Method:
    @wraps(method, updated=())
    def scoped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _entered(_paths_of(self)):
            return method.__get__(self, type(self))(*args, **kwargs)

    return scoped


def _paths_of(module: Any) -> tuple[str, ...]:
    return getattr(module, PATHS, ("",))


# The path of the module that is running. A module may be called by the module above it, or by
# one further above, and in both cases the scopes around it must spell its path once.
_running: ContextVar[str] = ContextVar("_running", default="")


@contextmanager
def _entered(paths: tuple[str, ...]) -> Generator[None]:
    around = _running.get()
    if around in paths or paths == ("",):  # its scope is open, or it is the whole model
        yield
        return
    start = f"{around}/" if around else ""
    # A module of nnx may have several paths. The caller means one that lies below its own.
    path = next((path for path in paths if path.startswith(start)), paths[0])
    token = _running.set(path)
    try:
        with jax.named_scope(path.removeprefix(start)):
            yield
    finally:
        _running.reset(token)
