"""First table, rows on what is more than zeros: `alpha_dropout` and `gaussian_dropout`."""

from functools import partial

import numpy as np
from comparisons.feeding import call_jax, call_torch
from comparisons.inputs import KEY, RATE, first, numbers
from comparisons.libraries import find, jax_drop
from comparisons.rows import Row, enters
from comparisons.verdicts import verdict

import jaxdrop

ROWS: list[Row] = []
compares = partial(enters, ROWS)


def _alpha(*shared: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, output and mask: dropped is what the input does not change."""
    x = numbers(4, 6, 5, 2)
    y, other = (
        np.asarray(jaxdrop.alpha_dropout(KEY, each, RATE, broadcast_dims=shared))
        for each in (x, x + 1)
    )
    return x, y, y != other


@compares("alpha_dropout", {"torch.nn.functional.alpha_dropout": ()})
def torch_alpha(peer: str) -> str:
    """Our mask in the place of `bernoulli_`."""
    x, y, mask = _alpha()
    return verdict(y, call_torch(lambda x: find(peer)(x, RATE, True), x, mask))


@compares("alpha_dropout", {"torch._refs.nn.functional.alpha_dropout": ()})
def torch_alpha_reference(peer: str) -> str:
    """Torch's reference, from which it decomposes; numbers that our mask makes for `uniform`."""
    x, y, mask = _alpha()
    limit = -1.7580993408473766
    shift = 2 * limit * RATE * ((1 - RATE) * (1 + limit**2 * RATE)) ** -0.5
    theirs = call_torch(lambda x: find(peer)(x, RATE, True), x, 1.0 - mask)
    return verdict(y, theirs, y + shift, f"a wrong sign of b shifts all by {shift:.3f}")


@compares("alpha_dropout", {"keras.layers.AlphaDropout": ()})
def keras_alpha(peer: str) -> str:
    """Ones and zeros by our mask in the place of `jax.random.uniform`."""
    x, y, mask = _alpha()
    return verdict(y, call_jax(jax_drop(peer), x, mask))


@compares("alpha_dropout(broadcast_dims=(2, 3))", {"torch.nn.functional.feature_alpha_dropout": ()})
def torch_feature_alpha(peer: str) -> str:
    """A mask of one for each sample and channel in the place of `bernoulli_`."""
    x, y, mask = _alpha(2, 3)
    return verdict(y, call_torch(lambda x: find(peer)(x, RATE, True), x, first(mask, 2)))


@compares(
    "alpha_dropout(broadcast_dims=(2, 3))",
    {"keras.layers.AlphaDropout(noise_shape=(None, None, 1, 1))": ()},
)
def keras_feature_alpha(peer: str) -> str:
    """Ones and zeros by our mask in the place of `jax.random.uniform`."""
    x, y, mask = _alpha(2, 3)
    drop = jax_drop(peer, noise_shape=(None, None, 1, 1))
    return verdict(y, call_jax(drop, x, first(mask, 2)))


@compares("gaussian_dropout", {"keras.layers.GaussianDropout": ()})
def keras_gaussian(peer: str) -> str:
    """Our noise, found from our output for ones, in the place of `jax.random.normal`."""
    x = numbers(4, 3, 5)
    noise = np.asarray(jaxdrop.gaussian_dropout(KEY, np.ones_like(x), RATE), np.float64) - 1
    noise /= np.sqrt(RATE / (1 - RATE))
    return verdict(jaxdrop.gaussian_dropout(KEY, x, RATE), call_jax(jax_drop(peer), x, noise))
