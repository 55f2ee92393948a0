"""One step of the loops that compare random words with a threshold: the two digits of a pair."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array
from jaxtyping import UInt32

from jaxdrop.core.words import Address, ThreefryKey, Words, draw_pair


def fold_digits(
    kept: Words,
    digit: Callable[[UInt32[Array, ""]], Words],
    key: ThreefryKey,
    address: Address,
    pair: UInt32[Array, ""],
) -> Words:
    """One step of a fold. `digit` gives those of the threshold by place (0 is the highest), each
    spread over a word.
    """
    upper, lower = draw_pair(key, address, pair)
    kept = _majority(kept, ~lower, digit(2 * pair + np.uint32(1)))
    return _majority(kept, ~upper, digit(2 * pair))


@jax.jit  # so that all pairs share one jaxpr
def fold_pair(
    kept: Words,
    digits: UInt32[Array, ""],
    key: ThreefryKey,
    address: Address,
    pair: UInt32[Array, ""],
) -> Words:
    """One step of a fold with one threshold for all. Pairs are taken from the last to the first."""

    def digit(place: UInt32[Array, ""]) -> Words:
        bit = (digits >> (np.uint32(31) - place)) & np.uint32(1)
        return np.uint32(0) - bit  # 0 - 1 is a word of ones

    return fold_digits(kept, digit, key, address, pair)


def zeros_to_fold(key: ThreefryKey, address: Address) -> Words:
    """Zeros with the sharding and mesh axes of folded words, for the state of a loop.

    `zeros_like` does not give them on JAX 0.12. XLA removes what they are computed from.
    """
    return (address.low ^ address.low) | (key[0] ^ key[0]) | (key[1] ^ key[1])


def _majority(a: Words, b: Words, c: Words) -> Words:
    # Four operations; the usual form, the union of three intersections, has five.
    return (a & c) | (b & (a | c))
