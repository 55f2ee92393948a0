"""Exact laws of the methods that drop weights."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import keep_prob_of, moments, one_of_each, outputs_by_mask, probabilities
from modes import enable_x64, make_key
from nodes import Pair

from jaxdrop import (
    draw_mask,
    drop_connect,
    dropout,
    embedding_dropout,
    mixout,
    per_leaf,
    rescale,
)

pytestmark = pytest.mark.quick

KEY = make_key("raw")
PARAMS = {
    "layers": [{"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}, {"kernel": jnp.ones((5, 2))}],
    "step": jnp.int32(3),
    "name": "net",
    "nothing": None,
}


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_pre_activation_under_drop_connect_has_its_mean_and_covariance(rate):
    with enable_x64():
        weights, v = np.array([[1.0, -2.0], [3.0, 0.25]]), np.array([2.0, -3.0])

        def drop(key, x):
            return drop_connect(key, {"kernel": x}, rate)["kernel"]

        masks, dropped = outputs_by_mask(drop, jnp.asarray(weights))
    q = keep_prob_of(rate)
    mean, covariance = moments(probabilities(masks, q), dropped @ v)
    np.testing.assert_allclose(mean, weights @ v, rtol=1e-12)
    variance = (1 - q) / q * weights**2 @ v**2
    np.testing.assert_allclose(covariance, np.diag(variance), atol=1e-12)


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_mixout_keeps_the_mean_and_follows_its_definition(rate):
    q = keep_prob_of(rate)
    with enable_x64():
        weights, target = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.5, 1.0, -1.0, 4.0])
        keys = jax.random.split(make_key("raw"), 1024)

        def drop(key, x, to):
            return mixout(key, {"w": x}, rate, target={"w": to})["w"]

        masks = np.asarray(jax.vmap(lambda key: drop(key, jnp.ones(4), jnp.zeros(4)))(keys) != 0)
        outputs = np.asarray(jax.vmap(lambda key: drop(key, weights, target))(keys))
    by_definition = (masks * weights + ~masks * target - (1 - q) * target) / q
    np.testing.assert_allclose(outputs, by_definition, rtol=1e-12, atol=1e-12)
    masks, outputs = one_of_each(masks, outputs, 16)
    mean, _ = moments(probabilities(masks, q), outputs)
    np.testing.assert_allclose(mean, weights, rtol=1e-12)


def test_drop_connect_gives_each_leaf_the_mask_of_its_path():
    arrays = {"layers": PARAMS["layers"]}
    np.testing.assert_equal(
        jax.tree.map(np.asarray, drop_connect(KEY, arrays, 0.5)),
        jax.tree.map(np.asarray, per_leaf(partial(dropout, rate=0.5))(KEY, arrays)),
    )


def test_adding_or_filtering_leaves_changes_no_other_mask():
    dropped = drop_connect(KEY, PARAMS, 0.5)
    alone = drop_connect(KEY, {"layers": [PARAMS["layers"][0]]}, 0.5)
    chosen = drop_connect(KEY, PARAMS, 0.5, where=lambda path, leaf: "kernel" in str(path[-1]))
    kernels = [tree["layers"][0]["kernel"] for tree in (dropped, alone, chosen)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert chosen["layers"][0]["bias"] is PARAMS["layers"][0]["bias"]


def test_leaves_that_are_no_floats_pass_through():
    dropped = drop_connect(KEY, PARAMS, 0.5)
    assert dropped["step"] is PARAMS["step"]
    assert (dropped["name"], dropped["nothing"]) == ("net", None)
    kept = drop_connect(KEY, PARAMS, 0)
    assert kept["layers"][0]["kernel"] is PARAMS["layers"][0]["kernel"]


def test_arrays_of_numpy_and_of_complex_numbers_are_dropped_from():
    params = {"a": np.ones((8, 8), np.float32), "b": jnp.full((8, 8), 1j)}
    dropped = drop_connect(KEY, params, 0.5)
    assert set(np.unique(dropped["a"])) == {0, 2}
    assert set(np.unique(dropped["b"])) == {0, 2j}
    mixed = mixout(KEY, params, 0.5, target={"a": np.float32(3), "b": 1.0})
    assert set(np.unique(mixed["a"])) == {-1, 3}
    assert set(np.unique(mixed["b"])) == {1, 2j - 1}


def test_nodes_of_the_user_have_a_mask_for_each_child():
    ones = jnp.ones((8, 8))
    dropped = drop_connect(KEY, Pair(ones, {"w": ones}), 0.5)
    assert isinstance(dropped, Pair)
    first, second = dropped.children
    np.testing.assert_array_equal(first, drop_connect(KEY, [ones], 0.5)[0])
    assert (first != second["w"]).any()
    mixed = mixout(KEY, Pair(ones, ones), 1, target=Pair(2 * ones, 3 * ones))
    assert [child[0, 0] for child in mixed.children] == [2, 3]


def test_picking_a_leaf_that_cannot_be_scaled_names_it():
    message = re.escape("drop_connect: params['step'] must be floating or complex; got int32.")
    with pytest.raises(TypeError, match=f"^{message}"):
        drop_connect(KEY, PARAMS, 0.5, where=lambda path, leaf: hasattr(leaf, "dtype"))


@pytest.mark.parametrize("rate", [0, 0.5, 1])
def test_wrong_leaves_targets_and_predicates_are_refused_at_every_rate(rate):
    params = {"w": jnp.ones(3), "n": jnp.int32(3)}
    drop, mix = partial(drop_connect, KEY, params), partial(mixout, KEY, params, target=params)
    for method in (drop, mix):
        with pytest.raises(TypeError, match=r"^\w+: where must be a function of \(path, leaf\)"):
            method(rate=rate, where="w")
        with pytest.raises(TypeError, match=r"^\w+: params\['n'\] must be floating or complex"):
            method(rate=rate, where=lambda path, leaf: True)
    message = re.escape("mixout: target must broadcast to params; got (2,) for (3,).")
    with pytest.raises(ValueError, match=f"^{message}$"):
        mixout(KEY, params, rate, target=params | {"w": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"^mixout: target must be of the kind of params; got comp"):
        mixout(KEY, params, rate, target=params | {"w": jnp.ones(3, jnp.complex64)})


@pytest.mark.parametrize("rate", [0.5, 1, jnp.float32(1)])
def test_mixout_mixes_what_is_picked_alone(rate):
    params = {"a": jnp.ones(40), "b": jnp.ones(40)}
    target = jax.tree.map(jnp.zeros_like, params)
    mixed = mixout(KEY, params, rate, target=target, where=lambda path, leaf: path[0].key == "a")
    np.testing.assert_array_equal(mixed["a"], mixout(KEY, params, rate, target=target)["a"])
    assert mixed["b"] is params["b"]


def test_drop_connect_draws_a_mask_for_each_sample_by_vmap():
    keys = jax.random.split(make_key("raw"), 6)
    params = {"kernel": jnp.ones((4, 5))}
    dropped = jax.vmap(drop_connect, in_axes=(0, None, None))(keys, params, 0.5)["kernel"]
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(dropped[i], drop_connect(key, params, 0.5)["kernel"])


def test_drop_connect_takes_rules():
    kernel = drop_connect(KEY, {"w": jnp.ones((8, 8))}, 0.5, rescale=rescale.none)["w"]
    assert set(np.unique(kernel)) == {0, 1}


def test_mixout_to_zero_is_drop_connect():
    params = {"w": jnp.linspace(1, 2, 35).reshape(5, 7), "step": 1}
    zeros = {"w": jnp.zeros((5, 7)), "step": 1}
    mixed = mixout(KEY, params, 0.3, target=zeros)
    np.testing.assert_allclose(mixed["w"], drop_connect(KEY, params, 0.3)["w"], rtol=1e-6)
    assert mixed["step"] == 1


def test_mixout_at_rate_one_is_the_target_and_hides_what_it_replaces():
    params, target = {"w": jnp.array([jnp.nan, jnp.inf])}, {"w": jnp.array([1.0, 2.0])}
    for rate in (1, jnp.float32(1)):
        np.testing.assert_array_equal(mixout(KEY, params, rate, target=target)["w"], [1, 2])
    assert mixout(KEY, params, 0, target=target)["w"] is params["w"]


def test_mixout_at_a_traced_rate_of_zero_is_the_weights_to_the_bit():
    weights = jnp.array([1e-8, 0.3, -2.0, 1.0])
    target = jnp.array([1e8, -0.7, jnp.inf, jnp.nan])
    mixed = jax.jit(lambda rate: mixout(KEY, weights, rate, target=target))(0.0)
    np.testing.assert_array_equal(mixed, weights)


def test_rate_zero_does_not_use_the_key():
    key, params = jax.random.key(0), {"w": jnp.ones(3)}
    for _ in range(2):
        assert drop_connect(key, params, 0) is params
        assert mixout(key, params, 0, target=params) is params


def test_scalars_of_numpy_are_settings():
    params = {"w": jnp.ones(64), "epsilon": np.float32(1e-5)}
    assert drop_connect(KEY, params, 1.0)["epsilon"] == np.float32(1e-5)


def test_mixout_is_rounded_once_in_bfloat16():
    weights, target = jnp.full(64, 1.1, jnp.bfloat16), jnp.full(64, 1.0, jnp.bfloat16)
    mixed = mixout(KEY, [weights], 0.5, target=[target])[0]
    wide = 1.0 + 2 * (np.float32(weights[0]) - 1.0)
    assert set(np.unique(mixed.astype(jnp.float32))) == {1.0, np.float32(jnp.bfloat16(wide))}


def test_mixout_needs_a_target_of_the_same_structure():
    with pytest.raises(ValueError, match=r"^mixout: target must have the structure of params; got"):
        mixout(KEY, {"w": jnp.ones(3)}, 0.5, target={"u": jnp.ones(3)})


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_embedding_dropout_drops_words_everywhere(rate):
    table = jnp.linspace(1, 2, 50 * 6).reshape(50, 6)
    dropped = embedding_dropout(KEY, table, rate)
    kept = draw_mask(KEY, 50, rate).unpack()
    expected = jnp.where(kept[:, None], table / (1 - rate), 0)
    np.testing.assert_allclose(dropped, expected, rtol=1e-6)
    columns = embedding_dropout(KEY, table.T, rate, axis=1)
    np.testing.assert_array_equal(columns.T, dropped)
