"""Records of `jaxdrop/methods/graph.py`."""

from functools import partial

from fuzzing import options
from reference import methods as reference
from table.record import MATRICES, Gallery, Method, Timed, behind_first

import jaxdrop

rows = partial(Method, odd_shapes=MATRICES, shared=behind_first, broadcasts=False)

RECORDS = [
    rows(
        "drop_edges",
        jaxdrop.drop_edges,
        argument="weights",
        fuzz=options.of_one_axis("axis", jaxdrop.drop_edges, reference.later_shared),
        gallery=Gallery({"edge": 12, "head": 4}),
        timed=Timed((2**21, 8)),
    ),
    rows(
        "drop_nodes",
        jaxdrop.drop_nodes,
        small=(3, 2),
        odd_shapes=((0, 3), (5, 1), (2, 3, 33)),
        fuzz=options.of_one_axis("axis", jaxdrop.drop_nodes, reference.later_shared),
        gallery=Gallery({"node": 12, "unit": 12}),
        timed=Timed((2**17, 128)),
    ),
]
