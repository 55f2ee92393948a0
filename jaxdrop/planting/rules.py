"""Rules: which drop is planted where, and what its masks share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, cast

from jaxdrop.base.types import Drop


@dataclass(frozen=True)
class Matcher:
    """A pattern over the names of one kind; made by the functions of `jaxdrop.match`."""

    kind: str
    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise TypeError(f"match.{self.kind}: pattern must be a string; got {self.pattern!r}.")

    def __repr__(self) -> str:
        return f"match.{self.kind}({self.pattern!r})"

    def matches(self, candidate: "Candidate") -> bool:
        """Whether the pattern fits a name of the same kind."""
        if self.kind != candidate.kind:
            return False
        return candidate.name == self.pattern or fnmatchcase(candidate.name, self.pattern)


@dataclass(frozen=True)
class Rule:
    """A drop, and over what its masks are shared; a bare drop shares nothing.

    Args:
      drop: a pure function `(key, x) -> y` that keeps the shape and dtype.
      share_vmap: one mask for all examples of an inner `vmap`.
      share_loop: one mask for all steps of the innermost loop, which is
        variational dropout in a recurrent network.
      mesh_axes: inside `shard_map`, the mesh axes along which devices draw masks
        of their own. None means those over which the value varies, which is
        known unless it was called with `check_vma=False`. A value that is the same
        on all devices of an axis has one mask there in any case.

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
    """

    drop: Drop
    share_vmap: bool = False
    share_loop: bool = False
    mesh_axes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not callable(self.drop):
            raise TypeError(f"Rule: drop must be a function (key, x) -> y; got {self.drop!r}.")
        if isinstance(self.mesh_axes, str):
            raise TypeError(f"Rule: mesh_axes must be names, not one; got {self.mesh_axes!r}.")


Rules: TypeAlias = Mapping[str | Matcher, Drop | Rule] | Sequence[tuple[str | Matcher, Drop | Rule]]


@dataclass(frozen=True)
class Candidate:
    """A name by which a rule may match a value."""

    kind: str
    name: str

    @property
    def text(self) -> str:
        """The name in keys and tables."""
        return self.name if self.kind == "site" else f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Match:
    """A value that a rule matches: the name of its stream, and its pattern and rule."""

    name: str
    matcher: Matcher
    rule: Rule
    insiders: frozenset[int] = frozenset()  # equations that read it before it is dropped


class RuleBook:
    """Rules in canonical form, and what they match."""

    def __init__(self, function: str, rules: Any) -> None:
        self.function = function
        self.disjoint = isinstance(rules, Mapping)
        pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
        if not isinstance(pairs, list | tuple) or not all(_is_pair(pair) for pair in pairs):
            raise TypeError(
                f"{function}: rules must be a dict from patterns to drops, or a list of such"
                f" pairs; got {rules!r}."
            )
        self.rules = [
            (_as_matcher(function, pattern), _as_rule(function, pattern, drop))
            for pattern, drop in pairs
        ]
        for matcher, rule in self.rules:
            if rule.share_vmap and matcher.kind != "site":
                raise ValueError(
                    f"{function}: share_vmap must be left out for {matcher!r}; got True. What a"
                    " matcher finds in a vmap is the whole batch, with one mask over it. Drop with"
                    " broadcast_dims, or mark the value."
                )

    @property
    def matchers(self) -> list[Matcher]:
        """The patterns, in the order of the rules."""
        return [matcher for matcher, _ in self.rules]

    def find(self, candidates: Sequence[Candidate], path: str, source: str) -> Match | None:
        """The rule for a value that goes by several names."""
        found = [
            Match(candidate.text + path, matcher, rule)
            for matcher, rule in self.rules
            for candidate in candidates
            if matcher.matches(candidate)
        ]
        matchers = dict.fromkeys(match.matcher for match in found)
        if self.disjoint and len(matchers) > 1:
            patterns = " and ".join(repr(str_of(matcher)) for matcher in matchers)
            raise ValueError(
                f"{self.function}: patterns must be disjoint; site {found[0].name!r} at {source} is"
                f" matched by {patterns}. Narrow them, or pass a list of pairs, of which the first"
                " match wins."
            )
        return found[0] if found else None


def str_of(matcher: Matcher) -> str:
    """A matcher as the user wrote it."""
    return matcher.pattern if matcher.kind == "site" else repr(matcher)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _as_matcher(function: str, pattern: Any) -> Matcher:
    if isinstance(pattern, Matcher):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(
            f"{function}: a pattern must be a string or from jaxdrop.match; got {pattern!r}."
        )
    return Matcher("site", pattern)


def _as_rule(function: str, pattern: Any, drop: Any) -> Rule:
    if not (callable(drop) or isinstance(drop, Rule)):
        raise TypeError(
            f"{function}: the rule for {pattern!r} must be a function (key, x) -> y or a Rule;"
            f" got {drop!r}."
        )
    return drop if isinstance(drop, Rule) else Rule(cast(Drop, drop))
