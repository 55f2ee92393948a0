"""Random words: the first step of the data flow, and the only one that reads a key.

A word is 32 random bits with an address. Words come from Threefry-2x32-20 on counters
(x0, x1). Here x0 is the low half of the word's row-major position, and x1 is
2^31 + 16 * its high half + the number of its pair of digits. So any part of a mask can
be drawn by itself, on any device, in any order.

References:
  Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding
from jaxtyping import UInt32

from jaxdrop.base.compat import decided
from jaxdrop.base.types import Key, Size

ThreefryKey: TypeAlias = tuple[UInt32[Array, ""], UInt32[Array, ""]]
Words: TypeAlias = UInt32[Array, "..."]

# Both are from the paper. With the parity, the schedule of a key of zeros is not all zeros.
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))

# `jax.random` counts from 0. Here the highest bit of the counter is set. So no counter
# is used twice, even if a user breaks the rule and also draws from the same key.
_DOMAIN = 1 << 31
_PAIR_BITS = 4  # for 16 pairs of digits


class Address(NamedTuple):
    """64-bit positions of words, as their high and low halves."""

    high: Words
    low: Words


Fold: TypeAlias = Callable[[Address], Words]
"""Draws the words of a mask at their addresses, for some key and rate."""


def threefry_2x32(key: tuple[Words, Words], x0: Words, x1: Words) -> tuple[Words, Words]:
    """Encrypts the counters `(x0, x1)` with 20 rounds of Threefry-2x32, under one or many keys."""
    schedule = (*key, key[0] ^ key[1] ^ np.uint32(_PARITY))
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            rotated = (x1 << np.uint32(distance)) | (x1 >> np.uint32(32 - distance))
            x1 = rotated ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def threefry_key(key: Key) -> ThreefryKey:
    """Consumes `key` and returns a Threefry key made of its data.

    Two words of data are not changed. Data of other lengths (rbg and others) are hashed
    to two words. So all kinds of keys behave in the same way: they are independent
    under `vmap`, which rbg itself is not, and the same on every backend.
    """
    mark_consumed(key)
    return _two_words(key)


def as_threefry(key: Key) -> Key:
    """A typed Threefry key made of the data of `key`, which is not consumed."""
    return jax.random.wrap_key_data(jnp.stack(_two_words(key)), impl="threefry2x32")


def _two_words(key: Key) -> ThreefryKey:
    data = (jax.random.key_data(key) if _is_typed(key) else key).reshape(-1)
    words = [data[i] for i in range(data.size)]
    if len(words) == 2:
        return words[0], words[1]
    # Each pair of words is encrypted with the state before it as key. The first state
    # is the length, so data that differ only in zeros at the end give different keys.
    state = (jnp.uint32(len(words)), jnp.uint32(0))
    for i in range(0, len(words), 2):
        second = words[i + 1] if i + 1 < len(words) else jnp.uint32(0)
        state = threefry_2x32(state, words[i], second)
    return state


def mark_consumed(key: Key) -> None:
    """Makes the key reuse checker count a use of `key`.

    The checker does not count `key_data` and `fold_in`. The bits drawn here are never
    read, and `jit` removes them.
    """
    if _is_typed(key):
        jax.random.bits(key, (), jnp.uint32)


def fold_in_all(key: Key, numbers: UInt32[Array, "n"]) -> Array:
    """A key for each number, by `jax.random.fold_in`, which does not consume it."""

    def fold(number: Array) -> Key:
        return jax.random.fold_in(key, number)

    # Keys of other kinds, such as unsafe_rbg, may give different results under `vmap`.
    side_by_side = not _is_typed(key) or str(jax.random.key_impl(key)) == "threefry2x32"
    return jax.vmap(fold)(numbers) if side_by_side else lax.map(fold, numbers)


def unconsumed(keys: Array) -> Array:
    """The same key or keys, for one more use that the key reuse checker allows."""
    return jax.random.clone(keys) if _is_typed(keys) else keys


def _is_typed(keys: Array) -> bool:
    return jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)


def grid_address(shape: Sequence[Size], sharding: NamedSharding | None = None) -> Address:
    """Row-major positions in an array of `shape`, sharded as asked."""
    iotas = [
        lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)
        for axis in range(len(shape))
    ]
    return flat_address(iotas, shape)


def flat_address(indices: Sequence[Words], shape: Sequence[Size]) -> Address:
    """Row-major 64-bit positions of the given indices in an array of `shape`."""
    zero = jnp.uint32(0)
    if not indices:
        return Address(zero, zero)
    if at_most(math.prod(shape), 2**32):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        # The low half suffices. A stride of 2^32 or more belongs to an axis of size 1 (index
        # 0), or to an empty array.
        pairs = zip(indices, strides, strict=True)
        terms = [i * as_word(s) for i, s in pairs if decided(lambda s=s: s < 2**32) is not False]
        return Address(zero, sum(terms[1:], terms[0]))
    high = low = zero
    for axis, index in enumerate(indices):
        term = _multiply(index, _stride(shape[axis + 1 :]))
        total = low + term.low  # if the sum is below a term, it has wrapped: carry 1
        high = high + term.high + (total < low).astype(jnp.uint32)
        low = total
    return Address(high, low)


def at_most(size: Size, bound: int) -> bool:
    """Whether a size is known to be at most a bound; symbolic sizes may not be."""
    return decided(lambda: size <= bound) is True


def as_word(size: Size) -> Words | np.uint32:
    """A size below 2^32 as a word. A symbolic one has its value when the program runs."""
    return np.uint32(size) if isinstance(size, int) else jnp.asarray(size).astype(jnp.uint32)


def _stride(sizes: Sequence[Size]) -> tuple[Words | np.uint32, Words | np.uint32]:
    """The high and the low half of a product of sizes."""
    known = math.prod(size for size in sizes if isinstance(size, int))
    high, low = np.uint32(known >> 32), np.uint32(known & 0xFFFFFFFF)
    for size in sizes:
        if not isinstance(size, int):
            factor = as_word(size)
            carry, low = _product(jnp.asarray(low), factor)
            high = high * factor + carry
    return high, low


def _multiply(index: Words, stride: tuple[Words | np.uint32, Words | np.uint32]) -> Address:
    """`index * stride` in 64 bits."""
    high, low = _product(index, stride[1])
    return Address(high + index * stride[0], low)


def _product(a: Words, b: Words | np.uint32) -> Address:
    """`a * b` in 64 bits, by limbs of 16."""
    # (2^16 - 1)^2 + 2^16 - 1 < 2^32: no sum on the way overflows.
    half, mask = np.uint32(16), np.uint32(0xFFFF)
    a1, a0, b1, b0 = a >> half, a & mask, b >> half, b & mask
    middle = a1 * b0 + ((a0 * b0) >> half)
    upper = a0 * b1 + (middle & mask)
    return Address(a1 * b1 + (middle >> half) + (upper >> half), a * b)


def below(words: Words, bound: Words | np.uint32) -> Words:
    """Uniform integers in [0, bound), to within 2^-32, from one word each."""
    # floor(word * bound / 2^32) needs no division and no rejection of words.
    return _product(words, bound).high


def draw_words(key: Key, shape: tuple[Size, ...]) -> Words:
    """Consumes `key` and returns one word for each element of an array of `shape`."""
    words, _ = draw_pair(threefry_key(key), grid_address(shape), jnp.uint32(0))
    return jnp.broadcast_to(words, shape)


def draw_pair(
    key: tuple[Words, Words], address: Address, pair: Words | np.uint32
) -> tuple[Words, Words]:
    """The words of digits `2 * pair + 1` and `2 * pair + 2` after the binary point."""
    tagged = np.uint32(_DOMAIN) | (address.high << np.uint32(_PAIR_BITS)) | pair
    return threefry_2x32(key, address.low, tagged)
