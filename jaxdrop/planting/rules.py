"""Rules: which drop is planted at which values, and which runs share a mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import NamedTuple, TypeAlias, cast

import numpy as np
from jax import Array

from jaxdrop.base.types import Drop
from jaxdrop.planting.matchers import Candidate, Matcher, Name, Named, Seen, named_by, named_in

AnyDrop: TypeAlias = Callable[..., Array]
"""`(key, x) -> y`, or `(key, x, rate) -> y` for a rule with a rate."""
Schedule: TypeAlias = Callable[[int | Array, int], float | Array]
"""The rate of a run, from its number and the number of all runs."""


@dataclass(frozen=True)
class Rule:
    """A drop, its rate, and which runs share its masks. A drop without a `Rule` shares nothing.

    Args:
      drop: a pure function `(key, x) -> y` that keeps the shape and dtype. With `rate`,
        it is called as `drop(key, x, rate)`.
      rate: the rate of each run. A pair (first, last) stands for a rate that changes
        linearly from the first run of the rule to the last one, as in stochastic depth;
        of a single run it is the last. A function `(run, runs) -> rate` is called with
        the number of the run and the number of all runs. Runs are counted in program
        order over all values that the rule matches, through calls, scans and
        checkpoints; in a scan the number is traced. Steps that share a mask, by `share_loop`,
        are one run. Arrays at different paths of a marked pytree are counted separately.
        None means that the drop knows its rate.
      share_vmap: whether all examples of an inner `vmap` share a mask.
      share_loop: whether all steps of the innermost loop share a mask. In a recurrent
        network this is variational dropout.
      share_runs: whether all runs of a site share a mask: all calls and all steps of all
        loops, also in the rule of a custom derivative. A solver of differential
        equations needs this, because it takes the site for one function. Examples of
        an inner `vmap` and devices still have masks of their own.
      mesh_axes: the mesh axes of a `shard_map` along which each device draws a mask of
        its own. None means the axes over which the value varies. JAX knows these axes,
        except in a `shard_map` with `check_vma=False`, where they must be named. Devices
        that have the same value along an axis share a mask in any case.

    Raises:
      TypeError: `drop` is not callable, `rate` is none of the above, or `mesh_axes` is a
        string.
      ValueError: there is a `rate` that depends on the run, and all runs share a mask.

    Example:
      >>> def rnn(x):
      ...     step = lambda h, _: (site(h, "state"), None)
      ...     return jax.lax.scan(step, x, length=5)[0]
      >>> locked = Rule(partial(dropout, rate=0.5), share_loop=True)
      >>> h = plant(rnn, {"state": locked})(jax.random.key(0), jnp.ones(8))
      >>> bool(jnp.all((h == 0) | (h == 2**5)))
      True

      Stochastic depth, with a rate that rises from 0 to .2 over the layers:

      >>> def model(x, layers):
      ...     for w in layers:
      ...         x = x + site(jnp.tanh(x @ w), "branch")
      ...     return x
      >>> rising = Rule(drop_path, rate=(0.0, 0.2))
      >>> layers = jnp.ones((12, 4, 4))
      >>> plant(model, {"branch": rising})(jax.random.key(0), jnp.ones((3, 4)), layers).shape
      (3, 4)

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

    drop: AnyDrop
    rate: float | Array | tuple[float, float] | Schedule | None = None
    share_vmap: bool = False
    share_loop: bool = False
    share_runs: bool = False
    mesh_axes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not callable(self.drop):
            raise TypeError(f"Rule: drop must be a function (key, x) -> y; got {self.drop!r}.")
        if isinstance(self.mesh_axes, str):
            raise TypeError(f"Rule: mesh_axes must be a sequence of names; got {self.mesh_axes!r}.")
        if not (self.rate is None or _is_rate(self.rate) or self.counts_runs):
            raise TypeError(
                "Rule: rate must be a number, a pair (first, last) or a function of the run and of"
                f" the number of runs; got {self.rate!r}."
            )
        if self.counts_runs and self.share_runs:
            raise ValueError(
                "Rule: rate must be one number if share_runs; all runs share one mask, so they"
                f" have one rate; got {self.rate!r}."
            )

    @property
    def counts_runs(self) -> bool:
        """Whether the rate depends on the number of the run."""
        pair = (
            isinstance(self.rate, tuple) and len(self.rate) == 2 and all(map(_is_rate, self.rate))
        )
        return pair or callable(self.rate)

    def at(self, run: int | Array, runs: int) -> Drop:
        """The drop `(key, x) -> y` of a run."""
        rate = self.rate
        if rate is None:
            return self.drop
        if isinstance(rate, tuple):
            first, last = rate
            share = run / (runs - 1) if runs > 1 else 1.0
            rate = first + (last - first) * share
        elif callable(rate):
            rate = rate(run, runs)
        return lambda key, x: self.drop(key, x, rate)


def _is_rate(value: object) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number or isinstance(value, Array | np.ndarray)


RulesLike: TypeAlias = (
    # `Mapping` is invariant in its keys, and a dict of strings is the usual one.
    Mapping[str, Drop | Rule | None]
    | Mapping[Matcher, Drop | Rule | None]
    | Mapping[str | Matcher, Drop | Rule | None]
    | Sequence[tuple[str | Matcher, Drop | Rule | None]]
)
"""What the user gives: a dict, or a list of pairs in which the first match wins."""


class Match(NamedTuple):
    """The rule for a value, with its matcher, and the name of the value that it matches."""

    candidate: Candidate
    matcher: Matcher
    rule: Rule
    place: int  # of the rule among all

    @property
    def name(self) -> str:
        """The name from which the keys of the value are made."""
        return self.candidate.text

    @property
    def is_marked(self) -> bool:
        """Whether the value is matched by the name that `site` gave."""
        return self.candidate.kind == "site"

    @property
    def counter(self) -> str:
        """What the runs are counted by on which the rate depends."""
        # By the place, since two matchers may have one text, and a text may have an address,
        # which differs between processes.
        return f"{COUNTER}{self.place}{self.candidate.path}"


COUNTER = "\0rate of rule "
"""In front of the names of counters, among the names of sites."""


def is_counter(name: str) -> bool:
    """Whether this is the name of a counter, and not of a site."""
    return name.startswith(COUNTER)


class Rules:
    """The user's rules, as pairs of a matcher and a rule, which is None to leave values alone."""

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
        for matcher, rule in self.pairs:
            if rule:
                _refuse_unfit(caller, matcher, rule)
        if self.is_disjoint:
            # Patterns of a dict do not overlap, except with those that leave values alone.
            self.pairs.sort(key=lambda pair: pair[1] is not None)

    @property
    def matchers(self) -> list[Matcher]:
        """The matchers, in the order of the rules."""
        return [matcher for matcher, _ in self.pairs]

    @cached_property
    def named(self) -> list[Named]:
        """The patterns in all matchers, each once, also of what must be around."""
        return list(dict.fromkeys(named for one in self.matchers for named in named_in(one)))

    @cached_property
    def naming(self) -> list[Named]:
        """The patterns in all matchers of which a value may have the name, each once."""
        return list(dict.fromkeys(named for one in self.matchers for named in named_by(one)))

    def find(self, seen: Seen, source: str) -> tuple[Match, Name] | Matcher | None:
        """The rule for a value, and the name of the value that it matches.

        Args:
          seen: the value.
          source: the line that made the value.

        Returns:
          The first rule that matches and the name; or the matcher, if this rule leaves
          a value alone that another rule matches; or None.

        Raises:
          ValueError: two rules of a dict match.
        """
        matching = [
            (place, matcher, rule, names)
            for place, (matcher, rule) in enumerate(self.pairs)
            if (names := matcher.find(seen)) is not None
        ]
        found = [
            (Match(names[0].candidate, matcher, rule, place), names[0])
            for place, matcher, rule, names in matching
            if rule
        ]
        if not found:
            return None
        _, matcher, rule, _ = matching[0]
        if rule is None:
            return matcher
        if self.is_disjoint and len(found) > 1:
            patterns = " and ".join(repr(match.matcher.as_written) for match, _ in found)
            raise ValueError(
                f"{self.caller}: patterns must be disjoint; site {found[0][0].name!r} at {source}"
                f" is matched by {patterns}. Narrow them, or pass a list of pairs, of which the"
                " first match wins."
            )
        return found[0]


def _refuse_unfit(caller: str, matcher: Matcher, rule: Rule) -> None:
    if not matcher.names_values:
        raise ValueError(
            f"{caller}: a rule with a drop must match values that have a name; got {matcher!r}."
            " Put & between it and a matcher of a site, a tag, a named_scope, a function, a jit or"
            " a primitive."
        )
    # A mark knows which axis is the batch; a value that a matcher finds does not.
    if rule.share_vmap and any(named.kind != "site" for named in named_by(matcher)):
        raise ValueError(
            f"{caller}: share_vmap must be left out for {matcher!r}; got True. In"
            " a vmap, a matcher finds the whole batch, which has one mask. Use a drop with"
            " broadcast_dims, or mark the value."
        )


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _as_matcher(caller: str, pattern: object) -> Matcher:
    if isinstance(pattern, Matcher):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(
            f"{caller}: a pattern must be a string or from jaxdrop.match; got {pattern!r}."
        )
    return Named("site", pattern)


def _as_rule(caller: str, pattern: object, drop: object) -> Rule | None:
    if drop is None or isinstance(drop, Rule):
        return drop
    if not callable(drop):
        raise TypeError(
            f"{caller}: the rule for {pattern!r} must be a function (key, x) -> y, a Rule or None;"
            f" got {drop!r}."
        )
    return Rule(cast(Drop, drop))
