"""What combinators and transforms return is pickled with its parts."""

import pickle
from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxdrop
from jaxdrop import dropout

DROP = partial(dropout, rate=0.5)
X = jnp.ones((4, 3))
MADE = {
    "per_sample": (jaxdrop.per_sample(DROP, axis=1), (X,)),
    "per_leaf": (jaxdrop.per_leaf(DROP), ({"a": X, "b": None},)),
    "chain": (jaxdrop.chain(DROP, jaxdrop.per_sample(DROP)), (X,)),
    "scheduled, early": (
        jaxdrop.scheduled(dropout, jaxdrop.early_dropout_schedule(0.5, 2)),
        (X, 1),
    ),
    "scheduled, linear": (
        jaxdrop.scheduled(dropout, jaxdrop.early_dropout_schedule(0.5, 2, linear=True)),
        (X, 1),
    ),
    "scheduled, late": (jaxdrop.scheduled(dropout, jaxdrop.late_dropout_schedule(0.5, 1)), (X, 1)),
    "scheduled, curriculum": (
        jaxdrop.scheduled(dropout, jaxdrop.curriculum_dropout_schedule(0.5, 0.1)),
        (X, 3),
    ),
    "monte_carlo": (jaxdrop.monte_carlo(DROP, 2, progress=print), (X,)),
    "monte_carlo_moments": (jaxdrop.monte_carlo_moments(DROP, 2), (X,)),
    "multi_sample": (jaxdrop.multi_sample(DROP, 2), (X,)),
    "two_views": (jaxdrop.two_views(DROP), (X,)),
    "rule": (partial(dropout, rate=0.5, rescale=jaxdrop.rescale.realized(-1)), (X,)),
}


@pytest.mark.parametrize("name", MADE)
def test_results_of_transforms_are_pickled_with_their_parts(name):
    made, args = MADE[name]
    again = pickle.loads(pickle.dumps(made))
    chex.assert_trees_all_equal(again(jax.random.key(0), *args), made(jax.random.key(0), *args))


def test_arguments_of_a_function_may_have_any_name():
    def fn(key, *, fn, batches):
        return fn + batches

    found = jaxdrop.monte_carlo(fn, 2)(key=jax.random.key(0), fn=X, batches=X)
    chex.assert_trees_all_equal(found, jnp.stack([2 * X] * 2))


def test_schedules_are_those_of_optax():
    steps = jnp.arange(5)
    linear = jaxdrop.early_dropout_schedule(0.5, 3, linear=True)
    chex.assert_trees_all_equal(linear(steps), optax.linear_schedule(0.5, 0.0, 3)(steps))
