"""Copies of modules of equinox, in which some are variants of themselves.

Modules of equinox are values, so a copy is made anew at each place, and nothing is
written back. In the results, originals are made of copies.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax

from jaxdrop.frameworks.copies import Copies, below, of_owner
from jaxdrop.frameworks.variants import (
    PATHS,
    Variants,
    marking_results,
    opening_scopes,
    quiet_subclass,
)


def with_scopes() -> Copies:
    """Copies whose methods open the scope of their path."""
    return _ValueCopies(_SCOPED, lambda module, path: True)


def with_marks(classes: tuple[type, ...]) -> Copies:
    """Copies in which modules of these classes mark what they return."""
    return _ValueCopies(_MARKED, lambda module, path: isinstance(module, classes))


def _subclass(cls: type, attributes: dict[str, Any]) -> type:
    # A field, since equinox keeps nothing else of a module that it takes apart.
    paths = eqx.field(static=True, default=("",), repr=False)
    attributes = {**attributes, "__annotations__": {PATHS: tuple[str, ...]}, PATHS: paths}
    return quiet_subclass(cls, attributes, eqx.Module)


_SCOPED = Variants(
    _subclass, opening_scopes(eqx.Module, lambda cls: cls.__module__.startswith("equinox.nn."))
)
_MARKED = Variants(_subclass, marking_results)


class _ValueCopies(Copies):
    partials: ClassVar[tuple[type, ...]] = (partial, eqx.Partial)

    def is_node(self, value: object) -> bool:
        return isinstance(value, eqx.Module)

    def is_open(self, node: Any) -> bool:
        # Functions that `eqx.filter_jit` and others return are modules of a closed form.
        is_wrapper = isinstance(getattr(type(node), "__wrapped__", None), property)
        return hasattr(node, "__func__") or not is_wrapper

    def copied(self, node: Any, path: str) -> Any:
        if not self.is_open(node):
            return node
        if hasattr(node, "__func__"):
            return of_owner(node, node.__self__, self.copied(node.__self__, path))
        if isinstance(node, eqx.Partial):  # such as a method that is jitted
            args = (self.copy(arg, path) for arg in node.args)
            more = {name: self.copy(arg, below(path, name)) for name, arg in node.keywords.items()}
            return eqx.Partial(self.copy(node.func, path), *args, **more)
        cls = self.variants.of(type(node)) if self.applies(node, path) else type(node)
        copy = _rebuilt(node, cls, lambda name, value: self.copy(value, below(path, name)))
        if cls is not type(node):
            object.__setattr__(copy, PATHS, (path,))
        return copy

    def restored(self, tree: Any) -> Any:
        return (
            jax.tree.map(self._original, tree, is_leaf=self.is_node) if self.holds(tree) else tree
        )

    def _original(self, node: Any) -> Any:
        if not self.is_node(node) or not self.is_open(node):
            return node
        if hasattr(node, "__func__"):
            return of_owner(node, node.__self__, self._original(node.__self__))
        cls = self.variants.origin(type(node)) or type(node)
        return _rebuilt(node, cls, lambda _, value: self.restored(value))


def _rebuilt(module: Any, cls: type, change: Callable[[str, Any], Any]) -> Any:
    """The same module as an instance of another class, with changes in what it holds."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    new = object.__new__(cls)
    for name, value in vars(module).items():
        is_held = name in fields and not fields[name].metadata.get("static", False)
        if name in fields or name != PATHS:
            object.__setattr__(new, name, change(name, value) if is_held else value)
    return new
