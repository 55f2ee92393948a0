"""Counts what was really tried, over all workers, and prints it."""

from collections import Counter

import jax
import pytest

KEEP_PROGRAMS_FOR = 200  # examples; then compiled programs would fill the memory
tried = Counter()


@pytest.fixture
def count():
    """For a test to call where an example has passed, or a program has been built."""

    def count(what="examples"):
        tried[what] += 1
        if tried["examples"] % KEEP_PROGRAMS_FOR == 0:
            jax.clear_caches()

    return count


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = dict(tried)


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_testnodedown(node):
    tried.update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_terminal_summary(terminalreporter):
    if tried:
        counts = ", ".join(f"{number} {what}" for what, number in sorted(tried.items()))
        terminalreporter.section(f"fuzz: {counts} passed")
