"""Which key each run of a site gets.

A site's runs are numbered in the order in which the program executes them,
straight through `jit`, `checkpoint` and `scan`. So masks do not change when one
of them is added or removed, and no site shifts the masks of another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import UInt32

from jaxdrop.base.names import fold_in_name
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.words import as_threefry

Count: TypeAlias = int | UInt32[Array, ""]


def site_key(key: Key, name: str, occurrence: Count = 0) -> Key:
    """The key with which a planted function drops at a run of a site.

    With it, what `plant` does can be written by hand. Example i of an inner
    `vmap` uses `fold_in(site_key(...), i)`, as do iteration i of a
    `while_loop` and device i along a mesh axis of a `shard_map` over which the
    value varies; where several apply they are folded in one after the other:
    loops, devices, examples, the outermost first and mesh axes by name.

    Args:
      key: the key that the planted function was called with. It is not consumed.
      name: the site's name. For an array in a marked pytree its path follows,
        as in "hidden['a']"; what a matcher found has the kind in front, as in
        "jit:softmax".
      occurrence: how many times the site ran before, counted through inner
        `jit`, `checkpoint` and `scan`. All branches of a `cond` start at the same
        number, and what follows goes on at the greatest.

    Returns:
      A typed Threefry key.

    Raises:
      TypeError: `key` is not one key.

    Example:
      >>> model = lambda x: site(x, "hidden")
      >>> drop = partial(dropout, rate=0.5)
      >>> planted = plant(model, {"hidden": drop})
      >>> y = planted(jax.random.key(0), jnp.ones(6))
      >>> bool(jnp.all(y == drop(site_key(jax.random.key(0), "hidden"), jnp.ones(6))))
      True
    """
    key = as_threefry(Check("site_key").one_key(key))
    return jax.random.fold_in(fold_in_name(key, name), occurrence)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Place:
    """How far the runs of a site are counted."""

    base: Count
    offset: int = field(default=0, metadata={"static": True})
    iterations: tuple[Count, ...] = ()  # of the while loops around

    def plus(self, runs: Count) -> "Place":
        """So many runs later."""
        return replace(self, base=self.occurrence() + runs, offset=0)

    def occurrence(self) -> Count:
        """The number of the next run."""
        return self.base + self.offset


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stream:
    """The keys of one site's runs: where they are, and where the innermost loop began."""

    data: UInt32[Array, "2"]
    """Of the key of the site's name, untyped since nothing is drawn from it."""
    now: Place
    first: Place
    fixed: bool = field(default=False, metadata={"static": True})  # all runs have the same key

    @staticmethod
    def of(key: Key, name: str) -> "Stream":
        """The stream of a site, from its first run on."""
        start = Place(0)
        return Stream(jax.random.key_data(fold_in_name(key, name)), start, start)

    def after(self, runs: int) -> "Stream":
        """So many runs later."""
        if self.fixed:
            return self
        now, first = (replace(p, offset=p.offset + runs) for p in (self.now, self.first))
        return replace(self, now=now, first=first)

    def in_step(self, step: Array, runs: int) -> "Stream":
        """Inside a scan, `runs` being those of one step."""
        if self.fixed:
            return self
        return Stream(self.data, self.now.plus(step * jnp.uint32(runs)), self.now)

    def in_iteration(self, iteration: Array) -> "Stream":
        """Inside a while loop."""
        if self.fixed:
            return self

        def inside(number: Array) -> Place:
            return replace(self.now, iterations=(*self.now.iterations, number))

        return Stream(self.data, inside(iteration), inside(jnp.zeros_like(iteration)))

    def as_operand(self) -> "Stream":
        """The same stream, of a type that does not depend on where it is."""
        now, first = (
            replace(p, base=jnp.asarray(p.occurrence(), jnp.uint32), offset=0)
            for p in (self.now, self.first)
        )
        return replace(self, now=now, first=first)

    def next_key(self, locked: bool) -> Key:
        """The key of the next run; if locked, that of it in the loop's first step."""
        place = self.first if locked else self.now
        name_key = jax.random.wrap_key_data(self.data, impl="threefry2x32")
        key = jax.random.fold_in(name_key, place.occurrence())
        for iteration in place.iterations:
            key = jax.random.fold_in(key, iteration)
        return key


Streams: TypeAlias = Mapping[str, Stream]


def as_operands(streams: Streams) -> Streams:
    """Streams of types that do not depend on where they are, so that calls compile once."""
    return {name: stream.as_operand() for name, stream in streams.items()}


def spread(key: Key, sizes: tuple[int, ...]) -> Array:
    """A key for each example of nested batches, the outermost first."""
    if not sizes:
        return key
    examples = lax.iota(jnp.uint32, sizes[0])
    return jax.vmap(lambda i: spread(jax.random.fold_in(key, i), sizes[1:]))(examples)
