"""Records of `jaxdrop/methods/learned.py`: the rate is a parameter, given by its logit."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from fresh import kinds
from fuzzing import options
from reference import noise
from table.record import Fresh, Fuzz, Gallery, Method

import jaxdrop


def logit(rate: Any) -> jax.Array:
    return jax.scipy.special.logit(jnp.asarray(rate, jnp.float32))  # whatever x64 says


def concrete(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    """At temperature 1: the default of .1 makes ten times as much of how a program rounds."""
    return jaxdrop.concrete_dropout(key, x, logit(rate), **{"temperature": 1.0, **options})


def concrete_of_logit(key, x, rate, shared, temperature):
    options = {"broadcast_dims": shared, "temperature": temperature}
    return jaxdrop.concrete_dropout(key, x, rate, **options)


def shared_and_temperature(draw, shape):
    return {**options.shared(draw, shape), "temperature": draw.one_of([1.0, 0.5, 0.125])}


def variational(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    return jaxdrop.variational_dropout(key, x, logit(rate), **options)  # ln alpha = ln(p / q)


def hard(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    return jaxdrop.hard_concrete(key, x, -logit(rate), **options)


def hard_of_logit(key, x, rate, shared, temperature):
    options = {"broadcast_dims": shared, "temperature": temperature}
    return jaxdrop.hard_concrete(key, x, -rate, **options)


RECORDS = [
    Method(
        "concrete_dropout",
        concrete,
        keeps_mean=False,
        at_dropped=lambda rate: None,  # small, not zero
        rate_learns=True,
        fuzz=Fuzz(noise.concrete, shared_and_temperature, concrete_of_logit),
        fresh=Fresh(kinds.concrete_noise),
        gallery=Gallery(
            keeps="nearly the mean",
            fate="nearly zeroed",
            survivor=None,
            note="each on its own, softly",
            run=partial(concrete, temperature=0.1),
        ),
    ),
    Method(
        "variational_dropout",
        variational,
        at_dropped=lambda rate: None,
        rate_learns=True,
        fuzz=Fuzz(noise.variational, run=options.sharing(jaxdrop.variational_dropout)),
        fresh=Fresh(partial(kinds.normal_noise, chance_of=lambda rate: 1 - rate)),
        gallery=Gallery(fate="disturbed", survivor=None),
    ),
    Method(
        "hard_concrete",
        hard,
        keeps_mean=False,
        rounding=5e-7,  # four units in the last place of a stretched gate
        rate_learns=True,
        fuzz=Fuzz(noise.hard, shared_and_temperature, hard_of_logit),
        fresh=Fresh(kinds.hard_gates),
        gallery=Gallery(
            keeps="no mean; many exact zeros and ones",
            fate="partly zeroed",
            survivor=None,
            asked="alpha 7/3",
            note="each on its own, some in part",
        ),
    ),
]
