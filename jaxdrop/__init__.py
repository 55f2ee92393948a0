"""Dropout for JAX as pure functions and function transforms."""

from jaxdrop import rescale
from jaxdrop.core.bernoulli import draw_mask
from jaxdrop.core.fixed_count import draw_fixed_count_mask
from jaxdrop.core.mask import Mask
from jaxdrop.methods.elementwise import apply_mask, dropout

__all__ = ["Mask", "apply_mask", "draw_fixed_count_mask", "draw_mask", "dropout", "rescale"]
