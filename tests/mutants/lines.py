"""A plugin of pytest that notes which lines of the package each test runs, for `sample.py`.

It needs `sys.monitoring`, which Python has from 3.12 on: a line that was noted is not looked
at again before the next test, so that all tests take hardly longer than without it.
"""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = f"{ROOT / 'jaxdrop'}{os.sep}"

_seen = set()
_found = {}


def _note(code, line):
    if code.co_filename.startswith(PACKAGE):
        _seen.add((code.co_filename, line))
    return sys.monitoring.DISABLE


def pytest_configure():
    tool = sys.monitoring.COVERAGE_ID
    sys.monitoring.use_tool_id(tool, "lines")
    sys.monitoring.register_callback(tool, sys.monitoring.events.LINE, _note)
    sys.monitoring.set_events(tool, sys.monitoring.events.LINE)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    _seen.clear()
    sys.monitoring.restart_events()
    began = sum(os.times()[:4])
    yield
    lines = {}
    for file, line in _seen:
        lines.setdefault(str(Path(file).relative_to(ROOT)), []).append(line)
    _found[item.nodeid] = {"seconds": sum(os.times()[:4]) - began, "lines": lines}


def pytest_sessionfinish():
    if _found:
        folder = Path(os.environ["LINES_OF_TESTS"])
        (folder / f"{os.getpid()}.json").write_text(json.dumps(_found))
