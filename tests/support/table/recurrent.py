"""Records of `jaxdrop/methods/recurrent.py`."""

from functools import partial
from typing import Any

import jax
from fuzzing import options
from reference import methods as reference
from table.record import MATRICES, Fuzz, Gallery, Method, Timed

import jaxdrop


def zone_out_to_zeros(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.zoneout(key, x, rate, old=0)


def zone_out(key, x, rate):
    return jaxdrop.zoneout(key, x, rate, old=options.other_for(x))


RECORDS = [
    Method(
        "locked_dropout",
        partial(jaxdrop.locked_dropout, time_axis=0),
        odd_shapes=MATRICES,
        shared=lambda ndim: (0,),
        broadcasts=False,
        fuzz=options.of_one_axis("time_axis", jaxdrop.locked_dropout, reference.itself_shared),
        # Here and below the time comes second, as it mostly does.
        gallery=Gallery(
            {"sample": 3, "time": 4, "unit": 12},
            alike=("time",),
            run=partial(jaxdrop.locked_dropout, time_axis=1),
        ),
        timed=Timed(
            (64, 256, 1024),
            decisions=lambda shape: (shape[0], shape[2]),
            run=partial(jaxdrop.locked_dropout, time_axis=1),
        ),
    ),
    Method(
        "zoneout",
        zone_out_to_zeros,
        keeps_mean=False,
        broadcasts=False,
        argument="new",
        fuzz=Fuzz(reference.with_other(reference.replaced), run=zone_out),
        gallery=Gallery(
            keeps="0.7 new + 0.3 old, on average",
            fate="replaced",
            survivor=lambda keep_prob: 1,
        ),
        timed=Timed(
            reads=2, run=lambda key, new, old, rate: jaxdrop.zoneout(key, new, rate, old=old)
        ),
    ),
]
