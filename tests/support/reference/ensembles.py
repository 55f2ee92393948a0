"""Masks of ensembles, rebuilt from how many families there are, counted in whole numbers."""

import math

import numpy as np
from reference.methods import Diagonal, Unclear

FINE = 2**53  # steps of the uniform numbers that are compared with chances


def kept_features(features, num_masks, scale):
    """The published number of features that each mask keeps."""
    in_use = scale * (1 - (1 - 1 / scale) ** num_masks)
    return max(int(features / in_use), math.ceil(features / num_masks))


def covers(features, count, left, others):
    """How many families of `left` masks cover `others` given features."""
    # Inclusion and exclusion: families that miss i of them, with alternating signs.
    return sum(
        (-1) ** i * math.comb(others, i) * math.comb(features - i, count) ** left
        for i in range(others + 1)
    )


def member(key, rate, shape, unit, num_masks, scale, index):
    """What one mask of a family over the last axis keeps."""
    features = shape[-1]
    if 0 in shape:
        return Diagonal(np.ones(shape, bool))
    count = kept_features(features, num_masks, scale)
    words = key.pair((num_masks, features + 2))[0].astype(np.uint64)
    covered, masks = np.zeros(features, bool), []
    for number, row in enumerate(words):
        new = _new(row[:2], features, count, num_masks - 1 - number, int((~covered).sum()))
        order = np.argsort(row[2:], kind="stable")
        keep = np.zeros(features, bool)
        keep[[i for i in order if not covered[i]][:new]] = True
        keep[[i for i in order if covered[i]][: count - new]] = True
        covered, masks = covered | keep, [*masks, keep]
    return Diagonal(np.broadcast_to(masks[index], shape))


def _new(words, features, count, left, uncovered):
    """How many new features a mask keeps, by the number of families that go on so."""
    uniform = (int(words[0]) << 21) + (int(words[1]) >> 11)
    ways = [
        math.comb(uncovered, new)
        * math.comb(features - uncovered, count - new)
        * covers(features, count, left, uncovered - new)
        for new in range(min(uncovered, count) + 1)
    ]
    sums = [sum(ways[: new + 1]) * FINE for new in range(len(ways))]
    bound = uniform * sum(ways)
    if any(
        way > 0 and abs(s - bound) < sum(ways) * 2**10 for way, s in zip(ways, sums, strict=True)
    ):
        raise Unclear
    return sum(s <= bound for s in sums)
