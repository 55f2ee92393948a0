"""Shows that the tests would notice: each patch beside this file is a defect that one test kills.

    python tests/mutants/run.py [NAME ...] [--jobs N] [--show]

A patch begins with the defect in words and with the test that kills it. All those
tests are first run on the package as it is, where they must pass. Then each defect is
put into a copy of the repository, and its test is run there. It counts as killed if
that test, and nothing else, fails. The working tree is not touched.

Exit status: 0 if all are killed, 1 if one survives, 2 if something else goes wrong.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MOST_SECONDS = 300
# What a patch that is itself broken would raise, rather than a defect.
NOT_A_KILL = {"ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "UnboundLocalError"}


@dataclass(frozen=True)
class Mutant:
    """A defect: what it is, the test that kills it, and what it replaces in which file."""

    name: str
    defect: str
    killer: str
    hunks: tuple[tuple[str, str, str], ...]  # file, text, text instead


def read_mutant(path):
    """A mutant from its patch, a unified diff behind two lines of words."""
    head, _, diff = path.read_text().partition("--- ")
    found = re.fullmatch(r"Defect: (.+)\nKiller: (\S.*)\n", head)
    if not found:
        raise ValueError(f"{path.name}: must begin with a line 'Defect: ' and a line 'Killer: '.")
    return Mutant(path.stem, *found.groups(), tuple(_hunks("--- " + diff)))


def _hunks(diff):
    """What each hunk of a unified diff replaces, with the lines around it."""
    for part in re.split(r"^--- a/", diff, flags=re.MULTILINE)[1:]:
        file, _, body = part.partition("\n")
        for hunk in re.split(r"^@@ .*\n", body, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines(keepends=True)
            old, new = ([line[1:] for line in lines if line[0] in kinds] for kinds in (" -", " +"))
            yield file, "".join(old), "".join(new)


def with_defect(root, mutant):
    """The texts of the files that a defect changes; each hunk must fit in exactly one place."""
    texts = {file: (root / file).read_text() for file, _, _ in mutant.hunks}
    for file, old, new in mutant.hunks:
        places = texts[file].count(old)
        if places != 1:
            raise ValueError(f"{mutant.name}: a hunk fits {places} places of {file}. Renew it.")
        texts[file] = texts[file].replace(old, new)
    return texts


def all_mutants():
    return [read_mutant(path) for path in sorted(HERE.glob("*.patch"))]


@contextmanager
def copied(folders=("jaxdrop", "tests"), files=("pyproject.toml",)):
    """A copy of what the tests need, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder).resolve()
        for name in folders:
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in files:
            shutil.copy(ROOT / name, root)
        yield root


def run_tests(root, *arguments):
    """Runs tests on the package under `root`, and what came out of them."""
    report = root / "report.json"
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, root / "tests/mutants/inside.py", report, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )
    if not report.exists():
        raise ValueError(f"pytest gave no report:\n{process.stdout}")
    found = json.loads(report.read_text())
    if not (found["imported"] and Path(found["imported"]).is_relative_to(root)):
        raise ValueError(f"the package was imported from {found['imported']}\n{process.stdout}")
    return found, process.stdout


@dataclass(frozen=True)
class Outcome:
    """Whether a mutant was killed; `says` is the failure, or what went wrong."""

    mutant: Mutant
    verdict: str
    seconds: float
    says: str


def outcome_of(mutant):
    began = time.monotonic()
    try:
        with copied() as root:
            for file, text in with_defect(root, mutant).items():
                (root / file).write_text(text)
            verdict, says = _judged(*run_tests(root, "-x", mutant.killer))
    except (ValueError, subprocess.TimeoutExpired) as error:
        verdict, says = "ERROR", str(error)
    return Outcome(mutant, verdict, time.monotonic() - began, says)


def _judged(found, output):
    """A verdict, by what failed: only a test that ran and failed itself is a kill."""
    if found["status"] == 0:
        return "SURVIVED", output
    failures = found["failures"]
    by_test = [failure for failure in failures if failure["where"] == "call"]
    broken = [failure for failure in failures if failure["kind"] in NOT_A_KILL]
    if found["status"] != 1 or broken or not failures or len(by_test) < len(failures):
        return "ERROR", output
    return "killed", "{kind}: {says}".format(**failures[0])


def main():
    parser = argparse.ArgumentParser(description="Runs all mutants, or those named.")
    parser.add_argument("names", nargs="*", help="parts of the names of mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at once")
    parser.add_argument("--show", action="store_true", help="show how each test fails")
    asked = parser.parse_args()
    mutants = [
        mutant
        for mutant in all_mutants()
        if not asked.names or any(name in mutant.name for name in asked.names)
    ]
    if not mutants:
        parser.error(f"no mutant has a name with {' or '.join(asked.names)}.")
    if not passes_untouched(sorted({mutant.killer for mutant in mutants})):
        return 2
    width = max(len(mutant.name) for mutant in mutants)
    outcomes = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for outcome in tqdm(pool.map(outcome_of, mutants), total=len(mutants), unit="mutant"):
            tqdm.write(row_of(outcome, width, asked.show))
            outcomes.append(outcome)
    verdicts = [outcome.verdict for outcome in outcomes]
    print(f"{verdicts.count('killed')} of {len(mutants)} mutants killed")
    return 2 if "ERROR" in verdicts else int("SURVIVED" in verdicts)


def passes_untouched(killers):
    """Whether the tests pass on the package as it is; shows what they say if not."""
    print(f"{len(killers)} tests on the package as it is", flush=True)
    try:
        with copied() as root:
            found, output = run_tests(root, *killers)
    except (ValueError, subprocess.TimeoutExpired) as error:
        found, output = {"status": None}, error
    if found["status"] != 0:
        print(output)
    return found["status"] == 0


def row_of(outcome, width, show):
    """A row of the table; with the defect and what was said of it if asked, or if not killed."""
    mutant = outcome.mutant
    row = f"{mutant.name:{width}}  {outcome.verdict:8}  {outcome.seconds:5.1f} s  {mutant.killer}"
    if not show and outcome.verdict == "killed":
        return row
    return "\n    ".join([row, mutant.defect, *outcome.says.strip().splitlines()])


if __name__ == "__main__":
    sys.exit(main())
