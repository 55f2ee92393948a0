"""Every method that drops, in one table: the laws of test_laws.py run over it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdrop
from jaxdrop import rescale

FLOATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
SELU_LIMIT = -1.7580993408473766
MATRICES = ((0,), (0, 3), (5, 1), (2, 3, 33))
IMAGES = ((0, 2, 3), (2, 0, 3), (1, 1, 1), (2, 3, 4, 33), (1, 2, 3, 2, 5))
LARGE = {1: (8192,), 2: (64, 128), 3: (16, 8, 64), 4: (16, 8, 8, 32)}


@dataclass(frozen=True)
class Method:
    """One way to drop: `(key, x, rate) -> y`, and what is true of it."""

    name: str
    run: Callable[..., jax.Array]
    shape: tuple[int, ...] = (6, 40)  # of the inputs that the laws are tried on
    small: tuple[int, ...] = (5,)  # the same, where Jacobians are taken
    odd_shapes: tuple[tuple[int, ...], ...] = ((), *MATRICES)
    linear: bool = True  # in x, for one key
    keeps_mean: bool = True  # E[y] = x
    broadcasts: bool = True  # takes `broadcast_dims`
    aggregates: bool = False  # sums over x enter the factor, so a NaN spreads
    at_dropped: Callable[[float], float | None] = lambda rate: 0.0  # None: nothing is
    at_zero: Callable[[jax.Array], jax.Array] = lambda x: x  # what rate 0 gives
    at_one: Callable[[jax.Array], bool] = lambda y: not y.any()  # what rate 1 leaves
    floats: tuple[str, ...] = FLOATS
    takes_complex: bool = True
    takes_traced_rate: bool = True
    rate_learns: bool = False  # is given by its logit, which has a gradient
    monotone: bool = True  # with one key, a higher rate only drops more
    keeps_words_alone: bool = True  # for the backward pass
    argument: str | None = "x"  # the name of x in errors; None if any dtype will do

    @property
    def large(self) -> tuple[int, ...]:
        """A shape that splits over devices."""
        return LARGE[len(self.shape)]

    def kept(self, y: jax.Array, rate: float) -> jax.Array:
        """True where nothing was dropped."""
        dropped = self.at_dropped(rate)
        if dropped is None:
            return jnp.ones(y.shape, bool)
        return ~jnp.isclose(y, dropped, rtol=1e-6, atol=0)

    def pattern(self, y: jax.Array, rate: float) -> np.ndarray:
        """What was dropped from ones; where nothing is dropped, the signs of the noise."""
        return np.asarray(y > 1 if self.at_dropped(rate) is None else self.kept(y, rate))


def pattern(method: Method, key: jax.Array, rate: float = 0.3) -> np.ndarray:
    """What one key drops from ones."""
    return method.pattern(method.run(key, jnp.ones(method.shape), rate), rate)


def cut(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """`cutout` has no rate: the edge of the square is half of the image."""
    del rate
    return jaxdrop.cutout(key, x, 2)


def draw_then_apply(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    rule = options.pop("rescale", rescale.expected)
    mask = jaxdrop.draw_mask(key, getattr(x, "shape", ()), rate, **options)
    return jaxdrop.apply_mask(mask, x, rescale=rule)


def alpha_at_dropped(rate: float) -> float:
    keep_prob = 1 - np.rint(rate * 2**16) / 2**16
    if keep_prob == 0:
        return 0.0
    a = (keep_prob * (1 + SELU_LIMIT**2 * (1 - keep_prob))) ** -0.5
    return a * SELU_LIMIT * keep_prob


def drop_then_restore_tokens(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    tokens, positions = jaxdrop.drop_tokens(key, x, rate)
    return jaxdrop.restore_tokens(tokens, positions, x.shape[-2])


def drop_key_then_softmax(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    return jax.nn.softmax(jaxdrop.drop_key(key, x, rate, **options))


def attend(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    """The dropped weights themselves: `x` are the logits, and the values an identity matrix."""
    if getattr(x, "ndim", 0) < 2:  # no weights
        return jaxdrop.dot_product_attention(key, x, x, x, rate)
    *batch, queries, keys = x.shape
    query, key_array = (jnp.zeros((*batch, n, 1, keys), x.dtype) for n in (queries, keys))
    value = jnp.broadcast_to(jnp.eye(keys, dtype=x.dtype)[:, None], key_array.shape)
    options["bias"] = jnp.expand_dims(x, -3)
    return jaxdrop.dot_product_attention(key, query, key_array, value, rate, **options)[..., 0, :]


def logit(rate: Any) -> jax.Array:
    return jax.scipy.special.logit(jnp.asarray(rate, jnp.float32))  # whatever x64 says


def concrete(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    """At temperature 1: the default of .1 makes ten times as much of how a program rounds."""
    return jaxdrop.concrete_dropout(key, x, logit(rate), temperature=1.0, **options)


def variational(key: jax.Array, x: jax.Array, rate: Any, **options: Any) -> jax.Array:
    return jaxdrop.variational_dropout(key, x, logit(rate), **options)  # ln alpha = ln(p / q)


def connect(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.drop_connect(key, {"kernel": x, "steps": 3}, rate)["kernel"]


def mix_with_zeros(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.mixout(key, [x], rate, target=[jnp.zeros_like(x)])[0]


def zone_out_to_zeros(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.zoneout(key, x, rate, old=0)


def drop_condition(key: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    return jaxdrop.drop_condition(key, {"text": x, "empty": None}, rate, null=0)["text"]


images = partial(
    Method, shape=(3, 4, 5, 8), small=(1, 2, 2, 2), odd_shapes=IMAGES, broadcasts=False
)
rows = partial(Method, odd_shapes=MATRICES, broadcasts=False)

METHODS = [
    Method("dropout", jaxdrop.dropout),
    Method("draw_mask+apply_mask", draw_then_apply),
    Method(
        "dropout+realized",
        partial(jaxdrop.dropout, rescale=rescale.realized()),
        keeps_mean=False,
        broadcasts=False,
    ),
    Method("dropout+none", partial(jaxdrop.dropout, rescale=rescale.none), keeps_mean=False),
    Method(
        "dropout+preserve_sum",
        partial(jaxdrop.dropout, rescale=rescale.preserve_sum()),
        linear=False,
        keeps_mean=False,
        broadcasts=False,
        aggregates=True,
        keeps_words_alone=False,
    ),
    Method(
        "dropout+preserve_norm",
        partial(jaxdrop.dropout, rescale=rescale.preserve_norm()),
        linear=False,
        keeps_mean=False,
        broadcasts=False,
        aggregates=True,
        keeps_words_alone=False,
    ),
    Method("gaussian_dropout", jaxdrop.gaussian_dropout, at_dropped=lambda rate: None),
    Method(
        "concrete_dropout",
        concrete,
        keeps_mean=False,
        at_dropped=lambda rate: None,  # small, not zero
        rate_learns=True,
    ),
    Method("variational_dropout", variational, at_dropped=lambda rate: None, rate_learns=True),
    Method(
        "alpha_dropout",
        jaxdrop.alpha_dropout,
        linear=False,
        keeps_mean=False,
        at_dropped=alpha_at_dropped,
        takes_complex=False,
    ),
    Method("fixed_count_dropout", jaxdrop.fixed_count_dropout),
    images("spatial_dropout", jaxdrop.spatial_dropout),
    images("drop_block", partial(jaxdrop.drop_block, block_size=2), keeps_mean=False),
    images(
        "drop_block of the paper",
        partial(jaxdrop.drop_block, block_size=(3, 1), exact=False, batch_axis=None),
        shape=(4, 5, 8),
        odd_shapes=((1, 2, 3), (3, 0, 4), (9, 1, 33)),
        small=(2, 2, 2),
        keeps_mean=False,
    ),
    rows("drop_path", jaxdrop.drop_path),
    Method("drop_path of a batch", partial(jaxdrop.drop_path, batch_axis=None), broadcasts=False),
    images(
        "drop_tokens+restore_tokens",
        drop_then_restore_tokens,
        shape=(3, 6, 4),
        small=(4, 2),
        odd_shapes=((0, 3), (0, 3, 2), (5, 1), (2, 3, 33)),
        keeps_mean=False,
        takes_traced_rate=False,
        argument=None,
    ),
    Method(
        "replace_tokens",
        partial(jaxdrop.replace_tokens, replacement=0),
        keeps_mean=False,
        broadcasts=False,
        argument=None,
    ),
    rows("drop_condition", drop_condition, keeps_mean=False, argument=None),
    Method("drop_connect", connect, broadcasts=False, argument=None),
    Method("mixout", mix_with_zeros, broadcasts=False, argument=None),
    rows("embedding_dropout", jaxdrop.embedding_dropout, argument="table"),
    rows("locked_dropout", partial(jaxdrop.locked_dropout, time_axis=0)),
    Method("zoneout", zone_out_to_zeros, keeps_mean=False, broadcasts=False, argument="new"),
    rows("drop_edges", jaxdrop.drop_edges, argument="weights"),
    rows("drop_nodes", jaxdrop.drop_nodes, small=(3, 2), odd_shapes=((0, 3), (5, 1), (2, 3, 33))),
    images("drop_heads", jaxdrop.drop_heads, shape=(3, 2, 4, 5), keeps_mean=False),
    Method(
        "drop_key+softmax",
        drop_key_then_softmax,
        odd_shapes=(*MATRICES, (3, 0)),
        linear=False,
        keeps_mean=False,
        at_zero=jax.nn.softmax,
        floats=("float32", "bfloat16", "float16", "float8_e5m2"),  # with an infinity
        at_one=lambda y: bool(((y == 1).sum(-1) == 1).all() and ((y == 0) | (y == 1)).all()),
        takes_complex=False,
        monotone=False,
        keeps_words_alone=False,
        argument="logits",
    ),
    rows(
        "dot_product_attention",
        attend,
        small=(2, 3),
        odd_shapes=((0, 3), (5, 1), (2, 3, 33), (3, 0)),
        linear=False,
        keeps_mean=False,
        at_zero=jax.nn.softmax,
        aggregates=True,
        takes_complex=False,
        keeps_words_alone=False,
        argument="query",
    ),
]

# What also has a golden mask, and is not `(key, x, rate) -> y`.
CUTOUT = images("cutout", cut, keeps_mean=False)
