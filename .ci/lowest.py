"""Prints the lowest version of each package that `pyproject.toml` admits, as constraints of pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
optional = project["optional-dependencies"]
extras = ("flax", "equinox", "haiku", "examples", "test")
for requirement in [
    *project["dependencies"],
    *(one for extra in extras for one in optional[extra]),
]:
    if found := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement):
        name, version = found.groups()
        print(f"{name}=={version}")
        if name == "jax":
            print(f"jaxlib=={version}")
    elif not requirement.startswith("jaxdrop["):
        raise SystemExit(f"no lower bound is read from {requirement!r}")
