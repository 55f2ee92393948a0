"""Calls a function with variants of the modules that it is given, in the place of the modules."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, ClassVar, TypeAlias

import jax

from jaxdrop.base.describe import describe
from jaxdrop.frameworks.variants import Variants
from jaxdrop.planting.tracing import refuse_uncallable

PyTree: TypeAlias = Any
Applies: TypeAlias = Callable[[Any, str], bool]
"""Whether a module, at a path, gets a variant of its class."""


class Copies(ABC):
    """Copies of modules for one call, and the way back.

    Args:
      variants: where the variants of classes come from.
      applies: which modules get one.
    """

    partials: ClassVar[tuple[type, ...]] = (partial,)
    """Classes of functions with some of their arguments."""

    def __init__(self, variants: Variants, applies: Applies) -> None:
        self.variants, self.applies = variants, applies

    @abstractmethod
    def is_node(self, value: object) -> bool:
        """Whether it is a module, or another object that may hold modules."""

    def is_leaf(self, value: object) -> bool:
        """Whether a pytree is not taken apart here."""
        return self.is_node(value)

    @abstractmethod
    def is_open(self, node: Any) -> bool:
        """Whether it is a module with methods of its own, or there is one inside."""

    @abstractmethod
    def copied(self, node: Any, path: str) -> Any:
        """A module with variants in the places of all modules inside of it."""

    @abstractmethod
    def restored(self, tree: PyTree) -> PyTree:
        """The same pytree, with modules in the places of their copies."""

    def remember(self) -> None:  # noqa: B027 - modules of equinox do not change
        """Takes note of what copies hold before the call."""

    def write_back(self) -> None:  # noqa: B027 - the same
        """Gives modules the changes of their copies."""

    def holds(self, tree: PyTree) -> bool:
        """Whether there is a module in a pytree."""
        nodes = jax.tree.leaves(tree, is_leaf=self.is_leaf)
        return any(self.is_node(node) and self.is_open(node) for node in nodes)

    def copy(self, tree: PyTree, path: str) -> PyTree:
        """The same pytree, with copies in the places of modules."""
        if not self.holds(tree):
            return tree

        def copied(keys: tuple[Any, ...], node: Any) -> Any:
            inner = jax.tree_util.keystr(keys, simple=True, separator="/")
            return self.copied(node, below(path, inner)) if self.is_node(node) else node

        return jax.tree_util.tree_map_with_path(copied, tree, is_leaf=self.is_leaf)


def below(path: str, name: str) -> str:
    """The path of what has this name inside of something at a path."""
    return f"{path}/{name}" if path and name else path or name


def on_copies(caller: str, fn: Any, begin: Callable[[], Copies]) -> Callable[..., Any]:
    """A function that gives `fn` copies of all modules, and whose caller never sees one.

    Args:
      caller: the function of this library that the user called.
      fn: a module, a method of one, or a function with modules among its arguments.
      begin: makes the copies of one call.
    """
    refuse_uncallable(caller, fn)

    @wraps(fn, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        copies = begin()
        copied, places, names = _copied_call(caller, copies, fn, args, kwargs)
        copies.remember()
        try:
            results = copied(*places, **names)
        finally:
            copies.write_back()
        return copies.restored(results)

    return run


def _copied_call(
    caller: str, copies: Copies, fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, list[Any], dict[str, Any]]:
    """A function and its arguments with copies, whose paths begin where the user expects."""
    while isinstance(fn, copies.partials):
        fn, args, kwargs = fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
    owner = getattr(fn, "__self__", None) if hasattr(fn, "__func__") else fn
    has_owner = copies.holds(owner)
    names, values = [*_names(fn, len(args)), *kwargs], [*args, *kwargs.values()]
    holders = sum(map(copies.holds, values))
    if not (has_owner or holders):
        raise TypeError(
            f"{caller}: fn must be a module, a method of one, or a function with modules among its"
            f" arguments; got {describe(fn)}. Where a function closes over a module or makes one,"
            f" call {caller}(module)(...) inside of it, and put jit around the result."
        )
    # A module that is alone is the root. Next to others, paths begin with the argument's name.
    alone = not has_owner and holders == 1
    pairs = zip(names, values, strict=True)
    copied = [copies.copy(value, "" if alone else name) for name, value in pairs]
    if has_owner:
        fn = of_owner(fn, owner, copies.copy(owner, ""))
    return fn, copied[: len(args)], dict(zip(kwargs, copied[len(args) :], strict=True))


def of_owner(fn: Any, owner: Any, copy: Any) -> Any:
    """The module or the method of the copy that stands for that of its original."""
    if fn is owner:
        return copy
    name = fn.__func__.__name__
    if inspect.getattr_static(type(owner), name, None) is fn.__func__:
        return getattr(copy, name)
    return partial(fn.__func__, copy)


def _names(fn: Any, count: int) -> list[str]:
    """Names of positional arguments, as the function itself calls them."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [one.name for one in parameters if one.kind in positional]
    return [*names, *(f"argument_{index}" for index in range(len(names), count))][:count]
