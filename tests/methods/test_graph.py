"""Exact laws of the methods for graphs."""

import jax.numpy as jnp
import numpy as np
import pytest
from modes import make_key

from jaxdrop import draw_mask, drop_edges, drop_nodes, rescale

pytestmark = pytest.mark.quick

KEY = make_key("raw")


def test_an_edge_has_one_decision_for_all_its_weights():
    weights = jnp.linspace(1, 2, 40 * 3).reshape(40, 3)
    kept = draw_mask(KEY, 40, 0.25).unpack()
    expected = jnp.where(kept[:, None], weights / 0.75, 0)
    np.testing.assert_allclose(drop_edges(KEY, weights, 0.25), expected, rtol=1e-6)


def test_batches_of_graphs_have_their_own_decisions():
    weights = jnp.ones((4, 40, 3))
    y = drop_edges(KEY, weights, 0.5, axis=1)
    assert jnp.all(y == y[..., :1])
    assert len(np.unique(y[..., 0], axis=0)) == 4
    nodes = drop_nodes(KEY, weights, 0.5)
    np.testing.assert_array_equal(nodes, y)


def test_both_directions_of_an_undirected_edge_go_together():
    senders, receivers = jnp.array([0, 1, 2]), jnp.array([1, 2, 0])
    edge = jnp.concatenate([jnp.arange(3), jnp.arange(3)])
    directed = drop_edges(KEY, jnp.ones(3), 0.5)[edge]
    adjacency = (
        jnp.zeros((3, 3))
        .at[jnp.concatenate([senders, receivers]), jnp.concatenate([receivers, senders])]
        .set(directed)
    )
    np.testing.assert_array_equal(adjacency, adjacency.T)


def test_drop_edge_as_published_does_not_rescale():
    y = drop_edges(KEY, jnp.ones(64), 0.5, rescale=rescale.none)
    assert set(np.unique(y)) == {0, 1}


def test_a_node_loses_all_its_features():
    x = jnp.linspace(1, 2, 40 * 3).reshape(40, 3)
    y = drop_nodes(KEY, x, 0.5)
    np.testing.assert_array_equal(y, drop_edges(KEY, x, 0.5))
    assert set(np.unique((y != 0).sum(1))) == {0, 3}
