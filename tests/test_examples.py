"""Every example and benchmark runs as a user would run it, only smaller."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def run(*command, devices=1, **environment):
    """Runs Python in a process of its own, without the strict settings of the tests."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "XLA_FLAGS": flags, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def losses_of_digits(devices, tmp_path):
    """Losses of one epoch with one seed, and what the example printed."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "import json, train_digits\n"
        f"options = ['--seeds', '1', '--epochs', '1', '--out', {str(tmp_path)!r}]\n"
        "results = train_digits.main(options)\n"
        "print(json.dumps([run['loss'].tolist() for r in results.values() for run in r.values()]))"
    )
    printed = run("-c", script, devices=devices, JAX_DEBUG_KEY_REUSE="1").stdout
    return np.array(json.loads(printed.splitlines()[-1])), printed


def test_digits_train_alike_on_one_device_and_on_eight(tmp_path):
    alone, printed = losses_of_digits(1, tmp_path)
    for name in ("no dropout", "expected", "realized", "none + inference_scale"):
        assert name in printed
    assert (tmp_path / "train_digits.png").stat().st_size > 10_000
    assert np.all(np.isfinite(alone))
    shared, _ = losses_of_digits(8, tmp_path)
    np.testing.assert_allclose(alone, shared, rtol=1e-5)


def test_benchmark_runs_without_peers(tmp_path):
    output = run(
        *(ROOT / "benchmarks" / "dropout.py", "--quick", "--peers"),
        *("--json", tmp_path / "cpu.json", "--figure", tmp_path / "cpu.png"),
    ).stdout
    assert "jaxdrop" in output
    assert (tmp_path / "cpu.json").exists()
    assert (tmp_path / "cpu.png").exists()
