"""Methods for graphs: they drop whole edges or nodes, and keep the sizes of arrays."""

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Inexact

from jaxdrop.base.arguments import key_and_rate
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import Rescale
from jaxdrop.methods.masked import drop
from jaxdrop.rescale import expected

_ONE_WEIGHT_PER_EDGE = "Pass one weight for each edge, such as jnp.ones(edges), not the edges."


def drop_edges(
    key: Key | None,
    weights: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    axis: int = 0,
    rescale: Rescale = expected,
) -> Inexact[Array, "*shape"]:
    """Drops edges of a graph, by setting their weights to zero.

    There is one decision per edge. E[y] = weights, so a sum over neighbours keeps its
    mean. The number of edges stays the same, so that programs compile once. The
    published DropEdge does not rescale; it normalises the adjacency again. For that,
    pass `rescale.none` and normalise afterwards. In an undirected graph, keep one
    weight per undirected edge, drop from these weights, and gather:
    `drop_edges(key, weights, rate)[edge]`. For a dense adjacency matrix use `dropout`,
    because this function would take its rows for edges.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      weights: floating or complex array of edge weights, such as (edges,) or
        (edges, heads); padding is dropped like any other edge.
      rate: probability of dropping, in [0, 1]; may be traced.
      axis: axis of the edges. The axes after it share its decisions; the axes
        before it are batches, each with decisions of its own.
      rescale: rule for the factor of the survivors.

    Returns:
      An array with the shape and dtype of `weights`; zeros where `rate` is 1.

    Raises:
      TypeError: `weights` is not floating or complex, `key` is not one key,
        or `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `axis` is out of range.

    Example:
      >>> y = drop_edges(jax.random.key(0), jnp.ones((6, 2)), 0.5)
      >>> bool(jnp.all(y[:, 0] == y[:, 1]))
      True

    References:
      Rong et al., "DropEdge: towards deep graph convolutional networks on node
      classification", arXiv:1907.10903 (2019).
    """
    check = Check("drop_edges")
    key, rate = key_and_rate(check, key, weights, rate, name="weights")
    weights = check.inexact_array("weights", weights, _ONE_WEIGHT_PER_EDGE)
    edges = check.axis("axis", axis, weights.ndim)
    return drop(check, key, weights, rate, tuple(range(edges + 1, weights.ndim)), rescale)


def drop_nodes(
    key: Key | None,
    x: Inexact[ArrayLike, "*shape"],
    rate: Rate,
    *,
    axis: int = -2,
    rescale: Rescale = expected,
) -> Inexact[Array, "*shape"]:
    """Drops nodes of a graph, by setting all their features to zero.

    There is one decision per node. E[y] = x and Var[y] = x^2 p / q at each element, so
    the messages of a node keep their mean.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: floating or complex array of node features, such as (nodes, features).
      rate: probability of dropping, in [0, 1]; may be traced.
      axis: axis of the nodes. The axes after it share its decisions; the axes
        before it are batches, each with decisions of its own.
      rescale: rule for the factor of the survivors.

    Returns:
      An array with the shape and dtype of `x`; zeros where `rate` is 1.

    Raises:
      TypeError: `x` is not floating or complex, `key` is not one key, or
        `rate` is not a number.
      ValueError: a known `rate` lies outside [0, 1], or `axis` is out of range.

    Example:
      >>> y = drop_nodes(jax.random.key(0), jnp.ones((6, 2)), 0.5)
      >>> bool(jnp.all(y[:, 0] == y[:, 1]))
      True

    References:
      Feng et al., "Graph random neural networks for semi-supervised learning on
      graphs", arXiv:2005.11079 (2020).
    """
    check = Check("drop_nodes")
    key, rate = key_and_rate(check, key, x, rate)
    x = check.inexact_array("x", x)
    nodes = check.axis("axis", axis, x.ndim)
    return drop(check, key, x, rate, tuple(range(nodes + 1, x.ndim)), rescale)
