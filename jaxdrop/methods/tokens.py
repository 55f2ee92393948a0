"""Methods for sequences: they leave out or replace whole tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Shaped

from jaxdrop.base.arguments import key_and_rate, key_unless, refuse_rate_first, refuse_swapped
from jaxdrop.base.axes import lies_inside
from jaxdrop.base.compat import debug_check, vary_as
from jaxdrop.base.sharding import laid_like, whole_along
from jaxdrop.base.types import Key, Rate
from jaxdrop.base.validate import Check
from jaxdrop.core.fixed_count import fixed_count_mask, nearest_count
from jaxdrop.core.layout import Layout
from jaxdrop.methods.masked import replace_with


def drop_tokens(
    key: Key | None,
    x: Shaped[ArrayLike, "*shape"],
    rate: float,
    *,
    axis: int = -2,
    prefix: int = 0,
) -> tuple[Shaped[Array, "*kept_shape"], Int[Array, "*batch kept"]]:
    """Keeps a random set of tokens of fixed size, in their order.

    Exactly k = round(n (1 - rate)) of the n tokens after the prefix are kept, and every
    set of k tokens is equally likely. The prefix is always kept. If k is 0 and there is
    no prefix, no token is left. Nothing is scaled. The sequence gets shorter, so later
    layers get cheaper. `restore_tokens` puts the tokens back.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      x: array of tokens, such as (batch, time, features).
      rate: share to drop, in [0, 1]. The shape of the result depends on it, so it must
        be known while tracing.
      axis: axis of the tokens; -1 for token ids. The axes before it are batches, and
        each example has a set of its own. The axes after it belong to the token.
      prefix: number of first tokens that are always kept, such as a class token.

    Returns:
      The kept tokens, and their positions: int32 of shape
      `x.shape[:axis] + (prefix + k,)`.

    Raises:
      TypeError: `x` is not an array, `key` is not one key, or `rate` is not a
        known number.
      ValueError: `rate` lies outside [0, 1], `axis` is out of range, or has a symbolic
        size of `jax.export`, or `prefix` is negative or longer than the sequence.

    Example:
      >>> x = jnp.arange(10.0).reshape(1, 10, 1)
      >>> tokens, positions = drop_tokens(jax.random.key(0), x, 0.5, prefix=1)
      >>> tokens.shape, bool(jnp.all(tokens[..., 0].astype(int) == positions))
      ((1, 5, 1), True)

    References:
      Liu et al., "PatchDropout: economizing vision transformers using patch
      dropout", arXiv:2208.07220 (2022).
      Li et al., "Scaling language-image pre-training via masking",
      arXiv:2212.00794 (2022).
    """
    check = Check("drop_tokens")
    refuse_swapped(check, key, x, "x")
    refuse_rate_first(check, x, rate, "x")
    x = check.any_array("x", x)
    rate = check.known_probability("rate", rate)
    key = key_unless(check, key, idle=rate in (0, 1))
    axis = check.axis("axis", axis, x.ndim)
    if is_symbolic_dim(x.shape[axis]):
        raise ValueError(f"{check}: x must have a known number of tokens; got {x.shape}.")
    prefix = check.whole_number("prefix", prefix, least=0)
    if prefix > x.shape[axis]:
        raise ValueError(
            f"{check}: prefix must be at most the {x.shape[axis]} tokens; got {prefix}."
        )
    count = nearest_count((x.shape[axis] - prefix) * (1 - rate))
    if count == x.shape[axis] - prefix:
        positions = jnp.arange(x.shape[axis], dtype=jnp.int32)
        return x, laid_like(jnp.broadcast_to(positions, x.shape[: axis + 1]), x, axis)
    return _drop_tokens(key, x, count, axis, prefix)


def restore_tokens(
    tokens: Shaped[ArrayLike, "*kept_shape"],
    positions: Int[ArrayLike, "*batch kept"],
    length: int,
    *,
    fill: Any = 0,
) -> Shaped[Array, "*shape"]:
    """Puts tokens back to their positions, and a fill value everywhere else.

    This is the inverse of `drop_tokens`. Masked autoencoders use it: they decode a
    sequence in which a learned token stands for each dropped one.

    Args:
      tokens: the tokens that `drop_tokens` returned, or what was computed from them.
        Their axes after those of `positions` may have changed.
      positions: the positions that `drop_tokens` returned. They lie in [0, length) and
        are all different within a sequence. A token whose position lies outside is lost;
        only `checkify` reports this. Of several tokens at one position, one is left.
      length: number of tokens before `drop_tokens`.
      fill: what stands for a dropped token: a number, or an array that
        broadcasts to the result, such as one learned token.

    Returns:
      An array like `tokens`, but with `length` tokens.

    Raises:
      TypeError: `tokens` is no array, `positions` are not integers, or `fill`
        is of a wider kind than `tokens`, such as a float for integers.
      ValueError: the shapes do not fit, or `length` is too short.

    Example:
      >>> x = jnp.arange(1.0, 7.0).reshape(6, 1)
      >>> tokens, positions = drop_tokens(jax.random.key(0), x, 0.5)
      >>> y = restore_tokens(tokens, positions, 6)
      >>> bool(jnp.all((y == x) | (y == 0))), int((y == 0).sum())
      (True, 3)

    References:
      He et al., "Masked autoencoders are scalable vision learners",
      arXiv:2111.06377 (2021).
    """
    check = Check("restore_tokens")
    tokens = check.any_array("tokens", tokens)
    positions = check.integer_array("positions", positions)
    if positions.ndim == 0 or positions.shape != tokens.shape[: positions.ndim]:
        raise ValueError(
            f"{check}: positions must have the first axes of tokens; got"
            f" {positions.shape} for {tokens.shape}."
        )
    kept = positions.shape[-1]
    length = check.whole_number("length", length, least=kept)
    shape = (*positions.shape[:-1], length, *tokens.shape[positions.ndim :])
    result = jax.ShapeDtypeStruct(shape, tokens.dtype)
    fill = check.like("fill", fill, result, "the result")
    return _restore(tokens, positions, fill)


def replace_tokens(
    key: Key | None,
    ids: Shaped[ArrayLike, "*shape"],
    rate: Rate,
    *,
    replacement: Any,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Shaped[Array, "*shape"]:
    """Replaces each token by another one with probability `rate`: word dropout.

    Nothing is scaled. Each token that `where` allows is replaced independently.

    Args:
      key: one random key, consumed here; None will do at a known rate of 0 or 1.
      ids: array of token ids, or of any numbers.
      rate: probability of replacing, in [0, 1]; may be traced. If a traced rate is out
        of range, floats become NaN and integers become the integer farthest from 0.
      replacement: the id of the unknown or mask token, or an array that
        broadcasts to `ids`, such as random ids.
      where: booleans that broadcast to `ids`; False where a token must stay,
        such as padding. None for everywhere.

    Returns:
      An array with the shape and dtype of `ids`.

    Raises:
      TypeError: `ids` is not an array, `replacement` is of a wider kind, such as a
        float for integers, `where` is not boolean, `key` is not one key, or `rate` is
        not a number.
      ValueError: a known `rate` lies outside [0, 1], or `replacement` or
        `where` does not broadcast to `ids`.

    Example:
      >>> ids = jnp.array([5, 6, 7, 0, 0])
      >>> replace_tokens(jax.random.key(0), ids, 1.0, replacement=1, where=ids != 0)
      Array([1, 1, 1, 0, 0], dtype=int32)

    References:
      Bowman et al., "Generating sentences from a continuous space",
      arXiv:1511.06349 (2015).
    """
    check = Check("replace_tokens")
    key, rate = key_and_rate(check, key, ids, rate, name="ids")
    ids = check.any_array("ids", ids)
    other = check.like("replacement", replacement, ids, "ids")
    if where is not None:
        where = check.flags("where", where, ids, "ids")
        other = jnp.where(where, other, ids)
    return replace_with(key, ids, other, rate)


@partial(jax.jit, static_argnames=("count", "axis", "prefix"))
def _drop_tokens(
    key: Key, x: Array, count: int, axis: int, prefix: int
) -> tuple[Array, Int[Array, "..."]]:
    layout = Layout((*x.shape[:axis], x.shape[axis] - prefix))
    mask = fixed_count_mask(key, count, layout, (axis,))
    keep = layout.unpack(mask.words)
    # Kept tokens get the places 0, 1, ... in their order. Dropped tokens get the place
    # `count`, the first that is left out. The inverse says which token is at each place.
    places = jnp.where(keep, jnp.cumsum(keep, -1, jnp.int32) - 1, count)
    chosen = _for_batches(partial(_inverse, size=count), axis)(places)
    first = jnp.broadcast_to(jnp.arange(prefix, dtype=jnp.int32), (*x.shape[:axis], prefix))
    positions = laid_like(jnp.concatenate([first, chosen + prefix], axis=-1), x, axis)
    take = _for_batches(lambda x, positions: x[positions], axis)
    # JAX gives what is taken at no positions the sharding of no array.
    return laid_like(take(whole_along(x, axis), positions), x, axis), positions


@jax.jit
def _restore(tokens: Array, positions: Int[Array, "..."], fill: Array) -> Array:
    length = fill.shape[positions.ndim - 1]
    inside = lies_inside(positions, length)
    debug_check(jnp.all(inside), f"positions must lie in [0, {length})")
    # Left as it is, -2 would be counted from the end.
    positions = jnp.where(inside, positions.astype(jnp.int32), length)
    axis, kept = positions.ndim - 1, positions.shape[-1]
    fill = laid_like(fill, tokens, axis)
    if kept == 0:  # the gather below needs at least one token
        return vary_as(fill, (tokens, positions))

    # The choice keeps a number per token for the gradient, and not a boolean per element.
    @partial(jax.checkpoint, prevent_cse=False)
    def choose(source: Array, token: Array, fill: Array) -> Array:
        there = (source < kept).reshape(length, *(1,) * (fill.ndim - 1))
        return jnp.where(there, token, fill)

    # A gather by the inverse of the positions. The usual way is a scatter of the
    # tokens, which would keep an array of the size of the result for the gradient.
    # `checkify.index_checks` takes no gather under `checkpoint`.
    def gather(source: Array, tokens: Array, fill: Array) -> Array:
        return choose(source, tokens[jnp.minimum(source, kept - 1)], fill)

    source = _for_batches(partial(_inverse, size=length), axis)(positions)
    tokens = whole_along(tokens, axis)
    return _for_batches(gather, axis)(source, tokens, fill)


def _inverse(places: Array, size: int) -> Array:
    """For each of `size` places, which entry of `places` names it, or `len(places)`.

    Entries may also name the place `size`, which is left out.
    """
    number = places.shape[0]
    # That place is there for a while, since `checkify.index_checks` refuses indices of
    # places that do not exist.
    unnamed = jnp.full(size + 1, number, jnp.int32)
    return unnamed.at[places].set(jnp.arange(number, dtype=jnp.int32))[:size]


def _for_batches(function: Callable[..., Array], axes: int) -> Callable[..., Array]:
    """The function, mapped over the given number of leading axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function
