"""A whole training step of a small transformer: without dropout, with flax's, with ours.

Dropout falls on the attention weights, on the output of attention and on that
of the perceptron. Without it attention is `jax.nn.dot_product_attention`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from common.attention import attend, attend_flax, attend_plain
from common.measuring import NO_DROPOUT, describe
from common.peers import OURS, REFERENCE_PEER, make_drop
from common.results import Record
from common.training import time_steps
from jax import Array, lax

OUR_WEIGHTS = "jaxdrop, weights in memory"
_VOCABULARY = 1024


class Dropout(NamedTuple):
    """How a library drops: activations `(key, x)` and in attention `(key, q, k, v)`."""

    drop: Callable[..., Array]
    attend: Callable[..., Array]


@dataclass(frozen=True)
class Transformer:
    """A decoder by its sizes, and the batch that it sees."""

    blocks: int
    width: int
    heads: int
    length: int
    batch: int
    dtype: str
    rate: float

    def __str__(self) -> str:
        sizes = f"{self.blocks} blocks of {self.width}, {self.heads} heads, length {self.length}"
        return f"{sizes}, batch {self.batch}, {self.dtype}, Adam, rate {self.rate}"

    def init(self) -> dict[str, Array]:
        """Weights in float32, those of blocks stacked."""
        d, n = self.width, self.blocks
        shapes = {
            "embedding": (_VOCABULARY, d),
            "positions": (self.length, d),
            "qkv": (n, d, 3 * d),
            "out": (n, d, d),
            "up": (n, d, 4 * d),
            "up_bias": (n, 4 * d),
            "down": (n, 4 * d, d),
            "down_bias": (n, d),
        }
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return {
            name: 0.02 * jax.random.normal(key, shape)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def tokens(self) -> Array:
        """Random tokens, one more than the length."""
        return jax.random.randint(jax.random.key(1), (self.batch, self.length + 1), 0, _VOCABULARY)

    def dropouts(self) -> Mapping[str, Dropout]:
        """The ways to drop, by name."""

        def flax_attend(key: Array, *qkv: Array) -> Array:
            from flax import linen

            mask = linen.make_causal_mask(jnp.ones((self.batch, self.length)))
            options = {"mask": mask, "broadcast_dropout": False}
            return attend_flax(key, *qkv, rate=self.rate, **options)

        drop = make_drop(OURS, self.rate)
        in_tiles = partial(attend, rate=self.rate, is_causal=True)
        return {
            NO_DROPOUT: Dropout(lambda key, x: x, partial(attend_plain, is_causal=True)),
            REFERENCE_PEER: Dropout(make_drop(REFERENCE_PEER, self.rate), flax_attend),
            OURS: Dropout(drop, in_tiles),
            OUR_WEIGHTS: Dropout(drop, partial(_attend_in_memory, drop)),
        }

    def loss(self, dropout: Dropout, weights: dict[str, Array], key: Array, tokens: Array) -> Array:
        """Mean cross-entropy of the next token."""
        weights = jax.tree.map(lambda w: w.astype(self.dtype), weights)
        x = weights["embedding"][tokens[:, :-1]] + weights["positions"]
        names = ("qkv", "out", "up", "up_bias", "down", "down_bias")
        layers = {name: weights[name] for name in names}
        keys = jax.random.split(key, self.blocks)

        def block(x: Array, operands: Any) -> tuple[Array, None]:
            return self.block(*operands, dropout, x), None

        x, _ = lax.scan(block, x, (layers, keys))
        logits = (_normalized(x) @ weights["embedding"].T).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def block(self, layer: dict[str, Array], key: Array, dropout: Dropout, x: Array) -> Array:
        """Attention and a perceptron, each on a residual branch; `layer` has its weights."""
        keys = jax.random.split(key, 3)
        qkv = (_normalized(x) @ layer["qkv"]).reshape(*x.shape[:2], 3 * self.heads, -1)
        attended = dropout.attend(keys[0], *jnp.split(qkv, 3, axis=2)).reshape(x.shape)
        x = x + dropout.drop(keys[1], attended @ layer["out"])
        hidden = jax.nn.gelu(_normalized(x) @ layer["up"] + layer["up_bias"])
        return x + dropout.drop(keys[2], hidden @ layer["down"] + layer["down_bias"])


SMALL = Transformer(2, 128, 4, 256, 4, "float32", 0.1)
LARGE = Transformer(12, 1024, 16, 1024, 8, "bfloat16", 0.1)
QUICK = Transformer(2, 32, 2, 32, 2, "float32", 0.1)


def _normalized(x: Array) -> Array:
    """Mean 0 and variance 1 along the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * lax.rsqrt(wide.var(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def _attend_in_memory(drop: Callable[..., Array], key: Array, *qkv: Array) -> Array:
    """Attention that keeps all its weights, with our dropout on them."""
    query, key_rows, value = qkv
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key_rows, preferred_element_type=jnp.float32)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    logits = jnp.where(causal, scores / query.shape[-1] ** 0.5, -jnp.inf)
    weights = drop(key, jax.nn.softmax(logits).astype(value.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def compare_transformers(model: Transformer, names: Sequence[str], rounds: int) -> list[Record]:
    """Times and temporaries of a step with each dropout, over that without any and over ours."""
    dropouts = {name: model.dropouts()[name] for name in names}
    samples, programs = time_steps(model.loss, dropouts, model.init(), (model.tokens(),), rounds)
    records = describe(samples, programs, {"over_no_dropout": NO_DROPOUT, "over_jaxdrop": OURS})
    return [{"candidate": name, **record} for name, record in records.items()]
