"""What happens at a site: the token becomes a key, and the value is dropped with this key."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import partial_eval

from jaxdrop.base.compat import vary_over, varying_axes
from jaxdrop.base.describe import describe
from jaxdrop.base.sharding import sharded_along, zeros_like
from jaxdrop.base.types import Drop, Key
from jaxdrop.planting.jaxprs import opened
from jaxdrop.planting.keys import Stream, Streams, spread
from jaxdrop.planting.mark import Axes, Token, is_array
from jaxdrop.planting.rules import Match


@dataclass(frozen=True)
class Site:
    """A value that a rule matches: how its keys are made, and how its drop is applied."""

    match: Match
    source: str
    unchecked_axes: frozenset[str]  # mesh axes over which it may vary, but JAX does not know
    # Equations, by `id`, that read the value before it is dropped.
    insiders: frozenset[int] = frozenset()

    def draw(self, stream: Stream, x: Array, axes: Sequence[int] = ()) -> Token:
        """Key data for a value, one key for each example along the axes."""
        rule = self.match.rule
        x = jnp.asarray(x)
        key = stream.next_key(rule.share_loop)
        for axis in self._mesh_axes(x):
            key = jax.random.fold_in(key, lax.axis_index(axis))
        sizes = tuple(x.shape[axis] for axis in axes)
        if rule.share_vmap:
            token = jnp.broadcast_to(jax.random.key_data(key), (*sizes, 2))
        else:
            # Without a sharding, every device would make the keys and masks of all examples.
            token = sharded_along(jax.random.key_data(spread(key, sizes)), x, *axes)
        # The program was traced with a token that varies over the same mesh axes as the value.
        return vary_over(token, varying_axes(x))

    @property
    def counted(self) -> tuple[str, ...]:
        """The counter that the drop reads, if its rate depends on the run."""
        return (self.match.counter,) if self.match.rule.counts_runs else ()

    @property
    def counted_once(self) -> tuple[str, ...]:
        """The counter, if all steps of the innermost loop count as one run."""
        return self.counted if self.match.rule.share_loop else ()

    def drop(self, streams: Streams, x: Array, token: Token, role: str, axes: Axes) -> Array:
        """Drops a value, or a derivative of it.

        Args:
          streams: those of its counter, if it has one.
          x: the value.
          token: its key data.
          role: what `x` is at the mark: `value`, `tangent` or `cotangent`.
          axes: for each inner `vmap`, the axis of the value and the axis of the token.
            The innermost `vmap` comes first.

        Returns:
          The value; each example is dropped separately.
        """
        x = jnp.asarray(x)
        if x.size == 0:
            return x
        drop_one: Callable[[Token, Array], Array] = partial(self._drop_one, streams, role)
        pairs: list[tuple[int | None, int]] = []
        # The axes of a pair are counted without the axes of outer vmaps. So the
        # outermost axis is removed first.
        for axis, token_axis in reversed(axes):
            # All examples have the same key, so the first key is used for all, and one
            # mask is drawn.
            if token_axis is not None and self.match.rule.share_vmap:
                token, token_axis = lax.index_in_dim(token, 0, token_axis, keepdims=False), None
            pairs.append((token_axis, axis))
        for token_axis, axis in reversed(pairs):
            drop_one = jax.vmap(drop_one, in_axes=(token_axis, axis), out_axes=axis)
        with self._noted():
            return drop_one(token, x)

    def _of_run(self, streams: Streams) -> Drop:
        """The drop with the rate of this run."""
        rule = self.match.rule
        if not rule.counts_runs:
            return rule.at(0, 1)
        stream = streams[self.match.counter]
        return rule.at(stream.number(rule.share_loop), stream.runs)

    def _drop_one(self, streams: Streams, role: str, token: Token, x: Array) -> Array:
        """Drops one example, or applies the derivative of its drop to a derivative."""
        key = jax.random.wrap_key_data(token, impl="threefry2x32")
        drop = partial(_checked, self._of_run(streams))
        if role == "value":
            return drop(key, x)
        if not _is_affine(drop, key, x):
            raise NotImplementedError(
                "plant: a drop inside of a derivative must be affine in x; got"
                f" {self.match.rule.drop!r}, whose derivative depends on x. Differentiate the"
                " planted function instead: grad(plant(f, rules))."
            )
        # The value at which the derivative is taken is not known here. The drop is
        # affine, so its derivative is the same at zero.
        at_zero = zeros_like(x)
        if role == "tangent":
            return jax.jvp(partial(drop, key), (at_zero,), (x,))[1]
        return jax.vjp(partial(drop, key), at_zero)[1](x)[0]

    def _mesh_axes(self, x: Array) -> Sequence[str]:
        """The mesh axes along which devices draw keys of their own."""
        asked = self.match.rule.mesh_axes
        if asked is None and self.unchecked_axes:
            raise ValueError(
                f"plant: site {self.match.name!r} at {self.source} is in a shard_map with"
                " check_vma=False, so JAX does not know over which mesh axes it varies. Name them"
                f" by Rule(drop, mesh_axes=...), from {sorted(self.unchecked_axes)}."
            )
        mesh_axes = sorted(jax.sharding.get_abstract_mesh().manual_axes)
        for axis in asked or ():
            # Outside of a shard_map all axes are allowed: the same model may run with
            # and without one.
            if mesh_axes and axis not in mesh_axes:
                raise ValueError(
                    f"plant: mesh_axes must be among {mesh_axes}; got {axis!r}, for site"
                    f" {self.match.name!r} at {self.source}."
                )
        # Devices that have the same value must drop the same entries of it.
        may_vary = varying_axes(x) | self.unchecked_axes
        return sorted(may_vary if asked is None else may_vary & set(asked))

    @contextmanager
    def _noted(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(
                f"This was raised by the drop at site {self.match.name!r}, {self.source}."
            )
            raise


def _checked(drop: Drop, key: Key, x: Array) -> Array:
    y = drop(key, x)
    if not is_array(y) or y.shape != x.shape or y.dtype != x.dtype:
        raise TypeError(
            f"plant: a drop must keep the shape and dtype, {describe(x)}; got {describe(y)}."
        )
    return y


def _is_affine(drop: Drop, key: Key, x: Array) -> bool:
    """Whether the derivative of a drop is the same at all values."""

    def tangent(x: Array, key: Key, t: Array) -> Array:
        return jax.jvp(partial(drop, key), (x,), (t,))[1]

    # It is the same if the program for the tangent does not read the value. This test
    # may refuse an affine drop whose program reads the value needlessly, but it never
    # accepts a drop that is not affine.
    jaxpr, _ = opened(jax.make_jaxpr(tangent)(x, key, x))
    _, used = partial_eval.dce_jaxpr(jaxpr, [True])
    return not used[0]
