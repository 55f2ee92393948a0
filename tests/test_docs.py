"""Everything that a text shows is run, and every public name is documented."""

import doctest
import importlib
import inspect
import itertools
import json
import pkgutil
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxdrop

ROOT = Path(__file__).parent.parent
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxdrop.__path__, "jaxdrop."))
PUBLIC = {
    name: getattr(space, name)
    for space in (jaxdrop, jaxdrop.rescale, jaxdrop.checks, jaxdrop.uncertainty)
    for name in space.__all__
    if not inspect.ismodule(getattr(space, name))
} | {f"match.{name}": getattr(jaxdrop.match, name) for name in jaxdrop.match.__all__}
NAMESPACE = {"jax": jax, "jnp": jnp, "optax": optax, "partial": partial, "jaxdrop": jaxdrop}
NAMESPACE |= {"match": jaxdrop.match}
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


def measured(name):
    """What a benchmark wrote."""
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())


@pytest.mark.parametrize("module", ["jaxdrop", *MODULES])
def test_examples_in_docstrings_give_what_they_show(module):
    loaded = importlib.import_module(module)
    globs = {**PUBLIC, **vars(loaded), **NAMESPACE}
    failures = []
    with jax.debug_key_reuse(False):  # examples may use one key twice to compare
        for test in doctest.DocTestFinder().find(loaded, module, globs=globs):
            report = []
            doctest.DocTestRunner().run(test, out=report.append)
            failures += report
    assert not failures, "\n".join(failures)


TYPES = {"Drop", "Key", "Rate", "Rescale"}


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - TYPES))
def test_public_functions_are_documented_in_full(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value)
    assert text, name
    sections = ["Example:"]
    if inspect.isfunction(value):
        parameters = inspect.signature(value).parameters
        sections += ["Args:"] if parameters else []
        returns = value.__annotations__.get("return")
        sections += ["Returns:"] if returns not in (None, "None") else []
        for parameter in parameters:
            assert re.search(rf"^  \*{{0,2}}{parameter}: ", text, re.M), f"{name}: {parameter}"
        assert returns is not None or "return" in value.__annotations__, name
    for section in sections:
        assert section in text, f"{name}: {section}"


@pytest.mark.parametrize("text", TEXTS)
def test_text_names_only_what_exists(text):
    for name in re.findall(r"\bjaxdrop(?:\.[A-Za-z_]\w*)+", TEXTS[text]):
        pkgutil.resolve_name(name)


def test_promises_in_the_docs_are_those_measured():
    rows = measured("promises")["promises"]
    table = re.search(r"^\| promise \|.*\n\| ---.*\n((?:\|.*\n)+)", TEXTS["docs/why.md"], re.M)[1]
    cells = [[row["promise"], *row["cells"].values()] for row in rows]
    assert table.splitlines() == ["| " + " | ".join(row) + " |" for row in cells]


def test_cost_of_planting_in_the_docs_is_what_was_measured():
    text = TEXTS["docs/plant.md"]
    found = measured("plant")
    unrolled, scanned = found["unrolled"], found["scanned"]
    for record in (unrolled, scanned):
        assert record["equal"]
        assert record["operations"]["planted"] == record["operations"]["by hand"]
    assert f"{unrolled['operations']['planted']:,} for a transformer" in text
    ratios = f"{unrolled['ratio']:.2f} times as long, or {scanned['ratio']:.2f} with a scan"
    assert ratios in text


def test_attention_in_the_docs_is_what_was_measured():
    found = measured("attention_cpu")
    times = found["times"]["float32"]
    for name in times["forward"]:
        cells = [name]
        for way in ("forward", "gradient"):
            record = times[way][name]
            cells += [f"{record['median_ms']:.0f}", f"{record['over_jaxdrop']:.2f}"]
            cells.append(f"{record['temporary_mib']:.1f}")
        assert "| " + " | ".join(cells) + " |" in TEXTS["docs/why.md"]
    long, text = found["long"], TEXTS["docs/attention.md"]
    assert f"{long['length']} queries and keys" in text
    assert f"{long['process_mib']:.0f} MiB, Python and JAX included" in text


COMPILED = [
    ("dropout of 256 M elements of bfloat16: kernels", "forward, rate 0.1", "kernels_started"),
    ("the same: MiB moved", "forward, rate 0.1", "moved_mib"),
    ("the same: Threefry blocks", "forward, rate 0.1", "threefry_blocks"),
    (
        "`dropout(gelu(x + bias)) + residual` with its gradient: MiB moved",
        "in context, forward + backward, rate 0.1",
        "moved_mib",
    ),
    (
        "attention with its gradient, 64 heads of 4096: MiB of temporaries",
        "attention, gradient",
        "temporary_mib",
    ),
    ("this attention: MiB moved", "attention, gradient", "moved_mib"),
    ("this attention: kernels", "attention, gradient", "kernels_started"),
    (
        "training step of a transformer: MiB of temporaries",
        "training step of a transformer",
        "temporary_mib",
    ),
    ("this step: MiB moved", "training step of a transformer", "moved_mib"),
    ("this step: kernels", "training step of a transformer", "kernels_started"),
]


@pytest.mark.parametrize(("row", "program", "figure"), COMPILED)
def test_programs_in_the_docs_are_those_compiled(row, program, figure):
    rows = measured("programs_h200")["programs"]
    found = {r["candidate"]: r[figure] for r in rows if r["program"] == program}
    columns = [
        ("jaxdrop", "jaxdrop, dropout"),
        ("flax.linen", "flax.linen, dropout"),
        ("x * 2", "jax.nn, no dropout", "no dropout"),
    ]
    cells = [f"{found[name]:,.0f}" for names in columns for name in names if name in found]
    assert f"| {row} | {' | '.join(cells)} |" in TEXTS["docs/accelerators.md"]


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_speed_in_the_docs_is_what_was_measured(direction, dtype, rate):
    took, fastest = times_of_dropout(direction, dtype, rate)
    ours = took["jaxdrop"]
    cells = [
        f"{dtype}, rate {rate}, {direction}",
        f"{ours['median_ms']:.1f}",
        f"{fastest:.1f} times as long",
        f"{took['torch']['over_jaxdrop']:.1f} times",
        f"{ours['over_double']:.2f}",
    ]
    assert "| " + " | ".join(cells) + " |" in TEXTS["docs/why.md"]


def times_of_dropout(direction, dtype, rate):
    """Of each candidate, and the ratio of the fastest JAX peer to ours."""
    took = {
        row["candidate"]: row[direction]
        for row in measured("cpu")["dropout"]
        if (row["size"], row["dtype"], row["rate"]) == ("4096x4096", dtype, rate)
    }
    peers = took.keys() - {"jaxdrop", "torch", "x * 2"}
    return took, min(took[peer]["over_jaxdrop"] for peer in peers)


REASONS = pytest.mark.parametrize("text", ["README.md", "docs/why.md"])


@REASONS
def test_speed_in_short_is_what_was_measured(text):
    cases = itertools.product(("forward", "forward+backward"), ("float32", "bfloat16"), (0.1, 0.5))
    fastest = [times_of_dropout(*case)[1] for case in cases]
    assert f"peer takes {min(fastest):.1f} to {max(fastest):.1f} times as long." in TEXTS[text]


@REASONS
def test_promises_in_short_are_what_was_measured(text):
    cells = {row["promise"]: dict(row["cells"]) for row in measured("promises")["promises"]}
    memory = cells["temporaries, 4096x4096 float32, MiB"]
    kept = cells["kept for the backward pass, bytes an element"]
    masks = cells["same mask with x64 on and off"]
    ours = [row.pop("jaxdrop") for row in (memory, kept, masks)]
    (temporaries,), (fewest, most) = set(memory.values()), sorted(set(kept.values()))
    assert ours[2] == "yes"
    assert set(masks.values()) == {"no, 50 % differ"}
    assert (
        f"needs {ours[0]} MiB of temporaries for a 64 MiB input and keeps {ours[1]} bytes an"
        " element for the backward pass; flax, equinox, haiku and keras need"
        f" {temporaries} and keep {fewest} or {most}."
    ) in TEXTS[text]
    assert "with x64 on or off, where 50 % of each peer's mask differs." in TEXTS[text]


@REASONS
def test_attention_in_short_is_what_was_measured(text):
    times = measured("attention_cpu")["times"]["float32"]["forward"]
    flax, ours = times["flax.linen, dropout"], times["jaxdrop, dropout"]
    assert (
        f"At 2048 tokens flax's dropout takes {flax['over_jaxdrop']:.2f} times as long, and"
        f" {flax['temporary_mib']:.1f} MiB where we take {ours['temporary_mib']:.1f}."
    ) in TEXTS[text]


@REASONS
def test_planting_in_short_is_what_was_measured(text):
    operations = measured("plant")["unrolled"]["operations"]["planted"]
    assert f"to exactly the {operations:,} operations of dropout written by hand." in TEXTS[text]


def test_readme_counts_the_defects():
    count = len(list((ROOT / "tests/mutants").glob("*.patch")))
    assert f"{count} deliberate defects are each killed" in TEXTS["README.md"]


def test_python_in_the_readme_runs():
    readme = TEXTS["README.md"]
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert blocks
    for block in blocks:
        with jax.debug_key_reuse(False), jax.numpy_dtype_promotion("standard"):
            exec(compile(block, "README.md", "exec"), {})


def test_readme_sessions_give_what_they_show():
    readme = TEXTS["README.md"]
    test = doctest.DocTestParser().get_doctest(
        "\n".join(re.findall(r"```pycon\n(.*?)```", readme, re.S)), {}, "README", None, 0
    )
    assert test.examples
    report = []
    with jax.debug_key_reuse(False), jax.numpy_dtype_promotion("standard"):
        doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)
