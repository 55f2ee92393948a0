"""Imports run one way: core, then rescale, then methods; transforms beside them."""

import ast
from pathlib import Path

import pytest

import jaxdrop

ROOT = Path(jaxdrop.__file__).parent
ALLOWED = {
    "core": {"core"},
    "rescale": {"core"},
    "checks": {"core", "checks"},
    "methods": {"core", "rescale", "methods"},
    "transforms": {"core", "transforms"},
    "match": {"transforms"},
    "uncertainty": {"core"},
    "__init__": {"core", "rescale", "checks", "match", "methods", "transforms", "uncertainty"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(path):
    """Modules of the package that a file imports, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    for name in imports_of(path):
        if name.startswith("jaxdrop."):
            assert name.split(".")[1] in ALLOWED[part_of(path)], name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_parts_of_jax_are_not_imported(path):
    for name in imports_of(path):
        parts = name.split(".")
        assert not (parts[0] == "jax" and any(part.startswith("_") for part in parts[1:])), name
        experimental = name.startswith("jax.experimental")
        assert not experimental or path.name == "compat.py", name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_package_depends_on_four_libraries(path):
    import sys

    for name in imports_of(path):
        top = name.split(".")[0]
        known = {"jaxdrop", "jax", "chex", "optax", "jaxtyping", "numpy"}
        assert top in known or top in sys.stdlib_module_names, name


def test_families_of_methods_do_not_import_each_other():
    methods = ROOT / "methods"
    for path in methods.rglob("*.py"):
        family = path.relative_to(methods).with_suffix("").parts[0]
        imported = {n.split(".")[2] for n in imports_of(path) if n.startswith("jaxdrop.methods.")}
        assert imported <= {"masked", family}, path  # what they share
