"""What the benchmarks share: what a result says of the machine, and how it is written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """The device that was measured on, and the version of JAX."""
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
    }


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results, with the folder that they go into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
