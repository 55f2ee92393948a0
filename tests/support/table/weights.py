"""Records of `jaxdrop/methods/weights.py`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from fuzzing import options
from reference import methods as reference
from table.record import MATRICES, Fuzz, Gallery, Method, Timed, behind_first

import jaxdrop

matrix = partial(Gallery, {"input": 6, "output": 12})


def connect(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.drop_connect(key, {"kernel": x, "steps": 3}, rate)["kernel"]


def connect_beside_bias(key, x, rate):
    return jaxdrop.drop_connect(key, {"bias": x, "kernel": x, "steps": 3}, rate)["kernel"]


def connect_first(key, x, rate):
    """Under the name that `mixout` has too, so that both hit the same places."""
    return jaxdrop.drop_connect(key, [x], rate)[0]


def mix_with_zeros(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.mixout(key, [x], rate, target=[jnp.zeros_like(x)])[0]


def mix(key, x, rate):
    return jaxdrop.mixout(key, [x, x], rate, target=[options.other_for(x), x])[0]


RECORDS = [
    Method(
        "drop_connect",
        connect,
        broadcasts=False,
        argument=None,
        fuzz=Fuzz(reference.connect, run=connect_beside_bias),
        gallery=matrix(keeps="the mean pre-activation", run=connect_first),
    ),
    Method(
        "mixout",
        mix_with_zeros,
        broadcasts=False,
        argument=None,
        fuzz=Fuzz(reference.with_other(reference.mixed), run=mix),
        gallery=matrix(keeps="the mean weight", fate="replaced"),
        timed=Timed(
            reads=2,
            run=lambda key, x, target, rate: jaxdrop.mixout(key, x, rate, target=target),
        ),
    ),
    Method(
        "embedding_dropout",
        jaxdrop.embedding_dropout,
        odd_shapes=MATRICES,
        shared=behind_first,
        broadcasts=False,
        argument="table",
        fuzz=options.of_one_axis("axis", jaxdrop.embedding_dropout, reference.others_shared),
        gallery=Gallery({"word": 12, "unit": 12}),
        timed=Timed((32768, 512)),
    ),
]
