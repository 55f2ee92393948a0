"""Drops on arrays that lie on the devices of several processes; each is `(key, x) -> y`."""

from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from meshes import mesh
from table.methods import METHODS
from table.record import Spread

import jaxdrop

RATE = 0.3
KEY = np.array([3, 5], np.uint32)

# What these multiply by, or how much they drop, is counted over the whole array.
COUNTING = tuple(method.name for method in METHODS if method.counts)
SPECS = (P("a", "b"), P("b", "a"), P(None, ("a", "b")))


def drops_of_methods():
    """By name: the drop, the shape that it is tried on and how that lies on the mesh."""
    ways = {m.name: m.spread or Spread(m.run, m.large) for m in METHODS}
    return {name: (partial(way.run, rate=RATE), way.shape, P("a")) for name, way in ways.items()}


def drops_of_layouts(kind):
    """The same of `dropout` alone, split in other ways, and inside `shard_map`."""
    drop = partial(jaxdrop.dropout, rate=RATE)
    found = {f"dropout on {spec}": (drop, (64, 256), spec) for spec in SPECS}
    for name, fold in (("one mask", False), ("a mask of its own", True)):
        local = partial(drop_of_device, fold=fold)
        over = {"in_specs": (P(), P("a", "b")), "out_specs": P("a", "b")}
        found[name] = (jax.shard_map(local, mesh=mesh(kind), **over), (64, 256), P("a", "b"))
    return found


def drop_of_device(key, x, fold):
    """Inside `shard_map`: a mask of its own for each device, or one for all of them."""
    if fold:
        for axis in ("a", "b"):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return jaxdrop.dropout(key, x, RATE)


def ones(shape, spec, kind):
    """Ones on all devices, those of other processes included."""
    sharding = NamedSharding(mesh(kind), spec)
    return jax.make_array_from_callback(shape, sharding, lambda at: np.ones(shape, np.float32)[at])
