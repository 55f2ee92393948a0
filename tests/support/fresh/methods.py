"""Every method of the table as panels of the fresh-key run: what is drawn, and its laws."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from fresh.laws import Law
from table.methods import RECORDS

KNOWN_RATES = (0.1, 0.5, 0.9)
TRACED_RATES = (1 / 3, 0.5, 0.9)


@dataclass(frozen=True)
class Panel:
    """What is drawn with one key, the laws of it, and how many draws make a full run."""

    name: str
    draw: Callable[..., jax.Array]  # of a key and the operands
    laws: list[Law]
    decisions: int  # at random, in one draw
    operands: tuple[float, ...] = ()  # float32; panels that differ in them share a program
    weight: float = 1  # draws, of those asked for


def method_panels():
    """Panels of each record at three known rates, or at one and at three traced ones."""
    for record in RECORDS:
        if not record.takes_rate:
            kind = record.fresh.of(record, 0.0)
            draw = partial(_draw, record, kind.view, 0.0)
            yield Panel(record.name, draw, kind.laws, kind.decisions, (kind.unit,))
        elif record.takes_traced_rate and record.fresh.traced:
            yield _known(record, 0.1)
            yield from _traced(record)
        else:
            yield from (_known(record, rate) for rate in KNOWN_RATES)


def _known(record, rate):
    kind, name = record.fresh.of(record, rate), f"{record.name} at rate {rate:.3g}"
    draw = partial(_draw, record, kind.view, rate)
    return Panel(name, draw, kind.laws, kind.decisions, (kind.unit,))


def _traced(record):
    kinds = {rate: record.fresh.of(record, rate) for rate in TRACED_RATES}
    draw = partial(_draw_traced, record, kinds[TRACED_RATES[0]].view)  # one program for all
    for rate, kind in kinds.items():
        name = f"{record.name} at rate {rate:.3g}, traced"
        yield Panel(name, draw, kind.laws, kind.decisions, (rate, kind.unit))


def _draw(record, view, rate, key, unit):
    return view(record.run(key, jnp.ones(record.shape), rate), unit)


def _draw_traced(record, view, key, rate, unit):
    return _draw(record, view, rate, key, unit)
