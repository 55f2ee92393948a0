"""The house: imports run one way, files and functions stay short, a name means one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import jaxdrop

pytestmark = pytest.mark.quick

ROOT = Path(jaxdrop.__file__).parent
# What each part may import: base <- core <- rescale <- methods, all others on base and core.
ALLOWED = {
    "base": {"base"},
    "core": {"base", "core"},
    "rescale": {"base", "core"},
    "methods": {"base", "core", "rescale", "methods"},
    "planting": {"base", "core", "planting"},
    "match": {"planting"},
    "transforms": {"base", "core", "transforms"},
    "frameworks": {"base", "methods", "planting", "frameworks"},
    "checks": {"base", "core", "checks"},
    "uncertainty": {"base", "core", "uncertainty"},
    "__init__": {
        "base",
        "core",
        "rescale",
        "checks",
        "match",
        "methods",
        "planting",
        "transforms",
        "uncertainty",
    },
}
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 30  # without its docstring
# A module for a framework imports it. Only those who use the framework import the module.
FRAMEWORKS = {
    "frameworks/linen.py": {"flax"},
    "frameworks/nnx.py": {"flax"},
    "frameworks/nnx_copies.py": {"flax"},
    "frameworks/equinox.py": {"equinox"},
    "frameworks/equinox_copies.py": {"equinox"},
    "frameworks/haiku.py": {"haiku"},
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


def test_every_part_has_its_place():
    assert {part_of(path) for path in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_parts_of_jax_are_not_imported(path):
    for name in imports_of(path):
        parts = name.split(".")
        assert not (parts[0] == "jax" and any(part.startswith("_") for part in parts[1:])), name
        experimental = name.startswith("jax.experimental")
        assert not experimental or path.name in ("compat.py", "call.py"), name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_package_depends_on_four_libraries(path):
    import sys

    for name in imports_of(path):
        top = name.split(".")[0]
        known = {"jaxdrop", "jax", "chex", "optax", "jaxtyping", "numpy"}
        known |= FRAMEWORKS.get(str(path.relative_to(ROOT)), set())
        assert top in known or top in sys.stdlib_module_names, name


def test_families_of_methods_do_not_import_each_other():
    methods = ROOT / "methods"
    for path in methods.rglob("*.py"):
        family = path.relative_to(methods).with_suffix("").parts[0]
        imported = {n.split(".")[2] for n in imports_of(path) if n.startswith("jaxdrop.methods.")}
        assert imported <= {"masked", family}, path  # what they share


def length(node, source):
    """Lines of a function without its docstring, and without blank lines."""
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    documented = ast.get_docstring(node) is not None
    text = node.body[0] if documented else None
    skipped = range(text.lineno, text.end_lineno + 1) if text else ()
    lines = range(first, node.end_lineno + 1)
    return sum(1 for n in lines if n not in skipped and source[n - 1].strip())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text().splitlines()
    assert len(source) <= MOST_LINES_OF_A_FILE
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    long = {n.name: length(n, source) for n in functions}
    assert not {name: n for name, n in long.items() if n > MOST_LINES_OF_A_FUNCTION}


def test_name_of_a_class_means_one_thing():
    """Public or private: one word for two things is read as one thing.

    Each framework has the same layer.
    """
    places = defaultdict(set)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            is_layer = part_of(path) == "frameworks" and getattr(node, "name", None) == "Drop"
            if isinstance(node, ast.ClassDef) and not is_layer:
                places[node.name.lstrip("_")].add(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in places.items() if len(files) > 1}
