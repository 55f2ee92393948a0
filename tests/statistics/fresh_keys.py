"""Draws every mask from fresh keys, and asks whether the laws of all methods hold.

    python tests/statistics/fresh_keys.py [--seed N] [--draws N] [--only TEXT] [--power]

The other tests use fixed keys, so they would not see a fault that depends on the key or
that shows only in many draws. Each run takes a seed from the operating system and prints
it; `--seed` repeats a run. All counts are binomial, with exact p-values, and each is
rejected at 1e-6 over the number of tests: a run of a package without faults fails once in
a million. `--power` prints what the run would find, and draws nothing.

Exit status: 0 if all laws hold, 1 if one is broken.
"""

import argparse
import math
import secrets
import sys
import time
import zlib
from functools import cache
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from fresh.laws import p_values, smallest_found
from fresh.panels import all_panels

FALSE_ALARM_RATE = 1e-6
DRAWS = 2**17
AT_ONCE = 2**22  # decisions, so that memory stays small and counts fit in 32 bits
POWER = 0.99
REPORTED, MOST_SHOWN = 5, 20

# The laws whose power is stated: one of each kind.
LARGE, SMALL = "draw_mask of 2^20 at rate ", "dropout at rate 0.1"
SHOWN = {
    *((LARGE + rate, "share kept") for rate in ("1e-05", "0.1", "0.333333", "0.5", "0.9")),
    *((LARGE + "0.1", law) for law in ("each lane", "each lane of the first word")),
    *((LARGE + "0.1", law) for law in ("lanes 1 apart", "words 1 apart")),
    (LARGE + "0.1", "consecutive draws"),
    *((SMALL, law) for law in ("share kept", "each element", "slices of axis 1")),
    *((SMALL, law) for law in ("neighbours along axis 1", "elements 32 apart")),
    ("drop_path at rate 0.1", "share kept"),
    ("drop_block at rate 0.1", "each position"),
    ("fixed_count_dropout at rate 0.1", "each element"),
    ("split keys at rate 0.1", "pairs of slices of axis 0"),
    ("gaussian_dropout at rate 0.1", "signs: share kept"),
}


def draws_of(panel, draws):
    """How many draws a panel makes, and in how large batches: powers of two."""
    wanted = max(1, math.floor(math.log2(draws * panel.weight)))
    most = math.floor(math.log2(AT_ONCE / panel.decisions))
    return 2**wanted, 2 ** max(1, min(wanted, most))


def counts_of(panel, key, draws):
    """The counts of each law of a panel, over draws with keys split from one."""
    total, batch = draws_of(panel, draws)
    views = tuple(dict.fromkeys(law.view for law in panel.laws))
    operands = [np.float32(operand) for operand in panel.operands]
    sums = [np.zeros(law.chance[0].shape, np.int64) for law in panel.laws]
    for step in range(total // batch):
        keys = jax.random.split(jax.random.fold_in(key, step), batch)
        drawn = dict(zip(views, program(panel.draw, views)(keys, *operands), strict=True))
        counts = [law.count(drawn[law.view]) for law in panel.laws]
        for so_far, more in zip(sums, counts, strict=True):
            so_far += np.asarray(more).reshape(so_far.shape)
    return sums


@cache
def program(draw, views):
    """What each view shows of a batch of draws."""

    @jax.jit
    def viewed(keys, *operands):
        drawn = jax.vmap(lambda key: draw(key, *operands))(keys)
        return [view(drawn) for view in views]

    return viewed


def trials_of(law, panel, draws):
    return draws_of(panel, draws)[0] // law.draws * law.trials


def judged(panel, sums, draws):
    """The p-value of each count of a panel, with its name."""
    for law, counts in zip(panel.laws, sums, strict=True):
        trials = trials_of(law, panel, draws)
        values = p_values(counts, trials, law.chance)
        for place in np.ndindex(values.shape):
            where = f" {tuple(map(int, place))}" if values.size > 1 else ""
            low, high = law.chance[0][place], law.chance[1][place]
            said = f"{panel.name}: {law.name}{where}: {counts[place]} of {trials}"
            expected = trials * (low + high) / 2
            yield float(values[place]), f"{said}, expected {expected:.6g}"


def number_of_tests(panels):
    return sum(law.tests for panel in panels for law in panel.laws)


def number_of_decisions(panels, draws):
    return sum(draws_of(panel, draws)[0] * panel.decisions for panel in panels)


def smallest_faults(panels, draws):
    """For one law of each kind: the trials, and what change of chance is found at power .99."""
    level = FALSE_ALARM_RATE / number_of_tests(panels)
    for panel in panels:
        for law in panel.laws:
            if (panel.name, law.name) in SHOWN:
                trials = trials_of(law, panel, draws)
                chance = tuple(float(each.flat[0]) for each in law.chance)
                yield (
                    panel.name,
                    law.name,
                    trials,
                    chance,
                    smallest_found(trials, chance, level, POWER),
                )


def print_power(panels, draws):
    print(f"Smallest faults that are found with probability {POWER}:")
    print(f"{'panel':38} {'law':42} {'trials':>12}  smallest fault")
    for panel, law, trials, chance, found in smallest_faults(panels, draws):
        change, (low, high) = max(found), chance
        unit = f"{low:.6g} off by {change:.2g}, {change / min(low, 1 - high):.2g} of the rarer"
        if "apart" in law or "draws" in law or "neigh" in law or "pairs" in law:
            unit = f"correlation {change / (1 - high):.2g}"  # 1 - high is twice the variance
        print(f"{panel:38} {law:42} {trials:12}  {unit}")


def run(panels, key, draws):
    """The p-values of all tests with their names, the smallest first."""
    found = []
    for panel in tqdm(panels, unit="panel", disable=None):
        own = jax.random.fold_in(key, zlib.crc32(panel.name.encode()))  # the same with `--only`
        sums = counts_of(panel, own, draws)
        found += judged(panel, sums, draws)
    return sorted(found)


def key_of(seed):
    """A key of 64 bits, and so not one of the 2^32 that `jax.random.key` gives without x64."""
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="64 bits that repeat a run; default: fresh ones")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of each small mask")
    parser.add_argument("--only", default="", help="a text that names of panels must have")
    parser.add_argument("--power", action="store_true", help="only print what would be found")
    return parser.parse_args()


def main():
    asked = arguments()
    panels = [panel for panel in all_panels() if asked.only in panel.name]
    tests, decisions = number_of_tests(panels), number_of_decisions(panels, asked.draws)
    level = FALSE_ALARM_RATE / tests
    print(f"{tests} tests of {len(panels)} panels at {level:.3g} each, so that")
    print(f"the total false-alarm rate is at most {FALSE_ALARM_RATE}; {decisions:.4g} decisions.")
    print_power(panels, asked.draws)
    if asked.power:
        return 0
    seed = secrets.randbits(64) if asked.seed is None else asked.seed
    repeat = f"python tests/statistics/fresh_keys.py --seed {seed} --draws {asked.draws}"
    print(f"seed {seed}; the same again: {repeat}", flush=True)
    start = time.perf_counter()
    found = run(panels, key_of(seed), asked.draws)
    print(f"The smallest p-values of {len(found)}, after {time.perf_counter() - start:.0f} s:")
    for value, said in found[:REPORTED]:
        print(f"  {value:.3g}  {said}")
    broken = [each for each in found if each[0] < level]
    for value, said in broken[:MOST_SHOWN]:
        print(f"BROKEN (p = {value:.3g}): {said}")
    if broken:
        print(f"{len(broken)} of {tests} laws are broken. Repeat by: {repeat}")
    else:
        print(
            f"All {tests} laws hold; the smallest p-value times {tests} is"
            f" {min(1, found[0][0] * tests):.3g}."
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
