"""What dropping a few units, a layer or a batch does: the counting behind `why_rescale.py`."""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdrop import Mask, apply_mask, dropout, fixed_count_dropout, rescale


def keep_energy(mask: Mask, x: Array) -> Array:
    """A rule of one's own, 1 / sqrt(keep_prob): the squared norm keeps its mean."""
    return 1 / jnp.sqrt(mask.keep_prob).astype(x.dtype)


RULES = {
    "expected": rescale.expected,
    "realized": rescale.realized(),
    "preserve_sum": rescale.preserve_sum(),
    "preserve_norm": rescale.preserve_norm(),
    "1/sqrt(q)": keep_energy,
    "none": rescale.none,
}
UNITS = np.array([2.0, 4.0, 4.0, 2.0])
WEIGHTS = np.array([0.3, -0.2, 0.1, 0.4])  # of a linear unit behind them
DRAWS = 1000  # of each layer or batch, for each seed
BATCH, WIDTH = 32, 24


class Counted(NamedTuple):
    """All masks of some units, the chance of each, and what each rule makes of the units."""

    keep: np.ndarray
    chance: np.ndarray
    outputs: dict[str, np.ndarray]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The exact mean over masks."""
        return np.tensordot(self.chance, values, axes=1)

    def deviation(self, values: np.ndarray) -> np.ndarray:
        """The exact standard deviation over masks."""
        return self.mean((values - self.mean(values)) ** 2) ** 0.5


def count_masks(x: np.ndarray, keep_prob: float) -> Counted:
    """Applies all 2^n masks of n units under every rule."""
    keep = np.array(list(itertools.product([True, False], repeat=len(x))))
    masks = jax.vmap(partial(Mask.pack, keep_prob=keep_prob))(keep)

    def outputs(rule: rescale.Rescale) -> np.ndarray:
        apply = partial(apply_mask, x=jnp.asarray(x), rescale=rule)
        return np.asarray(jax.vmap(apply)(masks))

    chance = np.prod(np.where(keep, keep_prob, 1 - keep_prob), axis=1)
    return Counted(keep, chance, {name: outputs(rule) for name, rule in RULES.items()})


def added_loss(counted: Counted, target: float = 1.0) -> float:
    """What dropout adds to half the squared error of a linear unit, in the mean over masks."""
    dropped = counted.mean((target - counted.outputs["expected"] @ WEIGHTS) ** 2)
    return float(dropped - (target - UNITS @ WEIGHTS) ** 2) / 2


def penalty(keep_prob: float) -> float:
    """The same in closed form, p / 2q times the sum of w^2 x^2: a penalty on weights."""
    return float((1 - keep_prob) / keep_prob * np.sum((WEIGHTS * UNITS) ** 2) / 2)


def sample_layer(n: int, key: Array) -> dict[str, Array]:
    """Mean and deviation of the sum of n ones over n, for three ways to drop half."""
    keys, x = jax.random.split(jax.random.fold_in(key, n), 3), jnp.ones((DRAWS, n))
    layers = {
        "expected": dropout(keys[0], x, 0.5),
        "realized": dropout(keys[1], x, 0.5, rescale=rescale.realized(axis=-1)),
        "fixed count": fixed_count_dropout(keys[2], x, 0.5, axis=-1),
    }
    sums = {name: y.mean(axis=-1) for name, y in layers.items()}
    return {name: jnp.stack([s.mean(), s.std()]) for name, s in sums.items()}


def exact_layer(n: int) -> dict[str, tuple[float, float]]:
    """What `sample_layer` estimates. A layer of which nothing is kept, chance 2^-n, sums to 0."""
    empty = 0.5**n
    return {
        "expected": (1.0, (1 / n) ** 0.5),  # sqrt(p / (q n))
        "realized": (1 - empty, (empty * (1 - empty)) ** 0.5),
        "fixed count": (1.0, 0.0),
    }


def drop_batch(key: Array, x: Array) -> dict[str, Array]:
    """A batch dropped with a key for each example, and with one for all of them."""
    drop = partial(dropout, rate=0.5)
    return {
        "a mask for each example": jax.vmap(drop)(jax.random.split(key, len(x)), x),
        "one mask for the batch": jax.vmap(drop, in_axes=(None, 0))(jax.random.fold_in(key, 0), x),
    }


def batch_noise(key: Array) -> dict[str, Array]:
    """Deviation of a unit's mean over the batch, the unit being 1 in every example."""

    def means(key: Array) -> dict[str, Array]:
        return {k: y.mean(axis=0) for k, y in drop_batch(key, jnp.ones((BATCH, WIDTH))).items()}

    return {k: y.std() for k, y in jax.vmap(means)(jax.random.split(key, DRAWS)).items()}


def unchanged_at_rate_0(key: Array, x: Array) -> dict[str, bool]:
    """Whether rate 0 gives the input bit for bit under each rule, known or traced."""
    traced = jax.jit(dropout, static_argnames="rescale")

    def unchanged(rule: rescale.Rescale) -> bool:
        outputs = [run(jax.random.clone(key), x, 0.0, rescale=rule) for run in (dropout, traced)]
        return all(np.asarray(y).tobytes() == np.asarray(x).tobytes() for y in outputs)

    return {name: unchanged(rule) for name, rule in RULES.items()}
