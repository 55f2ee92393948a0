"""What the tables of probes share: to run a probe, and to say how it measures."""

from collections.abc import Callable
from typing import Any


def attempt(probe: Callable[[], str]) -> str:
    """What a probe finds, or the name of the exception that it meets."""
    try:
        return probe()
    except Exception as error:  # whatever a library raises is the result
        return type(error).__name__


def refused(call: Callable[[float], object], rate: float) -> str:
    """Whether a call with this rate raises."""
    try:
        call(rate)
    except Exception:  # a library may choose which
        return "refused"
    return "accepted"


def how(probe: Callable[..., Any]) -> str:
    """The docstring of a probe, on one line."""
    return " ".join((probe.__doc__ or "").split())
