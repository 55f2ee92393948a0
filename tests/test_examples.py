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


PLANTED_SITES = {
    "linen transformer": [
        ("function:softmax", 1),
        ("named_scope:Transformer/attention", 1),
        ("named_scope:Transformer/mlp", 1),
    ],
    "nnx perceptron": [("jit:relu", 2)],
    "equinox perceptron": [("primitive:tanh", 2)],
    "haiku perceptron": [("named_scope:mlp/linear_0", 1), ("named_scope:mlp/linear_1", 1)],
    "linen RNN": [("named_scope:RNN/cell.scan_fn/cell", 8)],
}


def facts_of_planting(tmp_path):
    """What a short run of the example found. Most of it is compiling: done once, and quickly."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "import jax, jaxdrop, json, plant_any_model as example\n"
        "keep, key = lambda key, x: jaxdrop.dropout(key, x, 0.0), jax.random.key(9)\n"
        f"options = '--seeds 2 --steps 3 --draws 3 --out'.split() + [{str(tmp_path)!r}]\n"
        "found = example.main(options)\n"
        "spread = found['scores']['planted']['spread']\n"
        "facts = {\n"
        "    'sites': {k: [(r.site, r.runs) for r in t] for k, t in found['sites'].items()},\n"
        "    'masks': {k: zero.tolist() for k, zero in found['masks'].items()},\n"
        "    'spreads': [float(s) for rows in spread.values() for row in rows for s in row],\n"
        "    'kept': {},\n"
        "}\n"
        "images = example.load_few(1)[0].test_images\n"
        "for name, (model, treatments) in example.studies().items():\n"
        "    rules = next(iter(treatments.values()))\n"
        "    run = next(iter(found['runs'][name].values()))['no dropout']\n"
        "    params = example.first_of(run.params)\n"
        "    planted = jaxdrop.plant(model.apply, dict.fromkeys(rules, keep))\n"
        "    logits = jax.jit(planted)(jax.random.clone(key), params, images)\n"
        "    expected = jax.jit(model.apply)(params, images)\n"
        "    facts['kept'][name] = bool((logits == expected).all())\n"
        "print(json.dumps(facts))"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    return json.loads(printed.splitlines()[-1]), printed


def test_dropout_is_planted_into_models_that_nobody_marked(tmp_path):
    facts, printed = facts_of_planting(tmp_path)
    assert facts["sites"] == {k: [list(row) for row in rows] for k, rows in PLANTED_SITES.items()}
    assert facts["kept"] == dict.fromkeys(PLANTED_SITES, True)  # by rate 0, all bits
    assert min(facts["spreads"]) > 0
    assert_masks_are_locked(**{name: np.array(mask) for name, mask in facts["masks"].items()})
    for name in PLANTED_SITES:
        assert f"{name}, in which is planted" in printed
    assert (tmp_path / "plant_any_model.png").stat().st_size > 10_000


def assert_masks_are_locked(locked, **others):
    """Masks of shape (examples, steps, units): alike at all steps, or at no two."""
    every = others["every step"]
    assert not others["no dropout"].any()
    np.testing.assert_array_equal(locked, np.broadcast_to(locked[:, :1], locked.shape))
    np.testing.assert_array_equal(locked[:, 0], every[:, 0])  # both have the first run's key
    for mask in (locked[:, 0], *every.swapaxes(0, 1), every.swapaxes(0, 1).reshape(8, -1)):
        assert len(np.unique(mask, axis=0)) == len(mask)


def facts_of_gpt(tmp_path):
    """What a short run of the example found, and what rate 0 changes in its loss and gradient."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "import jax, json, numpy as np, tiny_gpt as example\n"
        "options = '--seeds 2 --steps 10 --rounds 1 --context 256 --out'.split()\n"
        f"found = example.main([*options, {str(tmp_path)!r}])\n"
        "text, (key, rng) = example.load_text(), jax.random.split(jax.random.key(9))\n"
        "params, _ = example.init(key, text, example.CONTEXT, example.make_optimizer(10))\n"
        "learn = jax.jit(jax.value_and_grad(example.cross_entropy), static_argnums=2)\n"
        "results = [\n"
        "    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])\n"
        "    for name in ('no dropout', 'jaxdrop at rate 0')\n"
        "    for attend in [example.TREATMENTS[name]]\n"
        "    for result in [learn(params, text.validation[:4], attend, jax.random.clone(rng))]\n"
        "]\n"
        "facts = {\n"
        "    'memory': {name: memory for name, (_, memory) in found['costs'].items()},\n"
        "    'losses': {name: of.tolist() for name, of in found['losses'].items()},\n"
        "    'change': float(np.abs(results[1] - results[0]).max()),\n"
        "}\n"
        "print(json.dumps(facts))"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    return json.loads(printed.splitlines()[-1]), printed


def test_tiny_gpt_learns_and_drops_weights_in_less_memory_than_flax(tmp_path):
    facts, printed = facts_of_gpt(tmp_path)
    for name in ("no dropout", "flax", "jaxdrop", "jaxdrop at rate 0"):
        assert f"\n{name} " in printed
    assert (tmp_path / "tiny_gpt.png").stat().st_size > 10_000
    assert facts["memory"]["jaxdrop"] < facts["memory"]["flax"]
    assert facts["change"] < 1e-5  # of a loss near 5, by rounding
    losses = {name: np.array(of) for name, of in facts["losses"].items()}
    for of in losses.values():  # (training and validation, seeds, evaluations)
        assert of.shape == (2, 2, 10)
        assert np.all(of[..., -1] < of[..., 0])
    kept, *dropped = (of[0] for of in losses.values())
    assert all(np.all(training != kept) for training in dropped)


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
