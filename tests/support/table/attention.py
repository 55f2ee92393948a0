"""Records of `jaxdrop/methods/attention`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fresh import kinds
from fuzzing import options
from reference import methods as reference, sums
from table.record import MATRICES, WITH_INFINITY, Fresh, Fuzz, Gallery, Method, Spread, Timed

import jaxdrop

weights = partial(Gallery, {"head": 3, "query": 6, "key": 8}, ("head", "key"))


def attend(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    """The dropped weights themselves: `x` are the logits, and the values an identity matrix."""
    if getattr(x, "ndim", 0) < 2:  # no weights
        return jaxdrop.dot_product_attention(key, x, x, x, rate)
    *batch, queries, keys = x.shape
    query, key_array = (jnp.zeros((*batch, n, 1, keys), x.dtype) for n in (queries, keys))
    value = jnp.broadcast_to(jnp.eye(keys, dtype=x.dtype)[:, None], key_array.shape)
    options["bias"] = jnp.expand_dims(x, -3)
    return jaxdrop.dot_product_attention(key, query, key_array, value, rate, **options)[..., 0, :]


def attend_in_blocks(key, x, rate, is_causal, shared, query_block, key_block):
    blocks = {"query_block_size": query_block, "key_block_size": key_block}
    return attend(key, x, rate, is_causal=is_causal, broadcast_dims=shared, **blocks)


def attend_as_x_lies(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """The same, with all arrays split over devices as `x` is: made of it, not anew."""
    zeros = jnp.zeros_like(x)[:, :, None]
    value = zeros + jnp.eye(x.shape[-1], dtype=x.dtype)[None, :, None]
    return jaxdrop.dot_product_attention(key, zeros, zeros, value, rate, bias=x[:, None])[:, :, 0]


def drop_key_then_softmax(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    return jax.nn.softmax(jaxdrop.drop_key(key, x, rate, **options))


def times_keys(run):
    """Weights of equal logits, as multiples of those of which nothing is dropped."""
    return lambda key, x, rate: x.shape[-1] * run(key, x, rate)


def one_key_left(weights: jax.Array) -> bool:
    at_ends = ((weights == 0) | (weights == 1)).all()
    return bool(((weights == 1).sum(-1) == 1).all() and at_ends)


def head_axes(draw, shape):
    axes = options.distinct(draw, shape, "head_axis", "batch_axis")
    return {"head_axis": -1, "batch_axis": None} if axes["head_axis"] is None else axes


def attention_options(draw, shape):
    blocks = [2, None, 1, 3, 32]
    return {
        "is_causal": draw.one_of([False, True]),
        "shared": options.subset(draw, len(shape) + 1),
        "query_block": draw.one_of(blocks),
        "key_block": draw.one_of(blocks),
    }


RECORDS = [
    Method(
        "dot_product_attention",
        attend,
        small=(2, 3),
        odd_shapes=((0, 3), (5, 1), (2, 3, 33), (3, 0)),
        linear=False,
        keeps_mean=False,
        broadcasts=False,
        at_zero=jax.nn.softmax,
        aggregates=True,
        takes_complex=False,
        keeps_words_alone=False,
        argument="query",
        fuzz=Fuzz(
            sums.attention,
            attention_options,
            attend_in_blocks,
            least=2,
            floats=("float32", "bfloat16"),
            specials=(-np.inf,),
            told=options.narrow_unit,
        ),
        gallery=weights(keeps="the mean of each weight", run=times_keys(attend)),
        timed="has a benchmark of its own, benchmarks/attention.py",
        spread=Spread(attend_as_x_lies, (16, 32, 32)),
    ),
    Method(
        "drop_heads",
        jaxdrop.drop_heads,
        shape=(3, 2, 4, 5),
        small=(1, 2, 2, 2),
        odd_shapes=((0, 2, 3), (2, 0, 3), (1, 1, 1), (2, 3, 4, 33), (1, 2, 3, 2, 5)),
        shared=lambda ndim: tuple(i for i in range(1, ndim) if i != ndim - 2),
        keeps_mean=False,
        broadcasts=False,
        fuzz=Fuzz(reference.heads, head_axes, least=1, most=4),
        gallery=Gallery(
            {"sample": 3, "time": 4, "head": 4, "unit": 3},
            ("head", "unit"),
            keeps="the mean, given that one survives",
            survivor=None,
        ),
        timed=Timed((16, 1024, 16, 64)),
    ),
    Method(
        "drop_key+softmax",
        drop_key_then_softmax,
        odd_shapes=(*MATRICES, (3, 0)),
        linear=False,
        keeps_mean=False,
        at_zero=jax.nn.softmax,
        floats=WITH_INFINITY,
        at_one=one_key_left,
        takes_complex=False,
        monotone=False,
        keeps_words_alone=False,
        cumulative=True,
        argument="logits",
        fuzz=Fuzz(
            reference.keys,
            lambda draw, shape: {"shared": options.subset(draw, len(shape), but_last=True)},
            options.sharing(jaxdrop.drop_key),
            least=1,
            told=lambda traced, dtype: {"lowest": float(jnp.finfo(dtype).min)},
        ),
        fresh=Fresh(kinds.keys_left),
        gallery=weights(
            keeps="weights that add up to 1",
            survivor=None,
            run=times_keys(drop_key_then_softmax),
        ),
        timed=Timed((8, 8, 512, 512), run=jaxdrop.drop_key),
    ),
]
