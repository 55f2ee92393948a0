"""Copies of modules of flax.nnx, in which some are variants of themselves.

A copy shares its variables with its original, and what else is no module. What a
function changes in it is written back, and no copy leaves the call.
"""

import operator
from typing import Any

import jax
from flax import nnx

from jaxdrop.frameworks.copies import Applies, Copies, below
from jaxdrop.frameworks.variants import (
    PATHS,
    Variants,
    marking_results,
    opening_scopes,
    quiet_subclass,
)


def with_scopes() -> Copies:
    """Copies whose methods open the scope of their path."""
    return _SharingCopies(_SCOPED, _has_scope)


def with_marks(classes: tuple[type, ...]) -> Copies:
    """Copies in which modules of these classes mark what they return."""

    def is_layer(node: Any, path: str) -> bool:
        return isinstance(node, nnx.Module) and isinstance(node, classes)

    return _SharingCopies(_MARKED, is_layer)


def _has_scope(module: Any, path: str) -> bool:
    containers = nnx.List, nnx.Dict  # whose methods compute nothing
    return isinstance(module, nnx.Module) and path != "" and not isinstance(module, containers)


def _subclass(cls: type, attributes: dict[str, Any]) -> type:
    is_pytree = not jax.tree_util.all_leaves([object.__new__(cls)])
    return quiet_subclass(cls, attributes, nnx.Module, pytree=is_pytree)


_SCOPED = Variants(_subclass, opening_scopes(nnx.Module))
_MARKED = Variants(_subclass, marking_results)


class _SharingCopies(Copies):
    def __init__(self, variants: Variants, applies: Applies) -> None:
        super().__init__(variants, applies)
        self._copies: dict[int, Any] = {}  # by the `id` of the original
        self._originals: dict[int, Any] = {}  # by the `id` of the copy
        self._open: set[int] = set()
        self._settled: dict[int, Any] = {}
        self._before: dict[int, dict[str, Any]] = {}  # what a copy holds when the call begins

    def is_node(self, value: object) -> bool:
        return isinstance(value, nnx.Pytree)

    def is_leaf(self, value: object) -> bool:
        return isinstance(value, nnx.Pytree | nnx.Variable)

    def is_open(self, node: Any) -> bool:
        if isinstance(node, nnx.Module):
            return True
        return any(isinstance(inner, nnx.Module) for _, inner in nnx.iter_graph(node))

    def copied(self, node: Any, path: str) -> Any:
        if id(node) not in self._copies:
            cls = self.variants.of(type(node)) if self.applies(node, path) else type(node)
            copy: Any = object.__new__(cls)
            self._copies[id(node)], self._originals[id(copy)] = copy, node
            vars(copy).update(vars(node))
            if cls is not type(node):
                vars(copy)[PATHS] = ()
        copy = self._copies[id(node)]
        if id(node) not in self._open:  # or else a module inside refers to one around it
            self._open.add(id(node))
            if type(copy) is not type(node):
                vars(copy)[PATHS] += (path,)
            for name, value in sorted(vars(node).items(), key=_order):
                if name != PATHS:
                    vars(copy)[name] = self.copy(value, below(path, str(name)))
            self._open.remove(id(node))
        return copy

    def restored(self, tree: Any) -> Any:
        nodes, structure = jax.tree.flatten(tree, is_leaf=self.is_leaf)
        originals = [self._original(node) if self.is_node(node) else node for node in nodes]
        if all(map(operator.is_, nodes, originals)):
            return tree
        return jax.tree.unflatten(structure, originals)

    def remember(self) -> None:
        self._before = {id(copy): dict(vars(copy)) for copy in self._copies.values()}

    def write_back(self) -> None:
        for copy in self._copies.values():
            original, before, after = self._originals[id(copy)], self._before[id(copy)], vars(copy)
            # Only what `fn` has changed: others may change the original at the same time.
            for name in before.keys() - after.keys():
                vars(original).pop(name, None)
            for name, value in after.items():
                is_other = name not in before or before[name] is not value
                is_other = is_other or self._grew(vars(original).get(name), value)
                if is_other and name != PATHS:
                    vars(original)[name] = self.restored(value)

    def _grew(self, old: Any, copy: Any) -> bool:
        """Whether a copied list or dict of modules has other modules than its original."""
        if not isinstance(copy, list | dict) or not self.holds(copy):
            return False
        (ones, structure), (others, same) = (
            jax.tree.flatten(tree, is_leaf=self.is_leaf) for tree in (old, self.restored(copy))
        )
        return structure != same or not all(map(operator.is_, ones, others))

    def _original(self, node: Any) -> Any:
        if id(node) in self._originals:
            return self._originals[id(node)]
        if id(node) not in self._settled:  # made by `fn`, or put together anew in a jit
            self._settled[id(node)] = node
            if origin := self.variants.origin(type(node)):
                del vars(node)[PATHS]
                object.__setattr__(node, "__class__", origin)
            for name, value in list(vars(node).items()):
                if (restored := self.restored(value)) is not value:
                    vars(node)[name] = restored
        return node


def _order(item: tuple[Any, Any]) -> tuple[int, str]:
    name = str(item[0])  # lists of older versions of nnx have numbers
    return len(name) if name.isdigit() else 0, name
