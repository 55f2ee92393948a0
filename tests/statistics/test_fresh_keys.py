"""The run on fresh keys judges by the right law, and would see samplers that are off.

Controls are drawn by NumPy from fixed seeds, at about the smallest fault that the stated
power says is found; the run itself is `python tests/statistics/fresh_keys.py`.
"""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from fresh.laws import independent, of_words, p_values, smallest_found
from fresh.panels import all_panels
from scripts import load
from table.methods import RECORDS

LEVEL = 1e-11  # about that of one test in the run
DRAWS, SHAPE, CHANCE = 2**14, (4, 40), 0.9


fresh_keys = load(Path(__file__).with_name("fresh_keys.py"))


def exact_tails(trials, chance):
    """P(exactly k), P(at most k) and P(at least k) for all k, by integers."""
    kept, parts = Fraction(chance).as_integer_ratio()
    ways = [
        math.comb(trials, k) * kept**k * (parts - kept) ** (trials - k) for k in range(trials + 1)
    ]
    below, above = itertools.accumulate(ways), itertools.accumulate(reversed(ways))
    shares = [[way / parts**trials for way in each] for each in (ways, below, above)]
    return shares[0], shares[1], shares[2][::-1]


@pytest.mark.parametrize("chance", [0.5, 0.9, 2.0**-10])
def test_p_value_is_twice_the_smaller_tail_of_the_binomial_law(chance):
    _, below, above = exact_tails(60, chance)
    expected = np.minimum(1, 2 * np.minimum(below, above))
    counted = p_values(np.arange(61), 60, (np.full(61, chance),) * 2)
    np.testing.assert_allclose(counted, expected, rtol=1e-10)


@pytest.mark.parametrize("trials", [2**20, 2**31])
@pytest.mark.parametrize("chance", [1e-5, 0.1, 0.5, 1 - 1e-5])
def test_far_tails_lie_below_chernoffs_bound_and_above_their_first_term(trials, chance):
    spread = math.sqrt(trials * chance * (1 - chance))
    for side in (-1, 1):
        count = round(trials * chance + side * 7 * spread)
        if not 0 < count < trials:  # nothing lies as far off on this side
            continue
        share = count / trials
        bound = share * math.log(share / chance) + (1 - share) * math.log1p(
            (chance - share) / (1 - chance)
        )
        (value,) = p_values(np.array([count]), trials, (np.array([chance]),) * 2)
        first = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        first += count * math.log(chance) + (trials - count) * math.log1p(-chance)
        assert first - 1e-3 <= math.log(value / 2) <= -trials * bound + 1e-3


@pytest.mark.parametrize("level", [0.3, 1e-2, 1e-5])
def test_null_is_rejected_no_more_often_than_its_level(level):
    for trials, chance in [(1, 0.5), (20, 0.3), (200, 0.01)]:
        terms, _, _ = exact_tails(trials, chance)
        values = p_values(np.arange(trials + 1), trials, (np.full(trials + 1, chance),) * 2)
        assert np.dot(terms, values < level) <= level


def test_stated_power_is_that_of_the_exact_test():
    trials, chance = 400, 0.9
    rise, fall = smallest_found(trials, (chance, chance), 1e-3, 0.99)
    rejected = p_values(np.arange(trials + 1), trials, (np.full(trials + 1, chance),) * 2) < 1e-3
    for other in (chance + rise, chance - fall):
        terms, _, _ = exact_tails(trials, other)
        assert np.dot(terms, rejected) == pytest.approx(0.99, abs=1e-6)


def broken_laws(kept, laws):
    """The names of the laws that are rejected for booleans `(draws, *shape)`, or words."""
    drawn, broken = jnp.asarray(kept), set()
    for law in laws:
        trials = len(kept) // law.draws * law.trials
        counts = np.asarray(law.count(drawn)).reshape(law.chance[0].shape)
        if (p_values(counts, trials, law.chance) < LEVEL).any():
            broken.add(law.name)
    return broken


def uniform(shape=SHAPE):
    return np.random.default_rng(0).random((DRAWS, *shape))


def found(name, chance=CHANCE):
    """A little more than what the law of this name is sure to find, and that in one draw."""
    law = next(law for law in independent(SHAPE, chance) if law.name == name)
    chances = tuple(float(each.flat[0]) for each in law.chance)
    trials = DRAWS // law.draws * law.trials
    return 1.2 * max(smallest_found(trials, chances, LEVEL, 0.99))


def shared_with(kept, other, share):
    """`kept`, but with probability `share` what `other` says."""
    choice = np.random.default_rng(1).random(kept.shape)
    return np.where(choice < share, other, kept)


def right_sampler():
    return uniform() < CHANCE


def wrong_share():
    return uniform() < CHANCE - found("share kept")


def one_element_off():
    kept = uniform()
    kept[:, 2, 7] += found("each element")
    return kept < CHANCE


def one_lane_off():
    kept = uniform()
    kept[..., 5] += found("slices of axis 1")
    return kept < CHANCE


def neighbours_alike():
    kept = right_sampler()
    # Copying a share s gives the correlation s, and agreement 2 q p s more often.
    share = found("neighbours along axis 1") / (2 * CHANCE * (1 - CHANCE))
    kept[..., 1::2] = shared_with(kept[..., 1::2], kept[..., 0::2], share)
    return kept


def lanes_of_next_word_alike():
    kept = right_sampler().reshape(DRAWS, -1)
    share = found("elements 32 apart") / (2 * CHANCE * (1 - CHANCE))
    rows = kept[:, :128].reshape(DRAWS, 2, 2, 32)
    rows[:, :, 1] = shared_with(rows[:, :, 1], rows[:, :, 0], share)
    kept[:, :128] = rows.reshape(DRAWS, 128)
    return kept.reshape(DRAWS, *SHAPE)


def draws_alike():
    kept = right_sampler()
    share = found("each element in consecutive draws") / (2 * CHANCE * (1 - CHANCE))
    kept[1::2] = shared_with(kept[1::2], kept[0::2], share)
    return kept


def samples_alike():
    kept = right_sampler()
    share = found("pairs of slices of axis 0") / (2 * CHANCE * (1 - CHANCE))
    kept[:, 3] = shared_with(kept[:, 3], kept[:, 0], share)
    return kept


def one_decision_in_some_draws():
    kept = right_sampler()
    kept[:64] = True  # in 64 of 2^14 draws nothing is dropped
    return kept


def fixed_number():
    """Exactly as many as are expected: each element is right, and their number is not random."""
    order = uniform().reshape(DRAWS, -1).argsort(axis=1)
    return (order < CHANCE * math.prod(SHAPE)).reshape(DRAWS, *SHAPE)


@pytest.mark.parametrize(
    ("sampler", "law"),
    [
        (wrong_share, "share kept"),
        (one_element_off, "each element"),
        (one_lane_off, "slices of axis 1"),
        (neighbours_alike, "neighbours along axis 1"),
        (lanes_of_next_word_alike, "elements 32 apart"),
        (draws_alike, "each element in consecutive draws"),
        (samples_alike, "pairs of slices of axis 0"),
        (one_decision_in_some_draws, "number kept in a draw"),
        (fixed_number, "number kept in a draw"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_biased_sampler_is_rejected_at_the_stated_power(sampler, law):
    assert law in broken_laws(sampler(), independent(SHAPE, CHANCE))


def test_right_sampler_is_not_rejected():
    assert broken_laws(right_sampler(), independent(SHAPE, CHANCE)) == set()


def packed(kept):
    return np.packbits(kept, axis=-1, bitorder="little").view(np.uint32)


def test_laws_of_packed_words_tell_a_stuck_lane_from_a_right_sampler():
    words, laws = packed(uniform((4096,))[:256] < CHANCE), of_words(128, CHANCE)
    broken = lambda words: broken_laws(words, laws)  # noqa: E731
    assert broken(words) == set()
    assert "each lane" in broken(words | np.uint32(1 << 9))
    assert "each lane of the last word" in broken(np.where(np.arange(128) == 127, 0, words))
    shifted = np.where(np.arange(128) % 2 == 1, np.roll(words, 1, axis=1), words)
    assert broken(shifted) == {"words 1 apart"}
    paired = (words & np.uint32(0x55555555)) | ((words & np.uint32(0x55555555)) << np.uint32(1))
    assert "lanes 1 apart" in broken(paired)
    assert "consecutive draws" in broken(np.repeat(words[::2], 2, axis=0))


def test_every_method_with_a_mask_has_panels_with_names_of_their_own():
    names = [panel.name for panel in all_panels()]
    assert len(set(names)) == len(names)
    for method in RECORDS:
        own = [name for name in names if name.startswith(f"{method.name} at rate ")]
        assert len(own) >= 3 if method.takes_rate else method.name in names


def test_laws_whose_power_is_stated_are_laws_of_the_run():
    there = {(panel.name, law.name) for panel in all_panels() for law in panel.laws}
    assert there >= fresh_keys.SHOWN


def panels_right_and_off():
    """A panel of the run with some of its laws, and the same where the rate is .53 for .5."""
    panel = next(p for p in all_panels() if p.name == "dropout at rate 0.5, traced")
    right = replace(panel, laws=panel.laws[:3])
    return right, replace(right, name="off", operands=(0.53, 0.0))


def test_run_counts_all_its_tests_and_finds_a_rate_that_is_off():
    right, off = panels_right_and_off()
    values = {}
    for panel in (right, off):
        found = fresh_keys.run([panel], fresh_keys.key_of(0), 256)
        assert len(found) == fresh_keys.number_of_tests([panel])
        values[panel.name] = found[0][0]
    assert values["off"] < 1e-40 < 1e-5 < values[right.name]


def test_command_says_which_law_is_broken_and_how_to_repeat_it(monkeypatch, capsys):
    right, off = panels_right_and_off()
    monkeypatch.setattr(fresh_keys, "all_panels", lambda: [right, off])
    monkeypatch.setattr("sys.argv", ["fresh_keys.py", "--seed", "5", "--draws", "256"])
    assert fresh_keys.main() == 1
    printed = capsys.readouterr().out
    assert "BROKEN" in printed
    assert "off: share kept: " in printed
    assert "Repeat by: python tests/statistics/fresh_keys.py --seed 5 --draws 256" in printed
    monkeypatch.setattr(fresh_keys, "all_panels", lambda: [right])
    assert fresh_keys.main() == 0
