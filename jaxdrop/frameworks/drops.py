"""What all layers share: when a drop needs no key, and what it gives at test time."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import jax

from jaxdrop.base.validate import Check
from jaxdrop.methods.recurrent import zoneout
from jaxdrop.methods.structured import shake_drop
from jaxdrop.methods.tokens import drop_tokens

AnyDrop: TypeAlias = Callable[..., Any]
"""A drop `(key, x) -> y`, or one with more arguments, such as the old state of `zoneout`."""


def at_test_time(drop: Any, at_test: Any) -> AnyDrop:
    """What a layer gives at test time, as a function of x; refuses what is no drop."""
    check = Check("Drop")
    check.function_of("drop", drop, "(key, x)")
    if at_test is not None:
        check.function_of("at_test", at_test, "x")
        return at_test
    match list(_not_identities(drop)):
        case []:
            return _unchanged
        case [method] if method is (drop.func if isinstance(drop, partial) else drop):
            return partial(_all_tokens if method is drop_tokens else _mean, drop)
        case methods:
            raise ValueError(
                f"{check}: at_test must be a function of x, since {methods[0].__name__} inside of"
                " another drop does not say what the whole gives at test time; got None."
            )


def drops_nothing(drop: AnyDrop) -> bool:
    """Whether the rate of a drop is known to be 0, so that it needs no key."""
    rate = drop.keywords.get("rate") if isinstance(drop, partial) else None
    return isinstance(rate, int | float) and rate == 0


def with_any_key(drop: AnyDrop, x: Any, **arguments: Any) -> Any:
    """What a drop gives that draws nothing with its key."""
    return drop(jax.random.key(0), x, **arguments)


def _unchanged(x: Any, /, **_: Any) -> Any:
    return x


def _mean(drop: AnyDrop, /, x: Any, **more: Any) -> Any:
    return drop(None, x, **more)


def _all_tokens(drop: AnyDrop, /, x: Any, **more: Any) -> Any:
    return drop(None, x, **{**more, "rate": 0.0})


def _not_identities(part: Any) -> Iterator[Any]:
    """The methods in a drop whose value at test time is not their input."""
    # The combinators of this library return partials, too.
    if isinstance(part, partial):
        yield from _not_identities((part.func, *part.args))
    elif isinstance(part, tuple):
        for one in part:
            yield from _not_identities(one)
    elif part is zoneout or part is shake_drop or part is drop_tokens:
        yield part
