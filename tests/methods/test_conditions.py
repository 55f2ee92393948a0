"""Exact laws of what drops conditions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import make_key
from nodes import Pair

from jaxdrop import draw_mask, drop_condition

pytestmark = pytest.mark.quick

KEY = make_key("raw")
CONDITION = {
    "text": jnp.ones((40, 3, 2)),
    "mask": jnp.ones((40, 3), bool),
    "label": jnp.arange(1, 41),
}


def raises(kind, message):
    return pytest.raises(kind, match=rf"^{re.escape(message)}$")


def test_a_condition_is_dropped_whole_from_all_leaves_of_a_sample():
    y = drop_condition(KEY, CONDITION, 0.4, null=0)
    kept = draw_mask(KEY, 40, 0.4).unpack()
    np.testing.assert_array_equal(y["text"], np.broadcast_to(kept[:, None, None], (40, 3, 2)))
    np.testing.assert_array_equal(y["mask"], jnp.tile(kept[:, None], 3))
    np.testing.assert_array_equal(y["label"], np.where(kept, CONDITION["label"], 0))
    assert all(y[name].dtype == CONDITION[name].dtype for name in y)


def test_null_may_be_a_tree_of_learned_arrays_with_gradients():
    learned = jnp.zeros((3, 2))

    def total(text, learned):
        null = {"text": learned, "mask": False, "label": 0}
        return drop_condition(KEY, {**CONDITION, "text": text}, 0.4, null=null)["text"].sum()

    to_text, to_null = jax.grad(total, argnums=(0, 1))(CONDITION["text"], learned)
    kept = int(draw_mask(KEY, 40, 0.4).unpack().sum())
    assert to_text.sum() == 6 * kept
    assert jnp.all(to_null == 40 - kept)


def test_a_leaf_of_the_null_stands_for_all_leaves_below_it():
    condition = {"a": Pair(jnp.ones((4, 2)), (jnp.ones(4), None)), "b": jnp.ones(4)}
    for null, expected in (({"a": 5, "b": 7}, [5, 5, 7]), ({"a": Pair(5, 6), "b": 7}, [5, 6, 7])):
        y = drop_condition(KEY, condition, 1, null=null)
        assert jax.tree.structure(y) == jax.tree.structure(condition)
        assert [float(leaf.min()) for leaf in jax.tree.leaves(y)] == expected


def test_one_decision_for_a_sample_under_vmap():
    keys = jax.random.split(make_key("raw"), 40)
    y = jax.vmap(lambda key, c: drop_condition(key, c, 0.4, null=0, batch_axis=None))(
        keys, CONDITION
    )
    kept = np.asarray(y["label"] != 0)
    assert 0 < kept.sum() < 40
    np.testing.assert_array_equal(y["text"], np.broadcast_to(kept[:, None, None], (40, 3, 2)))


def test_rate_one_gives_the_null_and_rate_zero_the_condition():
    y = drop_condition(KEY, CONDITION, 1, null=0)
    assert not any(leaf.any() for leaf in jax.tree.leaves(y))
    assert drop_condition(KEY, CONDITION, 0, null=0) is CONDITION
    assert drop_condition(KEY, {}, 0.5, null=0) == {}
    nothing = jax.jit(lambda rate: drop_condition(KEY, {"a": None}, rate, null=0))
    assert nothing(0.3) == {"a": None}


@pytest.mark.parametrize("rate", [-0.1, 1.5, jnp.nan])
def test_bad_traced_rate_poisons_every_kind_of_leaf(rate):
    y = jax.jit(lambda rate: drop_condition(KEY, CONDITION, rate, null=0))(rate)
    assert jnp.isnan(y["text"]).all()
    assert not y["mask"].any()
    assert (y["label"] == jnp.iinfo(jnp.int32).min).all()


def test_a_null_of_another_kind_is_refused():
    message = (
        "drop_condition: null must be of the kind of condition['label']; got float32 for int32."
    )
    with raises(TypeError, message):
        drop_condition(KEY, CONDITION, 0.5, null={"text": 0, "mask": False, "label": 0.5})


def test_batch_axis_may_be_any():
    x = jnp.ones((3, 40, 2))
    y = drop_condition(KEY, x, 0.4, null=0, batch_axis=1)
    first = drop_condition(KEY, jnp.moveaxis(x, 1, 0), 0.4, null=0)
    np.testing.assert_array_equal(jnp.moveaxis(y, 1, 0), first)


def test_bad_conditions():
    with raises(
        ValueError,
        "drop_condition: condition must have the same number of samples in each leaf; got [3, 4]."
        " Pass batch_axis=None for one sample.",
    ):
        drop_condition(KEY, [jnp.ones(3), jnp.ones(4)], 0.5, null=0)
    with raises(
        ValueError, "drop_condition: null must broadcast to condition['a']; got (2,) for (3,)."
    ):
        drop_condition(KEY, {"a": jnp.ones(3)}, 0.5, null={"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"^drop_condition: null must be a pytree prefix"):
        drop_condition(KEY, {"a": jnp.ones(3)}, 0.5, null={"b": 0})
    with raises(ValueError, "drop_condition: batch_axis must lie in [-1, 1) for 1 axes; got 1."):
        drop_condition(KEY, {"a": jnp.ones((3, 2)), "b": jnp.ones(3)}, 0.5, null=0, batch_axis=1)
    with raises(
        TypeError, "drop_condition: condition['a'] must be an array of numbers; got 'text'."
    ):
        drop_condition(KEY, {"a": "text"}, 0.5, null=0)
