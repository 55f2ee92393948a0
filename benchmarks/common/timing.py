"""Timing side by side: all candidates in one process, in turn, in random order.

What drifts in a machine (its clock, its other users) then meets all candidates
alike, and a ratio is the median over rounds of the ratio within each round.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from common.results import Record, rounded

Run: TypeAlias = Callable[[], object]
"""Computes once and returns when the result is there."""
Tick: TypeAlias = Callable[[], object]
"""Moves a progress bar."""
Samples: TypeAlias = dict[str, np.ndarray]
"""Seconds of each candidate, one number per round."""

ROUNDS = 15  # by default; the quartiles of so many samples differ little between runs
_SECONDS_PER_SAMPLE = 0.005  # short calls are repeated until a sample lasts this long
_MOST_CALLS_PER_SAMPLE = 100


def run_of(function: Callable[..., Any], inputs: Sequence[Any], calls: int = 1) -> Run:
    """A run that calls a function of JAX arrays, and waits for the result of the last call."""

    def run() -> object:
        for _ in range(calls - 1):
            function(*inputs)
        return jax.block_until_ready(function(*inputs))

    return run


def take_turns(runs: Mapping[str, Run], rounds: int, tick: Tick = lambda: None) -> Samples:
    """Times each candidate once per round, in an order drawn anew for each round.

    Args:
      runs: what to time, by name.
      rounds: number of samples of each.
      tick: called after each round.

    Returns:
      Seconds per call, an array of `rounds` numbers for each name.
    """
    order = list(runs)
    calls = {name: _calls_per_sample(run) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    generator = random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            samples[name].append(_sample(runs[name], calls[name]))
        tick()
    return {name: np.array(seconds) for name, seconds in samples.items()}


def summarise(samples: Samples, references: Mapping[str, str]) -> dict[str, Record]:
    """Medians and quartiles in milliseconds, and ratios to the references.

    Args:
      samples: what `take_turns` returned.
      references: for each ratio, its name and the candidate that it divides by.

    Returns:
      A record for each candidate.
    """
    return {
        name: {
            **spread_ms(seconds),
            **{
                ratio: rounded(np.median(seconds / samples[reference]))
                for ratio, reference in references.items()
                if reference in samples
            },
        }
        for name, seconds in samples.items()
    }


def spread_ms(seconds: np.ndarray) -> Record:
    """The median and the quartiles, in milliseconds."""
    low, median, high = map(rounded, 1e3 * np.quantile(seconds, [0.25, 0.5, 0.75]))
    return {"median_ms": median, "quartiles_ms": [low, high]}


def _sample(run: Run, calls: int) -> float:
    # One untimed call of the very same function goes first: otherwise what ran
    # before, such as a peer whose 192 MiB of temporaries have just been freed,
    # changes the result by a factor of 1.5 (measured).
    run()
    return statistics.median(_seconds(run) for _ in range(calls))


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result  # so that giving the memory back is not timed
    return seconds


def _calls_per_sample(run: Run) -> int:
    run()
    return min(_MOST_CALLS_PER_SAMPLE, math.ceil(_SECONDS_PER_SAMPLE / _seconds(run)))
