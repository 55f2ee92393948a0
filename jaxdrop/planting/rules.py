"""Rules: which drop is planted at which values, and which runs share a mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias, cast

import jax

from jaxdrop.base.types import Drop


@dataclass(frozen=True)
class Matcher:
    """A pattern for names of one kind. The functions of `jaxdrop.match` make matchers."""

    kind: str
    pattern: str
    # Which of several values that leave a scope, function or call is meant: an index, or a
    # predicate over their types.
    output: int | Callable[[jax.ShapeDtypeStruct], bool] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise TypeError(f"match.{self.kind}: pattern must be a string; got {self.pattern!r}.")
        is_index = isinstance(self.output, int) and not isinstance(self.output, bool)
        if not (self.output is None or is_index or callable(self.output)):
            raise TypeError(
                f"match.{self.kind}: output must be an index or a function of shape and dtype;"
                f" got {self.output!r}."
            )

    def __repr__(self) -> str:
        output = "" if self.output is None else f", output={self.output!r}"
        return f"match.{self.kind}({self.pattern!r}{output})"

    @property
    def as_written(self) -> str:
        """The matcher as the user wrote it in a rule."""
        return self.pattern if self.kind == "site" else repr(self)

    def matches(self, candidate: "Candidate") -> bool:
        """Whether the pattern fits a name of the same kind."""
        if self.kind != candidate.kind:
            return False
        # `layer[0]` matches itself, though fnmatch takes it for a pattern that matches `layer0`.
        return candidate.name == self.pattern or fnmatchcase(candidate.name, self.pattern)


@dataclass(frozen=True)
class Rule:
    """A drop, and which runs share its masks. A drop without a `Rule` shares nothing.

    Args:
      drop: a pure function `(key, x) -> y` that keeps the shape and dtype.
      share_vmap: whether all examples of an inner `vmap` share a mask.
      share_loop: whether all steps of the innermost loop share a mask. In a recurrent
        network this is variational dropout.
      share_runs: whether all runs of a site share a mask: all calls and all steps of all
        loops, also in the rule of a custom derivative. A solver of differential
        equations needs this, because it takes the site for one function. Examples of
        an inner `vmap` and devices still have masks of their own.
      mesh_axes: the mesh axes of a `shard_map` along which each device draws a mask of
        its own. None means the axes over which the value varies. JAX knows these axes,
        except in a `shard_map` with `check_vma=False`. Devices that have the same value
        along an axis share a mask in any case.

    Raises:
      TypeError: `drop` is not callable, or `mesh_axes` is a string.

    Example:
      >>> def rnn(x):
      ...     step = lambda h, _: (site(h, "state"), None)
      ...     return jax.lax.scan(step, x, length=5)[0]
      >>> locked = Rule(partial(dropout, rate=0.5), share_loop=True)
      >>> h = plant(rnn, {"state": locked})(jax.random.key(0), jnp.ones(8))
      >>> bool(jnp.all((h == 0) | (h == 2**5)))
      True

      A neural differential equation, with one mask for the whole solution:

      >>> from jax.experimental.ode import odeint
      >>> def solve(y):
      ...     field = lambda y, t: -site(y, "field")
      ...     return odeint(field, y, jnp.array([0.0, 1.0]))[-1]
      >>> fixed = Rule(partial(dropout, rate=0.5), share_runs=True)
      >>> y = plant(solve, {"field": fixed})(jax.random.key(0), jnp.ones(4))
      >>> bool(jnp.all((y == 1) | (abs(y - jnp.exp(-2)) < 1e-4)))  # dropped, or 2 y
      True
    """

    drop: Drop
    share_vmap: bool = False
    share_loop: bool = False
    share_runs: bool = False
    mesh_axes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not callable(self.drop):
            raise TypeError(f"Rule: drop must be a function (key, x) -> y; got {self.drop!r}.")
        if isinstance(self.mesh_axes, str):
            raise TypeError(f"Rule: mesh_axes must be a sequence of names; got {self.mesh_axes!r}.")


RulesLike: TypeAlias = (
    # `Mapping` is invariant in its keys, and a dict of strings is the usual one.
    Mapping[str, Drop | Rule]
    | Mapping[Matcher, Drop | Rule]
    | Mapping[str | Matcher, Drop | Rule]
    | Sequence[tuple[str | Matcher, Drop | Rule]]
)
"""What the user gives: a dict, or a list of pairs in which the first match wins."""


@dataclass(frozen=True)
class Candidate:
    """A name by which a rule may match a value."""

    kind: str
    name: str

    @property
    def text(self) -> str:
        """The name in keys and tables."""
        return self.name if self.kind == "site" else f"{self.kind}:{self.name}"


class Match(NamedTuple):
    """The rule for a value, with its pattern and the name from which its keys are made."""

    name: str
    matcher: Matcher
    rule: Rule


class Rules:
    """The user's rules, as pairs of a matcher and a rule."""

    def __init__(self, caller: str, given: RulesLike) -> None:
        self.caller = caller  # "plant" or "sites"; all error messages begin with it
        self.is_disjoint = isinstance(given, Mapping)
        pairs = list(given.items()) if isinstance(given, Mapping) else given
        if not isinstance(pairs, list | tuple) or not all(map(_is_pair, pairs)):
            raise TypeError(
                f"{caller}: rules must be a dict from patterns to drops, or a list of such"
                f" pairs; got {given!r}."
            )
        self.pairs = [
            (_as_matcher(caller, pattern), _as_rule(caller, pattern, drop))
            for pattern, drop in pairs
        ]
        # A mark knows which axis is the batch; a value that a matcher finds does not.
        for matcher, rule in self.pairs:
            if rule.share_vmap and matcher.kind != "site":
                raise ValueError(
                    f"{caller}: share_vmap must be left out for {matcher!r}; got True. In"
                    " a vmap, a matcher finds the whole batch, which has one mask. Use a drop with"
                    " broadcast_dims, or mark the value."
                )

    @property
    def matchers(self) -> list[Matcher]:
        """The patterns, in the order of the rules."""
        return [matcher for matcher, _ in self.pairs]

    def find(self, candidates: Sequence[Candidate], path: str, source: str) -> Match | None:
        """The rule for a value that has several names.

        Args:
          candidates: the names.
          path: the path of an array in a marked pytree; it is part of the name of the site.
          source: the line that made the value.

        Returns:
          The first rule that matches a name, or None.

        Raises:
          ValueError: two rules of a dict match.
        """
        # The outer loop is over rules: in a list of pairs the first rule wins, not the first name.
        found = [
            Match(candidate.text + path, matcher, rule)
            for matcher, rule in self.pairs
            for candidate in candidates
            if matcher.matches(candidate)
        ]
        # A pattern that fits two names of one value is still one rule.
        matchers = dict.fromkeys(match.matcher for match in found)
        if self.is_disjoint and len(matchers) > 1:
            patterns = " and ".join(repr(matcher.as_written) for matcher in matchers)
            raise ValueError(
                f"{self.caller}: patterns must be disjoint; site {found[0].name!r} at {source} is"
                f" matched by {patterns}. Narrow them, or pass a list of pairs, of which the first"
                " match wins."
            )
        return found[0] if found else None


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _as_matcher(caller: str, pattern: object) -> Matcher:
    if isinstance(pattern, Matcher):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(
            f"{caller}: a pattern must be a string or from jaxdrop.match; got {pattern!r}."
        )
    return Matcher("site", pattern)


def _as_rule(caller: str, pattern: object, drop: object) -> Rule:
    if not (callable(drop) or isinstance(drop, Rule)):
        raise TypeError(
            f"{caller}: the rule for {pattern!r} must be a function (key, x) -> y or a Rule;"
            f" got {drop!r}."
        )
    return drop if isinstance(drop, Rule) else Rule(cast(Drop, drop))
