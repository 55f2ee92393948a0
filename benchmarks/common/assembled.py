"""What NVIDIA's assembler says of a program's kernels: registers, and what did not fit in them.

The assembler is in JAX's plugin for CUDA, `pip install 'jax[cuda12]'`, or on the path.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for .*?"
    r"(?P<spilled>\d+) bytes spill stores.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
_ARCHITECTURE = "sm_90a"  # of an H200


def assembled(folder: Path, name: str) -> list[dict[str, Any]]:
    """Registers of a thread and bytes that it spills, for kernels whose name begins so.

    The folder is one that XLA was told to write a program's assembly to.
    """
    found = [record for path in sorted(folder.glob("*.ptx")) for record in _report(path)]
    return sorted((r for r in found if r["kernel"].startswith(name)), key=lambda r: r["kernel"])


def _report(path: Path) -> Iterator[dict[str, Any]]:
    command = [_assembler(), "-v", f"-arch={_ARCHITECTURE}", path, "-o", "/dev/null"]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return kernels_in(said.stderr)


def kernels_in(report: str) -> Iterator[dict[str, Any]]:
    """The kernels in a report of the assembler."""
    for entry in _ENTRY.finditer(report):
        yield {
            "kernel": entry["kernel"],
            "registers": int(entry["registers"]),
            "spilled_bytes": int(entry["spilled"]),
        }


def _assembler() -> str:
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations or [] if spec else []
    inside = [path for folder in folders for path in Path(folder).glob("*/bin/ptxas")]
    found = str(inside[0]) if inside else shutil.which("ptxas")
    if found is None:
        raise FileNotFoundError("needs ptxas, which comes with pip install 'jax[cuda12]'.")
    return found
