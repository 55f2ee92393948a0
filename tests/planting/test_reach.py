"""Which instructions one call may run after which others."""

import dis

import pytest

from jaxdrop.planting.reach import may_follow

pytestmark = pytest.mark.quick


def a(x):
    return x


b = a


def follows(function, first, second):
    """Whether one call may load the second name after the first."""
    code = function.__code__
    first, second = (
        next(one.offset for one in dis.Bytecode(code) if one.argval == name)
        for name in (first, second)
    )
    return may_follow(code, first, second)


def returning(x):
    if x:
        return a(x)
    return b(x)


def raising(x):
    if x:
        raise a(x)
    return b(x)


def going_on(x):
    if x:
        x = a(x)
    return b(x)


def looping(x):
    for y in x:
        if a(y):
            b(y)


def catching(x):
    try:
        return a(x)
    except ValueError:
        return b(x)


@pytest.mark.parametrize(
    ("function", "forwards", "backwards"),
    [
        (returning, False, False),
        (raising, False, False),
        (going_on, True, False),
        (looping, True, True),
        (catching, True, False),
    ],
)
def test_what_may_run_after_what(function, forwards, backwards):
    assert follows(function, "a", "b") == forwards
    assert follows(function, "b", "a") == backwards
    assert follows(function, "a", "a") == (function is looping)
