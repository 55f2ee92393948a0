"""Records of `jaxdrop/methods/spans.py`."""

from functools import partial

from fresh import kinds
from fuzzing import options
from reference import regions
from table.record import Fresh, Fuzz, Gallery, Method, Timed

import jaxdrop
from jaxdrop import rescale

WIDTH = (1, 3)
scaled = partial(jaxdrop.drop_spans, rescale=rescale.expected)


def some(key, x, rate, width=WIDTH, number=2, **axes):
    """Spans of a given number, for which there is no rate."""
    del rate
    return jaxdrop.drop_spans(key, x, num_spans=number, width=width, **axes)


sequences = partial(
    Method,
    shape=(3, 10, 4),
    small=(2, 3),
    odd_shapes=((0, 3), (0, 3, 2), (2, 0, 3), (5, 1), (2, 3, 33)),
    shared=lambda ndim: tuple(range(2, ndim)),
    broadcasts=False,
)

RECORDS = [
    sequences(
        "drop_spans",
        partial(scaled, width=WIDTH),
        fuzz=Fuzz(
            regions.spans, options.spans_of_rate, scaled, least=1, told=options.loss_of_gamma
        ),
        # In float32, as for traced rates, the probability of a start is not known exactly.
        fresh=Fresh(partial(kinds.spans, width=WIDTH), traced=False),
        gallery=Gallery(
            {"sample": 6, "time": 12},
            survivor=lambda keep_prob: 1 / 0.7,  # their own grid is fine
            drawn=(6 * 14, "starts"),
            note="runs of 1 to 3",
        ),
        timed=Timed(
            (64, 1500, 256),
            "1 to 19 steps",
            lambda shape: (shape[0], shape[1] + 18, 2),  # a start and a width, of one word each
            run=partial(jaxdrop.drop_spans, width=(1, 19)),
        ),
    ),
    sequences(
        "drop_spans of a number",
        some,
        keeps_mean=False,
        takes_rate=False,
        takes_traced_rate=False,
        argument=None,
        fuzz=Fuzz(regions.spans_of_number, options.spans_of_number, some, least=1),
        fresh=Fresh(partial(kinds.spans_of_number, width=WIDTH, number=2)),
        gallery="differs in where spans lie alone",
        timed="draws less than drop_spans at a rate",
    ),
]
