"""Draws small edits of the package at random, and counts those that no test notices.

    python tests/mutants/sample.py --lines FOLDER              first: which test runs what
    python tests/mutants/sample.py --lines FOLDER PLACE ... [--seed N] [--count N] [--jobs N]
    python tests/mutants/sample.py --lines FOLDER PLACE ... --only FILE

A PLACE is a folder or file of the package, such as `core`; what lies in a folder of it that
is named as a place of its own (`methods/attention` beside `methods`) belongs to that alone.
The tests that run an edited line are tried in the order of their time, those of the same
name as the file first, until one fails. An edit that no test notices in `--seconds` of
processor time is printed, and kept in FOLDER with all others. `all` means all places. Edits
of which `equivalent.txt` says why no test can notice them are counted apart.

Each edit is tried in a process that is forked from one with JAX and other libraries loaded,
which takes a tenth of the time of a new one.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from edits import Edit, edits
from run import copied

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLACES = (
    "base",
    "core",
    "rescale.py",
    "methods",
    "methods/attention",
    "planting",
    "transforms",
    "uncertainty",
    "checks",
)
LOADED = (
    "hypothesis.strategies",
    "hypothesis.extra.numpy",
    "jax",
    "jax.numpy",
    "jax.scipy.special",
    "jax.scipy.stats",
    "jax.experimental.checkify",
    "jax.experimental.pallas.tpu",
    "jax.experimental.sparse",
    "jaxtyping",
    "beartype",
    "chex",
    "optax",
    "flax.linen",
    "flax.nnx",
    "equinox",
    "haiku",
)
# By pytest's exit status. With 4, a file of tests could not be imported.
VERDICTS = {0: "survived", 1: "killed", 2: "killed", 3: "killed", 4: "killed"}
SHARED = ("jaxdrop", "tests", "examples", "docs", "benchmarks", ".ci")


@dataclass(frozen=True)
class Drawn:
    """One edit of a file of the package."""

    file: str
    edit: Edit

    def __str__(self):
        return f"{self.file}: {self.edit.shown((ROOT / self.file).read_text())}"


def drawn(place, asked):
    """A random sample of the edits of a place, the same for the same seed and the same code."""
    path = ROOT / "jaxdrop" / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    within = [ROOT / "jaxdrop" / other for other in PLACES if other.startswith(f"{place}/")]
    every = [
        Drawn(str(file.relative_to(ROOT)), edit)
        for file in files
        if not any(file.is_relative_to(other) for other in within)
        for edit in edits(file.read_text())
    ]
    if asked.only:
        chosen = set(asked.only.read_text().splitlines())
        return [one for one in every if str(one) in chosen]
    return random.Random(f"{place} {asked.seed}").sample(every, min(asked.count, len(every)))


def equivalent():
    """Edits that change no result, from a file in which the reason stands above each group."""
    lines = (HERE / "equivalent.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


class Tests:
    """Which tests run a line, the quick ones and those of the same name first."""

    def __init__(self, folder):
        noted = {}
        for path in sorted(folder.glob("[0-9]*.json"), key=lambda path: path.stat().st_mtime):
            noted |= json.loads(path.read_text())
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        self.found = {name: noted[name] for name in listed.stdout.splitlines() if name in noted}

    def of(self, drawn):
        lines = set(drawn.edit.lines)

        def runs(test):
            return lines & set(test["lines"].get(drawn.file, ()))

        names = [name for name, test in self.found.items() if runs(test)]
        if not names:  # what runs when a module is imported, no test runs
            beside = str(Path(drawn.file).parent)
            for within in (drawn.file, beside):
                names = names or [
                    name
                    for name, test in self.found.items()
                    if any(file.startswith(within) for file in test["lines"])
                ]
        folder, stem = Path(drawn.file).parent.name, Path(drawn.file).stem.rstrip("s")

        def order(name):
            kin = (stem in name) + (f"/{folder}/" in name)
            return -kin, self.found[name]["seconds"]

        return sorted(names, key=order)

    def stages(self, names, seconds):
        """A few quick tests, then as many as there is time for."""
        first, files, spent = [], set(), 0.0
        for name in names:
            file, took = name.partition("::")[0], self.found[name]["seconds"]
            if took < 1 and spent + took < 4 and len(first) < 20 and len(files | {file}) < 4:
                first.append(name)
                files.add(file)
                spent += took
        rest, spent = [], 0.0
        for name in sorted(set(names) - set(first), key=names.index):
            spent += self.found[name]["seconds"]
            if spent < seconds:
                rest.append(name)
        return [stage for stage in (first, rest) if stage]


def tried(root, names, seconds):
    """Whether tests fail under `root`, in a fork of this process; 'late' if they do not end."""
    child = os.fork()
    if not child:
        status = 70
        try:
            os.setpgrp()
            os.chdir(root)
            silent = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silent, stream)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
            sys.dont_write_bytecode = True
            sys.path.insert(0, str(root))
            os.environ["PYTHONPATH"] = str(root)
            options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
            status = int(pytest.main([*options, *names]))
        finally:
            os._exit(status)
    ended = time.monotonic() + 6 * seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > ended:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "late"
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test left behind
    if os.WIFSIGNALED(status):
        return "late" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed"
    return VERDICTS.get(os.WEXITSTATUS(status), "error")


def outcome(root, drawn, tests, seconds):
    """What became of an edit, the tests that ran it, and the time that it took."""
    began = time.monotonic()
    path = root / drawn.file
    source, times = path.read_text(), path.stat()
    names = tests.of(drawn)
    verdict = "survived"
    path.write_text(drawn.edit.applied(source))
    try:
        for stage in tests.stages(names, seconds):
            expected = sum(tests.found[name]["seconds"] for name in stage)
            verdict = tried(root, stage, 30 + 3 * expected)
            if verdict != "survived":
                break
    finally:
        path.write_text(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    took = round(time.monotonic() - began, 1)
    return {"says": str(drawn), "tests": len(names), "verdict": verdict, "took": took}


def work(folder, job, jobs, places, asked):
    """One of several processes: takes its share of all edits."""
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    tests, known = Tests(folder), equivalent()
    with copied(SHARED, [path.name for path in ROOT.glob("*.*") if path.is_file()]) as root:
        for place in places:
            kept = folder / f"{place.replace('/', '-')}.{asked.seed}.{job}.jsonl"
            with kept.open("w") as lines:
                for one in drawn(place, asked)[job::jobs]:
                    if str(one) in known:
                        found = {"says": str(one), "verdict": "equivalent"}
                    else:
                        found = outcome(root, one, tests, asked.seconds)
                    if found["verdict"] in ("survived", "error"):
                        print(one, flush=True)
                    lines.write(json.dumps(found) + "\n")
                    lines.flush()


def note_lines(folder):
    """Runs all tests once, with the plugin that notes lines."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"LINES_OF_TESTS": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", "-n", "auto", "-q", "-p", "lines"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode


def main():
    parser = argparse.ArgumentParser(description="Draws edits, and looks whether tests notice.")
    parser.add_argument("places", nargs="*")
    parser.add_argument("--lines", type=Path, required=True, help="folder of what was noted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=150, help="how many edits of each place")
    parser.add_argument("--seconds", type=float, default=60, help="most time for one edit")
    parser.add_argument("--only", type=Path, help="a file of edits as they are printed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.lines.resolve()
    if not asked.places:
        return note_lines(folder)
    places = PLACES if asked.places == ["all"] else asked.places
    if asked.job is not None:
        work(folder, asked.job, asked.jobs, places, asked)
        return 0

    def run(job):
        again = [sys.executable, *sys.argv, "--jobs", str(asked.jobs), "--job", str(job)]
        return subprocess.run(again, check=False).returncode

    with ThreadPoolExecutor(asked.jobs) as pool:
        worst = max(pool.map(run, range(asked.jobs)))
    for place in places:
        print(summary(folder, place, asked))
    return worst


def summary(folder, place, asked):
    """How many edits of a place were drawn, and what became of them."""
    verdicts = [
        json.loads(line)["verdict"]
        for path in folder.glob(f"{place.replace('/', '-')}.{asked.seed}.*.jsonl")
        for line in path.read_text().splitlines()
    ]
    counts = {kind: verdicts.count(kind) for kind in sorted(set(verdicts))}
    return f"{place}: {len(verdicts)} edits, {counts}"


if __name__ == "__main__":
    sys.exit(main())
