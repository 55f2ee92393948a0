"""Cases of attention, and attention itself in NumPy, sharing no code with the package."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jaxdrop import Part


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call, all of them drawn together so that they meet."""

    batch: tuple[int, ...]  # any number of axes
    queries: int
    keys: int
    key_heads: int
    groups: int  # heads of queries for each of keys
    features: int
    value_features: int
    bias_axes: tuple[bool, ...] | None  # of (*B, N, T, S), those along which it varies
    mask_axes: tuple[bool, ...] | None
    scale: float | None
    scale_is_traced: bool
    is_causal: bool
    query_lengths: str | None  # "one" or "each"
    key_lengths: str | None
    window: int | tuple[int, int] | None
    segments: bool  # whether several documents are packed into one sequence
    soft_cap: float | None
    residual: bool
    margins: tuple[tuple[int, int], ...] | None  # of larger weights before and after these
    start_is_traced: bool
    shared: tuple[int, ...]  # axes of the weights
    rate: float
    rate_is_traced: bool
    query_block: int | None
    key_block: int | None
    seed: int

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """Sizes (*B, N, T, S)."""
        return (*self.batch, self.key_heads * self.groups, self.queries, self.keys)

    @property
    def merged_shape(self) -> tuple[int, ...]:
        """The same with one axis for the batch."""
        return (math.prod(self.batch), *self.weights_shape[-3:])

    @property
    def start(self) -> tuple[int, ...]:
        """Where the weights start among larger ones."""
        return tuple(before for before, _ in self.margins or ((0, 0),) * len(self.weights_shape))

    @property
    def larger_shape(self) -> tuple[int, ...]:
        """Sizes of the larger weights."""
        margins = self.margins or ((0, 0),) * len(self.weights_shape)
        return tuple(n + sum(m) for n, m in zip(self.weights_shape, margins, strict=True))

    @property
    def blocks(self) -> dict[str, int | None]:
        return {"query_block_size": self.query_block, "key_block_size": self.key_block}

    def static(self) -> dict[str, Any]:
        """Options that are known while tracing."""
        options = {
            "is_causal": self.is_causal,
            "local_window_size": self.window,
            "broadcast_dims": self.shared,
        }
        if self.scale is not None and not self.scale_is_traced:
            options["scale"] = self.scale
        if self.margins is not None and not self.start_is_traced:
            options["part"] = Part(self.start, self.larger_shape)
        options |= {"logits_soft_cap": self.soft_cap, "return_residual": self.residual}
        return options

    def moving(self, dtype: Any) -> dict[str, jax.Array]:
        """Arrays that attention has derivatives by."""
        random = np.random.default_rng(self.seed)
        heads = self.key_heads * self.groups
        shapes = {
            "query": (*self.batch, self.queries, heads, self.features),
            "key": (*self.batch, self.keys, self.key_heads, self.features),
            "value": (*self.batch, self.keys, self.key_heads, self.value_features),
        }
        if self.bias_axes is not None:
            shapes["bias"] = self._over_weights(self.bias_axes)
        arrays = {name: jnp.asarray(random.normal(size=s), dtype) for name, s in shapes.items()}
        if self.scale is not None and self.scale_is_traced:
            arrays["scale"] = jnp.asarray(self.scale, dtype)
        return arrays

    def fixed(self) -> dict[str, Any]:
        """Arrays that it has none by."""
        random = np.random.default_rng(self.seed + 1)
        arrays: dict[str, Any] = {}
        if self.mask_axes is not None:
            arrays["mask"] = jnp.asarray(random.random(self._over_weights(self.mask_axes)) < 0.7)
        for name, form, size in (
            ("query_seq_lengths", self.query_lengths, self.queries),
            ("key_value_seq_lengths", self.key_lengths, self.keys),
        ):
            if form is not None:
                batch = () if form == "one" else self.batch
                most = size + self.start[-2 if name == "query_seq_lengths" else -1] + 2
                arrays[name] = jnp.asarray(random.integers(0, most, batch), jnp.int32)
        if self.segments:
            shapes = ((*self.batch, size) for size in (self.queries, self.keys))
            ids = (np.sort(random.integers(0, 3, shape)) for shape in shapes)
            arrays["segment_ids"] = tuple(jnp.asarray(each, jnp.int32) for each in ids)
        if self.margins is not None and self.start_is_traced:
            arrays["part"] = Part(tuple(map(jnp.int32, self.start)), self.larger_shape)
        return arrays

    def cotangent(self, dtype: Any) -> Any:
        """Of the output, and of the log-sum-exp if it is asked for."""
        random = np.random.default_rng(self.seed + 2)
        rows = (*self.batch, self.queries, self.key_heads * self.groups)
        out = jnp.asarray(random.normal(size=(*rows, self.value_features)), dtype)
        return (out, jnp.asarray(random.normal(size=rows), dtype)) if self.residual else out

    def _over_weights(self, axes: tuple[bool, ...]) -> tuple[int, ...]:
        axes = (*(axes[0] for _ in self.batch), *axes[1:])
        shape = tuple(
            n if varies else 1 for n, varies in zip(self.weights_shape, axes, strict=True)
        )
        first = next((axis for axis, varies in enumerate(axes) if varies), len(axes))
        return shape[first:] if self.seed % 2 else shape


@st.composite
def cases(draw: Any) -> Case:
    """Any of them, of sizes at which layouts merge axes and sizes at which they do not."""
    batch = draw(st.sampled_from([(), (1,), (2,), (3,), (2, 3), (2, 1, 2)]))
    axes = st.tuples(*[st.booleans()] * 4)
    queries, keys = draw(st.integers(1, 24)), draw(st.sampled_from([1, 5, 7, 16, 33, 40, 64]))
    ndim = len(batch) + 3
    margins = st.tuples(st.integers(0, 9), st.integers(0, 9))
    length = st.sampled_from([None, None, "one", "each"])
    window = st.integers(0, 12)
    return Case(
        batch=batch,
        queries=queries,
        keys=keys,
        key_heads=draw(st.integers(1, 2)),
        groups=draw(st.integers(1, 3)),
        features=draw(st.integers(1, 4)),
        value_features=draw(st.integers(1, 4)),
        bias_axes=draw(st.none() | axes),
        mask_axes=draw(st.none() | axes),
        scale=draw(st.sampled_from([None, 0.0, 0.7, -1.5])),
        scale_is_traced=draw(st.booleans()),
        is_causal=draw(st.booleans()),
        query_lengths=draw(length),
        key_lengths=draw(length),
        window=draw(st.none() | window | st.tuples(window, window)),
        segments=draw(st.booleans()),
        soft_cap=draw(st.sampled_from([None, 0.5, 2.0])),
        residual=draw(st.booleans()),
        margins=draw(st.none() | st.tuples(*[margins] * ndim)),
        start_is_traced=draw(st.booleans()),
        shared=tuple(draw(st.sets(st.integers(0, ndim - 1), max_size=2))),
        rate=draw(st.sampled_from([0.25, 0.3, 0.5, 0, 1])),
        rate_is_traced=draw(st.booleans()),
        query_block=draw(st.none() | st.integers(1, queries + 2)),
        key_block=draw(st.none() | st.integers(1, keys + 2) | st.just(32)),
        seed=draw(st.integers(0, 99)),
    )
