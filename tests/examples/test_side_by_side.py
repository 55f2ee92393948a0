"""The programs beside their framework's own way: both learn, and ours is not longer."""

from scripts import EXAMPLES, load, run

SCRIPT = EXAMPLES / "side_by_side" / "compare.py"


def test_all_programs_learn_and_none_is_longer_with_jaxdrop():
    names = load(SCRIPT).NAMES
    assert len(names) == 8
    _, *rows = run(SCRIPT).stdout.splitlines()
    found = {}
    for name, way, lines, before, after in map(str.split, rows):
        found.setdefault(name, []).append(int(lines))
        assert float(after) < min(float(before), 0.8 * float(before)), (name, way)
    assert list(found) == names
    assert all(0 < ours <= framework for framework, ours in found.values())
    shorter = sum(ours < framework for framework, ours in found.values())
    assert f"none is longer, and {['no', 'one', 'two', 'three', 'four', 'five'][shorter]} are" in (
        (EXAMPLES / "README.md").read_text()
    )
