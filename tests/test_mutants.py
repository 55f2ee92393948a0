"""The patches of `tests/mutants` fit the package as it is, and name tests that there are."""

import ast
import re
from pathlib import Path

import pytest
from scripts import load

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parent


runner = load(TESTS / "mutants" / "run.py")
edits = load(TESTS / "mutants" / "edits.py").edits
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


SOURCE = '''def f(x: int = 1, *, flag=True):
    """Text 1 + 1."""
    if x < 2:
        raise ValueError(f"ü: {x + 1}")
    return jnp.sum(x * x, axis=-1) if not x else max(x[1:])
'''


def test_edits_change_what_runs_and_nothing_else():
    found = {(SOURCE[edit.start : edit.stop], edit.text) for edit in edits(SOURCE)}
    whole = "jnp.sum(x * x, axis=-1) if not x else max(x[1:])"
    assert found == {
        ("1", "2"),
        ("2", "3"),
        ("True", "False"),
        ("x < 2", "(x <= 2)"),
        ("x < 2", "(not x < 2)"),
        ('raise ValueError(f"ü: {x + 1}")', "pass"),
        ("ValueError", "TypeError"),
        (f"return {whole}", "return None"),
        (whole, "(max(x[1:]) if not x else jnp.sum(x * x, axis=-1))"),
        ("not x", "x"),
        ("jnp.sum(x * x, axis=-1)", "jnp.sum(x * x)"),
        ("jnp.sum", "jnp.mean"),
        ("x * x", "(x / x)"),
        ("-1", "1"),
        ("max", "min"),
    }


def test_edits_of_which_no_test_can_notice_anything_are_edits_of_the_package():
    shown = {}
    for line in (TESTS / "mutants/equivalent.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            shown.setdefault(line.partition(": ")[0], set()).add(line.partition(": ")[2])
    for file, lines in shown.items():
        source = (runner.ROOT / file).read_text()
        assert lines <= {edit.shown(source) for edit in edits(source)}, file


def test_every_edit_gives_another_program():
    source = (runner.ROOT / "jaxdrop" / "rescale.py").read_text()
    programs = {ast.dump(ast.parse(edit.applied(source))) for edit in edits(source)}
    assert len(programs) > 50
    assert ast.dump(ast.parse(source)) not in programs
