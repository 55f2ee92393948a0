"""Every method that drops, in one table: all laws and all that is drawn and timed run over it."""

from table import (
    attention,
    elementwise,
    ensembles,
    graph,
    layers,
    learned,
    recurrent,
    spans,
    structured,
    tokens,
    weights,
)

FAMILIES = (
    elementwise,
    learned,
    ensembles,
    structured,
    spans,
    layers,
    tokens,
    weights,
    recurrent,
    graph,
    attention,
)
RECORDS = [record for family in FAMILIES for record in family.RECORDS]
METHODS = [record for record in RECORDS if record.takes_rate]
