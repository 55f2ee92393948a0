"""Methods that drop blocks and squares, rebuilt by going through their seeds and centres."""

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


def _at(axis, shape):
    return None if axis is None else axis % len(shape)
