"""Asks how often the assertions of `jaxdrop.checks` are wrong, with fresh keys.

    python tests/statistics/power_of_checks.py [--seed N] [--draws N] [--runs N] [--power]

First the smallest defects that each assertion notices with probability .99, in closed
form; `--power` prints no more. Then drops with just these defects are drawn with fresh
keys, each `--runs` times, and last right drops, `--draws` times together, at raised
false-alarm rates. Each count is binomial. It is compared with the raised rate, or with
.98, since the closed form takes means for normal, at 1e-6 over the number of counts.

Exit status: 0 if no count is too far off, 1 if one is.
"""

import argparse
import inspect
import secrets
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binom
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import power_of_checks as power

from jaxdrop import checks, dropout, gaussian_dropout
from jaxdrop.checks import sampling, statistical

DRAWS, RUNS, LEVEL, LEAST = 2**20, 100, 1e-6, 0.98
EACH = 2**10  # draws in one run of a right drop
AT_ONCE = 2**22  # elements
DEFAULT, MANY, RATE = 16384, 1000, 0.1


def scaled(off):
    return lambda key, x: dropout(key, x, RATE) * jnp.float32(1 + off)


def one_scaled(off):
    return lambda key, x: dropout(key, x, RATE).at[7].mul(1 + off)


def one_dropped_more(off):
    """Drops one element once more, so that its rate is higher by so much."""
    again = off / (1 - RATE)

    def drop(key, x):
        first, second = jax.random.split(key)
        kept = jax.random.bernoulli(second, 1 - again)
        return dropout(first, x, RATE).at[7].mul(kept)

    return drop


def shared_but_for(share):
    """A mask that is shared along the first axis, but for a share of the draws."""

    def drop(key, x):
        which, together, apart = jax.random.split(key, 3)
        shared = dropout(together, x, 0.5, broadcast_dims=(0,))
        return jnp.where(jax.random.bernoulli(which, share), dropout(apart, x, 0.5), shared)

    return drop


def fresh_mask_backwards(rate):
    @jax.custom_vjp
    def drop(key, x):
        return dropout(key, x, rate)

    def backward(key, cotangent):
        return None, dropout(jax.random.fold_in(key, 1), cotangent, rate)

    drop.defvjp(lambda key, x: (dropout(key, x, rate), key), backward)
    return drop


def redrawn(rate):
    """A drop with state: no key is used twice."""
    calls = iter(range(10**9))
    return lambda key, x: dropout(jax.random.fold_in(key, next(calls)), x, rate)


def defects():
    """For each assertion: what is wrong by how much, and a call that should fail."""
    many, known = jnp.ones(MANY), (RATE, MANY, DEFAULT)
    rows, kept, shared = jnp.ones(256), checks.assert_keep_rate, checks.assert_mask_shared_along
    mean, gradient = checks.assert_expectation_kept, checks.assert_gradient_uses_same_mask
    key_matters = checks.assert_key_determines_output
    off = power.wrong_scale(*known)
    yield mean, "scale of 1000 elements too large by", off, (scaled(off), many)
    off = power.wrong_scale_of_one(*known)
    yield mean, "scale of one of 1000 elements by", off, (one_scaled(off), many)
    off = power.wrong_rate(*known)
    yield (
        kept,
        "rate of 1000 elements too high by",
        off,
        (partial(dropout, rate=RATE + off), many, RATE),
    )
    off = power.wrong_rate_of_one(*known)
    yield kept, "rate of one of 1000 elements by", off, (one_dropped_more(off), many, RATE)
    off = power.share_unshared(16)
    yield (
        shared,
        "not shared in this share of the draws",
        off,
        (shared_but_for(off), jnp.ones((8, 64)), 0),
    )
    off = power.rate_of_fresh_mask(256)
    yield (
        gradient,
        "fresh mask in the backward pass at rate",
        off,
        (fresh_mask_backwards(off), rows),
    )
    off = power.elements_for_state(RATE)
    yield key_matters, "mask drawn anew, of so many elements", off, (redrawn(RATE), jnp.ones(off))


def certain():
    """What is noticed surely: each assertion's limit, as a number with its unit."""
    yield "assert_shape_and_dtype_kept", "any other shape or dtype"
    for dtype in power.ROUNDED:
        yield (
            "assert_same_under_jit",
            f"a value off by more than {power.wrong_value(dtype):.2g} of it in {dtype}",
        )
        yield (
            "assert_gradient_uses_same_mask",
            f"a derivative off by {power.wrong_slope(dtype):.2g} in {dtype}",
        )
    for slices in (2, 128):
        least = power.rate_decided(slices, 1024)
        yield (
            "assert_masks_differ_along",
            f"two of {slices} slices alike, at rates from {least:.3g}",
        )


def right_drops():
    """For each assertion with a false-alarm rate: calls that should not fail."""
    options = {"num_samples": EACH}
    four, eight = jnp.arange(1.0, 5), jnp.ones((8, 3))
    half = partial(dropout, rate=0.5)
    one_decision = partial(dropout, rate=0.1, broadcast_dims=(0,))
    for alarm_rate in (0.1, 1.0):
        rate = {"false_alarm_rate": alarm_rate}
        for name, drop in (("dropout at .5", half), ("one decision at .1", one_decision)):
            yield checks.assert_expectation_kept, name, alarm_rate, (drop, four), options | rate
        normal = partial(gaussian_dropout, rate=0.5)
        yield (
            checks.assert_expectation_kept,
            "normal noise",
            alarm_rate,
            (normal, four),
            options | rate,
        )
        yield (
            checks.assert_keep_rate,
            "dropout at .5",
            alarm_rate,
            (half, four, 0.5),
            options | rate,
        )
        yield (
            checks.assert_keep_rate,
            "one decision at .1",
            alarm_rate,
            (one_decision, four, 0.1),
            options | rate,
        )
    rows = partial(dropout, rate=0.06, broadcast_dims=(1,))
    few = {"num_samples": 64, "false_alarm_rate": 0.03}
    yield checks.assert_masks_differ_along, "one decision a slice", 0.03, (rows, eight, 0), few
    yield checks.assert_mask_shared_along, "one decision a row", 0.0, (rows, eight, 1), options


def failures(assertion, drop, others, options, key, runs):
    """How often an assertion fails; a ValueError, that it cannot decide, is no failure."""
    failed, drawn = 0, jax.jit(jax.vmap(drop, (0, None)))
    taken = inspect.signature(assertion).parameters.get("num_samples")

    def given(check, drop, key, x, num_samples):
        """Outputs like those that the assertion draws, by a program compiled once."""
        keys = jax.random.split(key, num_samples)
        for batch in jnp.array_split(keys, max(1, num_samples * x.size // AT_ONCE)):
            yield np.asarray(drawn(batch, x))

    for run in trange(runs, leave=False, disable=None):
        with ExitStack() as stack:
            if taken and assertion is not checks.assert_key_determines_output:
                for module in (sampling, statistical):
                    stack.enter_context(mock.patch.object(module, "outputs", given))
            try:
                assertion(drop, jax.random.fold_in(key, run), *others, **options)
            except AssertionError:
                failed += 1
            except ValueError as error:
                if "num_samples must be" not in str(error) and "must keep some" not in str(error):
                    raise
    return failed


def run(draws, runs, seed):
    """Prints a row for each count, and returns the names of those that are too far off."""
    key, wrong, defective, right = jax.random.key(seed), [], list(defects()), list(right_drops())
    level = LEVEL / (len(defective) + len(right))
    for i, (assertion, what, size, (drop, *others)) in enumerate(defective):
        found = failures(assertion, drop, others, {}, jax.random.fold_in(key, i), runs)
        print(f"{assertion.__name__:32} {what} {size:.4g}: noticed {found} of {runs}", flush=True)
        if binom.cdf(found, runs, LEAST) < level:
            wrong.append(what)
    for i, (assertion, what, most, (drop, *others), options) in enumerate(right, len(defective)):
        each = options["num_samples"]
        count = draws // each
        found = failures(assertion, drop, others, options, jax.random.fold_in(key, i), count)
        said = f"{found} alarms in {count} runs of {each} draws, at most {most:g} of them asked"
        print(f"{assertion.__name__:32} {what}: {said}", flush=True)
        if binom.sf(found - 1, count, most) < level:
            wrong.append(what)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="repeats a run; default: a fresh one")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of each right drop")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each defect")
    parser.add_argument("--power", action="store_true", help="only print what would be noticed")
    asked = parser.parse_args()
    print(f"Smallest defects that are noticed with probability {power.POWER}:")
    for name, what in certain():
        print(f"{name:32} {what}")
    for assertion, what, size, _ in defects():
        print(f"{assertion.__name__:32} {what} {size:.4g}")
    if asked.power:
        return 0
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    wrong = run(asked.draws, asked.runs, seed)
    print("Too far off: " + "; ".join(wrong) if wrong else "All counts are as stated.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
