"""The site in `docs`: what its pages show is run, its links lead somewhere, its API is complete."""

import doctest
import importlib.util
import re
from pathlib import Path

import jax
import pytest

import jaxdrop

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}


def _families():
    spec = importlib.util.spec_from_file_location("families", DOCS / "families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families = _families()
NAMES = families.public_names()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```py" in text])
def test_code_of_a_page_runs(page):
    """In order, in one namespace, so that a page reads like a notebook."""
    namespace = {}
    with jax.debug_key_reuse(False), jax.numpy_dtype_promotion("standard"):
        for block in blocks(PAGES[page], "python"):
            exec(compile(block, f"docs/{page}.md", "exec"), namespace)
        for session in blocks(PAGES[page], "pycon"):
            test = doctest.DocTestParser().get_doctest(session, namespace, page, None, 0)
            report = []
            doctest.DocTestRunner().run(test, out=report.append)
            assert not report, "".join(report)
