"""Records of `jaxdrop/methods/ensembles.py`: the masks have a scale, and no rate."""

import jax
import jax.numpy as jnp
from fresh import kinds
from reference import ensembles
from table.record import Fresh, Fuzz, Gallery, Method

import jaxdrop


def second_member(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    del rate
    return member(key, x, None, num_masks=4, scale=2.0, index=1)


def member(key, x, rate, num_masks, scale, index):
    """One member, with the features along the last axis."""
    del rate
    if 0 in x.shape:
        return x
    masks = jaxdrop.draw_masksembles(key, x.shape[-1], num_masks, scale=scale)
    return jaxdrop.masksembles(masks, x, index)


def families(draw, shape):
    num_masks = draw.integer(1, 5)
    scale = draw.one_of([1.0, 1.5, 2.0, 3.0, 100.0])
    return {"num_masks": num_masks, "scale": scale, "index": draw.integer(0, num_masks - 1)}


def all_members(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    del rate
    masks = jaxdrop.draw_masksembles(key, x.shape[-1], len(x))
    return jaxdrop.masksembles(masks, x, jnp.arange(len(x)))


RECORDS = [
    Method(
        "draw_masksembles+masksembles",
        second_member,
        shared=lambda ndim: tuple(range(ndim - 1)),
        keeps_mean=False,
        broadcasts=False,
        takes_rate=False,
        takes_traced_rate=False,
        cumulative=True,
        fuzz=Fuzz(ensembles.member, families, member, least=1),
        fresh=Fresh(lambda record, rate: kinds.given_count(record, rate, count=21)),
        gallery=Gallery(
            {"member": 4, "unit": 12},
            keeps="no mean: each member sees the same in training and tests",
            survivor=lambda keep_prob: 1,
            asked="scale 2",
            drawn=(4, "masks"),
            note="6 of 12 units for each member",
            alike=(),
            run=all_members,
        ),
        timed="is drawn once, and then only selects",
    ),
]
