from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from modes import KEY_IMPLEMENTATIONS, make_key

import jaxdrop
from jaxdrop import chain, checks, dropout, per_leaf, per_sample, scheduled
from jaxdrop.base.names import fold_in_name

pytestmark = pytest.mark.quick

half = partial(dropout, rate=0.5)
shared = partial(dropout, rate=0.5, broadcast_dims=(0,))


class TestPerSample:
    @pytest.mark.parametrize("implementation", KEY_IMPLEMENTATIONS)
    def test_sample_i_uses_key_i_of_a_split(self, implementation):
        xs = jnp.ones((5, 3, 4))
        keys = jax.random.split(make_key(implementation), 5)
        loop = jnp.stack([shared(k, x) for k, x in zip(keys, xs, strict=True)])
        np.testing.assert_array_equal(per_sample(shared)(make_key(implementation), xs), loop)

    @pytest.mark.parametrize("axis", [0, 1, 2, -1])
    def test_batch_axis_may_lie_anywhere(self, axis, key):
        xs = jnp.ones((3, 4, 5))
        moved = per_sample(half)(make_key("threefry2x32"), jnp.moveaxis(xs, axis, 0))
        y = per_sample(half, axis=axis)(key, xs)
        np.testing.assert_array_equal(y, jnp.moveaxis(moved, 0, axis))

    def test_masks_differ_over_the_batch_only(self, key):
        drop = per_sample(shared)
        checks.assert_masks_differ_along(drop, key, jnp.ones((6, 3, 4)), 0)
        checks.assert_mask_shared_along(drop, jax.random.key(1), jnp.ones((6, 3, 4)), 1)

    def test_batch_may_be_split_over_explicit_mesh_axes(self, key):
        mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Explicit,))
        xs = jnp.ones((16, 3, 4))
        plain = per_sample(shared)(jax.random.key(0), xs)
        # The key reuse checker of JAX 0.7.2 takes keys that were sharded for used
        # ones, also those that `jax.random` itself draws with.
        with jax.set_mesh(mesh), jax.debug_key_reuse(False):
            split = jax.device_put(xs, NamedSharding(mesh, P("a")))
            y = jax.jit(per_sample(shared))(key, split)
        np.testing.assert_array_equal(y, plain)

    def test_empty_batch(self, key):
        assert per_sample(half)(key, jnp.ones((0, 3))).shape == (0, 3)

    def test_axis_out_of_range_is_refused(self, key):
        with pytest.raises(ValueError, match=r"per_sample: axis must lie in \[-1, 1\)"):
            per_sample(half, axis=1)(key, jnp.ones(3))


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


class TestPerLeaf:
    def test_key_of_a_leaf_depends_on_its_path_alone(self):
        tree = {"a": jnp.ones((3, 4)), "b": [jnp.ones(7), Layer(jnp.ones(5), jnp.ones(2))]}
        full = per_leaf(half)(jax.random.key(0), tree)
        pruned = per_leaf(half)(jax.random.key(0), {"b": [None, tree["b"][1]]})
        chex.assert_trees_all_equal(pruned["b"][1], full["b"][1])
        kernel = half(fold_in_name(jax.random.key(0), "['b'][1].kernel"), jnp.ones(5))
        np.testing.assert_array_equal(full["b"][1].kernel, kernel)

    def test_leaves_of_equal_shape_have_different_masks(self, key):
        tree = per_leaf(half)(key, [jnp.ones(100), jnp.ones(100)])
        assert jnp.any(tree[0] != tree[1])

    def test_predicate_picks_leaves_by_path_and_value(self):
        tree = {"w": jnp.ones(40), "b": jnp.ones(40), "n": 3, "text": "text"}
        leaves = {}

        def where(path, leaf):
            leaves[path[-1].key] = leaf
            return path[-1].key == "w"

        dropped = per_leaf(half, where=where)(jax.random.key(0), tree)
        assert leaves == tree
        chex.assert_trees_all_equal(dropped["w"], per_leaf(half)(jax.random.key(0), tree)["w"])
        assert (dropped["w"] == 0).any()
        assert all(dropped[name] is tree[name] for name in ("b", "n", "text"))

    def test_arrays_of_numpy_are_dropped_and_other_leaves_pass(self, key):
        tree = {"a": np.ones(40, np.float32), "n": 3, "none": None}
        dropped = per_leaf(half)(key, tree)
        expected = half(fold_in_name(jax.random.key(0), "['a']"), jnp.ones(40))
        chex.assert_trees_all_equal(dropped, tree | {"a": expected})

    def test_leaf_that_cannot_be_dropped_raises(self, key):
        with pytest.raises(TypeError, match="x must be floating or complex; got int32"):
            per_leaf(half)(key, {"ids": jnp.arange(3)})

    @pytest.mark.parametrize(
        ("name", "halves"),
        [("", (0x788B2AEF, 0x9CDA80DD)), ("['w']", (0x3BBBA5DF, 0x85F391DE))],
    )
    def test_names_are_hashed_the_same_everywhere(self, name, halves):
        by_hand = jax.random.key(3)
        for half_of_hash in halves:
            by_hand = jax.random.fold_in(by_hand, half_of_hash)
        np.testing.assert_array_equal(
            jax.random.key_data(fold_in_name(jax.random.key(3), name)),
            jax.random.key_data(by_hand),
        )


class TestChain:
    def test_drop_i_uses_the_key_folded_with_i(self):
        x = jnp.ones((4, 5))
        first = half(jax.random.fold_in(jax.random.key(0), 0), x)
        both = shared(jax.random.fold_in(jax.random.key(0), 1), first)
        np.testing.assert_array_equal(chain(half, shared)(jax.random.key(0), x), both)

    def test_an_empty_chain_is_the_identity(self, key):
        x = jnp.ones(3)
        assert chain()(key, x) is x

    def test_mean_is_kept(self, key):
        checks.assert_expectation_kept(chain(half, half), key, jnp.arange(1.0, 5.0))


class TestScheduled:
    def test_rate_follows_the_schedule_at_a_traced_step(self):
        schedule = optax.linear_schedule(0.0, 1.0, 8)
        drop = jax.jit(scheduled(dropout, schedule))
        for step in range(9):
            expected = dropout(jax.random.key(0), jnp.ones(500), step / 8)
            y = drop(jax.random.key(0), jnp.ones(500), jnp.int32(step))
            np.testing.assert_array_equal(y != 0, expected != 0)
            np.testing.assert_allclose(y, expected, rtol=1e-6)

    def test_compiles_once_for_all_steps(self):
        traces = []

        def counted(key, x, rate):
            traces.append(rate)
            return dropout(key, x, rate)

        drop = jax.jit(scheduled(counted, optax.cosine_decay_schedule(0.5, 100)))
        for step in range(0, 100, 10):
            drop(jax.random.key(step), jnp.ones(8), step)
        assert len(traces) == 1

    def test_schedule_that_leaves_the_unit_interval_is_not_hidden(self, key):
        drop = jax.jit(scheduled(dropout, optax.linear_schedule(0.5, 2.0, 10)))
        assert jnp.isnan(drop(key, jnp.ones(3), 9)).all()

    def test_sits_in_a_scan_over_steps(self):
        drop = scheduled(dropout, jaxdrop.late_dropout_schedule(0.5, 3))

        def step(_, i):
            return None, drop(jax.random.fold_in(jax.random.key(0), i), jnp.ones(64), i)

        _, ys = jax.lax.scan(step, None, jnp.arange(6))
        np.testing.assert_array_equal((ys == 1).all(axis=1), [1, 1, 1, 0, 0, 0])


class TestSchedules:
    def rates(self, schedule, steps):
        traced = jax.jit(schedule)
        return [float(traced(step)) for step in range(steps)]

    def test_early_dropout_stops(self):
        schedule = jaxdrop.early_dropout_schedule(0.25, 3)
        assert self.rates(schedule, 5) == [0.25, 0.25, 0.25, 0, 0]

    def test_early_dropout_may_fall_linearly(self):
        schedule = jaxdrop.early_dropout_schedule(0.5, 4, linear=True)
        assert self.rates(schedule, 6) == [0.5, 0.375, 0.25, 0.125, 0, 0]

    @pytest.mark.parametrize("linear", [False, True])
    def test_early_dropout_of_no_steps_never_drops(self, linear):
        assert self.rates(jaxdrop.early_dropout_schedule(0.5, 0, linear=linear), 3) == [0, 0, 0]
        assert self.rates(jaxdrop.late_dropout_schedule(0.5, 0), 3) == [0.5, 0.5, 0.5]

    def test_linear_schedules_of_any_length_end_at_a_valid_rate(self):
        def keeps_all(rate):
            return jnp.all(dropout(jax.random.key(0), jnp.ones(4), rate) == 1)

        for steps in (3, 7, 15, 30, 100, 399, 1000):
            schedule = jaxdrop.early_dropout_schedule(0.1, steps, linear=True)
            checked = jax.jit(jax.vmap(lambda step, s=schedule: keeps_all(s(step))))
            assert checked(jnp.array([steps, 10 * steps])).all(), steps

    def test_late_dropout_starts(self):
        assert self.rates(jaxdrop.late_dropout_schedule(0.25, 2), 4) == [0, 0, 0.25, 0.25]

    def test_curriculum_keeps_the_papers_share(self):
        theta, gamma = 0.5, 1e-2  # the paper: theta(t) = (1 - theta) exp(-gamma t) + theta
        rates = self.rates(jaxdrop.curriculum_dropout_schedule(1 - theta, gamma), 100)
        kept = (1 - theta) * np.exp(-gamma * np.arange(100)) + theta
        np.testing.assert_allclose(1 - np.array(rates), kept, rtol=1e-6)

    def test_curriculum_is_exact_in_the_first_of_many_steps(self):
        rates = self.rates(jaxdrop.curriculum_dropout_schedule(0.5, 1e-8), 4)
        np.testing.assert_allclose(rates, 0.5e-8 * np.arange(4), rtol=1e-6)

    @pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
    def test_bad_rates_are_refused(self, rate):
        for make in (
            jaxdrop.early_dropout_schedule,
            jaxdrop.late_dropout_schedule,
            jaxdrop.curriculum_dropout_schedule,
        ):
            with pytest.raises(ValueError, match=rf"{make.__name__}: rate must lie in \[0, 1\]"):
                make(rate, 10)

    def test_negative_steps_are_refused(self):
        with pytest.raises(ValueError, match=r"^early_dropout_schedule: steps must be at least 0"):
            jaxdrop.early_dropout_schedule(0.5, -1)
        with pytest.raises(ValueError, match=r"^late_dropout_schedule: start must be at least 0"):
            jaxdrop.late_dropout_schedule(0.5, -1)

    def test_negative_gamma_is_refused(self):
        with pytest.raises(ValueError, match="gamma must be at least 0 and finite; got -1"):
            jaxdrop.curriculum_dropout_schedule(0.5, -1)


@pytest.mark.parametrize("combinator", [per_sample, per_leaf, chain])
def test_combinators_take_one_key_and_consume_it(combinator):
    drop = combinator(half)
    with pytest.raises(TypeError, match=r"key must be one key; got a batch of shape \(2,\)"):
        drop(jax.random.split(jax.random.key(0)), jnp.ones((2, 3)))
    key = jax.random.key(0)
    drop(key, jnp.ones((2, 3)))
    with pytest.raises(jax.errors.KeyReuseError):
        drop(key, jnp.ones((2, 3)))


@pytest.mark.parametrize("combinator", [per_sample, per_leaf, chain])
def test_combinators_give_drops(combinator):
    drop, x = combinator(half), jnp.ones((6, 8))
    checks.assert_shape_and_dtype_kept(drop, jax.random.key(0), x)
    checks.assert_same_under_jit(drop, jax.random.key(0), x)
    checks.assert_key_determines_output(drop, jax.random.key(0), x)
    checks.assert_gradient_uses_same_mask(drop, jax.random.key(0), x)
    checks.assert_keep_rate(drop, jax.random.key(0), x, 0.5, num_samples=4096)
