"""Runs tests inside of a copy of the repository and reports what failed, for `run.py`."""

import json
import sys
from pathlib import Path

import pytest


class Recorder:
    """Collects failures as pytest sees them: where, of which kind, and what they say."""

    def __init__(self):
        self.failures = []

    def pytest_exception_interact(self, call, report):
        where = getattr(report, "when", "collect")
        kind = call.excinfo.typename
        self.failures.append({"where": where, "kind": kind, "says": str(call.excinfo.value)})


def main(report, *arguments):
    recorder = Recorder()
    status = pytest.main(["-p", "no:cacheprovider", "-q", *arguments], plugins=[recorder])
    jaxdrop = sys.modules.get("jaxdrop")
    imported = str(jaxdrop.__file__) if jaxdrop else None
    found = {"status": int(status), "imported": imported, "failures": recorder.failures}
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
