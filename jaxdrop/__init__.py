"""Dropout for JAX as pure functions and function transforms."""

from importlib.metadata import version

from jaxdrop import checks, rescale
from jaxdrop.core.bernoulli import draw_mask
from jaxdrop.core.fixed_count import draw_fixed_count_mask
from jaxdrop.core.mask import Mask
from jaxdrop.methods.elementwise import apply_mask, dropout
from jaxdrop.transforms.policies import (
    chain,
    curriculum_dropout_schedule,
    early_dropout_schedule,
    late_dropout_schedule,
    per_leaf,
    per_sample,
    scheduled,
)

__version__ = version("jaxdrop")

__all__ = [
    # Methods: `(key, x, rate, ...) -> y`.
    "dropout",
    # Masks that are drawn apart and applied later.
    "Mask",
    "apply_mask",
    "draw_fixed_count_mask",
    "draw_mask",
    # Combinators over drops `(key, x) -> y`, and schedules for their rates.
    "chain",
    "curriculum_dropout_schedule",
    "early_dropout_schedule",
    "late_dropout_schedule",
    "per_leaf",
    "per_sample",
    "scheduled",
    # Namespaces: rules for the factor of survivors, and assertions.
    "checks",
    "rescale",
]
