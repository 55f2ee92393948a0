"""The fuzz of each record of the table, with what it leaves out filled in."""

from dataclasses import replace

from fuzzing import options
from reference import methods as reference
from table.methods import RECORDS


def fuzzed(record):
    """A method that takes `broadcast_dims` is given some, and any other no options."""
    if record.broadcasts:
        run, drawn, rebuilt = options.sharing(record.run), options.shared, reference.expected
    else:
        run, drawn, rebuilt = record.run, lambda draw, shape: {}, sharing_as(record)
    fuzz = record.fuzz
    return replace(
        fuzz,
        run=fuzz.run or run,
        options=fuzz.options or drawn,
        reference=fuzz.reference or rebuilt,
        floats=fuzz.floats or record.floats,
    )


def sharing_as(record):
    """The reference of `dropout`, with one decision along the axes that the record names."""

    def rebuilt(key, rate, shape, unit):
        return reference.expected(key, rate, shape, unit, record.shared(len(shape)))

    return rebuilt


TABLE = {record.name: record for record in RECORDS}
FUZZED = {name: fuzzed(record) for name, record in TABLE.items()}
