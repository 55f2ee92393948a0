"""Everything that a text shows is run, and every public name is documented."""

import doctest
import importlib
import inspect
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


def test_readme_names_only_what_exists_and_everything_that_does():
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"jaxdrop\.[A-Za-z_][\w.]*", readme):
        pkgutil.resolve_name(name)
    for name in PUBLIC:
        assert re.search(rf"\b{name}\b", readme), name


def test_promises_in_the_readme_are_those_measured():
    readme = (ROOT / "README.md").read_text()
    measured = json.loads((ROOT / "benchmarks/results/promises.json").read_text())
    for row in measured["promises"]:
        assert "| " + " | ".join([row["promise"], *row["cells"].values()]) + " |" in readme


def test_cost_of_planting_in_the_readme_is_what_was_measured():
    readme = (ROOT / "README.md").read_text()
    measured = json.loads((ROOT / "benchmarks/results/plant.json").read_text())
    unrolled, scanned = measured["unrolled"], measured["scanned"]
    for record in (unrolled, scanned):
        assert record["equal"]
        assert record["operations"]["planted"] == record["operations"]["by hand"]
    assert f"{unrolled['operations']['planted']:,} for a transformer" in readme
    ratios = f"{unrolled['ratio']:.2f} times as long, or {scanned['ratio']:.2f} with a scan"
    assert ratios in readme


def test_attention_in_the_readme_is_what_was_measured():
    readme = (ROOT / "README.md").read_text()
    measured = json.loads((ROOT / "benchmarks/results/attention_cpu.json").read_text())
    times = measured["times"]["float32"]
    for name in times["forward"]:
        cells = [name]
        for way in ("forward", "gradient"):
            record = times[way][name]
            cells += [f"{record['median_ms']:.0f}", f"{record['over_jaxdrop']:.2f}"]
            cells.append(f"{record['temporary_mib']:.1f}")
        assert "| " + " | ".join(cells) + " |" in readme
    long = measured["long"]
    assert f"{long['length']} queries and keys" in readme
    assert f"{long['process_mib']:.0f} MiB, Python and JAX included" in readme


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
def test_programs_in_the_readme_are_those_compiled(row, program, figure):
    measured = json.loads((ROOT / "benchmarks/results/programs_h200.json").read_text())["programs"]
    found = {r["candidate"]: r[figure] for r in measured if r["program"] == program}
    columns = [
        ("jaxdrop", "jaxdrop, dropout"),
        ("flax.linen", "flax.linen, dropout"),
        ("x * 2", "jax.nn, no dropout", "no dropout"),
    ]
    cells = [f"{found[name]:,.0f}" for names in columns for name in names if name in found]
    assert f"| {row} | {' | '.join(cells)} |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_speed_in_the_readme_is_what_was_measured(direction, dtype, rate):
    measured = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())["dropout"]
    took = {
        row["candidate"]: row[direction]
        for row in measured
        if (row["size"], row["dtype"], row["rate"]) == ("4096x4096", dtype, rate)
    }
    ours, torch = took.pop("jaxdrop"), took.pop("torch")
    del took["x * 2"]
    cells = [
        f"{dtype}, rate {rate}, {direction}",
        f"{ours['median_ms']:.1f}",
        f"{min(peer['over_jaxdrop'] for peer in took.values()):.1f} times as long",
        f"{torch['over_jaxdrop']:.1f} times",
        f"{ours['over_double']:.2f}",
    ]
    assert "| " + " | ".join(cells) + " |" in (ROOT / "README.md").read_text()


def test_python_in_the_readme_runs():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert blocks
    for block in blocks:
        with jax.debug_key_reuse(False), jax.numpy_dtype_promotion("standard"):
            exec(compile(block, "README.md", "exec"), {})


def test_readme_sessions_give_what_they_show():
    readme = (ROOT / "README.md").read_text()
    test = doctest.DocTestParser().get_doctest(
        "\n".join(re.findall(r"```pycon\n(.*?)```", readme, re.S)), {}, "README", None, 0
    )
    assert test.examples
    report = []
    with jax.debug_key_reuse(False), jax.numpy_dtype_promotion("standard"):
        doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)
