"""Which key each run of a site gets.

Each site has a key, made from the hash of its name. The runs of a site are numbered in
the order in which the program executes them. The numbers continue through `jit`,
`checkpoint` and `scan`. So masks do not change when one of these is added or removed. A
new site does not change the masks of other sites.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int32, UInt32

from jaxdrop.base.names import fold_in_name
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.core.words import as_threefry

Count: TypeAlias = int | UInt32[Array, ""]


def site_key(key: Key, name: str, occurrence: Count = 0) -> Key:
    """The key with which a planted function drops at one run of a site.

    With it you can write by hand what `plant` does. In three cases `plant` folds a
    number i into this key, by `fold_in(site_key(...), i)`: the iteration of a
    `while_loop`; the index of a device along a mesh axis of a `shard_map` over which
    the value varies; the index of an example of an inner `vmap`. If several cases
    apply, the numbers are folded in one after the other, in this order. Outer loops and
    `vmap`s come before inner ones, and mesh axes come in the order of their names.

    Args:
      key: the key that the planted function was called with. It is not consumed.
      name: the name of the site. For an array in a marked pytree, add its path, as in
        "hidden['a']". For a value that a matcher found, put the kind of the matcher in
        front, as in "jit:softmax".
      occurrence: how many times the site ran before, counted through inner `jit`,
        `checkpoint` and `scan`. All branches of a `cond` start at the same number.
        After the `cond`, the count continues from the branch with the most runs.

    Returns:
      A typed Threefry key.

    Raises:
      TypeError: `key` is not one key, `name` no string, or `occurrence` no integer.
      ValueError: a known `occurrence` is negative.

    Example:
      >>> model = lambda x: site(x, "hidden")
      >>> drop = partial(dropout, rate=0.5)
      >>> planted = plant(model, {"hidden": drop})
      >>> y = planted(jax.random.key(0), jnp.ones(6))
      >>> bool(jnp.all(y == drop(site_key(jax.random.key(0), "hidden"), jnp.ones(6))))
      True
    """
    check = Check("site_key")
    key = as_threefry(check.one_key(key))
    if not isinstance(name, str):
        raise TypeError(f"{check}: name must be a string; got {name!r}.")
    if isinstance(occurrence, Array):
        occurrence = check.integer_array("occurrence", occurrence)
    else:
        occurrence = check.whole_number("occurrence", occurrence, 0)
    return jax.random.fold_in(fold_in_name(key, name), occurrence)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Place:
    """The number of a site's next run: a base, and the runs since then.

    The offset is known while tracing. Outside of loops the base is known too, so the
    program needs no addition.
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
    """The keys of one site: the place of its next run, and its place at the start of
    the innermost loop. A stream without keys counts the runs of a rule.
    """

    # The data of the site's own key. Nothing is drawn with that key itself, because
    # each run first folds its number in.
    data: UInt32[Array, "2"] | None
    now: Place
    first: Place
    # Whether all runs have the same key. It is true if the user says so, and in the rule
    # of a custom derivative, which may run a site of its function again, at any place and
    # any number of times.
    fixed: bool = field(default=False, metadata={"static": True})
    runs: int = field(default=0, metadata={"static": True})  # of all, for a counter

    @staticmethod
    def of(key: Key, name: str, *, fixed: bool = False) -> "Stream":
        """The stream of a site, from its first run on."""
        start = Place(0)
        return Stream(jax.random.key_data(fold_in_name(key, name)), start, start, fixed)

    @staticmethod
    def counting(runs: int) -> "Stream":
        """A counter of the runs of a rule."""
        return Stream(None, Place(0), Place(0), runs=runs)

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
        # The count continues over the steps of a scan: step i begins i * runs later. So
        # an unrolled scan has the same masks.
        return replace(self, now=self.now.plus(step * jnp.uint32(runs)), first=self.now)

    def in_iteration(self, iteration: Array) -> "Stream":
        """The stream in an iteration of a while loop."""
        if self.fixed:
            return self
        # The number of iterations is unknown, so the runs after the loop could not be
        # numbered. Instead the iteration is folded in, and the loop counts as one
        # iteration.

        def inside(number: Array) -> Place:
            return replace(self.now, iterations=(*self.now.iterations, number))

        return replace(self, now=inside(iteration), first=inside(jnp.zeros_like(iteration)))

    def as_operand(self) -> "Stream":
        """The same stream, of a type that does not depend on where it is."""
        # A known number would be part of the type, so each call would be compiled again.
        now, first = (
            replace(p, base=jnp.asarray(p.occurrence(), jnp.uint32), offset=0)
            for p in (self.now, self.first)
        )
        return replace(self, now=now, first=first)

    def next_key(self, locked: bool) -> Key:
        """The key of the next run. If `locked`, it is the key of this run in the first
        step of the loop.
        """
        assert self.data is not None
        place = self.first if locked else self.now
        name_key = jax.random.wrap_key_data(self.data, impl="threefry2x32")
        key = jax.random.fold_in(name_key, place.occurrence())
        for iteration in place.iterations:
            key = jax.random.fold_in(key, iteration)
        return key

    def number(self, locked: bool) -> int | Int32[Array, ""]:
        """The number of the next run. If `locked`, it is that of this run in the first step
        of the loop.
        """
        number = (self.first if locked else self.now).occurrence()
        # Signed, since a schedule may count down from the last run.
        return number.astype(jnp.int32) if isinstance(number, Array) else number


Streams: TypeAlias = Mapping[str, Stream]


def as_operands(streams: Streams) -> Streams:
    """Streams of types that do not depend on where they are, so that calls compile once."""
    return {name: stream.as_operand() for name, stream in streams.items()}


def spread(key: Key, sizes: tuple[int, ...]) -> Array:
    """A key for each example of nested batches, the outermost first."""
    # Each key is made from an index, so the mask of an example does not depend on the
    # number of examples.
    if not sizes:
        return key
    examples = lax.iota(jnp.uint32, sizes[0])
    return jax.vmap(lambda i: spread(jax.random.fold_in(key, i), sizes[1:]))(examples)
