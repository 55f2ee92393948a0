"""Texts that are made from paths."""

from collections import namedtuple

import jax
import pytest

from jaxdrop.base.names import path_name

pytestmark = pytest.mark.quick


def test_path_is_told_as_python_would_spell_it():
    pair = namedtuple("pair", "left right")

    @jax.tree_util.register_pytree_node_class
    class Own:
        def tree_flatten(self):
            return [1.0], None

        @classmethod
        def tree_unflatten(cls, *_):
            return cls()

    tree = {"a": [pair(0, {1: 0})], "b": Own()}
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == ["['a'][0].left", "['a'][0].right[1]", "['b'][0]"]
