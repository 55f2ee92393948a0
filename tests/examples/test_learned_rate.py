"""The example on learned rates: its loss is the one of the paper, and rates fall with the data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import EXAMPLES, run


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import learned_rate as example

    with jax.numpy_rank_promotion("allow"):
        yield example


def test_loss_is_the_likelihood_and_the_penalty_by_hand(example, key):
    init_key, line_key, drop_key = jax.random.split(key, 3)
    params = example.init(init_key)
    x, y = (z[:20] for z in example.draw_line(line_key))
    mean, log_variance = example.network(jax.random.clone(drop_key), params, x)
    variance = np.exp(log_variance, dtype=float)
    likelihood = -((y - mean) ** 2) / (2 * variance) - np.log(variance) / 2
    penalty, p, q = 0.0, 0.1, 0.9
    for layer in params:
        squares = np.sum(layer["w"] ** 2) + np.sum(layer["b"] ** 2)
        entropy = -len(layer["w"]) * (p * np.log(p) + q * np.log(q))
        penalty += (example.LENGTH_SCALE**2 / 2 * squares / q - entropy) / 20
    found = example.loss(params, drop_key, x, y, jnp.float32(20))
    np.testing.assert_allclose(found, penalty - np.mean(likelihood), rtol=1e-5)


def test_scores_of_the_line_itself_are_the_best_there_are(example, key, monkeypatch):
    """Of 1000 targets the CRPS has a standard error of .011, and coverage one of .0095."""
    unseen = example.draw_line(key)
    line = lambda key, params, x: (2 * x[:, 0] + 8, jnp.zeros(len(x)))  # noqa: E731
    monkeypatch.setattr(example, "network", line)
    scores = example.score(jax.random.clone(key), None, tuple(z[:1000] for z in unseen))
    assert abs(scores["CRPS"] - example.BEST_CRPS) < 6 * 0.011
    assert abs(scores["coverage"] - example.LEVEL) < 6 * 0.0095
    wrong = lambda key, params, x: (2 * x[:, 0] + 8, jnp.full(len(x), 1.5))  # noqa: E731
    monkeypatch.setattr(example, "network", wrong)
    overrated = example.score(jax.random.clone(key), None, tuple(z[:1000] for z in unseen))
    assert overrated["CRPS"] > scores["CRPS"]
    assert overrated["coverage"] > example.LEVEL + 6 * 0.0095


def test_rates_fall_with_the_number_of_examples(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import json, learned_rate as example\n"
        "options = '--seeds 1 --steps 500 --sizes 10 3000 --out'.split()\n"
        f"found = example.main([*options, {str(tmp_path)!r}])\n"
        "print(json.dumps([[r['rates'].tolist() for r in of.values()] for of in found.values()]))"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    learned, fixed = np.array(json.loads(printed.splitlines()[-1]))
    few, many = learned  # (seeds, layers)
    assert np.mean(few[:, 1:]) > 0.3  # of the hidden layers
    assert np.median(many) < 0.02
    np.testing.assert_allclose(fixed, 0.1, rtol=1e-6)
    assert "Learned rate at the input of each layer" in printed
    assert "1000 fresh examples with a fixed rate: the share in intervals of 90%" in printed
    assert (tmp_path / "learned_rate.png").stat().st_size > 10_000
