"""From a key to a dropped activation: words, threshold, mask, apply."""

from jaxdrop.core.oldest_jax import require_jax

require_jax()
