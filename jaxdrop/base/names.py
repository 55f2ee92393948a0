"""Keys derived from names: adding a name leaves the keys of the others alone."""

import hashlib
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey
from jaxtyping import UInt32

from jaxdrop.base.types import Key


def fold_in_name(key: Key, name: str) -> Key:
    """A key that depends on `key` and the name, by a 64-bit hash.

    The hash is BLAKE2s, so it is the same in every process and version.
    """
    digest = hashlib.blake2s(name.encode(), digest_size=8).digest()
    return _fold_in_both(key, *np.frombuffer(digest, "<u4"))


@jax.jit  # the words are operands, so that one program serves all names
def _fold_in_both(key: Key, first: UInt32[Array, ""], second: UInt32[Array, ""]) -> Key:
    return jax.random.fold_in(jax.random.fold_in(key, first), second)


def path_name(path: tuple[Any, ...]) -> str:
    """A text for a path into a pytree, such as `.layers[0]['kernel']`."""
    return "".join(_entry_name(entry) for entry in path)


def _entry_name(entry: Any) -> str:
    match entry:
        case GetAttrKey(name=name):
            return f".{name}"
        case SequenceKey(idx=index):
            return f"[{index}]"
        case DictKey(key=label) | FlattenedIndexKey(key=label):
            return f"[{label!r}]"
        case _:
            return f"[{entry}]"
