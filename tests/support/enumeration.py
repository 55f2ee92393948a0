"""Exact moments of a method, over all masks that it can draw."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from modes import make_key

from jaxdrop import draw_mask


def outputs_by_mask(run, x, number=None):
    """What a method gives for each mask: distinct masks and the output for each.

    Draws with many keys until every mask has come up, so the function itself is
    enumerated, not a formula of it. A mask is where ones stay non-zero.

    Args:
      run: a function `(key, x) -> y`, linear, so that ones show its mask.
      x: the input.
      number: how many masks there are; None for all subsets.
    """
    number = 2**x.size if number is None else number
    keys = jax.random.split(jax.random.PRNGKey(0), 64 * number)
    masks = np.asarray(jax.vmap(lambda key: run(key, jnp.ones_like(x)) != 0)(keys))
    outputs = np.asarray(jax.vmap(lambda key: run(key, x))(keys))
    return one_of_each(masks, outputs, number)


def one_of_each(masks, outputs, number):
    """The distinct masks, which must be so many, and the output that each always has."""
    _, first, where = np.unique(
        masks.reshape(len(masks), -1), axis=0, return_index=True, return_inverse=True
    )
    assert len(first) == number
    np.testing.assert_array_equal(outputs, outputs[first][where.reshape(-1)])
    return masks[first], outputs[first]


def keep_prob_of(rate):
    """The probability that is drawn with, for a rate."""
    return float(draw_mask(make_key("raw"), 1, rate).keep_prob)


def probabilities(masks, keep_prob):
    """The probability of each mask of independent decisions."""
    kept = masks.reshape(len(masks), -1).sum(1)
    total = masks[0].size
    return keep_prob**kept * (1 - keep_prob) ** (total - kept)


def moments(weights, outputs):
    """The exact mean and covariance of the outputs, flattened."""
    flat = outputs.reshape(len(outputs), -1)
    mean = weights @ flat
    return mean, (flat * weights[:, None]).T @ flat - np.outer(mean, mean)


def subsets(size):
    """All masks of `size` elements."""
    return np.array(list(itertools.product([False, True], repeat=size)))
