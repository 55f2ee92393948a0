"""Prints the newest Python on the path or under pyenv, which may be this one."""

import os
import shutil
import sys
from pathlib import Path

NEWEST = 30  # no minor version is higher for years

pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
for minor in range(NEWEST, sys.version_info.minor, -1):
    name = f"python3.{minor}"
    for found in [shutil.which(name), *sorted(pyenv.glob(f"3.{minor}.*/bin/{name}"), reverse=True)]:
        # A name on the path may be pyenv's own script, which fails if the version is not chosen.
        if found and ".pyenv/shims" not in str(found):
            print(found)
            sys.exit()
print(sys.executable)
