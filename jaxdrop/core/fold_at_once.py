"""The form of a fold for GPUs: all pairs of digits in one kernel, as a reduction.

A digit r of the random number and the digit d of the threshold decide together. Where
they differ, all digits below are overruled: the element is kept if d is 1. Where they
are equal, the digits below decide. So the bits of two words say what some digits do to
32 elements: `decided`, and among those `kept`. Of two neighbouring runs of digits the
higher overrules:

  decided = decided of the lower | decided of the higher
  kept = (kept of the lower & ~decided of the higher) | kept of the higher

This is associative, with zeros as its neutral element. So the digits are reduced along
an axis of pairs, the lowest first. XLA compiles one Threefry block, where a fold that
is written out has one for each pair, and the loop over pairs runs inside of the kernel.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int32, UInt32, UInt64

from jaxdrop.base.compat import enable_x64, vary_as
from jaxdrop.core.words import Address, ThreefryKey, Words, at_most, draw_pair

_FUSED = 2**25  # words of all pairs; more, XLA stores in part in the form that it fuses faster
_HALF = np.uint64(32)  # of a pair of words that are packed into one


def fold_at_once(
    start: UInt32[Array, ""],
    digits: UInt32[Array, ""],
    key: ThreefryKey,
    address: Address,
    *,
    pairs: int,
    skips: bool,
    in_order: bool,
) -> Words:
    """Folds as `fold_words` does.

    Args:
      start: the result of a word without digits.
      digits: those of the threshold.
      key: what the words are drawn with.
      address: positions of the words.
      pairs: how many pairs there are.
      skips: whether the lowest pairs are not drawn if their digits are 0.
      in_order: whether the positions are 0, 1, 2, ... and the words lie on one device,
        or on several that XLA chooses.
    """
    shape = address.low.shape
    first, second, digits, start = _apart(*key, digits, start)
    place, address = _places(address, pairs, in_order)
    zero = _hidden_zero(_own_numbers(address.low, place, first))
    idle = idle_pairs(digits) if skips else None
    key, place, digits = (first, second ^ zero), place | zero, digits ^ zero
    # The number of pairs is a power of two, so this counts down. After a difference, LLVM
    # would take all sums of a block apart, which costs a quarter more instructions.
    pair = np.uint32(pairs - 1) ^ place
    upper, lower = draw_pair(key, address, pair)
    below = np.uint32(32 - 2 * pairs) + 2 * place  # digits that are lower than both
    higher = _compared(upper, digits, below + np.uint32(1))
    both = _overrule(_compared(lower, digits, below), higher)
    decided, kept = _reduce(*both, idle)
    return (kept | (start & ~decided)).reshape(shape)


def _apart(*scalars: UInt32[Array, ""]) -> tuple[UInt32[Array, ""], ...]:
    """The same scalars, of which XLA does not see that other sites have them too.

    Of sites that share an operand, XLA would fuse the words into one kernel. It would
    take time that grows with the square of the sites, and hold all masks at once.
    """
    # One array is one small kernel. It is selected, since XLA compiles a concatenation
    # for each site anew, and with a copy of what it takes to make the key for each part.
    numbers = lax.iota(jnp.uint32, len(scalars))
    site = jnp.broadcast_to(scalars[-1], numbers.shape)
    for i, scalar in enumerate(scalars[:-1]):
        site = jnp.where(numbers == np.uint32(i), scalar, site)
    site = lax.optimization_barrier(site)
    return tuple(site[i] for i in range(len(scalars)))


def _places(address: Address, pairs: int, in_order: bool) -> tuple[Words, Address]:
    """The number of a pair, the lowest first, and the address, with an axis of pairs in front."""
    shape = address.low.shape
    if not in_order:
        column = (pairs, *(1 for _ in shape))
        place = lax.broadcasted_iota(jnp.uint32, column, 0)
        return place, Address(*(half[None] if half.ndim else half for half in address))
    # Along one axis, a position is the number of the thread: it costs the kernel no
    # arithmetic, and XLA no time to fuse it.
    flat = (pairs, math.prod(shape))
    place, low = (lax.broadcasted_iota(jnp.uint32, flat, axis) for axis in (0, 1))
    return place, Address(address.high, low)


def _own_numbers(low: Words, place: Words, first: UInt32[Array, ""]) -> Words:
    """Numbers that each word of each pair and each site has for itself."""
    # XLA fuses the second form faster, but of large arrays it stores a part.
    size = math.prod(jnp.broadcast_shapes(low.shape, place.shape))
    return (low ^ first) + place if at_most(size, _FUSED) else (low + place) ^ first


def _hidden_zero(words: Words) -> Words:
    """Zeros, which XLA takes for numbers that each word and each site has for itself.

    What depends on them stays inside of the kernel. XLA would compute everything that is
    equal for all words, or for all sites, in small kernels before, and some of it would
    share large arrays between sites. LLVM sees the zeros, so they cost the kernel nothing.
    """
    half = np.uint32(16)
    return (words >> half) >> half


def _compared(word: Words, digits: Words, place: Words) -> tuple[Words, Words]:
    """What one digit decides, and what of it is kept; `place` counts from the lowest digit."""
    digit = np.uint32(0) - ((digits >> place) & np.uint32(1))  # spread over a word
    decided = word ^ digit
    return decided, decided & digit


def _overrule(lower: tuple[Words, Words], higher: tuple[Words, Words]) -> tuple[Words, Words]:
    return lower[0] | higher[0], (lower[1] & ~higher[0]) | higher[1]


def _reduce(decided: Words, kept: Words, idle: Int32[Array, ""] | None) -> tuple[Words, Words]:
    """What all digits decide and keep.

    Both words are packed into one of 64 bits. Of two arrays, XLA would write both to
    memory before it reduces them.
    """
    with enable_x64():
        packed = (decided.astype(jnp.uint64) << _HALF) | kept.astype(jnp.uint64)
        if idle is not None:
            packed = _without_lowest(packed, idle)
        packed = lax.reduce(packed, np.uint64(0), _overrule_packed, (0,))
        return (packed >> _HALF).astype(jnp.uint32), packed.astype(jnp.uint32)


def _overrule_packed(lower: UInt64[Array, ""], higher: UInt64[Array, ""]) -> UInt64[Array, ""]:
    # Shifted, `decided` of the higher lies over `kept`; the upper half is cleared nowhere.
    return (lower & ~(higher >> _HALF)) | higher


def _without_lowest(packed: UInt64[Array, "..."], idle: Int32[Array, ""]) -> UInt64[Array, "..."]:
    """The same without the lowest pairs, and with neutral ones behind the highest.

    A padded array is computed behind a branch: in the padding a kernel does nothing. So
    this saves the work of the pairs, where a `select` would compute both of its sides.
    """
    pairs = packed.shape[0]
    padding = [(0, pairs, 0), *((0, 0, 0) for _ in packed.shape[1:])]
    return lax.dynamic_slice_in_dim(lax.pad(packed, np.uint64(0), padding), idle, pairs)


@jax.custom_batching.custom_vmap
def idle_pairs(digits: UInt32[Array, ""]) -> Int32[Array, ""]:
    """How many of the lowest pairs of digits are 0, which decide nothing if nothing starts kept.

    For a batch of rates, which share a kernel or a loop, the answer is 0.
    """
    lowest = digits & (np.uint32(0) - digits)
    zeros = lax.population_count(lowest - np.uint32(1))  # 32 if no digit is set
    return (zeros >> np.uint32(1)).astype(jnp.int32)


@idle_pairs.def_vmap
def _idle_pairs_of_many(
    axis_size: int, in_batched: list[bool], digits: UInt32[Array, "..."]
) -> tuple[Int32[Array, ""], bool]:
    del axis_size, in_batched
    return vary_as(jnp.int32(0), digits), False
