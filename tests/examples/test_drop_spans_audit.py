"""The audit of spans: its closed forms against outcomes that are counted out, and samples."""

import itertools

import jax
import numpy as np
import pytest
from scripts import EXAMPLES, run

FALSE_ALARM_RATE = 1e-9


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import drop_spans_audit

    return drop_spans_audit


def kept_of(size, spans):
    kept = np.ones(size, bool)
    for start, width in spans:
        kept[start : start + width] = False
    return kept


@pytest.mark.parametrize(("most", "number"), [(3, 1), (2, 2), (6, 2), (9, 1)])
def test_spec_augment_keeps_the_mean_over_all_widths_and_starts(example, most, number):
    size, found = 6, np.zeros(6)
    widths = range(min(most, size) + 1)
    one = [(s, w, 1 / len(widths) / (size - w + 1)) for w in widths for s in range(size - w + 1)]
    for chosen in itertools.product(one, repeat=number):
        chance = np.prod([chance for *_, chance in chosen])
        found += chance * kept_of(size, [span[:2] for span in chosen])
    np.testing.assert_allclose(example.kept_by_spec_augment(size, most, number), found, rtol=1e-12)


@pytest.mark.parametrize("asked", [0.1, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_wav2vec_keeps_the_mean_over_all_sets_of_starts(example, asked, width):
    size, found = 8, np.zeros(8)
    wanted = asked * size / width
    for number, chance in ((int(wanted), 1 - wanted % 1), (int(wanted) + 1, wanted % 1)):
        laid = size // width if number * width > size else number
        sets = list(itertools.combinations(range(size - width + 1), laid))
        kept = [kept_of(size, [(start, width) for start in starts]) for starts in sets]
        found += chance * np.mean(kept, axis=0)
    np.testing.assert_allclose(example.kept_by_wav2vec(size, asked, width), found, rtol=1e-12)


def test_known_numbers(example):
    """wav2vec 2.0's paper says 49 % of its .65; one mask takes half its widest on average."""
    assert round(1 - example.kept_by_wav2vec(749, 0.65, 10).mean(), 2) == 0.49
    time, frequency, both = example.spec_augment(500, (27, 1, 100, 1, 1.0))
    np.testing.assert_allclose([time, frequency], [50 / 500, 13.5 / 80], rtol=1e-12)
    np.testing.assert_allclose(both, 1 - (1 - time) * (1 - frequency), rtol=1e-12)
    capped = example.spec_augment(200, (27, 1, 70, 1, 0.2))[0]
    np.testing.assert_allclose(capped, 20 / 200, rtol=1e-12)
    narrower = example.spec_augment(500, (27, 1, 100, 1, 1.0), less=1)
    np.testing.assert_allclose(narrower[:2], [49.5 / 500, 13 / 80], rtol=1e-12)


def test_samples_agree_with_their_own_law_and_not_with_the_other(example, monkeypatch):
    """Hoeffding's bound over 49 positions and two samplers; a false alarm in 1e9 runs."""
    monkeypatch.setattr(example, "FRAMES", (49, 49))
    monkeypatch.setattr(example, "ASKED", {"one": (0.65, 10)})
    found = example.sample_all(4)[example.SHOWN]
    exact = {"transformers": example.kept_by_wav2vec(*example.SHOWN), "drop_spans": 0.35}
    for name, sequences in (("transformers", example.SAMPLES // 2), ("drop_spans", 4 * 4096)):
        bound = np.sqrt(np.log(2 * 2 * 49 / FALSE_ALARM_RATE) / (2 * sequences))
        other = exact["drop_spans" if name == "transformers" else "transformers"]
        assert abs(found[name].mean(axis=0) - exact[name]).max() < bound
        assert abs(found[name].mean(axis=0) - other).max() > 2 * bound


def test_draws_of_one_key_are_those_of_drop_spans(example, key):
    drawn = example.draw_jaxdrop(key, 49, 0.65, 10)
    assert drawn.shape == (example.SAMPLES, 49)
    np.testing.assert_array_equal(drawn, example.draw_jaxdrop(jax.random.clone(key), 49, 0.65, 10))


def test_small_run_prints_and_draws(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import drop_spans_audit as example\n"
        "example.SAMPLES = 2**8\n"
        f"example.main(['--seeds', '2', '--out', {str(tmp_path)!r}])\n"
    )
    printed = run("-c", script, JAX_DEBUG_KEY_REUSE="1", JAX_DISABLE_MOST_OPTIMIZATIONS="1").stdout
    assert "LibriSpeech double       200   0.424  0.305  0.600" in printed
    assert "wav2vec 2.0                749    0.650    0.491    0.066    0.496    0.650" in printed
    assert " 0.65     49  0.5109  " in printed
    assert (tmp_path / "drop_spans_audit.png").stat().st_size > 10_000
