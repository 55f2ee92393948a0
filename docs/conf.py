"""How the site is built: `bash docs/build`."""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import jaxdrop  # noqa: E402
from jaxdrop.frameworks import linen  # noqa: E402

import families  # noqa: E402 beside this file

# The layer has the name of linen's own, which autodoc would take for an alias.
linen.Drop.__name__ = "Drop"

project = "jaxdrop"
author = "The jaxdrop authors"
copyright = author  # noqa: A001 Sphinx reads this name
version = release = jaxdrop.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
copybutton_exclude = ".linenos, .gp, .go"
toc_object_entries_show_parents = "hide"

pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = f"jaxdrop {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False


def write_api_pages(app: Sphinx, _: Any) -> None:
    """Writes one page for each family, if it has changed."""
    folder = DOCS / "api"
    for path in folder.glob("*.rst"):
        if path.stem not in families.FAMILIES:
            path.unlink()
    for name, family in families.FAMILIES.items():
        path, text = folder / f"{name}.rst", families.page(family)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def as_restructured(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: Any
) -> None:
    """Docstrings have code in single backticks and tables as in Markdown; the rest is text."""
    text = re.sub(r"(?m)^((?:\|.*\n)+)", _as_list_table, "\n".join(lines) + "\n")
    lines[:] = _as_literals(text).splitlines()


def _as_literals(text: str) -> str:
    code = r"(?m)(^ *(?:>>>|\.\.\.) .*$|^ *\*+\w+: |^ *(?:\.\.|:|\*) .*$)|`([^`]+)`(\w?)|([*|])"

    def replaced(found: re.Match[str]) -> str:
        kept, literal, letter, special = found.groups()
        if literal:
            return f"``{literal}``" + (f"\\ {letter}" if letter else "")
        return kept or f"\\{special}"

    return re.sub(code, replaced, text)


def _as_list_table(found: re.Match[str]) -> str:
    rows = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in found[1].splitlines()
    ]
    out = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        out += [
            f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)
        ]
    return "\n".join([*out, "", ""])


def as_written(
    app: Sphinx,
    what: str,
    name: str,
    value: Any,
    options: Any,
    signature: Any,
    returned: Any,
) -> Any:
    """Signatures with the annotations and defaults as the source has them."""
    function = value.__init__ if inspect.isclass(value) else inspect.unwrap(value)
    if not inspect.isfunction(function):
        return None
    try:
        source = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(source).body[0]
    except (
        OSError,
        SyntaxError,
        TypeError,
    ):  # made by a decorator, as of a dataclass
        return None
    if not isinstance(definition, ast.FunctionDef):
        return None
    arguments = definition.args
    for first in (arguments.posonlyargs, arguments.args):
        if first and first[0].arg in ("self", "cls"):
            del first[0]
    _QualifyNames().visit(definition)
    result = ast.unparse(definition.returns) if definition.returns else None
    return f"({ast.unparse(arguments)})", None if inspect.isclass(value) else result


class _QualifyNames(ast.NodeTransformer):
    """Gives types of the library their full names, so that they become links."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        types = {
            name.rpartition(".")[2]: name
            for name, value in families.public_names().items()
            if not inspect.isfunction(value) and "frameworks" not in name
        }
        if node.id not in types:
            return node
        return ast.parse(f"jaxdrop.{types[node.id]}", mode="eval").body


def skip_fields(
    app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any
) -> Any:
    """Fields of tuples have no docstring of their own; the class describes them."""
    return (
        True
        if (inspect.getdoc(value) or "").startswith("Alias for field")
        else None
    )


class LinkNames(SphinxTransform):
    """Makes each public name in code a link to its place in the API."""

    default_priority = 200

    def apply(self, **_: Any) -> None:
        """Replaces the literals of one page."""
        names = families.public_names()
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().removeprefix("jaxdrop.").removesuffix("()")
            inside = literal.parent
            if name not in names or isinstance(
                inside, addnodes.pending_xref | nodes.reference
            ):
                continue
            if isinstance(inside, nodes.title):
                continue
            reference = addnodes.pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=f"jaxdrop.{name}",
                refexplicit=True,
                refwarn=True,
                refdoc=self.env.docname,
            )
            literal.replace_self(reference)
            reference += literal


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("config-inited", write_api_pages)
    app.connect(
        "autodoc-process-docstring", as_restructured, priority=400
    )  # before napoleon
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-skip-member", skip_fields)
    app.add_transform(LinkNames)
