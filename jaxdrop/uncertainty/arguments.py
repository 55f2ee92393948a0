"""Checks of probabilities and predictions, before anything is computed from them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdrop.base.axes import lies_inside
from jaxdrop.base.validate import Check
from jaxdrop.core.apply import widen


def real_with_axes(check: Check, name: str, x: Any, least_axes: int) -> Array:
    """Returns a real array in float32 or wider with at least `least_axes` axes."""
    x = widen(check.real_array(name, x))
    if x.ndim < least_axes:
        raise ValueError(
            f"{check}: {name} must have at least {least_axes} axes; got shape {x.shape}."
        )
    return x


def checked_samples(check: Check, samples: Any) -> Array:
    """Returns samples of class probabilities: at least one sample of at least one class."""
    samples = real_with_axes(check, "samples", samples, 2)
    if 0 in (samples.shape[0], samples.shape[-1]):
        raise ValueError(
            f"{check}: samples must have at least one sample and one class;"
            f" got shape {samples.shape}."
        )
    return samples


def checked_means(check: Check, means: Any, name: str = "means") -> Array:
    """Returns the predictions of samples, if there is at least one sample."""
    means = real_with_axes(check, name, means, 1)
    if len(means) == 0:
        raise ValueError(f"{check}: {name} must have at least one sample; got shape {means.shape}.")
    return means


def labelled(check: Check, probabilities: Any, labels: Any) -> tuple[Array, Array, Array]:
    """Returns probabilities, labels as int32 or wider, and which of the labels are a class."""
    p = real_with_axes(check, "probabilities", probabilities, 1)
    if isinstance(labels, np.ndarray | np.generic) and labels.dtype.kind in "iu":
        # Without x64, a label of 64 bits would lose its upper half, and could become a class.
        known: np.ndarray = np.asarray(labels)
        is_class = (known >= 0) & (known < p.shape[-1])
        labels = np.where(is_class, known.astype(np.int32), np.int32(-1))
    labels = check.integer_array("labels", labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    if labels.shape != p.shape[:-1]:
        raise ValueError(f"{check}: labels must have shape {p.shape[:-1]}; got {labels.shape}.")
    if p.size == 0:
        raise ValueError(f"{check}: probabilities must not be empty; got shape {p.shape}.")
    return p, labels, lies_inside(labels, p.shape[-1])
