"""Which instructions of a Python function may run after which, in one call of it.

Two calls from one place look like one call, since JAX records only the lines that were
running. But what one call ran can tell: after a branch that returns, no other branch of
the same call runs.
"""

import dis
from bisect import bisect_right
from functools import lru_cache
from types import CodeType

_LEAVES = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
_ALWAYS_JUMPS = {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"}


def may_follow(code: CodeType, first: int, second: int) -> bool:
    """Whether one call may run the instruction at offset `second` after that at `first`."""
    offsets = _offsets(code)
    # A position may lie in the caches behind an instruction.
    first, second = (offsets[bisect_right(offsets, place) - 1] for place in (first, second))
    return second in _after(code, first)


@lru_cache(maxsize=4096)
def _after(code: CodeType, first: int) -> frozenset[int]:
    following = _following(code)
    seen: set[int] = set()
    todo = list(following[first])
    while todo:
        offset = todo.pop()
        if offset not in seen:
            seen.add(offset)
            todo += following[offset]
    return frozenset(seen)


@lru_cache(maxsize=256)
def _offsets(code: CodeType) -> tuple[int, ...]:
    return tuple(_following(code))


@lru_cache(maxsize=256)
def _following(code: CodeType) -> dict[int, list[int]]:
    """For each instruction, those that may run next."""
    bytecode = dis.Bytecode(code)
    instructions = list(bytecode)
    following: dict[int, list[int]] = {}
    for one, next_one in zip(instructions, [*instructions[1:], None], strict=True):
        jumps = one.opcode in dis.hasjrel or one.opcode in dis.hasjabs
        following[one.offset] = [one.argval] if jumps else []
        if next_one and one.opname not in _LEAVES | _ALWAYS_JUMPS:
            following[one.offset].append(next_one.offset)
    # Python has it, but does not document it.
    for entry in getattr(bytecode, "exception_entries", ()):
        for offset in following:
            if entry.start <= offset < entry.end:
                following[offset].append(entry.target)
    return following
