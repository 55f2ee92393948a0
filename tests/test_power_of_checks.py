"""False alarms and power of the assertions, computed from draws that are given, not drawn."""

import bisect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import power_of_checks as power
import pytest
from scipy.stats import binom

from jaxdrop import checks, dropout
from jaxdrop.base.validate import Check
from jaxdrop.checks import exact, sampling, statistical

pytestmark = pytest.mark.quick

DRAWS, RATE, MANY = 16384, 0.1, 1000  # what the docstrings give figures for


def drop(key, x):
    raise NotImplementedError("draws are given")


@pytest.fixture
def verdict(monkeypatch):
    """What an assertion says of given draws, instead of those of a drop."""

    def judged(assertion, draws, *args, dtype="float32", **options):
        x, wanted = jnp.ones(draws.shape[1:], dtype), []

        def given(check, drop, key, x, num_samples):
            wanted.append(num_samples)
            return iter(np.array_split(draws, max(1, draws.size // 2**20)))

        for module in (exact, sampling, statistical):
            monkeypatch.setattr(module, "outputs", given)
        try:
            assertion(drop, jax.random.key(0), x, *args, **options)
            found = "passed"
        except AssertionError:
            found = "rejected"
        except ValueError:
            found = "refused"
        assert wanted == [len(draws)]
        return found

    return judged


def test_radius_is_the_empirical_bernstein_bound():
    samples = np.random.default_rng(0).normal(3, 2, (40, 5))
    deviations = sampling.Deviations(np.arange(5.0))
    for part in np.split(samples, [1, 30]):
        deviations.add(part)
    np.testing.assert_allclose(deviations.bias, samples.mean(0) - np.arange(5), rtol=1e-12)
    variances = samples.var(0, ddof=1)
    off = samples - np.arange(5)
    # The ranges that the draws have shown, with what is dropped and what is kept as it is.
    ranges = np.maximum(off.max(0), 0) - np.minimum(off.min(0), -np.arange(5))
    assert np.all((ranges > 5) & (ranges < 50))
    for span in (5, 50):
        spans = np.maximum(ranges, span)
        for alarm_rate in (1e-9, 1.0):
            expected = [
                power.radius(variance, one, 40, alarm_rate)
                for variance, one in zip(variances, spans, strict=True)
            ]
            np.testing.assert_allclose(deviations.radius(alarm_rate, span), expected, rtol=1e-12)


def test_span_of_ratios_is_that_of_all_draws_with_0_and_1():
    deviations = sampling.Deviations(np.array([2.0, -2.0, 0.0]))
    assert deviations.ratio_span() == 1
    for draws, span in (([[-2, 2, 0], [6, -2, 0]], 4), ([[2, -2, 0]], 4), ([[0, -9, 0]], 5.5)):
        deviations.add(np.array(draws))
        assert deviations.ratio_span() == span


def test_worst_place_is_named_with_its_figures():
    deviations = sampling.Deviations(np.ones(3))
    deviations.add(np.array([[1.0, 3, 1], [1.5, 1, 1], [1, 3, 1], [1.5, 1, 1]]))
    with pytest.raises(AssertionError) as raised:
        sampling.reject(Check("c"), "output", deviations, np.full(3, 0.2))
    assert str(raised.value) == (
        "c: the mean output at (1,) over 4 draws is 2, expected 1: off by 1 where 0.2 is allowed:"
        " 1.73 standard errors."
    )


def of_one_element(draws, scale=1.0):
    """For each number of survivors in so many draws, draws of one element with so many."""
    return [(np.arange(draws) < kept)[:, None] * np.float64(scale) for kept in range(draws + 1)]


def chance_of(found, keep_prob):
    """The exact probability of a rejection, if the verdict is known for each number kept."""
    kept = np.arange(len(found))
    return binom.pmf(kept, len(found) - 1, keep_prob)[np.array(found) == "rejected"].sum()


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("alarm_rate", [0.3, 1.0])
def test_single_elements_are_rejected_no_more_often_than_asked(verdict, rate, alarm_rate):
    options = {"num_samples": 256, "false_alarm_rate": alarm_rate}
    for assertion, args, scale in (
        (checks.assert_keep_rate, (rate,), 1),
        (checks.assert_expectation_kept, (), 1 / (1 - rate)),
    ):
        found = [verdict(assertion, d, *args, **options) for d in of_one_element(256, scale)]
        assert 0 < chance_of(found, 1 - rate) <= alarm_rate


def test_false_alarm_rate_is_that_of_all_elements_together(verdict):
    """Of 512 elements one has any number of survivors, the others as many as are expected."""
    count, draws, alarm_rate = 512, 512, 0.5
    usual = np.arange(draws)[:, None] % 2 == np.arange(count) % 2
    for assertion, args, scale in (
        (checks.assert_keep_rate, (0.5,), 1.0),
        (checks.assert_expectation_kept, (), 2.0),
    ):

        def passes(kept, assertion=assertion, args=args, scale=scale):
            given = np.where(np.arange(count) == 0, np.arange(draws)[:, None] < kept, usual)
            options = {"num_samples": draws, "false_alarm_rate": alarm_rate}
            return verdict(assertion, given * scale, *args, **options) == "passed"

        most = bisect.bisect(range(256, draws), False, key=lambda kept: not passes(kept)) + 255
        assert passes(most)
        assert not passes(most + 1)
        of_each = 2 * binom.sf(most, draws, 0.5)
        assert 0 < 1 - (1 - of_each) ** count <= alarm_rate


@pytest.mark.parametrize("alarm_rate", [1e-9, 0.5])
def test_outputs_that_are_always_alike_are_rejected_where_the_bound_says(verdict, alarm_rate):
    """Each of the two tests, of all and of each of 8 elements, has half of the rate."""
    count, draws, options = 8, 2**14, {"false_alarm_rate": alarm_rate}
    whole, each = (power.radius(0, 1, draws, alarm_rate / 2 / tests) for tests in (1, count))
    for nearly, expected in ((0.999, "passed"), (1.001, "rejected")):
        for place, reach in ((slice(None), whole), (5, each)):
            for dtype in ("float32", "bfloat16"):
                given = np.ones((draws, count))
                given[:, place] += power.ROUNDED[dtype]
                given[:, place] /= 1 - nearly * reach
                found = verdict(checks.assert_expectation_kept, given, **options, dtype=dtype)
                assert found == expected
        kept = np.ones((draws, count), bool)
        found = verdict(checks.assert_keep_rate, kept, nearly * whole, **options)
        assert (found == "rejected") == (expected == "rejected")
    for dropped in (math.floor(each * draws), math.ceil(each * draws)):
        kept = np.repeat((np.arange(draws) >= dropped)[:, None], count, 1)
        kept[:, 5] = True
        found = verdict(checks.assert_keep_rate, kept, dropped / draws, **options)
        assert (found == "rejected") == (dropped > each * draws)


def test_defect_of_the_size_that_the_formula_gives_is_noticed_and_hardly_a_smaller_one(verdict):
    draws, rate, options = 2048, 0.3, {"num_samples": 2048, "false_alarm_rate": 1e-6}

    def noticed(assertion, *args, keep_prob, scale=1.0):
        usual = round(draws * keep_prob)
        kept = np.arange(usual - 100, usual + 101)  # all but a chance of 1e-5
        given = [(np.arange(draws) < k)[:, None] * scale for k in kept]
        rejected = [verdict(assertion, each, *args, **options) == "rejected" for each in given]
        return binom.pmf(kept, draws, keep_prob)[rejected].sum()

    def noticed_rate(off):
        return noticed(checks.assert_keep_rate, rate, keep_prob=1 - rate - off)

    def noticed_scale(off):
        scale = (1 + off) / (1 - rate)
        return noticed(checks.assert_expectation_kept, keep_prob=1 - rate, scale=scale)

    for noticed_by, size in (
        (noticed_rate, power.wrong_rate(rate, 1, draws, 1e-6)),
        (noticed_scale, power.wrong_scale(rate, 1, draws, 1e-6)),
    ):
        assert noticed_by(1.04 * size) > power.POWER > noticed_by(0.96 * size)


def test_defaults_notice_what_their_docstrings_say(verdict):
    u = np.random.default_rng(0).random((DRAWS, MANY), np.float32)
    kept = u >= RATE

    def scaled(all_of_them, one):
        y = kept * np.float32(all_of_them / (1 - RATE))
        y[:, 7] *= np.float32(one / all_of_them)
        return verdict(checks.assert_expectation_kept, y)

    def dropped(all_of_them, one):
        y = u >= all_of_them
        y[:, 7] = u[:, 7] >= one
        return verdict(checks.assert_keep_rate, y, RATE)

    assert scaled(1.0036, 1.022) == "passed"
    assert scaled(1.0044, 1) == scaled(1, 1.032) == "rejected"
    assert dropped(0.1035, 0.12) == "passed"
    assert dropped(0.1040, 0.1) == dropped(0.1, 0.131) == "rejected"


def test_figures_of_the_docstrings_are_those_of_the_formulas():
    known = (DRAWS * 1.0, RATE, MANY)
    draws, rate, many = known
    assert round(power.wrong_scale(rate, many, draws), 4) == 0.0044
    assert round(power.wrong_scale_of_one(rate, many, draws), 3) == 0.032
    assert round(power.wrong_rate(rate, many, draws), 3) == 0.004
    assert round(power.wrong_rate_of_one(rate, many, draws), 3) == 0.031
    assert round(power.share_unshared(16), 2) == 0.25
    assert [power.elements_for_state(rate) for rate in (0.1, 0.5)] == [24, 7]
    assert round(power.rate_of_fresh_mask(256), 3) == 0.009
    assert 0.01 < power.rate_decided(2, 1024) < 0.011
    assert 0.014 < power.rate_decided(128, 1024) < 0.015
    assert round(power.wrong_slope("float32"), 4) == 0.0012
    assert power.wrong_slope("bfloat16") == power.wrong_slope("float16") == 0.1


@pytest.mark.parametrize("place", [slice(None), 5], ids=["all", "one"])
def test_passes_only_where_some_wrong_scale_would_be_noticed(verdict, place):
    """With few draws the range of a scale that is too large hides it, however large."""
    rng, found = np.random.default_rng(0), set()
    for draws in (10, 200, 600, 800, 1000, 6000):
        kept = np.arange(draws)[:, None] >= 0.9 * draws
        right = rng.permuted(np.repeat(kept / kept.mean(), 32, 1), axis=0)
        wrong = right.copy()
        wrong[:, place] *= 1e6
        pair = [
            verdict(checks.assert_expectation_kept, given, num_samples=draws)
            for given in (right, wrong)
        ]
        assert pair in (["passed", "rejected"], ["refused", "refused"], ["refused", "rejected"])
        found.add(pair[0])
    assert found == {"passed", "refused"}


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.2, 0.99, 1.0])
def test_passes_only_where_an_element_that_is_always_alike_would_be_noticed(verdict, rate):
    found = set()
    for draws in (2, 20, 60, 200, 6000, 60_000):
        usual = np.arange(draws) >= round(rate * draws)
        ones = [usual] + [np.full(draws, kept) for kept in {rate > 0, rate == 1}]
        right, *wrong = (
            verdict(checks.assert_keep_rate, np.stack([one, usual], 1), rate, num_samples=draws)
            for one in ones
        )
        assert right == "refused" or (right == "passed" and set(wrong) == {"rejected"})
        found.add(right)
    assert found == {"passed", "refused"}


def test_more_draws_notice_smaller_errors_down_to_the_rounding_of_the_dtype(verdict):
    unit = power.ROUNDED["bfloat16"]
    for draws, off, expected in (
        (2**10, 2 * unit, "passed"),
        (2**14, 2 * unit, "rejected"),
        (2**17, unit, "passed"),
    ):
        given, options = np.full((draws, 1), 1 + off), {"num_samples": draws, "dtype": "bfloat16"}
        assert verdict(checks.assert_expectation_kept, given, **options) == expected


def test_higher_false_alarm_rate_notices_smaller_errors(verdict):
    given = np.full((DRAWS, 1), 1.003)
    assert verdict(checks.assert_expectation_kept, given) == "passed"
    assert verdict(checks.assert_expectation_kept, given, false_alarm_rate=1e-4) == "rejected"


def test_rare_survivors_at_other_elements_tell_how_large_they_are(verdict):
    given = np.zeros((1024, 4))
    given[5, 2] = 1000  # three elements have shown no survivor yet
    assert verdict(checks.assert_expectation_kept, given, num_samples=1024) == "refused"
    given = np.zeros((2**19, 2))
    given[:512, 0], given[:450, 1] = 1024, 1024
    assert verdict(checks.assert_expectation_kept, given, num_samples=2**19) == "passed"


def twins_of_two(draws, both_dropped):
    """Two slices of one decision each, which are alike in all draws."""
    return np.repeat((np.arange(draws) >= both_dropped)[:, None], 2, 1) * 1.0


@pytest.mark.parametrize("alarm_rate", [1e-4, 0.02, 0.3])
def test_independent_slices_are_rejected_no_more_often_than_asked(verdict, alarm_rate):
    """Two slices; only draws in which they are alike can be rejected."""
    draws = 16
    options = {"num_samples": draws, "false_alarm_rate": alarm_rate}
    found = [
        verdict(checks.assert_masks_differ_along, twins_of_two(draws, both), 0, **options)
        for both in range(draws + 1)
    ]
    rejected, both = np.array(found) == "rejected", np.arange(draws + 1)
    assert set(found) == {"refused", "rejected"}
    chances = [
        (binom.pmf(both, draws, p**2 / power.agree(p)) * power.agree(p) ** draws)[rejected].sum()
        for p in np.linspace(0.01, 0.99, 99)
    ]
    assert 0 < max(chances) <= alarm_rate


def test_single_draw_in_which_slices_differ_is_enough_to_pass(verdict):
    given = twins_of_two(1024, 300)
    assert verdict(checks.assert_masks_differ_along, given, 0) == "rejected"
    given[7, 1] = 1 - given[7, 1]
    assert verdict(checks.assert_masks_differ_along, given, 0) == "passed"
    for rate in (0.0, 0.009, 0.991, 1.0):
        given = twins_of_two(1024, round(1024 * rate))
        assert verdict(checks.assert_masks_differ_along, given, 0) == "refused"


def test_chance_that_slices_agree_counts_all_pairs(verdict):
    """Sixteen slices are 120 pairs, of which one is alike."""
    rng, draws = np.random.default_rng(0), 24
    kept = rng.permuted(np.repeat([[0.0] * 12 + [1.0] * 12], 16, 0), axis=1).T
    kept[:, 9] = kept[:, 3]
    chance = 120 * 0.5**draws
    for alarm_rate, expected in ((1.01 * chance, "rejected"), (0.99 * chance, "refused")):
        options = {"num_samples": draws, "false_alarm_rate": alarm_rate}
        assert verdict(checks.assert_masks_differ_along, kept, 0, **options) == expected


def test_one_element_of_one_draw_shows_that_a_mask_is_not_shared(verdict):
    kept = np.repeat(np.random.default_rng(0).random((16, 1, 6)) > 0.5, 4, 1) * 1.0
    assert verdict(checks.assert_mask_shared_along, kept, 0) == "passed"
    for everywhere in (0, 1):
        alike = np.full_like(kept, everywhere)
        assert verdict(checks.assert_mask_shared_along, alike, 0) == "refused"
    kept[11, 3, 2] = 1 - kept[11, 3, 2]
    assert verdict(checks.assert_mask_shared_along, kept, 0) == "rejected"


def test_two_keys_of_64_that_differ_show_that_the_key_matters(monkeypatch):
    fixed = lambda key, x: x  # noqa: E731
    draws = np.ones((64, 2, 3), np.float32)
    for change, raised in ((0, True), (1e-6, False)):
        draws[63, 1, 2] += change
        monkeypatch.setattr(exact, "outputs", lambda *a: iter([draws[:40], draws[40:]]))
        call = partial(
            checks.assert_key_determines_output, fixed, jax.random.key(0), jnp.ones((2, 3))
        )
        if raised:
            with pytest.raises(AssertionError, match="64 different keys gave the same output"):
                call()
        else:
            call()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradient_may_be_off_by_the_share_that_the_docstring_says(dtype):
    """Of the largest change of an output, at one row of eight."""

    def wrong_by(share):
        @jax.custom_vjp
        def identity(x):
            return x

        factors = jnp.ones(8, dtype).at[5].set(1 + share)
        identity.defvjp(lambda x: (x, None), lambda _, g: ((g * factors).astype(g.dtype),))
        checks.assert_gradient_uses_same_mask(
            lambda key, x: identity(x), jax.random.key(0), jnp.ones(8, dtype)
        )

    wrong_by(0.8 * power.wrong_slope(dtype))
    with pytest.raises(AssertionError, match=r"at output \(.*5.*\) the gradient predicts"):
        wrong_by(1.3 * power.wrong_slope(dtype))


@pytest.mark.parametrize(("size", "rows"), [(7, 7), (256, 256), (600, 256)])
def test_up_to_256_rows_of_the_jacobian_are_compared_evenly_spread(size, rows, monkeypatch):
    seen = []
    vjp = jax.vjp

    def watched(function, x):
        y, _ = vjp(function, x)
        return y, lambda g: (seen.append(int(np.argmax(g))), (g,))[1]

    monkeypatch.setattr(jax, "vjp", watched)
    checks.assert_gradient_uses_same_mask(lambda key, x: x, jax.random.key(0), jnp.ones(size))
    assert len(seen) == len(set(seen)) == rows
    assert (min(seen), max(seen)) == (0, size - 1)
    assert np.ptp(np.diff(seen)) <= 1


def under_jit(change):
    """A drop that keeps everything, and whose output changes under `jit`."""
    return lambda key, x: change(x) if isinstance(x, jax.core.Tracer) else x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_under_jit_may_be_off_by_four_units_of_the_larger_of_input_and_output(dtype):
    x, unit = jnp.ones(9, dtype), power.wrong_value(dtype) / 4
    one = lambda off: under_jit(lambda x: x.at[4].add(off))  # noqa: E731
    checks.assert_same_under_jit(one(4 * unit), jax.random.key(0), x)
    with pytest.raises(AssertionError, match=r"at output \(4,\) the value is 1 eagerly and 1\.\d"):
        checks.assert_same_under_jit(one(5 * unit), jax.random.key(0), x)

    def cancelling(key, x):  # 2^10 - (2^10 - 1)
        return (0 * x + 1) + (2**10 * 3 * unit if isinstance(x, jax.core.Tracer) else 0)

    checks.assert_same_under_jit(cancelling, jax.random.key(0), 2**10 * x)
    with pytest.raises(AssertionError, match="they differ by"):
        checks.assert_same_under_jit(cancelling, jax.random.key(0), 2**9 * x)


def test_single_element_that_only_jit_drops_is_noticed():
    drop = under_jit(lambda x: x.at[4].set(0))
    with pytest.raises(AssertionError, match=r"0\.111 of the elements are dropped eagerly or und"):
        checks.assert_same_under_jit(drop, jax.random.key(0), jnp.ones(9))


def test_shape_and_dtype_under_jit_are_compared_too():
    for change, shown in (
        (lambda x: x[:1], r"float32\[2\] eagerly and float32\[1\] under jit"),
        (lambda x: x.astype("bfloat16"), r"float32\[2\] eagerly and bfloat16\[2\] under jit"),
    ):
        with pytest.raises(AssertionError, match=f"the output is {shown}"):
            checks.assert_same_under_jit(under_jit(change), jax.random.key(0), jnp.ones(2))


@pytest.mark.parametrize("rate", [0, 1])
def test_nothing_depends_on_the_key_at_rates_0_and_1(rate):
    with pytest.raises(AssertionError, match="9 different keys gave the same output"):
        checks.assert_key_determines_output(
            partial(dropout, rate=rate), jax.random.key(0), jnp.ones(5), num_samples=9
        )
