"""Which versions of JAX are supported: one place says it, and all others agree."""

import re
import subprocess
import tomllib

import jax
import pytest
from scripts import ROOT, run

from jaxdrop.base.oldest_jax import OLDEST_JAX

pytestmark = pytest.mark.quick

OLDEST = ".".join(map(str, OLDEST_JAX))


def imported_with(version):
    """Imports the package in a process whose JAX says that it is another."""
    info = tuple(map(int, version.split(".")))
    pretend = f"jax.__version__, jax.__version_info__ = {version!r}, {info}"
    return run("-c", f"import jax; {pretend}; import jaxdrop")


def lowest_versions():
    """What `.ci/on_jax.sh lowest` installs."""
    return set(run(ROOT / ".ci" / "lowest.py").stdout.split())


def test_jax_below_the_oldest_is_a_clear_error():
    with pytest.raises(subprocess.CalledProcessError) as failed:
        imported_with("0.7.1")
    assert failed.value.stderr.splitlines()[-1] == (
        f"ImportError: jaxdrop: jax must be {OLDEST} or newer; got 0.7.1. "
        f"Run `pip install 'jax>={OLDEST}'`."
    )


def test_oldest_jax_is_no_error():
    assert imported_with(OLDEST).returncode == 0


def test_this_jax_is_supported():
    assert jax.__version_info__ >= OLDEST_JAX


def test_oldest_jax_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"jax>={OLDEST}" in project["dependencies"]
    for text in ("README.md", "docs/index.md", "docs/versions.md"):
        assert f"JAX {OLDEST} or later" in (ROOT / text).read_text()
    for text in ("README.md", "docs/sharding.md"):
        assert f"from {OLDEST} on" in (ROOT / text).read_text()
    assert {f"jax=={OLDEST}", f"jaxlib=={OLDEST}"} < lowest_versions()


def test_every_dependency_has_a_lowest_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    # The others are not tested with the lowest versions.
    extras = optional.keys() - {"benchmarks", "docs", "third-party"}
    needed = [*project["dependencies"], *(one for extra in extras for one in optional[extra])]
    named = {re.match(r"[\w-]+", each)[0] for each in needed} - {"jaxdrop"}
    assert {each.split("==")[0] for each in lowest_versions()} == named | {"jaxlib"}
