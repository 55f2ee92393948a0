"""Records of `jaxdrop/methods/elementwise.py`: `dropout`, its rules, and its relatives."""

from functools import partial
from typing import Any

import jax
from fresh import kinds
from fuzzing import options
from reference import masks, methods as reference, noise, sums
from table.record import Fresh, Fuzz, Gallery, Method, Timed

import jaxdrop
from jaxdrop import rescale

SELU_LIMIT = -1.7580993408473766
IN_DROPOUT = "drops the places of dropout"
RULE_ALONE = "differs from dropout in the factor of the survivors alone"


def draw_then_apply(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    rule = options.pop("rescale", rescale.expected)
    mask = jaxdrop.draw_mask(key, getattr(x, "shape", ()), rate, **options)
    return jaxdrop.apply_mask(mask, x, rescale=rule)


def by_rule(rule):
    """`dropout` under a rule that counts over axes, for the fuzz to choose."""

    def run(key, x, rate, shared=(), axis=None):
        return jaxdrop.dropout(key, x, rate, broadcast_dims=shared, rescale=rule(axis))

    return run


def fixed_count(key, x, rate, shared, axis):
    return jaxdrop.fixed_count_dropout(key, x, rate, axis=axis, broadcast_dims=shared)


def alpha_at_dropped(rate: float) -> float:
    keep_prob = masks.keep_prob(rate)
    if keep_prob == 0:
        return 0.0
    a = (keep_prob * (1 + SELU_LIMIT**2 * (1 - keep_prob))) ** -0.5
    return a * SELU_LIMIT * keep_prob


rule_of_dropout = partial(Method, keeps_mean=False, gallery=IN_DROPOUT, timed=RULE_ALONE)
sum_in_factor = partial(
    rule_of_dropout,
    linear=False,
    broadcasts=False,
    aggregates=True,
    counts=True,
    keeps_words_alone=False,
)
sum_fuzz = partial(Fuzz, options=options.over, specials=(), told=options.narrow_sums)

RECORDS = [
    Method("dropout", jaxdrop.dropout, fuzz=Fuzz(most=4), timed="is what others are compared with"),
    Method("draw_mask+apply_mask", draw_then_apply, gallery=IN_DROPOUT, timed="is dropout"),
    rule_of_dropout(
        "dropout+realized",
        partial(jaxdrop.dropout, rescale=rescale.realized()),
        broadcasts=False,
        counts=True,
        fuzz=Fuzz(reference.realized, options.shared_and_over, by_rule(rescale.realized)),
    ),
    rule_of_dropout(
        "dropout+none",
        partial(jaxdrop.dropout, rescale=rescale.none),
        fuzz=Fuzz(reference.unscaled),
    ),
    sum_in_factor(
        "dropout+preserve_sum",
        partial(jaxdrop.dropout, rescale=rescale.preserve_sum()),
        fuzz=sum_fuzz(sums.preserve_sum, run=by_rule(rescale.preserve_sum)),
    ),
    sum_in_factor(
        "dropout+preserve_norm",
        partial(jaxdrop.dropout, rescale=rescale.preserve_norm()),
        fuzz=sum_fuzz(sums.preserve_norm, run=by_rule(rescale.preserve_norm)),
    ),
    Method(
        "gaussian_dropout",
        jaxdrop.gaussian_dropout,
        at_dropped=lambda rate: None,
        fuzz=Fuzz(noise.gaussian),
        fresh=Fresh(partial(kinds.normal_noise, chance_of=masks.keep_prob)),
        gallery=Gallery(fate="disturbed", survivor=None),
    ),
    Method(
        "alpha_dropout",
        jaxdrop.alpha_dropout,
        linear=False,
        keeps_mean=False,
        at_dropped=alpha_at_dropped,
        takes_complex=False,
        fuzz=Fuzz(reference.alpha),
        gallery=Gallery(keeps="mean 0 and variance 1", fate="replaced", survivor=None),
    ),
    Method(
        "fixed_count_dropout",
        jaxdrop.fixed_count_dropout,
        counts=True,
        fuzz=Fuzz(reference.fixed_count, options.shared_and_over, fixed_count),
        fresh=Fresh(kinds.fixed_count),
        gallery=Gallery(
            keeps="the mean; 8 of 12 survive",
            survivor=lambda keep_prob: 12 / 8,
            drawn=(6, "sets"),
            note="4 of 12 in each sample",
            run=partial(jaxdrop.fixed_count_dropout, axis=1),
        ),
        timed=Timed(title="each row", run=partial(jaxdrop.fixed_count_dropout, axis=1)),
    ),
]
