"""The example runs as a user would run it, only smaller."""

import json

import numpy as np
from scripts import EXAMPLES, run

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
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
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
