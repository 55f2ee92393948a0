"""Cases of attention, and attention itself in NumPy, sharing no code with the package."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call, all of them drawn together so that they meet."""

    batch: int | None  # None for arrays without that axis
    queries: int
    keys: int
    key_heads: int
    groups: int  # heads of queries for each of keys
    features: int
    bias_axes: tuple[bool, ...] | None  # of (B, N, T, S), those along which it varies
    mask_axes: tuple[bool, ...] | None
    scale: float | None
    scale_is_traced: bool
    is_causal: bool
    query_lengths: str | None  # "one" or "each"
    key_lengths: str | None
    window: int | tuple[int, int] | None
    shared: tuple[int, ...]  # axes of the weights
    rate: float
    rate_is_traced: bool
    query_block: int | None
    key_block: int | None
    seed: int

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """Sizes (B, N, T, S), or (N, T, S)."""
        batch = () if self.batch is None else (self.batch,)
        return (*batch, self.key_heads * self.groups, self.queries, self.keys)

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
        return options

    def moving(self, dtype: Any) -> dict[str, jax.Array]:
        """Arrays that attention has derivatives by."""
        random = np.random.default_rng(self.seed)
        batch = self.weights_shape[:-3]
        heads = self.key_heads * self.groups
        shapes = {
            "query": (*batch, self.queries, heads, self.features),
            "key": (*batch, self.keys, self.key_heads, self.features),
            "value": (*batch, self.keys, self.key_heads, self.features),
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
                batch = () if form == "one" or self.batch is None else (self.batch,)
                arrays[name] = jnp.asarray(random.integers(0, size + 2, batch), jnp.int32)
        return arrays

    def _over_weights(self, axes: tuple[bool, ...]) -> tuple[int, ...]:
        sizes = (1,) * (4 - len(self.weights_shape)) + self.weights_shape
        shape = tuple(n if varies else 1 for n, varies in zip(sizes, axes, strict=True))
        first = next((axis for axis, varies in enumerate(axes) if varies), 4)
        return shape[first:] if self.seed % 2 else shape[4 - len(self.weights_shape) :]


@st.composite
def cases(draw: Any) -> Case:
    """Any of them, of sizes at which layouts merge axes and sizes at which they do not."""
    batch = draw(st.sampled_from([None, 1, 2, 3]))
    axes = st.tuples(*[st.booleans()] * 4)
    queries, keys = draw(st.integers(1, 24)), draw(st.sampled_from([1, 5, 7, 16, 33, 40, 64]))
    ndim = 3 if batch is None else 4
    length = st.sampled_from([None, None, "one", "each"])
    window = st.integers(0, 12)
    return Case(
        batch=batch,
        queries=queries,
        keys=keys,
        key_heads=draw(st.integers(1, 2)),
        groups=draw(st.integers(1, 3)),
        features=draw(st.integers(1, 4)),
        bias_axes=draw(st.none() | axes),
        mask_axes=draw(st.none() | axes),
        scale=draw(st.sampled_from([None, 0.0, 0.7, -1.5])),
        scale_is_traced=draw(st.booleans()),
        is_causal=draw(st.booleans()),
        query_lengths=draw(length),
        key_lengths=draw(length),
        window=draw(st.none() | window | st.tuples(window, window)),
        shared=tuple(draw(st.sets(st.integers(0, ndim - 1), max_size=2))),
        rate=draw(st.sampled_from([0.25, 0.3, 0.5, 0, 1])),
        rate_is_traced=draw(st.booleans()),
        query_block=draw(st.none() | st.integers(1, queries + 2)),
        key_block=draw(st.none() | st.integers(1, keys + 2) | st.just(32)),
        seed=draw(st.integers(0, 99)),
    )
