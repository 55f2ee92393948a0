"""What does dropout cost in lines, beside the framework's own way?

    python examples/side_by_side/compare.py

trains each of the programs in this folder twice: with what its framework offers, and with
jaxdrop. It prints the lines of both (without imports, comments and what both share) and the
losses at test time, before and after.
"""

import importlib
import re
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "compare")


class Lines(NamedTuple):
    """How many lines each way has."""

    framework: int
    jaxdrop: int


def lines(name: str) -> Lines:
    """The lines of a program, from the comments that divide its file."""
    text = (HERE / f"{name}.py").read_text()
    _, framework, jaxdrop, _ = re.split(r"^# With .*\n|^# Both.*\n", text, flags=re.M)
    return Lines(*(sum(map(bool, part.split("\n"))) for part in (framework, jaxdrop)))


def main() -> None:
    """Runs all programs and prints the table."""
    print(f"{'program':<26} {'way':<8} {'lines':>5} {'loss before':>12} {'after':>8}")
    for name in NAMES:
        programs = importlib.import_module(name).PROGRAMS
        for (way, train), count in zip(programs.items(), lines(name), strict=True):
            before, after = train()
            print(f"{name:<26} {way:<8} {count:>5} {before:>12.3f} {after:>8.3f}")


if __name__ == "__main__":
    main()
