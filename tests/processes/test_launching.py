"""The helper that starts groups of processes shows what fails and leaves nothing running."""

import os
import time

import pytest
from processes import run_with_all_children

SLEEPING = """
import os, pathlib, sys, time
from processes import run_group

def work(index, count, port, folder):
    if index == 0 and {fails}:
        raise ValueError("this one fails")
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(600)

run_group(work, 3, sys.argv[1])
"""


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("fails", "match", "timeout"),
    [(True, r"exit code 1\n(.|\n)*this one fails", 60), (False, "exit code none after 5 s", 5)],
)
def test_all_processes_end_when_one_fails_or_time_is_over(fails, match, timeout, tmp_path):
    (pids := tmp_path / "pids").mkdir()
    began = time.monotonic()
    with pytest.raises(AssertionError, match=match):
        run_with_all_children(
            "-c", SLEEPING.format(fails=fails), pids, log=tmp_path / "log", timeout=timeout
        )
    assert time.monotonic() - began < 60
    started = [int(path.name) for path in pids.iterdir()]
    assert fails or len(started) == 3
    deadline = time.monotonic() + 10  # the killed are collected by whoever inherits them
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, started))
