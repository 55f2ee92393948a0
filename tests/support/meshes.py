"""Eight devices as a mesh, and what a program must not say to be free of communication."""

import re

import jax
from jax.sharding import AxisType

COLLECTIVE = re.compile(r"(all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)")


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
