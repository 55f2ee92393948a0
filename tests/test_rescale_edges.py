"""Rescale rules where little or nothing is kept, at NaN, and in other dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, quick_jit

import jaxdrop
from jaxdrop import Mask, apply_mask, rescale
from jaxdrop.rescale import _norm, expected, none, preserve_norm, preserve_sum, realized

pytestmark = pytest.mark.quick

RULES = {
    "expected": expected,
    "none": none,
    "realized": realized(),
    "preserve_sum": preserve_sum(),
    "preserve_norm": preserve_norm(),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def packed(*keep, keep_prob=0.25):
    return Mask.pack(jnp.array(keep, bool), keep_prob)


def factor(rule, mask, x):
    """The factor of a rule, as nested lists of numbers."""
    return np.asarray(rule(mask, jnp.asarray(x))).reshape(-1).tolist()


def outputs(rules, mask, x):
    """What several rules give, by one program."""
    rules = tuple(rules)
    program = quick_jit(lambda x: [apply_mask(mask, x, rescale=rule) for rule in rules])
    return [np.asarray(y) for y in program(jnp.asarray(x))]


def test_what_is_named_by_no_setting():
    for rule in (realized, preserve_sum, preserve_norm):
        assert rule() == rule(None) != rule(-1)
    assert preserve_sum() == preserve_sum(tolerance=1e-3) != preserve_sum(tolerance=1e-2)
    assert realized(0) != preserve_norm(0)


@pytest.mark.parametrize(
    ("name", "of_none_kept", "of_zeros"),
    [
        ("expected", 4, 4),
        ("none", 1, 1),
        ("realized", 0, 1.5),
        ("preserve_sum", 4, 4),
        ("preserve_norm", 4, 4),
    ],
)
def test_factors_where_nothing_is_kept_or_all_that_is_kept_is_zero(name, of_none_kept, of_zeros):
    assert factor(RULES[name], packed(0, 0, 0), [1.0, 2.0, 4.0]) == [of_none_kept]
    assert factor(RULES[name], packed(1, 1, 0), [0.0, 0.0, 4.0]) == [of_zeros]
    for rule in (preserve_sum(-1), preserve_norm(-1)):  # the fall-back is that of each row
        mask = packed([1, 0], [1, 0], [0, 0])
        assert factor(rule, mask, [[0.0, 4.0], [2.0, 4.0], [1.0, 1.0]])[::2] == [4, 4]


def test_factors_where_all_are_dropped_surely():
    mask = packed(0, 0, keep_prob=0.0)
    rules = (expected, realized(), preserve_sum(), preserve_norm())
    for rule in rules:
        assert factor(rule, mask, [1.0, 2.0]) == [0]

    def total(x):
        return sum(apply_mask(mask, x, rescale=rule).sum() for rule in rules)

    np.testing.assert_array_equal(quick_jit(jax.grad(total))(jnp.ones(2)), 0)


def test_fall_back_divides_by_the_probability_of_each_element():
    keep_prob = jnp.array([0.5, 0.25, 1.0, 0.0])
    mask = packed(1, 1, 1, 0, keep_prob=keep_prob)
    assert factor(expected, mask, jnp.ones(4)) == [2, 4, 1, 0]
    for rule in (preserve_sum(), preserve_norm()):
        assert factor(rule, mask, jnp.zeros(4)) == [2, 4, 1, 0]


@pytest.mark.parametrize("kind", [jnp.float32, jnp.complex64])
def test_sum_falls_back_at_its_tolerance_and_below(kind):
    mask, turn = packed(1, 1, 0), 1j if kind == jnp.complex64 else 1
    ratio = lambda d: jnp.asarray(np.array([1 + d, -1, 3]) * turn, kind)  # noqa: E731
    for rule, d, falls_back in (
        (preserve_sum(tolerance=0.5), 2.0, True),  # 2 of 4, which is the tolerance
        (preserve_sum(tolerance=0.499), 2.0, False),
        (preserve_sum(), 0.0019, True),
        (preserve_sum(), 0.0021, False),
        (preserve_sum(tolerance=0), 0.0, True),
        (preserve_sum(tolerance=0), 1e-6, False),
        (preserve_sum(tolerance=1), -3.0, True),  # at 1, always
    ):
        found = factor(rule, mask, ratio(d))
        exact = 4 if falls_back else (3 + d) / np.float32(np.float32(1 + d) - 1)
        np.testing.assert_allclose(found, [exact], rtol=1e-6)


def test_nan_makes_all_survivors_nan_whether_it_is_kept_or_dropped():
    mask = packed([1, 1, 0], [1, 1, 0])
    whole, by_row = (preserve_sum(), preserve_norm()), (preserve_sum(1), preserve_norm(1))
    for place in (0, 2):
        x = np.array([[1.0, 2.0, 4.0]] * 2, np.float32)
        x[0, place] = np.nan
        for y in outputs(whole, mask, x):
            assert np.isnan(y).tolist() == [[True, True, False]] * 2
        for y in outputs(by_row, mask, x):
            assert np.isnan(y).tolist() == [[True, True, False], [False] * 3]


def test_complex_sums_and_norms_are_kept():
    rng = np.random.default_rng(0)
    x = np.asarray(rng.normal(size=(3, 5)) + 1j * rng.normal(size=(3, 5)), np.complex64)
    kept = rng.random((3, 5)) < 0.7
    rules = preserve_sum(1), preserve_norm(1), realized(1)
    by_sum, by_norm, by_count = outputs(rules, Mask.pack(kept, 0.7), x)
    np.testing.assert_allclose(by_sum.sum(1), x.sum(1), rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(by_norm, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5
    )
    expected = np.where(kept, x / kept.mean(1, keepdims=True), 0)
    np.testing.assert_allclose(by_count, expected, rtol=1e-6)


def test_norm_is_the_root_of_the_sum_of_the_squares_of_all_parts():
    x, z = jnp.array([[3.0, -4.0], [0.0, 0.0]]), jnp.array([[3.0, -4j], [0.0, 0.0]])
    for norm in quick_jit(lambda *all: [_norm(x, (1,)) for x in all])(x, z):
        assert norm.tolist() == [[5], [0]]


def test_factors_are_those_of_float32_and_results_are_rounded_once():
    rng = np.random.default_rng(0)
    mask, x = Mask.pack(rng.random(300) < 0.7, 0.7), rng.normal(1, 1, 300)
    for dtype in ("float16", "bfloat16"):
        narrow = jnp.asarray(x, dtype)
        wide = outputs(RULES.values(), mask, narrow.astype(jnp.float32))
        for y, exact in zip(outputs(RULES.values(), mask, narrow), wide, strict=True):
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, exact.astype(dtype))


@every_rule
def test_factors_have_64_bits_for_arrays_of_64_bits_alone(rule):
    def of(dtype):
        x = jax.ShapeDtypeStruct((4,), dtype)
        return jax.eval_shape(lambda x: rule(packed(1, 1, 0, 1), x), x).dtype

    is_sum = rule == preserve_sum()
    with enable_x64():
        assert {of(dtype) for dtype in ("bfloat16", "float16", "float32")} == {np.dtype("float32")}
        assert of("float64") == "float64"
        assert of("complex64") == ("complex64" if is_sum else "float32")
        assert of("complex128") == ("complex128" if is_sum else "float64")


def test_arrays_without_elements_stay_as_they_are():
    for y in outputs(RULES.values(), Mask.pack(np.ones((0, 3), bool), 0.5), jnp.ones((0, 3))):
        assert y.shape == (0, 3)
    for rule in (realized(0), preserve_sum(0), preserve_norm(0)):  # three sums of nothing
        mask = Mask.pack(np.ones((0, 3), bool), 0.5)
        assert np.isfinite(rule(mask, jnp.ones((0, 3)))).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_for_inference_are_rounded_once(dtype):
    w = jnp.asarray(np.random.default_rng(0).normal(size=200), dtype)
    keep_prob = np.float32(jaxdrop.draw_mask(jax.random.key(0), (), 0.3).keep_prob)
    exact = jnp.asarray(np.asarray(w, np.float32) * keep_prob).astype(dtype)
    np.testing.assert_array_equal(rescale.inference_scale(w, 0.3), exact)


def test_weights_for_inference_keep_their_tree_and_dtypes():
    with enable_x64():
        tree = {
            "a": np.ones(2, np.complex64) * np.complex64(1 + 2j),
            "b": [None, np.full(2, 1 / 3)],
            "m": Mask(words=jnp.ones(2), keep_prob=jnp.float32(0.5), layout=None),
        }
        scaled = rescale.inference_scale(tree, 0.25)
        assert jax.tree.structure(scaled) == jax.tree.structure(tree)
        for a, b in zip(*map(jax.tree.leaves, (scaled, tree)), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, np.multiply(0.75, b, dtype=b.dtype))


def test_weights_for_inference_at_the_ends_and_at_bad_traced_rates():
    rates = jnp.array([0.0, 1.0, -0.1, 1.5, jnp.nan])
    scale = lambda rate: rescale.inference_scale(jnp.float32(3), rate)  # noqa: E731
    found = quick_jit(jax.vmap(scale))(rates)
    np.testing.assert_array_equal(found, [3, 0, np.nan, np.nan, np.nan])
    assert [float(scale(rate)) for rate in (0, 1)] == [3, 0]
