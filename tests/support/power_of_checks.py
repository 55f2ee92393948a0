"""The smallest defects that the assertions of `jaxdrop.checks` notice, in closed form."""

import math

from scipy.stats import norm

POWER = 0.99
ROUNDED = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def radius(variance, span, draws, alarm_rate):
    """How far a mean may be off: the empirical Bernstein bound."""
    log = math.log(4 / alarm_rate)
    return math.sqrt(2 * variance * log / draws) + 7 * span * log / (3 * (draws - 1))


def noticed(off, variance, span, draws, alarm_rate):
    """Whether a mean that is off by so much is rejected with probability `POWER`."""
    chance = norm.ppf(POWER) * math.sqrt(variance / draws)
    return abs(off) >= radius(variance, span, draws, alarm_rate) + chance


def smallest(is_noticed, most):
    """The least number up to `most` that is noticed; None if none is."""
    if not is_noticed(most):
        return None
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if is_noticed(middle) else (middle, high)
    return high


def wrong_scale(rate, elements, draws, alarm_rate=1e-9):
    """The smallest share by which the scale of all elements can be too large."""

    def is_noticed(off):
        scale = (1 + off) / (1 - rate)
        variance = scale**2 * rate * (1 - rate) / elements
        return noticed(off, variance, max(1, scale), draws, alarm_rate / 2)

    return smallest(is_noticed, 1e3)


def wrong_scale_of_one(rate, elements, draws, alarm_rate=1e-9):
    """The smallest share by which the scale of one element of many can be too large."""
    return wrong_scale(rate, 1, draws, alarm_rate / elements)


def wrong_rate(rate, elements, draws, alarm_rate=1e-9):
    """The smallest amount by which the rate of all elements can be too high."""

    def is_noticed(off):
        p = rate + off
        return noticed(off, p * (1 - p) / elements, 1, draws, alarm_rate / 2)

    return smallest(is_noticed, 1 - rate)


def wrong_rate_of_one(rate, elements, draws, alarm_rate=1e-9):
    """The smallest amount by which the rate of one element of many can be too high."""
    return wrong_rate(rate, 1, draws, alarm_rate / elements)


def share_unshared(draws):
    """The smallest share of draws in which a mask is not shared that is noticed."""
    return 1 - (1 - POWER) ** (1 / draws)


def agree(rate):
    """The probability that two independent decisions are the same."""
    return rate**2 + (1 - rate) ** 2


def elements_for_state(rate):
    """The fewest elements for which two draws of a mask differ with probability `POWER`."""
    return math.ceil(math.log(1 - POWER) / math.log(agree(rate)))


def rate_of_fresh_mask(rows):
    """The least rate at which a fresh mask in the backward pass shows in one of the rows."""
    return smallest(lambda rate: agree(rate) ** rows <= 1 - POWER, 0.5)


def rate_decided(slices, draws, alarm_rate=1e-9):
    """The least rate at which it can be decided whether any two slices have the same mask."""
    pairs = slices * (slices - 1) / 2
    return smallest(lambda rate: pairs * agree(rate) ** draws <= alarm_rate, 0.5)


def wrong_slope(dtype):
    """The smallest error of a derivative, relative to the largest change of an output."""
    return min(0.1, 50 * ROUNDED[dtype] ** (2 / 3))


def wrong_value(dtype):
    """The smallest relative error of a value."""
    return 4 * ROUNDED[dtype]
