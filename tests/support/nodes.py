"""A node of a pytree that a user has registered."""

import jax


@jax.tree_util.register_pytree_node_class
class Pair:
    """It says nothing of the names of its children."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)
