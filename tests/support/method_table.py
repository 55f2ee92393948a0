"""Every method that drops, in one table: the laws of test_laws.py run over it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

import jaxdrop
from jaxdrop import rescale


def draw_then_apply(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    rule = options.pop("rescale", rescale.expected)
    mask = jaxdrop.draw_mask(key, getattr(x, "shape", ()), rate, **options)
    return jaxdrop.apply_mask(mask, x, rescale=rule)


@dataclass(frozen=True)
class Method:
    """One way to drop: `(key, x, rate) -> y`, and what is true of it."""

    name: str
    run: Callable[..., jax.Array]
    linear: bool = True  # in x, for one key
    keeps_mean: bool = True  # E[y] = x
    elementwise: bool = True  # nothing is counted or summed over other elements


METHODS = [
    Method("dropout", jaxdrop.dropout),
    Method("draw_mask+apply_mask", draw_then_apply),
    Method(
        "dropout+realized",
        partial(jaxdrop.dropout, rescale=rescale.realized()),
        keeps_mean=False,
        elementwise=False,
    ),
    Method("dropout+none", partial(jaxdrop.dropout, rescale=rescale.none), keeps_mean=False),
    Method(
        "dropout+preserve_sum",
        partial(jaxdrop.dropout, rescale=rescale.preserve_sum()),
        linear=False,
        keeps_mean=False,
        elementwise=False,
    ),
    Method(
        "dropout+preserve_norm",
        partial(jaxdrop.dropout, rescale=rescale.preserve_norm()),
        linear=False,
        keeps_mean=False,
        elementwise=False,
    ),
]
