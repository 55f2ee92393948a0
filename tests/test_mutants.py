"""The patches of `tests/mutants` fit the package as it is, and name tests that there are."""

import ast
import re
from pathlib import Path

import pytest
from scripts import load

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parent


runner = load(TESTS / "mutants" / "run.py")
MUTANTS = runner.all_mutants()


def names_of_tests(path):
    """Functions of a file of tests, and methods behind the name of their class."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if hasattr(item, "name")}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def test_there_are_forty_mutants_or_more_with_names_of_their_own():
    names = [mutant.name.partition("_")[2] for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_fits_the_package_and_changes_what_it_does(mutant):
    for file, text in runner.with_defect(runner.ROOT, mutant).items():
        assert file.startswith("jaxdrop/")
        plain = (runner.ROOT / file).read_text()
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(plain))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_names_a_test_that_there_is(mutant):
    path, _, name = mutant.killer.partition("::")
    assert re.sub(r"\[.*\]$", "", name) in names_of_tests(TESTS.parent / path)


def test_patch_that_does_not_fit_is_refused():
    stale = runner.Mutant("stale", "", "", (("jaxdrop/rescale.py", "no such line\n", "\n"),))
    with pytest.raises(ValueError, match=r"stale: a hunk fits 0 places of jaxdrop/rescale\.py"):
        runner.with_defect(runner.ROOT, stale)


@pytest.mark.parametrize(
    ("status", "where", "kind", "verdict"),
    [
        (0, None, None, "SURVIVED"),
        (1, "call", "AssertionError", "killed"),
        (1, "call", "ValueError", "killed"),
        (1, "setup", "AssertionError", "ERROR"),
        (1, "call", "NameError", "ERROR"),
        (2, "collect", "CollectError", "ERROR"),
        (4, None, None, "ERROR"),
    ],
)
def test_only_a_test_that_fails_by_itself_is_a_kill(status, where, kind, verdict):
    failures = [{"where": where, "kind": kind, "says": ""}] if where else []
    found = {"status": status, "failures": failures}
    assert runner._judged(found, "")[0] == verdict
