"""The example on rescaling: its tables against closed forms, and a small whole run."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, quick_jit
from scripts import EXAMPLES, run

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
UNITS = np.array([2.0, 4.0, 4.0, 2.0])


@pytest.fixture
def units(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import why_rescale_units

    return why_rescale_units


@pytest.fixture
def routes(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import why_rescale_routes

    return why_rescale_routes


def count(units, keep_prob):
    with enable_x64():
        return units.count_masks(units.UNITS, keep_prob)


def test_sums_of_four_units_under_all_16_masks(units):
    of = count(units, 0.5)
    np.testing.assert_array_equal(units.UNITS, UNITS)
    assert sorted(map(tuple, of.keep.tolist())) == sorted(
        tuple(bool(number >> i & 1) for i in range(4)) for number in range(16)
    )
    np.testing.assert_array_equal(of.chance, 1 / 16)
    kept, squares = of.keep @ UNITS, of.keep @ UNITS**2
    some = np.maximum(of.keep.sum(axis=1), 1)
    sums = {
        "expected": 2 * kept,
        "realized": 4 / some * kept,
        "preserve_sum": np.where(kept > 0, 12, 0),
        "preserve_norm": np.sqrt(40 / np.maximum(squares, 1)) * kept,
        "1/sqrt(q)": np.sqrt(2) * kept,
        "none": kept,
    }
    assert list(sums) == list(of.outputs)
    for name, expected in sums.items():
        np.testing.assert_allclose(of.outputs[name].sum(axis=1), expected, **TOLERANCE)


def test_mean_of_the_sums_is_12_where_the_rule_keeps_it(units):
    of = count(units, 0.5)
    sums = {name: y.sum(axis=1) for name, y in of.outputs.items()}
    means = {name: of.mean(sums[name]) for name in sums}
    some, two = of.keep.any(axis=1), of.keep.sum(axis=1) == 2
    assert means["expected"] == 12
    assert means["none"] == 6
    for name in ("realized", "preserve_sum"):  # 0 where nothing is kept, once in 16
        np.testing.assert_allclose([means[name], sums[name][some].mean()], [11.25, 12], **TOLERANCE)
    np.testing.assert_allclose(sums["expected"][two].mean(), 12, **TOLERANCE)
    assert sums["expected"][some].mean() == 12.8


@pytest.mark.parametrize("keep_prob", [0.5, 0.8])
def test_dividing_keeps_mean_and_relative_noise_but_not_energy(units, keep_prob):
    of, q = count(units, keep_prob), keep_prob
    scales = {"expected": 1 / q, "1/sqrt(q)": q**-0.5, "none": 1}
    for name, scale in scales.items():
        y = of.outputs[name]
        np.testing.assert_allclose(of.mean(y), scale * q * UNITS, **TOLERANCE)
        np.testing.assert_allclose(of.deviation(y) / of.mean(y), ((1 - q) / q) ** 0.5, **TOLERANCE)
        np.testing.assert_allclose(of.mean((y**2).sum(axis=1)), scale**2 * q * 40, **TOLERANCE)
    variance = of.deviation(of.outputs["expected"]) ** 2
    np.testing.assert_allclose(variance, UNITS**2 * (1 - q) / q, **TOLERANCE)
    energy = of.mean((of.outputs["preserve_norm"] ** 2).sum(axis=1))
    np.testing.assert_allclose(energy, 40 * (1 - (1 - q) ** 4), **TOLERANCE)


def test_preserve_sum_favours_small_units(units):
    of = count(units, 0.5)
    np.testing.assert_allclose(
        of.mean(of.outputs["preserve_sum"]), [2.275, 3.35, 3.35, 2.275], **TOLERANCE
    )


@pytest.mark.parametrize(("keep_prob", "expected"), [(0.5, 0.9), (0.8, 0.225)])
def test_dropout_adds_the_penalty_to_the_loss_of_a_linear_unit(units, keep_prob, expected):
    # sum of w^2 x^2 = .36 + .64 + .16 + .64 = 1.8
    np.testing.assert_allclose(units.added_loss(count(units, keep_prob)), expected, **TOLERANCE)
    np.testing.assert_allclose(units.penalty(keep_prob), expected, **TOLERANCE)


def test_spread_of_a_constant_layer_is_that_of_its_count(units):
    layers = (2000, 1000, 200, 100, 20, 10, 4)
    spreads = [100 * units.exact_layer(n)["expected"][1] for n in layers]
    np.testing.assert_allclose(spreads, [2.2361, 3.1623, 7.0711, 10, 22.3607, 31.6228, 50], 1e-4)
    for n in (4, 10, 20):
        chance = np.array([math.comb(n, kept) for kept in range(n + 1)]) / 2**n
        sums = {"expected": 2 * np.arange(n + 1) / n, "realized": (np.arange(n + 1) > 0) * 1.0}
        for name, values in sums.items():
            mean = chance @ values
            deviation = (chance @ (values - mean) ** 2) ** 0.5
            np.testing.assert_allclose(units.exact_layer(n)[name], (mean, deviation), rtol=1e-9)


@pytest.mark.parametrize("n", [4, 10, 100])
def test_sampled_layers_agree_with_exact_ones(units, key, n):
    found = jax.device_get(jax.jit(lambda key: units.sample_layer(n, key))(key))
    exact = units.exact_layer(n)
    assert found.keys() == exact.keys()
    for name, (mean, deviation) in exact.items():
        # Seven standard errors, and twelve more empty layers: false alarms below 1e-11.
        error = deviation / units.DRAWS**0.5
        assert abs(found[name][0] - mean) < 7 * error + 12 / units.DRAWS
        if n == 4 or name == "expected":
            assert abs(found[name][1] - deviation) < 7 * error + 1e-6
    np.testing.assert_allclose(found["fixed count"], (1, 0), atol=1e-6)


def test_a_key_for_each_example_trains_a_network_for_each(units, key):
    x = jnp.ones((units.BATCH, units.WIDTH))
    each, shared = (np.asarray(y) for y in units.drop_batch(key, x).values())
    for y in (each, shared):
        assert set(np.unique(y)) == {0, 2}
    assert len(np.unique(each, axis=0)) == units.BATCH
    assert len(np.unique(shared, axis=0)) == 1


def test_one_mask_for_the_batch_leaves_its_mean_as_noisy_as_one_example(units, key):
    noise = jax.device_get(jax.jit(units.batch_noise)(key))
    # 24,000 means: a deviation is off by less than 7 / sqrt(2 * 24,000), or 3.2 %.
    np.testing.assert_allclose(list(noise.values()), [1 / 32**0.5, 1], rtol=0.032)


def test_rate_0_changes_no_bit_and_a_rule_that_changes_one_is_found_out(units, key, monkeypatch):
    monkeypatch.setitem(units.RULES, "bad", lambda mask, x: jnp.float32(1.0000001))
    expected = dict.fromkeys(units.RULES, True) | {"bad": False}
    assert units.unchanged_at_rate_0(key, jnp.linspace(-3.0, 3.0, 50)) == expected


def reference_logits(params, x):
    for i, layer in enumerate(params):
        x = (np.maximum(x, 0) if i else x) @ np.asarray(layer["w"]) + np.asarray(layer["b"])
    return x


def test_networks_are_measured_as_numpy_does(routes, key):
    random = np.random.default_rng(0)
    images, labels = random.uniform(size=(30, 64)), random.integers(0, 10, 30)
    with enable_x64(), jax.numpy_rank_promotion("allow"):
        data = routes.Data(*map(jnp.asarray, (images[:0], labels[:0], images, labels)))
        v, rate = routes.init(key), jnp.asarray(0.0)
        found = jax.device_get(quick_jit(routes.measure)(data, jax.random.key(1), rate, v, v))
    logits = reference_logits(v, images)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(chance[np.arange(30), labels]).mean()
    for name in ("inverted", "original, q W", "original, W"):
        measured = found[name]
        np.testing.assert_allclose(measured["loss"], loss, **TOLERANCE)
        np.testing.assert_allclose(
            measured["error"], 100 * np.mean(logits.argmax(axis=1) != labels), rtol=1e-6
        )
        np.testing.assert_allclose(measured["growth"], 1, **TOLERANCE)


def small_run(tmp_path):
    """Runs the example in a process of its own; what it found, and what it printed."""
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import json, why_rescale as example\n"
        "example.LAYERS = (4,)\n"
        f"options = '--seeds 2 --steps 3 --out'.split() + [{str(tmp_path)!r}]\n"
        "found = example.main(options)\n"
        "facts = {\n"
        "    'masks': found.masks.shape,\n"
        "    'differences': [{k: float(d) for k, d in of.items()} for of in found.differences],\n"
        "    'gap': {k: of['gap'].tolist() for k, of in found.recipes.items()},\n"
        "    'pace': {k: of['pace'].tolist() for k, of in found.recipes.items()},\n"
        "    'loss': {\n"
        "        k: {n: of[n]['loss'].tolist() for n in ('inverted', 'original, q W')}\n"
        "        for k, of in found.recipes.items()\n"
        "    },\n"
        "}\n"
        "print(json.dumps(facts))"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    return json.loads(printed.splitlines()[-1]), printed


def test_the_two_routes_agree_to_rounding_or_part_as_the_optimizer_says(tmp_path):
    found, printed = small_run(tmp_path)
    assert found["masks"] == [20, 10, 10]
    for at_half, at_fifth in zip(*(of.values() for of in found["differences"]), strict=True):
        assert at_half == 0  # halves and doubles are exact
        assert at_fifth < 1e-14
    # How far a first step of q W goes, by that of W.
    paces = {
        "SGD, same lr": lambda q: q**2,
        "SGD, lr/q²": lambda q: 1,
        "momentum, lr/q²": lambda q: 1,
        "decay q², lr/q²": lambda q: 1,
        "Adam, same lr": lambda q: q,
        "Adam, lr/q²": lambda q: 1 / q,
        "Adam, lr/q, epsilon q": lambda q: 1,
    }
    assert {*paces, "decay, lr/q²"} == set(found["gap"])
    for name, gap in found["gap"].items():
        gap, pace = np.array(gap), np.array(found["pace"][name])[:, :, 0]
        assert gap.shape == (2, 2, 3)
        if name in paces:
            expected = np.array(
                [[paces[name](q)] * 2 for q in (0.5, 1 - round(0.2 * 2**16) / 2**16)]
            )
            # Adam's epsilon sees the scale of gradients.
            np.testing.assert_allclose(pace, expected, rtol=1e-3 if "Adam" in name else 1e-9)
        inverted, original = found["loss"][name].values()
        if name in paces and paces[name](0.5) == 1:
            np.testing.assert_array_equal(gap[0], 0)
            assert gap[1].max() < 1e-14
            np.testing.assert_allclose(inverted, original, rtol=1e-12)
        else:
            assert gap.min() > 1e-5
            assert np.all(np.diff(gap, axis=-1) > 0)
    for text in ("  1010 ", "mean of all 16", "fixed count, sd", "original, q W", "Rate 0"):
        assert text in printed
    assert (tmp_path / "why_rescale.png").stat().st_size > 10_000
