"""Second table, rows on `alpha_dropout` and `gaussian_dropout`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from comparisons.feeding import call_jax, call_torch
from comparisons.inputs import KEY, RATE
from comparisons.libraries import find, jax_drop
from comparisons.rows import Answers, Row, enters
from comparisons.verdicts import distinct
from peers import OURS

import jaxdrop

ROWS: list[Row] = []
asks = partial(enters, ROWS)


@asks("alpha_dropout", {"rate 1 gives": ()})
def alpha_at_rate_one() -> Answers:
    """Ones as the input."""
    x = np.ones((4, 3), np.float32)
    return {
        OURS: lambda: distinct(jaxdrop.alpha_dropout(KEY, x, 1)),
        "torch": lambda: distinct(call_torch(find("torch.nn.AlphaDropout")(1), x)),
        "keras": lambda: distinct(call_jax(jax_drop("keras.layers.AlphaDropout", 1), x, np.ones)),
    }


@asks("alpha_dropout", {"mean and variance for standardised input, rate 0.3": ()})
def alpha_moments() -> Answers:
    """Exact, from the outputs for 1 and -1 where kept, and from that for 0 where dropped."""
    x, mask, p = np.array([1, -1, 0], np.float32), np.array([1.0, 1.0, 0.0]), 0.3

    def ours() -> np.ndarray:
        """Over many places: what is dropped is the same for both inputs."""
        one, minus_one = (
            np.asarray(jaxdrop.alpha_dropout(KEY, jnp.full(99, value), p)) for value in x[:2]
        )
        kept = one != minus_one
        return np.array([one[kept][0], minus_one[kept][0], one[~kept][0]])

    def moments(y: Any) -> str:
        one, minus_one, dropped = np.asarray(y, np.float64)
        mean = (1 - p) * (one + minus_one) / 2 + p * dropped
        square = (1 - p) * (one**2 + minus_one**2) / 2 + p * dropped**2
        return f"{round(mean, 3) + 0:g}, {square - mean**2:.3g}"

    reference = "torch._refs.nn.functional.alpha_dropout"
    return {
        OURS: lambda: moments(ours()),
        "torch": lambda: moments(call_torch(find("torch.nn.AlphaDropout")(p), x, mask)),
        "keras": lambda: moments(call_jax(jax_drop("keras.layers.AlphaDropout", p), x, mask)),
        "torch._refs": lambda: moments(
            call_torch(lambda x: find(reference)(x, p, True), x, 1 - mask)
        ),
    }


@asks("gaussian_dropout", {"rate 1 gives": ()})
def gaussian_at_rate_one() -> Answers:
    """Ones as the input."""
    x, layer = np.ones((4, 3), np.float32), "keras.layers.GaussianDropout"
    return {
        OURS: lambda: distinct(jaxdrop.gaussian_dropout(KEY, x, 1)),
        "keras": lambda: distinct(call_jax(jax_drop(layer, 1), x, np.ones)),
    }


@asks("gaussian_dropout", {"bfloat16 outputs rounded once": ()})
def gaussian_in_bfloat16() -> Answers:
    """Share of them that equal `x (1 + sqrt(p / q) e)`, our noise e being fed; x in [1, 2)."""
    x = jax.random.uniform(KEY, (64, 64), minval=1, maxval=2).astype(jnp.bfloat16)
    factor = np.asarray(jaxdrop.gaussian_dropout(KEY, jnp.ones(x.shape), RATE), np.float64)
    noise = (factor - 1) / np.sqrt(RATE / (1 - RATE))
    exact = (np.asarray(x, np.float64) * factor).astype(jnp.bfloat16)
    layer = "keras.layers.GaussianDropout"

    def share(y: Any) -> str:
        return f"{100 * np.mean(np.asarray(y) == exact):.3g} %"

    return {
        OURS: lambda: share(jaxdrop.gaussian_dropout(KEY, x, RATE)),
        "keras": lambda: share(call_jax(jax_drop(layer, dtype="bfloat16"), x, noise)),
    }
