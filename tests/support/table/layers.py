"""The record of `jaxdrop/methods/layers.py`."""

from table.record import MATRICES, Method

import jaxdrop
from jaxdrop.base.sharding import zeros_like


def leave_out(key, x, rate):
    """`layer_drop` of a layer that adds `x` to 0, so that what is left out is 0."""
    pair = (zeros_like(x), x)
    return jaxdrop.layer_drop(key, pair, rate, layer=lambda pair: (pair[0] + pair[1], pair[1]))[0]


RECORDS = [
    Method(
        "layer_drop",
        leave_out,
        odd_shapes=((), *MATRICES),
        shared=lambda ndim: tuple(range(ndim)),
        broadcasts=False,
        keeps_words_alone=False,
        compiles_anew=True,
        argument=None,
        gallery="one decision makes no picture",
        timed="costs what the layer costs: benchmarks/layer_drop.py",
    ),
]
