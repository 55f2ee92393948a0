"""What all probes are given: a key, a rate, arrays without zeros, and masks cut to size."""

import jax
import numpy as np

RATE = 0.25  # on jaxdrop's grid of rates, so that all divide by the same number
jax.config.update("jax_platforms", "cpu")  # before the key, which starts the backend
KEY = jax.random.key(0)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 numbers of both signs, away from 0, so that zeros are what was dropped."""
    generator = np.random.default_rng(seed)
    values = generator.uniform(0.5, 2, shape) * generator.choice([-1, 1], shape)
    return values.astype(np.float32)


def first(mask: np.ndarray, axes: int) -> np.ndarray:
    """The mask with size 1 behind its first axes."""
    return mask[(slice(None),) * axes + (slice(1),) * (mask.ndim - axes)]
