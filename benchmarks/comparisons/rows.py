"""Rows of the tables: a probe enters its module's rows with its names and arguments."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

Answers: TypeAlias = dict[str, Callable[[], str]]
"""From the name of a library to a function that finds out what it does."""
Row: TypeAlias = tuple[str, str, Callable[..., Any], tuple[Any, ...]]
"""A method, the peer or the question beside it, a probe and its arguments for them."""
Probe = TypeVar("Probe", bound=Callable[..., Any])


def enters(
    rows: list[Row], method: str, beside: Mapping[str, tuple[Any, ...]]
) -> Callable[[Probe], Probe]:
    """Enters a probe of a method, once for each peer or question that it is given."""

    def enter(probe: Probe) -> Probe:
        rows.extend((method, each, probe, arguments) for each, arguments in beside.items())
        return probe

    return enter
