"""Methods that multiply by noise, with the noise rebuilt from the words in float64.

Bounds follow each rounding of the package's formulas in its compute dtype, where
`unit` is what one of them may lose. Logarithms and exponentials of XLA on a CPU are
taken to lose up to 4.
"""

import math

import numpy as np
from reference import masks as reference
from reference.methods import Diagonal, Unclear, only

FARTHEST = 80.0


def normal(key, shape, unit):
    """sqrt(-2 ln u) sin(pi / 2 t), and what it loses.

    The word is rounded twice on the way to u. Near 1 that moves its logarithm by much
    of itself, so the root is bounded by its values at both ends.
    """
    first, second = key.pair(shape)
    u = (first.astype(float) + 0.5) * 2.0**-32
    t = (second.astype(np.int32).astype(float) + 0.5) * 2.0**-31
    root = np.sqrt(-2 * np.log(u))
    longest = np.sqrt(-2 * np.log(u * (1 - 2 * unit)))
    shortest = np.sqrt(-2 * np.log(np.minimum(u * (1 + 2 * unit), 1)))
    sine = np.sin(np.pi / 2 * t)
    # Horner's rule loses 2 * 9 roundings of sinh(pi / 2), the sum of the magnitudes, and
    # t two more at a slope of pi / 2; the series is cut at 4e-14.
    of_sine = np.abs(t) * unit * (18 * math.sinh(np.pi / 2) + np.pi) + 4e-14
    noise = root * sine
    of_root = np.maximum(longest - root, root - shortest)
    return noise, of_root * np.abs(sine) + longest * of_sine + 5 * unit * np.abs(noise)


def logistic(key, shape, unit):
    """ln u - ln(1 - u), and what it loses: 5 roundings of the odds, and the logarithm's."""
    word, _ = key.pair(shape)
    below, above = (half.astype(float) + 0.5 for half in (word, ~word))
    noise = np.log(below / above)
    return noise, unit * (5 + 4 * np.abs(noise))


def times_normal(key, shape, unit, shared, spread):
    """x (1 + spread e), with a spread that has lost up to 6 roundings."""
    noise, lost = normal(key, only(shape, shared), unit)
    factor = 1 + spread * noise
    error = spread * lost + unit * (7 * np.abs(spread * noise) + 2 * np.abs(factor))
    return Diagonal(np.ones(shape, bool), factor, error)


def gaussian(key, rate, shape, unit, shared):
    q = reference.keep_prob(rate)
    if q == 0:
        return Diagonal(np.zeros(shape, bool))
    return times_normal(key, shape, unit, shared, math.sqrt((1 - q) / q))


def variational(key, log_alpha, shape, unit, shared):
    if log_alpha == np.inf:
        return Diagonal(np.zeros(shape, bool))
    spread = math.exp(log_alpha / 2)
    return times_normal(key, shape, unit, shared, spread)


def concrete(key, logit, shape, unit, shared, temperature):
    if logit == np.inf:
        return Diagonal(np.zeros(shape, bool))
    noise, lost = logistic(key, only(shape, shared), unit)
    near = min(max(logit, -FARTHEST), FARTHEST)
    z = -(near + noise) / temperature
    # What z loses is a share of sigmoid(z), times sigmoid(-z), its logarithmic slope.
    of_z = (lost + unit * np.abs(near + noise)) / temperature + 2 * unit * np.abs(z)
    kept = np.exp(-np.logaddexp(0, -z))
    # What is flushed to 0 drops even an infinity.
    normal_from, zero_below = (2.0**-125, 2.0**-150) if unit > 2.0**-50 else (2.0**-1021, 0)
    if ((zero_below < kept) & (kept < normal_from)).any():
        raise Unclear
    kept = np.where(kept < normal_from, 0, kept)
    factor = kept * (1 + math.exp(near))
    error = factor * (of_z * np.exp(-np.logaddexp(0, z)) + 14 * unit)
    return Diagonal(np.broadcast_to(factor > 0, shape), factor, error)


def hard(key, logit, shape, unit, shared, temperature):
    """Gates of the logit of being closed, stretched to (-.1, 1.1)."""
    noise, lost = logistic(key, only(shape, shared), unit)
    near = min(max(logit, -FARTHEST), FARTHEST)
    z = -(near + noise) / temperature
    of_z = (lost + unit * np.abs(near + noise)) / temperature + 2 * unit * np.abs(z)
    soft = np.exp(-np.logaddexp(0, -z))
    error = 1.2 * soft * (of_z * np.exp(-np.logaddexp(0, z)) + 14 * unit) + 4 * unit
    gate = 1.2 * soft - 0.1
    if (np.abs(gate) <= error).any():
        raise Unclear
    is_cut = (gate <= -error) | (gate >= 1 + error)
    gate, error = np.clip(gate, 0, 1), np.where(is_cut, 0, error)
    return Diagonal(np.broadcast_to(gate > 0, shape), gate, error)
