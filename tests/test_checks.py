"""Each assertion passes on right drops and fails on ones made wrong on purpose."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from modes import enable_x64

import jaxdrop
from jaxdrop import checks, dropout, rescale
from jaxdrop.base.types import Key
from jaxdrop.base.validate import Check
from jaxdrop.checks import sampling

X = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, (8, 16)), jnp.float32)
KEY = 17


def key():
    return jax.random.key(KEY)


def scaled_by(factor, rate=0.1):
    return lambda key, x: dropout(key, x, rate) * jnp.float32(factor)


right = partial(dropout, rate=0.3)


@pytest.mark.quick
class TestShapeAndDtype:
    @pytest.mark.quick
    def test_passes_on_dropout(self):
        for dtype in (jnp.float32, jnp.bfloat16):
            checks.assert_shape_and_dtype_kept(right, key(), X.astype(dtype))

    @pytest.mark.parametrize("x", [jnp.arange(3), jnp.ones(0, bool), np.float16(1)])
    def test_drop_is_traced_and_not_run_on_inputs_of_any_dtype(self, x):
        def traced(key, x):
            assert isinstance(x, jax.core.Tracer)
            return x

        checks.assert_shape_and_dtype_kept(traced, key(), x)

    def test_fails_on_another_shape(self):
        with pytest.raises(AssertionError, match="shape"):
            checks.assert_shape_and_dtype_kept(lambda k, x: right(k, x).sum(), key(), X)

    def test_fails_on_another_dtype(self):
        with pytest.raises(AssertionError, match="the output is float32, the input bfloat16"):
            checks.assert_shape_and_dtype_kept(
                lambda k, x: right(k, x).astype(jnp.float32), key(), X.astype(jnp.bfloat16)
            )


class TestExpectation:
    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1e-4])
    def test_passes_on_dropout(self, rate):
        checks.assert_expectation_kept(partial(dropout, rate=rate), key(), X)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
    def test_passes_in_other_dtypes(self, dtype):
        checks.assert_expectation_kept(right, key(), X.astype(dtype), num_samples=2048)

    def test_passes_on_one_complex_number(self):
        checks.assert_expectation_kept(right, key(), jnp.complex64(1 - 2j), num_samples=2048)

    def test_passes_on_one_mask_for_all_and_on_normal_noise(self):
        shared = partial(dropout, rate=0.001, broadcast_dims=(0, 1))
        checks.assert_expectation_kept(shared, key(), X)
        checks.assert_expectation_kept(
            lambda k, x: x * (1 + jax.random.normal(k, x.shape)), key(), X
        )

    def test_passes_on_zeros(self):
        checks.assert_expectation_kept(right, key(), jnp.zeros(3))

    def test_cannot_judge_a_drop_of_which_nothing_survives(self):
        with pytest.raises(ValueError, match="something must survive; got only zeros"):
            checks.assert_expectation_kept(scaled_by(0.0), key(), X)

    def test_fails_on_a_wrong_scale(self):
        message = (
            r"^assert_expectation_kept: the mean projection of the output on the input over 16384"
            r" draws is 0\.9\d*, expected 1: off by 0\.\d* where 0\.\d* is allowed:"
            r" \d*\.?\d* standard errors\.$"
        )
        with pytest.raises(AssertionError, match=message):
            checks.assert_expectation_kept(scaled_by(0.98), key(), X)
        with pytest.raises(
            AssertionError, match=r"is 2, expected 1: off by 1 where 0\.0\d* is all"
        ):
            checks.assert_expectation_kept(lambda key, x: 2 * x, key(), X, num_samples=4096)

    @pytest.mark.quick
    def test_fails_where_a_single_element_is_biased(self):
        def biased(key, x):
            return dropout(key, x, 0.1).at[3, 5].mul(1.1).at[3, 6].mul(0.9)

        with pytest.raises(AssertionError, match=r"output at \(3, [56]\) over 16384 draws"):
            checks.assert_expectation_kept(biased, key(), jnp.ones((8, 16)))

    @pytest.mark.quick
    def test_names_the_place_that_is_farthest_beyond_what_is_allowed(self):
        x = jnp.array([1.0, 1000.0])  # far more is allowed at the second
        with pytest.raises(AssertionError, match=r"output at \(0,\) over 512 draws is 2, "):
            checks.assert_expectation_kept(lambda key, x: x.at[0].add(1), key(), x, num_samples=512)

    @pytest.mark.quick
    @pytest.mark.parametrize("rule", [rescale.none, rescale.realized(), rescale.preserve_sum()])
    def test_fails_on_rules_that_are_biased(self, rule):
        x = jnp.arange(1.0, 4.0)
        with pytest.raises(AssertionError, match="standard errors"):
            checks.assert_expectation_kept(partial(dropout, rate=0.5, rescale=rule), key(), x)

    def test_fails_on_nan(self):
        for check in (checks.assert_expectation_kept, checks.assert_key_determines_output):
            with pytest.raises(AssertionError, match="the output is not finite"):
                check(lambda k, x: x * jnp.nan, key(), X)

    def test_scale_of_numbers_whose_squares_are_zero_is_judged(self):
        with enable_x64():
            x = jnp.array([0, 1e-200])
            checks.assert_expectation_kept(right, key(), x, num_samples=2048)
            with pytest.raises(AssertionError, match="projection of the output on the input"):
                checks.assert_expectation_kept(
                    lambda k, x: 1.5 * right(k, x), key(), x, num_samples=2048
                )

    def test_fails_on_another_shape(self):
        with pytest.raises(AssertionError, match=r"shape \(1, 16\), the input \(8, 16\)"):
            checks.assert_expectation_kept(lambda k, x: right(k, x)[:1], key(), X)


@pytest.mark.quick
class TestKeepRate:
    @pytest.mark.parametrize("rate", [0, 0.01, 0.1, 0.5, 0.99, 1])
    def test_passes_on_dropout(self, rate):
        checks.assert_keep_rate(partial(dropout, rate=rate), key(), X, rate)

    def test_passes_on_one_decision_for_all(self):
        shared = partial(dropout, rate=0.1, broadcast_dims=(0, 1))
        checks.assert_keep_rate(shared, key(), X, 0.1)

    @pytest.mark.parametrize("rate", [0.08, 0.12, 0.9, 0, 1])
    def test_fails_on_another_rate(self, rate):
        with pytest.raises(AssertionError, match="share kept"):
            checks.assert_keep_rate(partial(dropout, rate=rate), key(), X, 0.1)

    def test_fails_where_one_element_is_dropped_more_often(self):
        def biased(key, x):
            one, two = jax.random.split(key)
            return dropout(one, x, 0.1).at[2, 3].mul(dropout(two, jnp.ones(()), 0.1))

        with pytest.raises(AssertionError, match=r"share kept at \(2, 3\)"):
            checks.assert_keep_rate(biased, key(), X, 0.1)

    def test_refuses_inputs_with_zeros_and_bad_rates(self):
        with pytest.raises(ValueError, match="x must have no zeros"):
            checks.assert_keep_rate(right, key(), X.at[0, 0].set(0), 0.3)
        with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\]"):
            checks.assert_keep_rate(right, key(), X, 1.3)


@pytest.mark.quick
class TestSharing:
    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_shared_mask_passes(self, axis):
        drop = partial(dropout, rate=0.5, broadcast_dims=(axis,))
        checks.assert_mask_shared_along(drop, key(), X, axis)

    def test_independent_masks_fail_to_be_shared(self):
        with pytest.raises(AssertionError, match="slices 0 and 1 along axis 0 had different"):
            checks.assert_mask_shared_along(right, key(), X, 0)

    def test_nothing_dropped_cannot_tell(self):
        with pytest.raises(ValueError, match="the draws must keep some elements and drop others"):
            checks.assert_mask_shared_along(lambda k, x: x, key(), X, 0)

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("shared", [(), (0,), (1,)])
    def test_differing_masks_pass_whatever_else_is_shared(self, axis, shared):
        drop = partial(dropout, rate=0.3, broadcast_dims=shared)
        if axis in shared:
            with pytest.raises(AssertionError, match="had the same mask in all 1024 draws"):
                checks.assert_masks_differ_along(drop, key(), X, axis)
        else:
            checks.assert_masks_differ_along(drop, key(), X, axis)

    def test_two_equal_slices_far_apart_are_found(self):
        def periodic(key, x):
            return dropout(key, x, 0.3).at[6].set(dropout(key, x, 0.3)[1])

        with jax.debug_key_reuse(False), pytest.raises(AssertionError, match="slices 1 and 6"):
            checks.assert_masks_differ_along(periodic, key(), X, 0)

    def test_rare_drops_need_more_draws(self):
        drop = partial(dropout, rate=0.001)
        with pytest.raises(ValueError, match="num_samples must be large enough for a decision"):
            checks.assert_masks_differ_along(drop, key(), X, 0)
        checks.assert_masks_differ_along(drop, key(), X, 0, num_samples=2**14)

    @pytest.mark.parametrize("axis", [2, -3])
    def test_axis_out_of_range_is_refused(self, axis):
        for assertion in (checks.assert_mask_shared_along, checks.assert_masks_differ_along):
            with pytest.raises(ValueError, match=r"axis must lie in \[-2, 2\)"):
                assertion(right, key(), X, axis)


@pytest.mark.quick
class TestJit:
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_passes_on_dropout(self, dtype):
        checks.assert_same_under_jit(right, key(), X.astype(dtype))

    def test_fails_on_a_mask_drawn_while_tracing(self):
        state = iter(range(100))

        def impure(key: Key, x: Array) -> Array:
            return right(jax.random.fold_in(key, next(state)), x)

        with pytest.raises(AssertionError, match="dropped eagerly or under jit, but not both"):
            checks.assert_same_under_jit(impure, key(), X)

    def test_passes_where_a_scale_and_a_shift_cancel(self):
        x = jnp.linspace(-2, 2, 100_000)
        checks.assert_same_under_jit(partial(jaxdrop.alpha_dropout, rate=0.3), key(), x)

    def test_fails_on_another_value(self):
        def impure(key, x):
            return right(key, x) * (1.01 if isinstance(x, jax.core.Tracer) else 1)

        with pytest.raises(AssertionError, match="assert_same_under_jit"):
            checks.assert_same_under_jit(impure, key(), X)


class TestGradient:
    @pytest.mark.parametrize(
        "rule",
        [rescale.expected, rescale.realized(), rescale.preserve_sum(), rescale.preserve_norm()],
    )
    def test_passes_on_every_rule(self, rule):
        checks.assert_gradient_uses_same_mask(partial(dropout, rate=0.3, rescale=rule), key(), X)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64])
    def test_passes_in_other_dtypes(self, dtype):
        checks.assert_gradient_uses_same_mask(right, key(), X[:, :2].astype(dtype))

    def test_fails_on_a_fresh_mask_in_the_backward_pass(self):
        @jax.custom_vjp
        def wrong(key, x):
            return right(key, x)

        def backward(key, cotangent):
            return None, right(jax.random.fold_in(key, 1), cotangent)

        wrong.defvjp(lambda key, x: (right(key, x), key), backward)
        with jax.debug_key_reuse(False), pytest.raises(AssertionError, match="gradient predicts"):
            checks.assert_gradient_uses_same_mask(wrong, key(), X)

    def test_fails_on_a_missing_scale_in_the_backward_pass(self):
        def straight_through(key, x):
            y = right(key, x)
            return x + jax.lax.stop_gradient(y - x)

        with pytest.raises(AssertionError, match="the forward pass with the same key changes by"):
            checks.assert_gradient_uses_same_mask(straight_through, key(), X)

    @pytest.mark.quick
    def test_moves_inputs_by_the_cube_root_of_eps_of_the_largest_but_at_least_of_1(self):
        for size, step in ((0.5, 2 ** (-23 / 3)), (1000.0, 1000 * 2 ** (-23 / 3))):
            points = []

            def watched(key, x, points=points):
                if not isinstance(x, jax.core.Tracer):
                    points.append(np.asarray(x, np.float64))
                return x

            checks.assert_gradient_uses_same_mask(watched, key(), jnp.full(8, size).at[0].set(0))
            ahead, behind = points
            moved = (ahead - behind) / 2 / step  # each element by another share
            assert moved.min() >= 0.499
            assert moved.max() <= 1.001

    def test_fails_on_a_gradient_that_is_not_finite(self):
        def unguarded(key, x):
            keep_prob = jnp.float32(0)
            keep = jax.random.bernoulli(key, keep_prob, x.shape)
            return jnp.where(keep, x / keep_prob, 0)

        with pytest.raises(AssertionError, match="gradient predicts a change of nan"):
            checks.assert_gradient_uses_same_mask(unguarded, key(), X)


NEED_AN_AXIS = ("assert_mask_shared_along", "assert_masks_differ_along")


def call(name, drop, x):
    extra = {"assert_keep_rate": [0.3], **{n: [0] for n in NEED_AN_AXIS}}.get(name, [])
    getattr(checks, name)(drop, key(), x, *extra)


JUDGE_VALUES = [name for name in checks.__all__ if name != "assert_shape_and_dtype_kept"]
HAVE_AN_ALARM_RATE = ["assert_expectation_kept", "assert_keep_rate", "assert_masks_differ_along"]


@pytest.mark.quick
@pytest.mark.parametrize("name", JUDGE_VALUES)
def test_inputs_that_are_empty_or_not_finite_cannot_be_judged(name):
    with pytest.raises(ValueError, match=rf"^{name}: x must not be empty; got shape \(0, 3\)"):
        call(name, right, jnp.ones((0, 3)))
    for bad in (jnp.nan, -jnp.inf):
        with pytest.raises(ValueError, match=rf"^{name}: x must be finite; got a NaN or an inf"):
            call(name, right, X.at[2, 3].set(bad))


@pytest.mark.quick
@pytest.mark.parametrize("name", HAVE_AN_ALARM_RATE)
def test_false_alarm_rate_of_zero_allows_no_decision(name):
    extra = {"assert_keep_rate": [0.3], "assert_masks_differ_along": [0]}.get(name, [])
    with pytest.raises(ValueError, match=rf"^{name}: false_alarm_rate must be above 0; got 0\.0"):
        getattr(checks, name)(right, key(), X, *extra, false_alarm_rate=0)


@pytest.mark.quick
def test_output_that_is_not_one_array_is_named():
    for name in ("shape_and_dtype_kept", "same_under_jit", "gradient_uses_same_mask"):
        with pytest.raises(AssertionError, match=r"the output must be one array; got \("):
            call(f"assert_{name}", lambda key, x: (x,), X)


@pytest.mark.quick
def test_draws_have_keys_split_from_one_whatever_is_drawn_at_once(monkeypatch):
    x, drop = X[:1, :3], lambda key, x: x * jax.random.uniform(key, x.shape)
    expected = [drop(each, x) for each in jax.random.split(key(), 7)]
    for at_once in (1, 9, 100):
        monkeypatch.setattr(sampling, "_ELEMENTS_AT_ONCE", at_once)
        found = list(sampling.outputs(Check("f"), drop, key(), x, 7))
        assert max(map(len, found)) == min(7, max(1, at_once // 3))
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("name", NEED_AN_AXIS)
def test_one_slice_cannot_be_judged(name):
    with pytest.raises(ValueError, match=rf"^{name}: x must have several slices along 0; got"):
        call(name, right, jnp.ones((1, 30)))


@pytest.mark.quick
@pytest.mark.parametrize("name", JUDGE_VALUES)
def test_every_assertion_fails_on_nan(name):
    with pytest.raises(AssertionError):
        call(name, lambda k, x: right(k, x) * jnp.nan, X)


@pytest.mark.quick
class TestKeyDeterminesOutput:
    def test_passes_on_dropout(self):
        checks.assert_key_determines_output(right, key(), X)

    def test_fails_on_hidden_state(self):
        state = iter(range(100))
        with pytest.raises(AssertionError, match="one key gave two outputs"):
            checks.assert_key_determines_output(
                lambda k, x: right(jax.random.fold_in(k, next(state)), x), key(), X
            )

    def test_fails_where_the_key_is_ignored(self):
        fixed = jaxdrop.draw_mask(key(), X.shape, 0.3)
        with pytest.raises(AssertionError, match="64 different keys gave the same output"):
            checks.assert_key_determines_output(lambda k, x: jaxdrop.apply_mask(fixed, x), key(), X)


@pytest.mark.quick
@pytest.mark.parametrize("name", JUDGE_VALUES)
def test_a_batch_of_keys_is_refused(name):
    options = {"assert_keep_rate": [0.3], "assert_mask_shared_along": [0]}
    options["assert_masks_differ_along"] = [0]
    with pytest.raises(TypeError, match="key must be one key; got a batch of shape"):
        getattr(checks, name)(right, jax.random.split(key()), X, *options.get(name, []))
