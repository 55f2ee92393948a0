"""Starts processes that know each other, and never leaves one behind."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path


def run_with_all_children(*command, log, timeout):
    """Runs Python, shows what it said if it fails, and ends all that it started in any case."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        code = f"none after {timeout} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert code == 0, f"exit code {code}\n{log.read_text()[-5000:]}"


def run_group(function, count, *arguments):
    """Forks `count` processes that run `function(index, count, port, *arguments)`.

    Returns when all have ended, or exits as soon as one has failed.
    """
    fork = multiprocessing.get_context("fork")
    with reserved_port() as port:
        group = [
            fork.Process(target=function, args=(index, count, port, *arguments), daemon=True)
            for index in range(count)
        ]
        for process in group:
            process.start()
        running = {process.sentinel: process for process in group}
        while running:
            for sentinel in wait(running):
                process = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    sys.exit(f"{process.name} of {count} ended with {process.exitcode}")


@contextmanager
def reserved_port():
    """A port that nobody else is given, on which a server that shares ports may listen."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
