"""Matchers: which values a rule means, by their names, their types and what is around them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, TypeAlias

import jax

Predicate: TypeAlias = Callable[[jax.ShapeDtypeStruct], bool]


@dataclass(frozen=True)
class Candidate:
    """A name by which a rule may match a value."""

    kind: str
    name: str
    path: str = ""  # of a marked array in its pytree

    @property
    def text(self) -> str:
        """The name in keys and tables."""
        return (self.name if self.kind == "site" else f"{self.kind}:{self.name}") + self.path


class Name(Protocol):
    """A name that a value has."""

    @property
    def candidate(self) -> Candidate:
        """The name."""
        ...

    @property
    def matcher(self) -> "Named | None":
        """The matcher that alone may match it, if it was found for that matcher."""
        ...


class Seen(Protocol):
    """What a matcher sees of a value."""

    @property
    def names(self) -> Sequence[Name]:
        """All names that were found."""
        ...

    @property
    def type(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype."""
        ...

    def is_inside(self, matcher: "Named") -> bool:
        """Whether it is computed inside of a scope, function or call that matches."""
        ...


class Matcher:
    """What a rule matches. The functions of `jaxdrop.match` make matchers.

    `a & b` matches what both match, `a | b` what one of them matches, and `~a` what `a`
    does not match. At least one of the two sides of `&`, and both of `|`, must name values.
    """

    @property
    def parts(self) -> Sequence["Matcher"]:
        """The matchers that it is made of."""
        return ()

    @property
    def names_values(self) -> bool:
        """Whether what it matches has a name, from which keys are made."""
        return False

    def find(self, seen: Seen) -> Sequence[Name] | None:
        """The names by which it matches a value, or None if it does not match."""
        raise NotImplementedError

    def __and__(self, other: "Matcher") -> "Matcher":
        return Both(self, other) if isinstance(other, Matcher) else NotImplemented

    def __or__(self, other: "Matcher") -> "Matcher":
        return Either(self, other) if isinstance(other, Matcher) else NotImplemented

    def __invert__(self) -> "Matcher":
        return Not(self)

    def __bool__(self) -> bool:
        # `a and b` would be `b`, and nobody would notice.
        raise TypeError(
            f"match: matchers are combined by &, | and ~, not by and, or, not: {self!r}."
        )

    @property
    def as_written(self) -> str:
        """The matcher as the user wrote it in a rule."""
        return repr(self)


@dataclass(frozen=True, repr=False)
class Named(Matcher):
    """A pattern for names of one kind."""

    kind: str
    pattern: str
    # Which of several values that leave a scope, function or call is meant: an index, or a
    # predicate over their types.
    output: int | Predicate | None = None

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

    @property
    def names_values(self) -> bool:
        """True: it matches names."""
        return True

    def matches(self, candidate: Candidate) -> bool:
        """Whether the pattern fits a name of the same kind, with its path or without."""
        names = {candidate.name, candidate.name + candidate.path}
        return self.kind == candidate.kind and any(fits(self.pattern, name) for name in names)

    def find(self, seen: Seen) -> Sequence[Name] | None:
        """The names that the pattern fits."""
        found = [
            name
            for name in seen.names
            if name.matcher in (None, self) and self.matches(name.candidate)
        ]
        return found or None


@dataclass(frozen=True, repr=False)
class Inside(Matcher):
    """Values that are computed inside of a scope, a function or a call."""

    outer: Named

    def __post_init__(self) -> None:
        if not isinstance(self.outer, Named) or self.outer.kind not in GROUPED:
            kinds = ", ".join(f"match.{kind}" for kind in GROUPED)
            raise TypeError(f"match.within: outer must be one of {kinds}; got {self.outer!r}.")

    def __repr__(self) -> str:
        return f"match.within({self.outer!r})"

    @property
    def parts(self) -> Sequence[Matcher]:
        """The matcher of what is around."""
        return (self.outer,)

    def find(self, seen: Seen) -> Sequence[Name] | None:
        """No name, if the value is inside."""
        return () if seen.is_inside(self.outer) else None


@dataclass(frozen=True, repr=False)
class OfType(Matcher):
    """Values of some shapes or dtypes."""

    predicate: Predicate

    def __post_init__(self) -> None:
        if not callable(self.predicate):
            raise TypeError(
                "match.value: predicate must be a function of shape and dtype; got"
                f" {self.predicate!r}."
            )

    def __repr__(self) -> str:
        return f"match.value({self.predicate!r})"

    def find(self, seen: Seen) -> Sequence[Name] | None:
        """No name, if the predicate holds."""
        return () if self.predicate(seen.type) else None


@dataclass(frozen=True, repr=False)
class Both(Matcher):
    """Values that two matchers match."""

    left: Matcher
    right: Matcher

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"

    @property
    def parts(self) -> Sequence[Matcher]:
        """Both sides."""
        return self.left, self.right

    @property
    def names_values(self) -> bool:
        """Whether one side names values."""
        return self.left.names_values or self.right.names_values

    def find(self, seen: Seen) -> Sequence[Name] | None:
        """The names of both sides."""
        left, right = self.left.find(seen), self.right.find(seen)
        return None if left is None or right is None else (*left, *right)


@dataclass(frozen=True, repr=False)
class Either(Matcher):
    """Values that one of two matchers matches."""

    left: Matcher
    right: Matcher

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"

    @property
    def parts(self) -> Sequence[Matcher]:
        """Both sides."""
        return self.left, self.right

    @property
    def names_values(self) -> bool:
        """Whether both sides name values."""
        return self.left.names_values and self.right.names_values

    def find(self, seen: Seen) -> Sequence[Name] | None:
        """The names of the first side that matches."""
        left = self.left.find(seen)
        return self.right.find(seen) if left is None else left


@dataclass(frozen=True, repr=False)
class Not(Matcher):
    """Values that a matcher does not match."""

    matcher: Matcher

    def __repr__(self) -> str:
        return f"~{self.matcher!r}"

    @property
    def parts(self) -> Sequence[Matcher]:
        """The matcher."""
        return (self.matcher,)

    def find(self, seen: Seen) -> Sequence[Name] | None:
        """No name, if the value is not matched."""
        return () if self.matcher.find(seen) is None else None


GROUPED = ("named_scope", "function", "jit")
"""The kinds of matchers whose values leave a group of equations."""


def fits(pattern: str, name: str) -> bool:
    """Whether a glob fits a name."""
    # `layer[0]` fits itself, though fnmatch takes it for a pattern that fits `layer0`.
    return name == pattern or fnmatchcase(name, pattern)


def named_in(matcher: Matcher) -> list[Named]:
    """All patterns in a matcher, also of what must be around."""
    if isinstance(matcher, Named):
        return [matcher]
    return [named for part in matcher.parts for named in named_in(part)]


def negated_in(matcher: Matcher) -> list[Named]:
    """All patterns in a matcher that are behind a `~`."""
    if isinstance(matcher, Not):
        return named_in(matcher)
    return [named for part in matcher.parts for named in negated_in(part)]


def is_decided_by_mark(matcher: Matcher) -> bool:
    """Whether the name of a mark alone says if a marked value is matched."""
    if isinstance(matcher, Named):
        return matcher.kind == "site"
    return bool(matcher.parts) and all(map(is_decided_by_mark, matcher.parts))


def named_by(matcher: Matcher) -> list[Named]:
    """The patterns in a matcher of which a value may have the name."""
    if isinstance(matcher, Named):
        return [matcher]
    if isinstance(matcher, Inside):
        return []
    return [named for part in matcher.parts for named in named_by(part)]
