"""The example runs as a user would run it, only smaller."""

import json

import numpy as np
from scripts import EXAMPLES, run


def losses_of_digits(devices, tmp_path):
    """Losses of one epoch with one seed by treatment, and what the example printed."""
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
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
