"""Second table, rows on `dropout`: values, dtypes, rates and random state."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from comparisons.feeding import call_jax, call_torch, fed, to_tensor
from comparisons.inputs import KEY, RATE
from comparisons.libraries import find, jax_drop
from comparisons.rows import Answers, Row, enters
from comparisons.verdicts import distinct
from peers import OURS

import jaxdrop

ROWS: list[Row] = []
asks = partial(enters, ROWS)


@asks(
    "dropout, drop_path",
    {
        "NaN at a dropped place gives": (np.nan, RATE),
        "-1 at a dropped place gives": (-1, RATE),
        "infinity at rate 1 gives": (np.inf, 1),
    },
)
def dropped_values(value: float, rate: float) -> Answers:
    """An input of this value alone, all of it dropped by the mask that is fed."""
    x = np.full((4, 3, 6, 6), value, np.float32)
    draws = [] if rate == 1 else [np.zeros]

    def ours() -> str:
        keep = jnp.zeros(x.shape, bool)
        return distinct(jaxdrop.apply_mask(jaxdrop.Mask.pack(keep, 1 - rate), jnp.asarray(x)))

    def theirs(peer: str) -> str:
        return distinct(call_jax(jax_drop(peer, rate), x, *draws))

    return {
        OURS: ours,
        "keras": lambda: theirs("keras.layers.Dropout"),
        "flax": lambda: theirs("flax.linen.Dropout"),
        "torch": lambda: distinct(
            call_torch(lambda x: find("torch.nn.functional.dropout")(x, rate), x, *draws)
        ),
        "timm": lambda: distinct(call_torch(find("timm.layers.DropPath")(rate), x, np.zeros)),
        "torchvision": lambda: distinct(
            call_torch(find("torchvision.ops.StochasticDepth")(rate, "row"), x, np.zeros)
        ),
    }


@asks("dropout, drop_path", {"error of the scale in bfloat16, rate 0.1": ()})
def bfloat16_scale() -> Answers:
    """Sum of outputs, all kept, over that of `x / 0.9` rounded once, minus 1; x in [1, 2)."""
    x = jax.random.uniform(KEY, (2**12, 1, 4, 4), minval=1, maxval=2).astype(jnp.bfloat16)
    exact = (np.asarray(x, np.float64) / 0.9).astype(jnp.bfloat16).astype(np.float64)

    def error(y: Any) -> str:
        return f"{100 * (np.asarray(y, np.float64).sum() / exact.sum() - 1):.2g} %"

    def ours() -> str:
        return error(jaxdrop.apply_mask(jaxdrop.Mask.pack(jnp.ones(x.shape, bool), 0.9), x))

    return {
        OURS: ours,
        "torch": lambda: error(
            call_torch(lambda x: find("torch.nn.functional.dropout")(x, 0.1), x, np.ones)
        ),
        "timm": lambda: error(call_torch(find("timm.layers.DropPath")(0.1), x, np.ones)),
        "torchvision": lambda: error(
            call_torch(find("torchvision.ops.StochasticDepth")(0.1, "row"), x, np.ones)
        ),
    }


@asks("dropout", {"int32 input gives": (np.int32,), "complex64 input gives": (np.complex64,)})
def dtypes(dtype: type) -> Answers:
    """The dtype that comes out, for ones."""
    x = np.ones((4, 3), dtype)

    def theirs(peer: str) -> str:
        return str(call_jax(jax_drop(peer), x, np.ones).dtype)

    return {
        OURS: lambda: str(jaxdrop.dropout(KEY, x, RATE).dtype),
        "torch": lambda: str(find("torch.nn.functional.dropout")(to_tensor(x), RATE).dtype),
        "keras": lambda: theirs("keras.layers.Dropout"),
        "flax": lambda: theirs("flax.linen.Dropout"),
        "equinox": lambda: theirs("equinox.nn.Dropout"),
    }


@asks("dropout", {"rate 0.1 is drawn with": (0.1,), "rate 1e-8 is drawn with": (1e-8,)})
def rates_drawn_with(rate: float) -> Answers:
    """One minus the keep probability that is asked for, in the precision it is compared in."""
    x = np.ones((4, 3), np.float32)

    def ours() -> str:
        with jax.enable_x64(True):
            return f"{1 - float(jaxdrop.draw_mask(jax.random.key(0), (), rate).keep_prob):.6g}"

    def theirs(call: Callable[[], Any], precision: type) -> str:
        with fed(np.ones) as asked:
            call()
        return f"{1 - float(precision(asked[0][1])):.6g}"

    return {
        OURS: ours,
        "torch": lambda: theirs(
            lambda: find("torch.nn.functional.dropout")(to_tensor(x), rate), np.float64
        ),
        "flax": lambda: theirs(lambda: jax_drop("flax.linen.Dropout", rate)(x), np.float32),
        "keras": lambda: theirs(lambda: jax_drop("keras.layers.Dropout", rate)(x), np.float32),
    }


@asks("dropout", {"random state moves on at rates 0, 0.5, 1": ()})
def random_state() -> Answers:
    """Whether torch's generator and the layer's seed differ after a call."""

    def torch(rate: float) -> str:
        before = find("torch.get_rng_state")()
        find("torch.nn.functional.dropout")(to_tensor(np.ones(3, np.float32)), rate)
        return "no" if before.equal(find("torch.get_rng_state")()) else "yes"

    def keras(rate: float) -> str:
        layer = find("keras.layers.Dropout")(rate)
        states = [np.array(each.value) for each in layer.variables]
        layer(jnp.ones(3), training=True)
        after = [each.value for each in layer.variables]
        return "no" if all(map(np.array_equal, states, after)) else "yes"

    return {
        OURS: lambda: "it has none",
        "torch": lambda: ", ".join(torch(rate) for rate in (0.0, 0.5, 1.0)),
        "keras": lambda: ", ".join(keras(rate) for rate in (0.0, 0.5, 1.0)),
    }
