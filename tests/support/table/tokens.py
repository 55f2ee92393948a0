"""Records of `jaxdrop/methods/tokens.py`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from fresh import kinds
from fuzzing import options
from reference import methods as reference
from table.record import MATRICES, Fresh, Fuzz, Gallery, Method, Timed, behind_first

import jaxdrop


def drop_then_restore_tokens(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    return tokens_and_back(key, x, rate, axis=-2, prefix=0)


def tokens_and_back(key, x, rate, axis, prefix):
    tokens, positions = jaxdrop.drop_tokens(key, x, rate, axis=axis, prefix=prefix)
    return jaxdrop.restore_tokens(tokens, positions, x.shape[axis])


def token_axes(draw, shape):
    axis = draw.integer(-len(shape), -1)
    return {"axis": axis, "prefix": draw.integer(0, min(shape[axis], 2))}


def replace_some(key, x, rate):
    """`replace_tokens` by numbers, where these are low."""
    other = options.other_for(x)
    return jaxdrop.replace_tokens(key, x, rate, replacement=other, where=other < 1)


def replaced_some(key, rate, shape, unit):
    other = reference.other_numbers(shape)
    return reference.replaced(key, rate, shape, unit, other, other < 1)


def drop_condition(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.drop_condition(key, {"text": x, "empty": None}, rate, null=0)["text"]


def condition(key, x, rate, batch_axis):
    """One of two leaves, the other of which has no more axes than that of the samples."""
    samples = 1 if batch_axis is None else x.shape[batch_axis]
    second = jnp.zeros(samples if batch_axis is None else _flat(x.ndim, batch_axis, samples))
    given, null = {"a": second, "text": x}, {"a": 1.0, "text": options.other_for(x)}
    return jaxdrop.drop_condition(key, given, rate, null=null, batch_axis=batch_axis)["text"]


def _flat(ndim, axis, samples):
    return tuple(samples if i == axis % ndim else 1 for i in range(ndim))


RECORDS = [
    Method(
        "drop_tokens+restore_tokens",
        drop_then_restore_tokens,
        shape=(3, 6, 4),
        small=(4, 2),
        odd_shapes=((0, 3), (0, 3, 2), (5, 1), (2, 3, 33)),
        shared=lambda ndim: (ndim - 1,),
        keeps_mean=False,
        broadcasts=False,
        takes_traced_rate=False,
        cumulative=True,
        argument=None,
        fuzz=Fuzz(reference.tokens, token_axes, tokens_and_back, least=1),
        fresh=Fresh(partial(kinds.fixed_count, over=1)),
        gallery=Gallery(
            {"sample": 6, "time": 10, "unit": 3},
            ("time", "unit"),
            keeps="the order; 7 of 10 are left",
            survivor=lambda keep_prob: 1,
            drawn=(6, "sets"),
            note="3 of 10, alike along unit",
        ),
        timed=Timed(
            (64, 256, 1024),
            # At a tenth the sequence would hardly get shorter.
            run=lambda key, x, rate: jaxdrop.drop_tokens(key, x, 0.5)[0],
        ),
    ),
    Method(
        "replace_tokens",
        partial(jaxdrop.replace_tokens, replacement=0),
        keeps_mean=False,
        broadcasts=False,
        argument=None,
        fuzz=Fuzz(replaced_some, run=replace_some),
        gallery=Gallery(
            {"sample": 6, "time": 12}, keeps="-", fate="replaced", survivor=lambda keep_prob: 1
        ),
        timed=Timed(dtype="int32"),
    ),
    Method(
        "drop_condition",
        drop_condition,
        odd_shapes=MATRICES,
        shared=behind_first,
        keeps_mean=False,
        broadcasts=False,
        argument=None,
        fuzz=Fuzz(reference.with_other(reference.condition), options.batch_axis, condition),
        gallery=Gallery(
            {"sample": 6, "entry": 12}, keeps="-", fate="replaced", survivor=lambda keep_prob: 1
        ),
        timed=Timed((512, 64, 512)),
    ),
]
