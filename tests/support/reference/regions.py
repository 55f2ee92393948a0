"""Methods that drop blocks, squares and spans, rebuilt by going through each of them."""

import math

import numpy as np
from reference import masks as reference
from reference.methods import Diagonal, Unclear, all_but, over_kept


def block(key, rate, shape, unit, block_size, batch_axis, channel_axis, exact, loss):
    """`loss`, over the keep probability, bounds what is lost of gamma and of its complement."""
    spatial = all_but(shape, (batch_axis, channel_axis))
    sizes = [shape[axis] for axis in spatial]
    if 0 in shape:
        return Diagonal(np.ones(shape, bool))
    edges = [min(edge, n) for edge, n in zip(block_size, sizes, strict=True)]
    gamma = 1.0 if rate == 1 else seed_rate(rate, sizes, edges, exact)
    loss = 0 if rate in (0, 1) else loss / (1 - rate)
    near = min(gamma, 1 - gamma)
    units = round(near * reference.UNITS)
    units = reference.UNITS - units if gamma < 0.5 else units
    seeds = {axis: n - edge + 1 for axis, n, edge in zip(spatial, sizes, edges, strict=True)}
    order = (*spatial, *all_but(shape, spatial))
    stored = tuple(seeds.get(axis, shape[axis]) for axis in order)
    drawn = reference.uniforms(key.words, stored, apart=len(spatial)).transpose(np.argsort(order))
    margin = loss * near * reference.UNITS + 1
    if loss and np.any(np.abs(drawn.astype(float) - units) <= margin):
        raise Unclear
    keep = np.ones(shape, bool)
    for seed in np.argwhere(drawn >= units):
        reach = dict(zip(spatial, edges, strict=True))
        keep[tuple(slice(i, i + reach.get(axis, 1)) for axis, i in enumerate(seed))] = False
    return over_kept(keep, spatial, unit)


def seed_rate(rate, sizes, edges, exact):
    """The gamma at which a share `rate` is dropped, by bisection; or the paper's."""
    pairs = list(zip(sizes, edges, strict=True))
    if not exact:
        return rate * math.prod(f / (b * (f - b + 1)) for f, b in pairs)
    covers = np.ones(())
    for f, b in pairs:
        covering = [sum(start <= i < start + b for start in range(f - b + 1)) for i in range(f)]
        covers = np.multiply.outer(covers, np.array(covering, float))
    low, high = 0.0, 50.0  # of -log(1 - gamma)
    for _ in range(200):
        middle = (low + high) / 2
        dropped = -np.expm1(-covers * middle).mean()
        low, high = (middle, high) if dropped < rate else (low, middle)
    return float(-np.expm1(-low))


def cut_out(key, rate, shape, unit, size, batch_axis, channel_axis):
    spatial = all_but(shape, (batch_axis, channel_axis))
    samples = 1 if batch_axis is None else shape[batch_axis]
    words, _ = key.pair((samples, len(spatial)))
    inside = np.ones((1,) * len(shape), bool)
    for i, axis in enumerate(spatial):
        centre = (words[:, i].astype(np.uint64) * np.uint64(shape[axis])) >> np.uint64(32)
        start = centre.astype(int) - size[i] // 2
        start = start.reshape([-1 if a == _at(batch_axis, shape) else 1 for a in range(len(shape))])
        index = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        inside = inside & (index >= start) & (index < start + size[i])
    return Diagonal(~inside)


def erased(key, rate, shape, unit, area, aspect, batch_axis, channel_axis):
    down, across = all_but(shape, (batch_axis, channel_axis))
    if 0 in shape:
        return Diagonal(np.ones(shape, bool))
    rows, columns = shape[down], shape[across]
    samples = 1 if batch_axis is None else shape[batch_axis]
    spared = reference.mask(key.words, (samples,), rate)
    key = key.fold_in_name("rectangles")
    (which, _), (top, left) = (key.pair((samples,), number) for number in (0, 1))
    keep = np.ones((samples, rows, columns), bool)
    for i in np.flatnonzero(~spared):
        h, w = erased_size(int(which[i]) >> 18, rows, columns, area, aspect)
        start = int(top[i]) * (rows - h + 1) >> 32, int(left[i]) * (columns - w + 1) >> 32
        keep[i, start[0] : start[0] + h, start[1] : start[1] + w] = False
    axes = (*(() if batch_axis is None else (batch_axis % len(shape),)), down, across)
    return Diagonal(_in_place(keep if batch_axis is not None else keep[0], shape, axes))


def erased_size(which, rows, columns, area, aspect):
    """Height and width of one of 128 x 128 rectangles, the aspects of an area together."""
    first, second = ((part + 0.5) / 128 for part in divmod(which, 128))
    pixels = (area[0] + (area[1] - area[0]) * first) * rows * columns
    ends = [min(max(end, pixels / columns**2), rows**2 / pixels) for end in aspect]
    tall = math.exp(math.log(ends[0]) * (1 - second) + math.log(ends[1]) * second)
    height = min(max(round(math.sqrt(pixels * tall)), 1), rows)
    return height, min(max(round(pixels / height), 1), columns)


def spans(key, rate, shape, unit, width, axis, batch_axis, loss):
    """`loss` as in `block`."""
    (least, most), (line, own), n = width, _span_axes(shape, axis, batch_axis), shape[axis]
    if (rate in (0, 1) and not loss) or 0 in shape:
        return Diagonal(np.ones(shape, bool) if rate == 0 or 0 in shape else np.zeros(shape, bool))
    wider = [sum(w > d for w in range(least, most + 1)) / (most - least + 1) for d in range(most)]
    begin = start_rate(rate, wider)
    near = min(begin, 1 - begin)
    units = round(near * reference.UNITS)
    units = reference.UNITS - units if begin < 0.5 else units
    begin = 1 - units / reference.UNITS
    first, second = key.pair((*(shape[a] for a in own), n + most - 1))
    margin = loss / (1 - rate) * near * reference.UNITS + 1 if loss and rate not in (0, 1) else 0
    if margin and np.any(np.abs(first.astype(float) - units) <= margin):
        raise Unclear
    lengths = least + ((second.astype(np.uint64) * np.uint64(most - least + 1)) >> np.uint64(32))
    keep = np.ones((*first.shape[:-1], n), bool)
    for *sample, start in np.argwhere(first >= units):
        end = start - (most - 1) + int(lengths[(*sample, start)])
        keep[(*sample, slice(max(start - (most - 1), 0), max(end, 0)))] = False
    factors = 1 - begin * np.array(wider)
    factor = 1 / np.prod(factors) if factors.all() else 0.0
    lost = (2 * most + 4) * max(unit, 2.0**-24 if loss else 0)
    lost += margin / reference.UNITS * np.sum(wider / np.where(factors == 0, 1, factors))
    return Diagonal(_in_place(keep, shape, (*own, line)), factor, lost * abs(factor))


def start_rate(rate, wider):
    """The gamma at which prod (1 - gamma s) is `1 - rate`, by bisection."""
    if rate == 1:
        return 1.0
    low, high = 0.0, 50.0  # of -log(1 - gamma)
    for _ in range(200):
        middle = (low + high) / 2
        found = sum(middle if s == 1 else -math.log1p(s * math.expm1(-middle)) for s in wider)
        low, high = (middle, high) if found < -math.log1p(-rate) else (low, middle)
    return -math.expm1(-low)


def spans_of_number(key, rate, shape, unit, width, number, axis, batch_axis):
    line, own = _span_axes(shape, axis, batch_axis)
    n = shape[line]
    keep = np.ones((*(shape[a] for a in own), n), bool)
    least, most = (min(w, n) for w in width)
    first, second = key.pair((*keep.shape[:-1], number))
    for *sample, i in np.ndindex(first.shape):
        at = (*sample, i)
        length = least + (int(second[at]) * (most - least + 1) >> 32)
        start = int(first[at]) * (n - length + 1) >> 32
        keep[(*sample, slice(start, start + length))] = False
    return Diagonal(_in_place(keep, shape, (*own, line)))


def _span_axes(shape, axis, batch_axis):
    """The axis of the spans, and in order those of the samples."""
    batch = () if batch_axis is None else np.atleast_1d(batch_axis)
    return axis % len(shape), sorted(int(a) % len(shape) for a in batch)


def _in_place(keep, shape, axes):
    """Decisions along the given axes, of size 1 along all others of an array."""
    others = all_but(shape, axes)
    wide = keep.reshape(*keep.shape, *(1,) * len(others))
    return wide.transpose(np.argsort((*axes, *others)))


def _at(axis, shape):
    return None if axis is None else axis % len(shape)
