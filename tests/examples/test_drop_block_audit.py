"""The audit of DropBlock: its closed forms against sets of seeds that are counted out."""

import itertools

import jax
import numpy as np
import pytest
from scripts import EXAMPLES, run

FALSE_ALARM_RATE = 1e-9
SMALL = (5, 3, 0.5)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import drop_block_audit

    return drop_block_audit


def all_sets(size, block):
    """What each set of seeds keeps, position by position, and how many seeds it has."""
    edge = size - block + 1
    for seeds in itertools.product([False, True], repeat=edge * edge):
        kept = np.ones((size, size), bool)
        for row, column in np.argwhere(np.reshape(seeds, (edge, edge))):
            kept[row : row + block, column : column + block] = False
        yield kept, sum(seeds)


def moments(gamma, size, block, factor):
    """Mean of `factor(kept) * kept` at each position, mean and spread of the map's mean."""
    count = (size - block + 1) ** 2
    kept, number = (np.array(each) for each in zip(*all_sets(size, block), strict=True))
    chance = gamma**number * (1 - gamma) ** (count - number)
    y = np.array([factor(one) * one for one in kept])
    mean = np.einsum("s,sij->ij", chance, y)
    second = chance @ y.mean(axis=(1, 2)) ** 2
    return mean, np.sqrt(second - mean.mean() ** 2), chance[~kept.any(axis=(1, 2))].sum()


@pytest.mark.parametrize(("size", "block"), [(7, 3), (7, 7), (8, 5), (14, 7)])
def test_cover_counts_the_seeds_of_each_position(example, size, block):
    position = np.arange(size)[:, None]
    first = np.arange(size - block + 1)
    inside = (first <= position) & (position < first + block)
    np.testing.assert_array_equal(example.cover(size, block), inside.sum(axis=1))
    everywhere = abs(np.arange(size) - position) <= block // 2
    np.testing.assert_array_equal(example.clipped_cover(size, block), everywhere.sum(axis=1))


def test_known_numbers_of_both_gammas(example):
    of_eight, of_fourteen = example.audit(8, 3, 0.5), example.audit(14, 7, 0.9)
    assert round(of_eight["published"], 3) == 0.614
    assert round(of_eight["blocks cut"], 3) == 0.463
    assert round(of_eight["gamma, exact"], 4) == 0.1421
    np.testing.assert_allclose(of_eight["gamma, published"], 0.5 / 9 * 64 / 36, rtol=1e-14)
    assert round(of_fourteen["gamma, exact"], 6) == 0.006764
    np.testing.assert_allclose(of_fourteen["gamma, published"], 0.1 / 49 * 196 / 64, rtol=1e-14)


def test_exact_gamma_keeps_what_is_asked_and_the_published_one_more(example):
    for size, block, keep in itertools.product(example.SIZES, example.BLOCKS, example.KEEPS):
        found = example.audit(size, block, keep)
        np.testing.assert_allclose(found["exact"], keep, rtol=1e-13)
        if size == block:
            np.testing.assert_allclose(found["published"], keep, rtol=1e-13)
        else:
            assert found["published"] > keep + 0.0005
        assert found["blocks cut"] < found["published"]


def test_all_masks_are_those_of_all_sets_of_seeds(example):
    kept, number = example.all_masks(5, 3)
    found = {(one.tobytes(), int(n)) for one, n in zip(kept, number, strict=True)}
    assert found == {(one.tobytes(), n) for one, n in all_sets(5, 3)}
    assert len(kept) == 2**9


def test_closed_form_is_the_mean_over_all_sets_of_seeds(example):
    for gamma in (0.05, 0.3):
        mean, _, _ = moments(gamma, 5, 3, lambda kept: 1)
        closed = example.kept_by_position(gamma, example.cover(5, 3))
        np.testing.assert_allclose(closed, mean, rtol=1e-12)


def test_rescaled_moments_are_those_of_a_float64_reference(example):
    size, block, keep = SMALL
    found, kept = example.rescaled(*SMALL), example.audit(*SMALL)
    for name in example.GAMMAS:
        gamma = kept[f"gamma, {name}"]
        own = example.kept_by_position(gamma, example.cover(size, block))
        factors = {
            "1 / keep asked": lambda _: 1 / keep,
            "1 / keep of position": lambda _, own=own: 1 / own,
            "size / kept": lambda one: one.size / max(one.sum(), 1),
        }
        for rule, factor in factors.items():
            row = found[f"{name}, {rule}"]
            mean, spread, gone = moments(gamma, size, block, factor)
            np.testing.assert_allclose(row["positions"], mean, rtol=1e-6)
            np.testing.assert_allclose(row["mean"], mean.mean(), rtol=1e-6)
            np.testing.assert_allclose(row["spread"], spread, rtol=1e-5)
            np.testing.assert_allclose(row["all dropped"], gone, rtol=1e-12)


def test_what_each_factor_keeps(example):
    found, kept = example.rescaled(*SMALL), example.audit(*SMALL)
    for name in example.GAMMAS:
        asked, own, realized = (
            found[f"{name}, {rule}"]
            for rule in ("1 / keep asked", "1 / keep of position", "size / kept")
        )
        gone = realized["all dropped"]
        np.testing.assert_allclose(asked["mean"], kept[name] / SMALL[2], rtol=1e-6)
        np.testing.assert_allclose(own["positions"], 1, rtol=1e-6)
        np.testing.assert_allclose(realized["mean"], 1 - gone, rtol=1e-6)
        np.testing.assert_allclose(realized["spread"], np.sqrt(gone * (1 - gone)), rtol=1e-5)
        corner, edge, middle = example.places(realized["positions"])
        assert corner > edge > middle
        assert corner > 1 > middle


def test_samples_agree_with_their_own_gamma_and_not_with_the_other(example, key):
    """Hoeffding's bound over 64 positions and two gammas; a false alarm in 1e9 runs."""
    keys = jax.random.split(key, 4)
    maps = len(keys) * (example.ELEMENTS // 8**2)
    bound = np.sqrt(np.log(2 * 2 * 64 / FALSE_ALARM_RATE) / (2 * maps))
    found = example.audit(8, 3, 0.5)
    closed = {
        exact: example.kept_by_position(found[f"gamma, {name}"], example.cover(8, 3))
        for name, exact in example.GAMMAS.items()
    }
    for exact in closed:
        share = example.sample(jax.random.clone(keys), 8, 3, 0.5, exact).mean(axis=0)
        assert abs(share - closed[exact]).max() < bound
        assert abs(share - closed[not exact]).max() > 2 * bound


def test_small_run_prints_and_draws(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import drop_block_audit as example\n"
        "example.SAMPLED = example.MAPS = example.MAPS[:1]\n"
        "example.ELEMENTS = 2**12\n"
        f"example.main(['--seeds', '2', '--out', {str(tmp_path)!r}])\n"
    )
    printed = run("-c", script, JAX_DEBUG_KEY_REUSE="1", JAX_DISABLE_MOST_OPTIMIZATIONS="1").stdout
    assert "  8     3  | 0.614 0.463  0.142068  |" in printed
    assert "map  8, block 3, keep 0.5, exact     0.858 " in printed
    assert "exact, 1 / keep asked " in printed
    assert (tmp_path / "drop_block_audit.png").stat().st_size > 10_000
