"""Which of the values that leave a scope or a function is its output, and which are state."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Var

from jaxdrop.base.describe import describe
from jaxdrop.planting.equations import Equation
from jaxdrop.planting.matchers import Candidate, Named


class Leaving(NamedTuple):
    """A floating value that leaves a scope, a function or a call."""

    equation: Equation
    variable: Var
    is_used: bool  # by equations outside; False if it is only returned
    alike: Hashable  # equal for the same value of several calls

    @property
    def type(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype."""
        aval: Any = self.variable.aval
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def outputs_of(
    values: Sequence[Leaving], matcher: Named, candidate: Candidate, caller: str
) -> list[Leaving]:
    """The values that the matcher's rule drops.

    A model computes further with an output. State, such as a running mean or cached
    keys, is only returned. If this leaves several values, the user must choose.

    Args:
      values: what leaves one entry or call.
      matcher: the matcher, which may say which value is meant.
      candidate: the name that it matches.
      caller: the function of this library that the user called.

    Raises:
      ValueError: the matcher does not say which value is meant, or none is.
    """
    kinds = list(dict.fromkeys(value.alike for value in values))
    if matcher.output is None:
        used = {value.alike for value in values if value.is_used}
        chosen = [kind for kind in kinds if kind in used] or kinds
        if len(chosen) > 1:
            chosen = []
    elif isinstance(matcher.output, int):
        chosen = kinds[matcher.output :][:1]
    else:
        chosen = {value.alike for value in values if matcher.output(value.type)}
    if not chosen:
        raise _undecided(values, kinds, matcher, candidate, caller)
    return [value for value in values if value.alike in chosen]


def _undecided(
    values: Sequence[Leaving],
    kinds: Sequence[Hashable],
    matcher: Named,
    candidate: Candidate,
    caller: str,
) -> ValueError:
    first = {value.alike: value for value in reversed(values)}
    rows = [
        f"\n  {index}: {describe(first[kind].type)},"
        f" {'used further' if first[kind].is_used else 'only returned'},"
        f" {first[kind].equation.source}"
        for index, kind in enumerate(kinds)
    ]
    return ValueError(
        f"{caller}: output must say which of these leaves {candidate.text!r} to be dropped; got"
        f" {matcher.output!r}:{''.join(rows)}\nPass match.{candidate.kind}(..., output=) an index"
        " or a function of shape and dtype, or mark the value by jaxdrop.site."
    )
