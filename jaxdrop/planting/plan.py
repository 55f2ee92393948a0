"""The interpreter: a jaxpr as a sequence of steps, of which some take keys.

Equations without a site are left to JAX, in runs as long as possible. The other
steps are drops, and calls whose bodies are plans again.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Concatenate, TypeAlias

from jax.extend.core import Jaxpr, Literal, Var

from jaxdrop.planting.drops import Site
from jaxdrop.planting.jaxprs import Value, Values, unique_variables
from jaxdrop.planting.keys import Streams
from jaxdrop.planting.matchers import Matcher
from jaxdrop.planting.table import SiteRow

Runs: TypeAlias = Mapping[str, int]
"""How many times each site runs, and how far the counters of rules go."""
Evaluate: TypeAlias = Callable[Concatenate[Streams, ...], Values]
"""A function of streams of keys and of values."""


@dataclass(frozen=True)
class Dropped:
    """The value of a variable after its drop, where it is not marked but matched."""

    variable: Var


Name: TypeAlias = Var | Dropped
"""What a value is known by while a plan is evaluated."""


@dataclass(frozen=True)
class Step:
    """One step: a drop, a call with sites inside, or a run of equations without a site."""

    evaluate: Evaluate
    operands: Sequence[Name | Literal]
    results: Sequence[Name]
    runs: Runs = field(default_factory=dict[str, int])
    # Of these, the runs that the steps of the next loop around share.
    shared_runs: Runs = field(default_factory=dict[str, int])
    # Not the same as the names in `runs`: a mark whose token was drawn elsewhere is a site, but
    # it draws no key.
    sites: tuple[Site, ...] = ()
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    """Of the equation: its named scopes, its source line and JAX's configuration there."""


class Plan:
    """What to evaluate for a jaxpr; called with the streams of its sites and its operands."""

    def __init__(
        self,
        jaxpr: Jaxpr,
        consts: Values,
        steps: Sequence[Step],
        results: Sequence[Name | Literal],
        rows: Sequence[SiteRow],
        excluded: Set[Matcher],
        dropped: Sequence[Site | None],
    ) -> None:
        self.operands = [*jaxpr.constvars, *jaxpr.invars]
        self.consts = consts
        self.steps = steps
        self.results = results
        self.rows = rows
        """For each site, at any depth, where it is in this jaxpr and how often it runs."""
        self.excluded = excluded
        """Matchers that keep other rules from values, at any depth."""
        self.dropped = dropped
        """For each result, the site by which it is dropped already."""
        self.runs = _total(step.runs for step in steps)
        self.shared_runs = _total(step.shared_runs for step in steps)
        self.sites = [site for step in steps for site in step.sites]
        # The calls with this plan as body, each built once for all equations that are alike.
        self.calls: dict[Hashable, Evaluate] = {}
        self._unused_after = _last_uses(steps, results)

    def __call__(self, streams: Streams, *operands: Value) -> tuple[Value, ...]:
        """The results of the jaxpr."""
        values: dict[Name, Value] = dict(zip(self.operands, [*self.consts, *operands], strict=True))
        streams = dict(streams)

        def read(atom: Name | Literal) -> Value:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for step, unused in zip(self.steps, self._unused_after, strict=True):
            # A step gets the streams of its own sites alone. So the operands of a call do not
            # change when a site is added elsewhere, and its masks do not either.
            here = {name: streams[name] for name in step.runs}
            with step.context():
                results = step.evaluate(here, *map(read, step.operands))
            values.update(zip(step.results, results, strict=True))
            streams.update({name: here[name].after(n) for name, n in step.runs.items()})
            # Outside of jit each step runs by itself, and a value that nobody reads any more
            # would keep its memory until the end.
            for variable in unused:
                del values[variable]
        return tuple(map(read, self.results))

    def order(self, counter: str) -> list[str]:
        """The names of the sites that a counter counts, in program order."""
        return [site.match.name for site in self.sites if counter in site.counted]

    def is_looped(self, name: str) -> bool:
        """Whether a site is in a while loop, so that it may run more often than `runs` says."""
        return any(row.site == name and row.runs is None for row in self.rows)


def _total(runs: Iterable[Runs]) -> Runs:
    total: dict[str, int] = {}
    for some in runs:
        for name, count in some.items():
            total[name] = total.get(name, 0) + count
    return total


def _last_uses(steps: Sequence[Step], kept: Sequence[Name | Literal]) -> list[list[Name]]:
    """For each step, the variables that nothing reads after it."""
    last = {
        variable: index
        for index, step in enumerate(steps)
        for variable in unique_variables([*step.results, *step.operands])
    }
    for variable in unique_variables(kept):
        last.pop(variable, None)
    unused: list[list[Name]] = [[] for _ in steps]
    for variable, index in last.items():
        unused[index].append(variable)
    return unused
