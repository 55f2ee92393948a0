"""Each method equals the formula of its peers, given its decisions, unless a reason says why not.

The formulas stand in `table/peers.py`. `benchmarks/definitions.py` calls the
peers themselves, and finds that they equal the formulas; its tables stand in
benchmarks/README.md, and what it measured of the peers is read here.
"""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, make_key
from table.peers import COMPARISONS, alpha, blocks, squares

import jaxdrop

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MEASURED = json.loads((BENCHMARKS / "results/definitions.json").read_text())
KEY = make_key("raw")
EXACT = 1e-12
BY_NAME = {comparison.ours: comparison for comparison in COMPARISONS}


def numbers(*shape):
    """Of both signs and away from 0, so that zeros are what was dropped."""
    values = np.random.default_rng(0)
    return values.uniform(0.5, 2, shape) * values.choice([-1, 1], shape)


def decided(comparison):
    """Input and output of our method in float64, and what the peers are fed, for each key."""
    x = numbers(*comparison.shape)
    keys = [KEY] if comparison.keys == 1 else jax.random.split(KEY, comparison.keys)
    cases = []
    with enable_x64():
        for key in keys:
            method = partial(comparison.method, key, rate=comparison.rate)
            decisions = comparison.decisions(np.asarray(method(jnp.ones(x.shape, float))))
            cases.append((x, np.asarray(method(jnp.asarray(x))), decisions))
    return cases


def agree(ours, theirs):
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=EXACT, atol=EXACT)


def row_id(comparison):
    return f"{comparison.ours} {next(iter(comparison.peers))}"


def answers(question):
    """What was measured of each library, by name."""
    (row,) = (row for row in MEASURED["definitions"] if row["question"] == question)
    told = [part.split(": ", 1) for part in row["peers"].split("; ")]
    peers = {name: answer for names, answer in told for name in names.split(", ")}
    return {"jaxdrop": row["jaxdrop"], **peers}


@pytest.mark.parametrize("comparison", COMPARISONS, ids=row_id)
def test_method_equals_the_formula_of_its_peers_unless_a_reason_says_why_not(comparison):
    cases = decided(comparison)
    assert len(np.unique([decisions for *_, decisions in cases])) > 1, "all or nothing was dropped"
    for x, y, decisions in cases:
        theirs = comparison.formula(x, decisions, 1 - comparison.rate)
        assert agree(y, theirs) == (comparison.reason is None)


def test_every_row_of_the_table_was_measured():
    rows = {(c.ours, peer) for c in COMPARISONS for peer in c.peers}
    lstm = {("dropout", "torch.nn.LSTM(dropout=...), between its layers")}
    assert rows | lstm == {(row["jaxdrop"], row["peer"]) for row in MEASURED["same_mask"]}
    reasons = {(c.ours, peer): c.reason for c in COMPARISONS for peer in c.peers}
    for row in MEASURED["same_mask"]:
        if reason := reasons.get((row["jaxdrop"], row["peer"])):
            assert re.fullmatch(r"differs by up to \S+ %: " + re.escape(reason), row["result"])
        elif row["peer"] not in str(lstm):
            assert row["result"] == "same"


def test_dropout_divides_by_the_probability_drawn_with_and_peers_by_the_rate_asked_for():
    ((x, y, noise),) = decided(BY_NAME["dropout, rate 0.1"])
    keep_prob = 1 - 6554 / 2**16
    assert agree(y, x * noise / keep_prob)
    assert 5e-6 < abs(keep_prob / 0.9 - 1) < 1e-5
    assert f"{keep_prob:.6f}" in BY_NAME["dropout, rate 0.1"].reason


def test_alpha_dropout_keeps_mean_and_variance_where_torchs_reference_shifts_the_mean():
    p = 0.3
    for sign, library in [(-1, "torch"), (1, "torch._refs")]:
        one, minus_one, dropped = alpha(np.array([1, -1, 0]), np.array([1, 1, 0]), 1 - p, sign)
        mean = (1 - p) * (one + minus_one) / 2 + p * dropped
        second = (1 - p) * (one**2 + minus_one**2) / 2 + p * dropped**2
        measured = answers("mean and variance for standardised input, rate 0.3")[library]
        assert f"{round(mean, 3) + 0:g}, {second - mean**2:.3g}" == measured
        assert second - mean**2 == pytest.approx(1, abs=EXACT)


def test_drop_path_rates_are_those_of_peers_for_one_block_more_without_the_first():
    def timm_and_convnext(blocks):
        return np.linspace(0, 0.4, blocks)

    def efficientnet(blocks):
        return np.array([0.4 * block / blocks for block in range(blocks)])

    measured = answers("rate 0.4, 4 blocks")
    for library, rates in [
        ("timm", timm_and_convnext),
        ("torchvision ConvNeXt", timm_and_convnext),
        ("torchvision EfficientNet", efficientnet),
    ]:
        assert ", ".join(f"{rate:.3g}" for rate in rates(4)) == measured[library]
    np.testing.assert_allclose(jaxdrop.drop_path_rates(0.4, 4), timm_and_convnext(5)[1:])
    np.testing.assert_allclose(jaxdrop.drop_path_rates(0.4, 5)[:-1], efficientnet(5)[1:])


def test_drop_block_counts_in_each_map_where_peers_count_over_the_batch():
    ((x, y, seeds),) = decided(next(c for c in COMPARISONS if "4 samples" in c.ours))
    peers = blocks(x, seeds, 0.7)
    kept = (peers != 0).mean((2, 3), keepdims=True)
    assert agree(y, x * (peers != 0) / kept)
    assert agree(y, peers * (peers != 0).mean() / kept)


def test_paper_gamma_is_that_of_peers_and_the_exact_one_keeps_what_was_asked_for():
    height, width, block, p = 8, 8, 3, 0.5
    gamma = (p * height * width) / (block**2 * ((height - block + 1) * (width - block + 1)))
    assert jaxdrop.drop_block_gamma(p, (8, 8), 3, exact=False) == pytest.approx(gamma)
    asked = answers("gamma at rate 0.5, blocks of 3 in 8 x 8")
    assert asked["timm"] == asked["torchvision"] == f"{gamma:.4f}"

    def share_kept(gamma, reach):
        return np.mean((1 - gamma) ** np.outer(reach, reach))

    whole_blocks, cut_blocks = [1, 2, 3, 3, 3, 3, 2, 1], [2, 3, 3, 3, 3, 3, 3, 2]
    ours = jaxdrop.drop_block_gamma(p, (8, 8), 3)
    assert share_kept(ours, whole_blocks) == pytest.approx(0.5)
    shares = answers("share kept at rate 0.5, the same blocks")
    assert f"{share_kept(gamma, whole_blocks):.3f}" == shares["torchvision"]
    assert f"{share_kept(gamma, cut_blocks):.3f}" == shares["timm"]


@pytest.mark.parametrize(("length", "rate"), [(10, 0.25), (20, 0.9), (4, 0.9)])
def test_drop_tokens_keeps_the_nearest_count_where_timm_rounds_down_to_at_least_one(length, rate):
    tokens, _ = jaxdrop.drop_tokens(KEY, jnp.zeros((length, 1)), rate)
    timms = max(1, int(length * (1.0 - rate)))
    measured = answers(f"tokens kept of {length} at rate {rate}")
    assert measured == {"jaxdrop": str(tokens.shape[0]), "timm": str(timms)}


def test_cutout_of_an_odd_size_is_that_of_its_authors_with_the_last_row_and_column():
    ((x, y, centres),) = decided(BY_NAME["cutout of size 3"])
    np.testing.assert_array_equal(y, squares(x, centres, 1, before=1, behind=2))
    authors = squares(x, centres, 1, before=1, behind=1)
    most = [(cut == 0).sum((1, 2)).max() for cut in (authors, y)]
    assert "zeroes {} elements, not {}:".format(*most) in BY_NAME["cutout of size 3"].reason


def test_tables_of_definitions_in_the_readme_are_those_measured():
    readme = (BENCHMARKS / "README.md").read_text()
    section = readme.split("## Definitions compared")[1].split("\n## ")[0]
    measured = MEASURED
    rows = [*measured["same_mask"], *measured["definitions"]]
    cells = [[cell for name, cell in row.items() if name != "how"] for row in rows]
    shown = [line for line in section.splitlines() if line.startswith("| ")]
    headings = [i for i, line in enumerate(shown) if line.startswith("| ---")]
    body = [line for i, line in enumerate(shown) if i not in headings and i + 1 not in headings]
    assert body == ["| " + " | ".join(row) + " |" for row in cells]
    assert not measured["environment"]["left_out"]
    versions = {"jax": measured["environment"]["jax"], **measured["environment"]["peers"]}
    for library, version in versions.items():
        assert f"{library} {version}" in section
