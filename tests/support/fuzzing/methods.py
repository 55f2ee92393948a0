"""For each method of the table: options to draw, how to call it, and its reference in NumPy."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from reference import methods as reference, noise as reference_noise, sums as reference_sums
from table.methods import FLOATS, attend, draw_then_apply

import jaxdrop
from jaxdrop import rescale

SIZES = (5, 2, 3, 1, 0, 7, 4, 8, 32, 33, 31, 64)
MOST = 300  # elements of one input


@dataclass(frozen=True)
class Fuzzed:
    """One method: `run(key, x, rate, **options)` and what it is compared with.

    `reference(key, rate, shape, unit, **options)` takes the same options, and
    those that `told(traced, dtype)` gives.
    """

    run: Callable[..., Any]
    reference: Callable[..., Any]
    options: Callable[[Any, tuple[int, ...]], dict[str, Any]] = lambda draw, shape: {}
    least: int = 0  # axes
    most: int = 3
    floats: tuple[str, ...] = FLOATS
    takes_complex: bool = True
    takes_traced_rate: bool = True
    learned: bool = False  # is given the logit of the rate
    specials: tuple[float, ...] = (np.nan, np.inf, -np.inf)  # that x may hold
    told: Callable[[bool, Any], dict[str, Any]] = lambda traced, dtype: {}


def pattern(shape):
    """What stands for dropped elements."""
    return (np.arange(math.prod(shape)) % 7 - 3.0).reshape(shape) / 2


def other_for(x):
    return jnp.asarray(pattern(x.shape), x.dtype)


def subset(draw, ndim, but_last=False):
    """Some of the axes, counted from one end or the other; one of them is drawn most often."""
    axes = range(ndim - but_last)
    subsets = [some for count in (1, 0, 2, 3, 4) for some in itertools.combinations(axes, count)]
    shift = draw(st.sampled_from([0, ndim]))
    return tuple(axis - shift for axis in draw(st.sampled_from(subsets)))


def distinct(draw, shape, *names, spare=0):
    """Different axes, some of them None, with at least so many left over."""
    order = draw(st.permutations(range(len(shape))))
    given = min(len(names), len(shape) - spare)
    axes = [axis - draw(st.sampled_from([0, len(shape)])) for axis in order[:given]]
    axes += [None] * (len(names) - given)
    axes = [None if draw(st.integers(0, 3)) == 3 else axis for axis in axes]
    return dict(zip(names, axes, strict=True))


def shared(draw, shape):
    return {"shared": subset(draw, len(shape))}


def over(draw, shape):
    return {"axis": subset(draw, len(shape)) if draw(st.sampled_from([True, False])) else None}


def shared_and_over(draw, shape):
    return {**shared(draw, shape), **over(draw, shape)}


def one_axis(name):
    return lambda draw, shape: {name: draw(st.integers(-len(shape), len(shape) - 1))}


def images(draw, shape):
    return distinct(draw, shape, "batch_axis", "channel_axis", spare=1)


def blocks(draw, shape):
    axes = images(draw, shape)
    count = len(reference.all_but(shape, axes.values()))
    edges = draw(st.tuples(*[st.sampled_from([2, 3, 1, 4])] * count))
    return {**axes, "block_size": edges}


def squares(draw, shape):
    axes = images(draw, shape)
    count = len(reference.all_but(shape, axes.values()))
    return {**axes, "size": draw(st.tuples(*[st.sampled_from([2, 3, 1, 0, 5])] * count))}


def token_axes(draw, shape):
    axis = draw(st.integers(-len(shape), -1))
    return {"axis": axis, "prefix": draw(st.integers(0, min(shape[axis], 2)))}


def head_axes(draw, shape):
    axes = distinct(draw, shape, "head_axis", "batch_axis")
    return {"head_axis": -1, "batch_axis": None} if axes["head_axis"] is None else axes


def attention_options(draw, shape):
    block = st.sampled_from([2, None, 1, 3, 32])
    return {
        "is_causal": draw(st.booleans()),
        "shared": subset(draw, len(shape) + 1),
        "query_block": draw(block),
        "key_block": draw(block),
    }


def elementwise(method, **fixed):
    return lambda key, x, rate, shared=(): method(key, x, rate, broadcast_dims=shared, **fixed)


def by_rule(rule):
    def run(key, x, rate, shared=(), axis=None):
        return jaxdrop.dropout(key, x, rate, broadcast_dims=shared, rescale=rule(axis))

    return run


def tokens_and_back(key, x, rate, axis, prefix):
    tokens, positions = jaxdrop.drop_tokens(key, x, rate, axis=axis, prefix=prefix)
    return jaxdrop.restore_tokens(tokens, positions, x.shape[axis])


def replace(key, x, rate):
    where = jnp.asarray(pattern(x.shape) < 1)
    return jaxdrop.replace_tokens(key, x, rate, replacement=other_for(x), where=where)


def replaced(key, rate, shape, unit):
    other = pattern(shape)
    return reference.replaced(key, rate, shape, unit, other, other < 1)


def condition(key, x, rate, batch_axis):
    samples = 1 if batch_axis is None else x.shape[batch_axis]
    second = jnp.zeros(samples if batch_axis is None else _flat(x.ndim, batch_axis, samples))
    given, null = {"a": second, "text": x}, {"a": 1.0, "text": other_for(x)}
    return jaxdrop.drop_condition(key, given, rate, null=null, batch_axis=batch_axis)["text"]


def _flat(ndim, axis, samples):
    return tuple(samples if i == axis % ndim else 1 for i in range(ndim))


def connect(key, x, rate):
    return jaxdrop.drop_connect(key, {"bias": x, "kernel": x, "steps": 3}, rate)["kernel"]


def mix(key, x, rate):
    return jaxdrop.mixout(key, [x, x], rate, target=[other_for(x), x])[0]


def zone_out(key, x, rate):
    return jaxdrop.zoneout(key, x, rate, old=other_for(x))


def attend_with(key, x, rate, is_causal, shared, query_block, key_block):
    blocks = {"query_block_size": query_block, "key_block_size": key_block}
    return attend(key, x, rate, is_causal=is_causal, broadcast_dims=shared, **blocks)


def like(other):
    """A reference that puts the pattern where something is dropped."""
    return lambda key, rate, shape, unit, **options: other(
        key, rate, shape, unit, other=pattern(shape), **options
    )


def along(axes_of):
    """A reference of `dropout` that shares its mask along axes found by `axes_of(ndim, axis)`."""

    def run(key, rate, shape, unit, axis):
        return reference.expected(key, rate, shape, unit, axes_of(len(shape), axis % len(shape)))

    return run


def named(name, method, axes_of):
    def run(key, x, rate, axis):
        return method(key, x, rate, **{name: axis})

    return Fuzzed(run, along(axes_of), one_axis("axis"), least=1)


def behind(ndim, axis):
    return tuple(range(axis + 1, ndim))


def others(ndim, axis):
    return tuple(i for i in range(ndim) if i != axis)


def spatial(key, rate, shape, unit, batch_axis, channel_axis):
    axes = reference.all_but(shape, (batch_axis, channel_axis))
    return reference.expected(key, rate, shape, unit, axes)


def path(key, rate, shape, unit, batch_axis=None):
    return reference.expected(key, rate, shape, unit, reference.all_but(shape, (batch_axis,)))


def loss_of_gamma(traced, dtype):
    """For traced rates gamma is found in float32, from sums of up to 100 terms."""
    return {"loss": 100 * 2.0**-24 if traced else 0.0}


def narrow_unit(traced, dtype):
    return {"narrow": float(jnp.finfo(dtype).eps) / 2 if jnp.finfo(dtype).bits < 32 else 0.0}


def narrow_sums(traced, dtype):
    limits = jnp.finfo(dtype)
    spacing, most = float(limits.smallest_subnormal), float(limits.max)
    return {**narrow_unit(traced, dtype), "spacing": spacing, "most": most}


block_method = partial(
    Fuzzed, jaxdrop.drop_block, reference.block, least=1, most=4, told=loss_of_gamma
)
noisy = partial(Fuzzed, options=shared)
finite = partial(Fuzzed, options=over, specials=(), told=narrow_sums)

FUZZED = {
    "dropout": Fuzzed(elementwise(jaxdrop.dropout), reference.expected, shared, most=4),
    "draw_mask+apply_mask": Fuzzed(elementwise(draw_then_apply), reference.expected, shared),
    "dropout+realized": Fuzzed(by_rule(rescale.realized), reference.realized, shared_and_over),
    "dropout+none": Fuzzed(
        elementwise(jaxdrop.dropout, rescale=rescale.none), reference.unscaled, shared
    ),
    "dropout+preserve_sum": finite(by_rule(rescale.preserve_sum), reference_sums.preserve_sum),
    "dropout+preserve_norm": finite(by_rule(rescale.preserve_norm), reference_sums.preserve_norm),
    "gaussian_dropout": noisy(elementwise(jaxdrop.gaussian_dropout), reference_noise.gaussian),
    "concrete_dropout": Fuzzed(
        lambda key, x, rate, shared, temperature: jaxdrop.concrete_dropout(
            key, x, rate, broadcast_dims=shared, temperature=temperature
        ),
        reference_noise.concrete,
        lambda draw, shape: {
            **shared(draw, shape),
            "temperature": draw(st.sampled_from([1.0, 0.5, 0.125])),
        },
        learned=True,
    ),
    "variational_dropout": noisy(
        elementwise(jaxdrop.variational_dropout), reference_noise.variational, learned=True
    ),
    "alpha_dropout": Fuzzed(
        elementwise(jaxdrop.alpha_dropout), reference.alpha, shared, takes_complex=False
    ),
    "fixed_count_dropout": Fuzzed(
        lambda key, x, rate, shared, axis: jaxdrop.fixed_count_dropout(
            key, x, rate, axis=axis, broadcast_dims=shared
        ),
        reference.fixed_count,
        shared_and_over,
    ),
    "spatial_dropout": Fuzzed(jaxdrop.spatial_dropout, spatial, images, least=1, most=4),
    "drop_block": block_method(options=lambda *a: {**blocks(*a), "exact": True}),
    "drop_block of the paper": block_method(options=lambda *a: {**blocks(*a), "exact": False}),
    "drop_path": Fuzzed(
        jaxdrop.drop_path, path, lambda draw, shape: distinct(draw, shape, "batch_axis")
    ),
    "drop_path of a batch": Fuzzed(partial(jaxdrop.drop_path, batch_axis=None), path),
    "drop_tokens+restore_tokens": Fuzzed(
        tokens_and_back, reference.tokens, token_axes, least=1, takes_traced_rate=False
    ),
    "replace_tokens": Fuzzed(replace, replaced),
    "drop_condition": Fuzzed(
        condition,
        like(reference.condition),
        lambda draw, shape: distinct(draw, shape, "batch_axis"),
    ),
    "drop_connect": Fuzzed(connect, reference.connect),
    "mixout": Fuzzed(mix, like(reference.mixed)),
    "embedding_dropout": named("axis", jaxdrop.embedding_dropout, others),
    "locked_dropout": named("time_axis", jaxdrop.locked_dropout, lambda ndim, axis: (axis,)),
    "zoneout": Fuzzed(zone_out, like(reference.replaced)),
    "drop_edges": named("axis", jaxdrop.drop_edges, behind),
    "drop_nodes": named("axis", jaxdrop.drop_nodes, behind),
    "drop_heads": Fuzzed(jaxdrop.drop_heads, reference.heads, head_axes, least=1, most=4),
    "drop_key+softmax": Fuzzed(
        lambda key, x, rate, shared: jaxdrop.drop_key(key, x, rate, broadcast_dims=shared),
        reference.keys,
        lambda draw, shape: {"shared": subset(draw, len(shape), but_last=True)},
        least=1,
        floats=("float32", "bfloat16", "float16", "float8_e5m2"),  # with an infinity
        takes_complex=False,
        told=lambda traced, dtype: {"lowest": float(jnp.finfo(dtype).min)},
    ),
    "dot_product_attention": Fuzzed(
        attend_with,
        reference_sums.attention,
        attention_options,
        least=2,
        floats=("float32", "bfloat16"),
        takes_complex=False,
        specials=(-np.inf,),
        told=narrow_unit,
    ),
    "cutout": Fuzzed(
        lambda key, x, rate, size, **axes: jaxdrop.cutout(key, x, size, **axes),
        reference.cut_out,
        squares,
        least=1,
        most=4,
        takes_traced_rate=False,
    ),
}
