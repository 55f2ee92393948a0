"""Which key each run of a site gets.

Each site has a key, made from the hash of its name. The runs of a site are numbered
in the order in which the program executes them, straight through `jit`,
`checkpoint` and `scan`. So masks do not change when one of these is added or
removed, and no site shifts the masks of another.
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
    """The key with which a planted function drops at one run of a site.

    With it one can write by hand what `plant` does. In three cases a number i is
    folded into this key, by `fold_in(site_key(...), i)`: the iteration of a
    `while_loop`, the index of a device along a mesh axis of a `shard_map` over
    which the value varies, and the index of an example of an inner `vmap`. If
    several apply, they are folded in one after the other, in this order. Of
    several loops or `vmap`s the outermost comes first, and mesh axes come in the
    order of their names.

    Args:
      key: the key that the planted function was called with. It is not consumed.
      name: the site's name. For an array in a marked pytree its path follows,
        as in "hidden['a']". A value that a matcher found has the kind of the
        matcher in front, as in "jit:softmax".
      occurrence: how many times the site ran before, counted through inner
        `jit`, `checkpoint` and `scan`. All branches of a `cond` start at the same
        number. What follows the `cond` goes on where its longest branch stopped.

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
    """The number of a site's next run: a base, and the runs since then.

    The offset is known while tracing. So where no loop counts, the whole number is
    known, and no addition is left in the program.
    """

    base: Count
    offset: int = field(default=0, metadata={"static": True})
    iterations: tuple[Count, ...] = ()  # of the while loops around

    def plus(self, runs: Count) -> "Place":
        """The place after some more runs."""
        return replace(self, base=self.occurrence() + runs, offset=0)

    def occurrence(self) -> Count:
        """The number of the next run."""
        return self.base + self.offset


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stream:
    """The keys of one site: where its runs are, and where the innermost loop began."""

    # The data of the site's own key. Nothing is drawn with that key itself: each run folds its
    # number in first.
    data: UInt32[Array, "2"]
    now: Place
    first: Place
    # Whether all runs have the same key: in the rule of a custom derivative, which may run a
    # site of its function again, wherever and however often it likes.
    fixed: bool = field(default=False, metadata={"static": True})

    @staticmethod
    def of(key: Key, name: str) -> "Stream":
        """The stream of a site, from its first run on."""
        start = Place(0)
        return Stream(jax.random.key_data(fold_in_name(key, name)), start, start)

    def after(self, runs: int) -> "Stream":
        """The stream after some more runs."""
        if self.fixed:
            return self
        now, first = (replace(p, offset=p.offset + runs) for p in (self.now, self.first))
        return replace(self, now=now, first=first)

    def in_step(self, step: Array, runs: int) -> "Stream":
        """The stream in a step of a scan, each of which runs the site `runs` times."""
        if self.fixed:
            return self
        # The steps of a scan count on: step i begins i * runs later. So an unrolled scan has
        # the same masks.
        return Stream(self.data, self.now.plus(step * jnp.uint32(runs)), self.now)

    def in_iteration(self, iteration: Array) -> "Stream":
        """The stream in an iteration of a while loop."""
        if self.fixed:
            return self
        # Nobody knows how many iterations there will be, so the runs after the loop could not be
        # numbered. The iteration is folded in instead, and the loop counts as one iteration.

        def inside(number: Array) -> Place:
            return replace(self.now, iterations=(*self.now.iterations, number))

        return Stream(self.data, inside(iteration), inside(jnp.zeros_like(iteration)))

    def as_operand(self) -> "Stream":
        """The same stream, of a type that does not depend on where it is."""
        # A number that is known would be part of the type, and each call would compile anew.
        now, first = (
            replace(p, base=jnp.asarray(p.occurrence(), jnp.uint32), offset=0)
            for p in (self.now, self.first)
        )
        return replace(self, now=now, first=first)

    def next_key(self, locked: bool) -> Key:
        """The key of the next run. If locked, the key that it has in the first step of the loop."""
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
    # By index, so that an example's mask does not depend on how many others there are.
    if not sizes:
        return key
    examples = lax.iota(jnp.uint32, sizes[0])
    return jax.vmap(lambda i: spread(jax.random.fold_in(key, i), sizes[1:]))(examples)
