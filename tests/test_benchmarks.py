"""Every benchmark that needs no peers runs as a user would run it, only smaller."""

import json

from scripts import ROOT, run


def test_benchmark_runs_without_peers(tmp_path):
    output = run(
        *(ROOT / "benchmarks" / "dropout.py", "--quick", "--peers"),
        *("--json", tmp_path / "cpu.json", "--figure", tmp_path / "cpu.png"),
    ).stdout
    assert "jaxdrop" in output
    assert (tmp_path / "cpu.json").exists()
    assert (tmp_path / "cpu.png").exists()


def test_benchmark_of_attention_runs(tmp_path):
    lengths = ("--length", "128", "--lengths", "64", "128", "--long", "256")
    printed = run(
        *(ROOT / "benchmarks" / "attention.py", "--rounds", "2", "--dtypes", "float32"),
        *(*lengths, "--out", tmp_path / "attention"),
    ).stdout
    found = json.loads((tmp_path / "attention.json").read_text())
    for name in ("flax.linen, dropout", "jax.nn, no dropout", "jaxdrop, dropout"):
        assert f"| {name} |" in printed
        assert found["times"]["float32"]["gradient"][name]["median_ms"] > 0
    assert found["long"]["temporary_mib"] > 0
    assert (tmp_path / "attention.png").exists()
