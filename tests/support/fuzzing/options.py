"""Options of methods as they are drawn for the fuzz, and other parts of the table's `Fuzz`.

Nothing here imports Hypothesis, so that what reads the table needs none: `draw` is a
`fuzzing.calls.Drawing`.
"""

import itertools

import jax.numpy as jnp
from reference import methods as reference
from table.record import Fuzz


def other_for(x):
    """What is put in the place of dropped elements."""
    return jnp.asarray(reference.other_numbers(x.shape), x.dtype)


def sharing(method):
    """A method whose option `shared` is its `broadcast_dims`."""
    return lambda key, x, rate, shared=(): method(key, x, rate, broadcast_dims=shared)


def subset(draw, ndim, but_last=False):
    """Some of the axes, counted from one end or the other; one of them is drawn most often."""
    axes = range(ndim - but_last)
    subsets = [some for count in (1, 0, 2, 3, 4) for some in itertools.combinations(axes, count)]
    shift = draw.one_of([0, ndim])
    return tuple(axis - shift for axis in draw.one_of(subsets))


def distinct(draw, shape, *names, spare=0):
    """Different axes, some of them None, with at least so many left over."""
    order = draw.order(range(len(shape)))
    given = min(len(names), len(shape) - spare)
    axes = [axis - draw.one_of([0, len(shape)]) for axis in order[:given]]
    axes += [None] * (len(names) - given)
    axes = [None if draw.integer(0, 3) == 3 else axis for axis in axes]
    return dict(zip(names, axes, strict=True))


def shared(draw, shape):
    return {"shared": subset(draw, len(shape))}


def over(draw, shape):
    return {"axis": subset(draw, len(shape)) if draw.one_of([True, False]) else None}


def shared_and_over(draw, shape):
    return {**shared(draw, shape), **over(draw, shape)}


def batch_axis(draw, shape):
    return distinct(draw, shape, "batch_axis")


def images(draw, shape):
    return distinct(draw, shape, "batch_axis", "channel_axis", spare=1)


def blocks(draw, shape):
    axes = images(draw, shape)
    return {**axes, "block_size": _edges(draw, shape, axes, [2, 3, 1, 4])}


def squares(draw, shape):
    axes = images(draw, shape)
    return {**axes, "size": _edges(draw, shape, axes, [2, 3, 1, 0, 5])}


def rectangles(draw, shape):
    names = [[], ["batch_axis"], ["batch_axis", "channel_axis"]][len(shape) - 2]
    order = draw.order(range(len(shape)))
    given = dict(zip(names, order, strict=False))
    axes = {"batch_axis": None, "channel_axis": None, **given}
    area, aspect = draw.one_of([(0.1, 0.6), (0.3, 0.3), (0.5, 1)]), draw.one_of([(0.3, 3), (5, 9)])
    return {**axes, "area": area, "aspect": aspect}


def spans(draw, shape):
    axis = draw.integer(-len(shape), len(shape) - 1)
    others = [a for a in range(len(shape)) if a != axis % len(shape)]
    some = draw.order(others)[: draw.integer(0, len(others))]
    return {"axis": axis, "batch_axis": draw.one_of([tuple(some), *some, None])}


def spans_of_rate(draw, shape):
    return {**spans(draw, shape), "width": draw.one_of([(1, 3), (2, 2), (1, 1), (2, 5), (1, 40)])}


def spans_of_number(draw, shape):
    width = draw.one_of([(0, 3), (2, 2), (1, 1), (2, 5), (0, 40)])
    return {**spans(draw, shape), "width": width, "number": draw.one_of([2, 1, 3, 0])}


def _edges(draw, shape, axes, sizes):
    """One for each spatial axis."""
    return tuple(draw.one_of(sizes) for _ in reference.all_but(shape, axes.values()))


def of_one_axis(name, method, shared_by):
    """The fuzz of a method with one axis, which says along which others it shares its mask."""

    def run(key, x, rate, axis):
        return method(key, x, rate, **{name: axis})

    def options(draw, shape):
        return {"axis": draw.integer(-len(shape), len(shape) - 1)}

    return Fuzz(reference.along(shared_by), options, run, least=1)


def loss_of_gamma(traced, dtype):
    """For traced rates gamma is found in float32, from sums of up to 100 terms."""
    return {"loss": 100 * 2.0**-24 if traced else 0.0}


def narrow_unit(traced, dtype):
    return {"narrow": float(jnp.finfo(dtype).eps) / 2 if jnp.finfo(dtype).bits < 32 else 0.0}


def narrow_sums(traced, dtype):
    limits = jnp.finfo(dtype)
    spacing, most = float(limits.smallest_subnormal), float(limits.max)
    return {**narrow_unit(traced, dtype), "spacing": spacing, "most": most}
