"""Masks rebuilt in NumPy from their definition, sharing no code with the package.

Uniform numbers are compared as integers, where the package folds digits; the
rounding of rates uses exact fractions, where the package uses floats.
"""

import math
from fractions import Fraction

import numpy as np

UNITS = 2**32


def threefry_2x32(key, counter):
    """Random123's Threefry-2x32-20 in Python's own unbounded integers."""
    word = 0xFFFFFFFF
    keys = [*key, 0x1BD11BDA ^ key[0] ^ key[1]]
    a, b = (counter[0] + keys[0]) & word, (counter[1] + keys[1]) & word
    for i in range(20):
        distance = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        a = (a + b) & word
        b = (((b << distance) | (b >> (32 - distance))) & word) ^ a
        if i % 4 == 3:
            s = i // 4 + 1
            a, b = (a + keys[s % 3]) & word, (b + keys[(s + 1) % 3] + s) & word
    return a, b


def threefry_2x32_wrapping(key, x0, x1):
    """The same on uint32 arrays, whose arithmetic wraps by itself."""
    k = [np.uint32(key[0]), np.uint32(key[1])]
    k.append(np.uint32(0x1BD11BDA) ^ k[0] ^ k[1])
    a, b = x0 + k[0], x1 + k[1]
    for i in range(20):
        d = np.uint32((13, 15, 26, 6, 17, 29, 16, 24)[i % 8])
        a = a + b
        b = ((b << d) | (b >> (np.uint32(32) - d))) ^ a
        if i % 4 == 3:
            s = i // 4 + 1
            a, b = a + k[s % 3], b + k[(s + 1) % 3] + np.uint32(s)
    return a, b


def _nearest(value):
    """The nearest integer to a fraction; halves go to the even one."""
    return round(value)


def keep_units(rate):
    """The keep probability on the grid, in units of 2^-32, for a float rate."""
    single = Fraction(float(np.float32(rate)))
    near, exact = min(single, 1 - single), min(Fraction(rate), 1 - Fraction(rate))
    coarse = Fraction(_nearest(near * 2**16), 2**16)
    represented = abs(near - exact) <= exact / 1000
    if represented and abs(coarse - near) <= near / 100:
        small = int(coarse * UNITS)
    else:
        small = _nearest(exact * UNITS)
    return UNITS - small if rate < 0.5 else small


def keep_prob(rate):
    """The keep probability that is drawn with, for a float rate."""
    return keep_units(rate) / UNITS


def merged_axes(shape, apart=0):
    """How many trailing axes share a row of words; the first `apart` never do."""
    for count in range(1, len(shape) - apart + 1):
        size = math.prod(shape[-count:])
        if (math.ceil(size / 32) * 32 - size) * 25 <= size:
            return count
    return len(shape) - apart


def uniforms(key, shape, apart=0):
    """The uniform number of every element, in units of 2^-32."""
    leading = len(shape) - merged_axes(shape, apart)
    row, rows = math.prod(shape[leading:]), math.prod(shape[:leading])
    words_a_row = math.ceil(row / 32)
    element = np.arange(row)
    word = np.arange(rows)[:, None] * words_a_row + element[None, :] // 32
    lane = np.broadcast_to(element % 32, word.shape).astype(np.uint32)
    pair = np.arange(16, dtype=np.uint32)[:, None, None] + np.uint32(0x80000000)
    position, counter = np.broadcast_arrays(word.astype(np.uint32), pair)
    upper, lower = threefry_2x32_wrapping(key, position, counter)
    number = np.zeros(word.shape, np.uint64)
    for digits in zip(upper, lower, strict=True):
        for digit in digits:
            bit = (digit >> lane) & np.uint32(1)
            number = number * np.uint64(2) + bit.astype(np.uint64)
    return number.reshape(shape)


def mask(key, shape, rate):
    """True where an element is kept."""
    return uniforms(key, shape) < keep_units(rate)


def fixed_count_mask(key, shape, count, axes):
    """True at the `count` smallest words over the axes, equal ones by position."""
    size = math.prod(shape)
    position = np.arange(size, dtype=np.uint32)
    words, _ = threefry_2x32_wrapping(key, position, np.full(size, np.uint32(0x80000000)))
    others = [axis for axis in range(len(shape)) if axis not in axes]
    order = (*others, *axes)
    sizes = [math.prod(shape[axis] for axis in each) for each in (others, axes)]
    rows = words.reshape(shape).transpose(order).reshape(sizes)
    rank = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1, kind="stable")
    kept = (rank < count).reshape([shape[axis] for axis in order])
    return kept.transpose(np.argsort(order))
