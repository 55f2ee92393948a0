"""First table, rows on independent zeros: `dropout`, also of attention weights, and of maps."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from comparisons.feeding import call_jax, call_torch, fed, to_tensor
from comparisons.inputs import KEY, RATE, first, numbers
from comparisons.libraries import find, jax_drop
from comparisons.rows import Row, enters
from comparisons.verdicts import verdict

import jaxdrop

ROWS: list[Row] = []
compares = partial(enters, ROWS)


@compares("dropout", {"torch.nn.functional.dropout": ()})
def torch_dropout(peer: str) -> str:
    """Our mask in the place of `bernoulli_`."""
    x = numbers(4, 3, 5)
    y = np.asarray(jaxdrop.dropout(KEY, x, RATE))
    return verdict(y, call_torch(lambda x: find(peer)(x, RATE), x, y != 0))


@compares(
    "dropout",
    {
        "keras.layers.Dropout": (),
        "flax.linen.Dropout": (),
        "flax.nnx.Dropout": (),
        "equinox.nn.Dropout": (),
        "haiku.dropout": (),
    },
)
def jax_dropout(peer: str) -> str:
    """Our mask in the place of `jax.random.bernoulli`."""
    x = numbers(4, 3, 5)
    y = np.asarray(jaxdrop.dropout(KEY, x, RATE))
    return verdict(y, call_jax(jax_drop(peer), x, y != 0))


@compares("dropout, rate 0.1", {"torch.nn.functional.dropout": ()})
def rate_off_the_grid(peer: str) -> str:
    """At a rate that jaxdrop rounds; the reason is checked by undoing it."""
    x = numbers(4, 3, 5)
    y = np.asarray(jaxdrop.dropout(KEY, x, 0.1))
    keep_prob = float(jaxdrop.draw_mask(KEY, (), 0.1).keep_prob)
    theirs = call_torch(lambda x: find(peer)(x, 0.1), x, y != 0)
    reason = f"jaxdrop divides by the probability it draws with, {keep_prob:.6f}, torch by 0.9"
    return verdict(y, theirs, y * keep_prob / 0.9, reason)


@compares(
    "dropout(broadcast_dims=1)",
    {
        "keras.layers.Dropout(noise_shape=(None, 1, None))": ({"noise_shape": (None, 1, None)},),
        "flax.linen.Dropout(broadcast_dims=(1,))": ({"broadcast_dims": (1,)},),
    },
)
def shared_axis(peer: str, options: Mapping[str, Any]) -> str:
    """Our mask, of size 1 along the shared axis, in the place of `jax.random.bernoulli`."""
    x = numbers(4, 3, 5)
    y = np.asarray(jaxdrop.dropout(KEY, x, RATE, broadcast_dims=1))
    return verdict(y, call_jax(jax_drop(peer, **options), x, y[:, :1] != 0))


@compares("dropout of attention weights", {"torch.nn.functional.scaled_dot_product_attention": ()})
def torch_attention(peer: str) -> str:
    """With the identity for values, so that the weights come out; our mask for `bernoulli_`."""
    query, key = numbers(2, 3, 5, 4), numbers(2, 3, 5, 4, seed=1)
    values = np.broadcast_to(np.eye(5, dtype=np.float32), (2, 3, 5, 5))
    weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", query, key) / 2)
    y = np.asarray(jaxdrop.dropout(KEY, weights, RATE))

    def attend(query: Any) -> Any:
        return find(peer)(query, to_tensor(key), to_tensor(values), dropout_p=RATE)

    return verdict(y, call_torch(attend, query, y != 0))


@compares(
    "dropout(broadcast_dims=(0, 1)) of attention weights",
    {"flax.linen.dot_product_attention_weights": ()},
)
def flax_attention(peer: str) -> str:
    """One mask for the batch and the heads, flax's default; for `jax.random.bernoulli`."""
    query, key = numbers(2, 5, 3, 4), numbers(2, 5, 3, 4, seed=1)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2)
    y = np.asarray(jaxdrop.dropout(KEY, weights, RATE, broadcast_dims=(0, 1)))
    options = {"dropout_rng": KEY, "dropout_rate": RATE, "deterministic": False}
    theirs = call_jax(lambda query: find(peer)(query, key, **options), query, y[:1, :1] != 0)
    return verdict(y, theirs)


@compares("dropout", {"torch.nn.LSTM(dropout=...), between its layers": ()})
def torch_lstm(peer: str) -> str:
    """The shape of the mask that it asks for, given 6 steps of a batch of 4 with 5 features."""
    layers = find(peer)(5, 5, num_layers=2, dropout=RATE)
    x = to_tensor(np.ones((6, 4, 5), np.float32))
    with fed(np.ones) as asked:
        layers(x)
    same = asked == [((6, 4, 5), 1 - RATE)]
    return "a new mask at each step, unlike locked_dropout" if same else "another mask"


@compares(
    "spatial_dropout(channel_axis=1)",
    {
        "torch.nn.functional.dropout1d": ((4, 6, 5),),
        "torch.nn.functional.dropout2d": ((4, 6, 5, 2),),
        "torch.nn.functional.dropout3d": ((4, 6, 5, 2, 3),),
    },
)
def torch_spatial(peer: str, shape: tuple[int, ...]) -> str:
    """A mask of one for each sample and channel in the place of `bernoulli_`."""
    x = numbers(*shape)
    y = np.asarray(jaxdrop.spatial_dropout(KEY, x, RATE, channel_axis=1))
    return verdict(y, call_torch(lambda x: find(peer)(x, RATE), x, first(y != 0, 2)))


@compares(
    "spatial_dropout(batch_axis=None, channel_axis=0)",
    {"torch.nn.functional.dropout1d of (channels, length)": ()},
)
def torch_spatial_of_one_sample(peer: str) -> str:
    """A mask of one for each channel in the place of `bernoulli_`."""
    x = numbers(24, 5)
    y = np.asarray(jaxdrop.spatial_dropout(KEY, x, RATE, batch_axis=None, channel_axis=0))
    return verdict(y, call_torch(lambda x: find(peer)(x, RATE), x, first(y != 0, 1)[None]))


@compares(
    "spatial_dropout",
    {
        "keras.layers.SpatialDropout1D": ((4, 5, 6),),
        "keras.layers.SpatialDropout2D": ((4, 5, 2, 6),),
        "keras.layers.SpatialDropout3D": ((4, 5, 2, 3, 6),),
    },
)
def keras_spatial(peer: str, shape: tuple[int, ...]) -> str:
    """A mask of one for each sample and channel in the place of `jax.random.bernoulli`."""
    x = numbers(*shape)
    y = np.asarray(jaxdrop.spatial_dropout(KEY, x, RATE))
    mask = y[(slice(None), *[slice(1)] * (y.ndim - 2))] != 0
    return verdict(y, call_jax(jax_drop(peer), x, mask))
