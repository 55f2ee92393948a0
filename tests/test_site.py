"""The site in `docs`: its code runs, its links lead somewhere, its API is complete."""

import doctest
import importlib.util
import pydoc
import re
import tomllib
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxdrop

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
WITHOUT_CODE = {"changelog", "cite"}


def load_families():
    spec = importlib.util.spec_from_file_location("families", DOCS / "families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families = load_families()
API = {name: families.page(family) for name, family in families.FAMILIES.items()}
NAMES = sorted(families.public_names())


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.S | re.M)


@pytest.mark.parametrize("page", sorted(PAGES.keys() - WITHOUT_CODE))
def test_code_of_a_page_runs(page):
    """In order, in one namespace, so that a page reads like a notebook."""
    assert blocks(page, "python")
    namespace = {}
    with (  # the settings that users have
        jax.debug_key_reuse(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for block in blocks(page, "python"):
            exec(compile(block, f"docs/{page}.md", "exec"), namespace)
        for session in blocks(page, "pycon"):
            test = doctest.DocTestParser().get_doctest(session, namespace, page, None, 0)
            report = []
            doctest.DocTestRunner().run(test, out=report.append)
            assert not report, "".join(report)


def test_table_of_sites_on_the_page_is_what_its_code_prints(capsys):
    (code,) = (block for block in blocks("plant", "python") if "print(table)" in block)
    (shown,) = blocks("plant", "text")
    names = {"jax": jax, "jnp": jnp, "x": jnp.ones((8, 4))}
    exec(code, names | {"site": jaxdrop.site, "sites": jaxdrop.sites})
    without_lines = [
        re.sub(r" +\S+:\d+\S* \(encoder\)", "", text) for text in (shown, capsys.readouterr().out)
    ]
    assert without_lines[0] == without_lines[1]


def test_every_block_of_python_is_found():
    """A fence with a space or an option after its language would not be run."""
    for page, text in PAGES.items():
        fences = re.findall(r"^\s*(?:```+|~~~+|:::+)\s*\{?(?:py|python|pycon|ipython)", text, re.M)
        assert len(fences) == len(blocks(page, "python")) + len(blocks(page, "pycon")), page


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_in_one_family(name):
    places = [p for p, family in families.FAMILIES.items() if name in families.names_of(family)]
    assert len(places) == 1, (
        f"{name} is in {places or 'no family'}; give it one in docs/families.py, and name it in"
        " a guide."
    )


def test_api_describes_each_public_name_once_and_nothing_else():
    described = Counter(
        re.findall(
            r"^\.\. (?:autofunction|autoclass|py:data):: jaxdrop\.(\S+)$",
            "\n".join(API.values()),
            re.M,
        )
    )
    assert described == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_in_a_guide(name):
    pattern = rf"(?<![\w.]){re.escape(name)}(?!\w)|jaxdrop\.{re.escape(name)}(?!\w)"
    assert any(re.search(pattern, text) for page, text in PAGES.items() if page != "changelog"), (
        f"no page of docs names `{name}`."
    )


def anchors(path):
    """The slugs of the headings, as GitHub makes them, and the labels."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    slugs = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


LINKED = [f"docs/{page}.md" for page in PAGES]
LINKED += ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md"]


@pytest.mark.parametrize("text", LINKED)
def test_links_of_a_text_resolve(text):
    text = ROOT / text
    for link in re.findall(r"\]\(([^)\s]+)\)", text.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = text.parent / path if path else text
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


def listed_in_contents(text):
    for toctree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.S):
        yield from (line for line in toctree.splitlines() if line and not line.startswith(":"))


def test_every_page_is_in_one_table_of_contents():
    guides = sorted(listed_in_contents(PAGES["index"]))
    assert guides == sorted([*PAGES.keys() - {"index"}, "api/index"])
    assert list(listed_in_contents((DOCS / "api/index.md").read_text())) == list(API)


def test_lines_of_code_fit_into_the_page():
    for page in PAGES:
        for line in "".join(blocks(page, "python")).splitlines():
            assert len(line) <= 84, f"{page}: {line}"


def test_pictures_say_what_they_show():
    for page, text in PAGES.items():
        assert not re.search(r"!\[\s*\]", text), page


def test_citation_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}" in PAGES["cite"]


@pytest.mark.parametrize("space", families.spaces().values(), ids=lambda space: space.__name__)
def test_dir_lists_public_names_alone(space):
    assert dir(space) == sorted(space.__all__)
    assert not [name for name in dir(space) if name.startswith("_")]


def test_help_says_in_a_screen_where_to_begin():
    screen = pydoc.plain(pydoc.render_doc(jaxdrop)).splitlines()[:40]
    text = "\n".join(screen)
    for name in ("dropout", "plant", "monte_carlo", "rescale", "checks", "frameworks", "dir("):
        assert name in text
    assert "PACKAGE CONTENTS" in text  # so what stands above it is complete
