"""The example runs as a user would run it, only smaller."""

import json

import numpy as np
from scripts import EXAMPLES, run


def facts_of_gpt(tmp_path):
    """What a short run of the example found, and what rate 0 changes in its loss and gradient."""
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
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
