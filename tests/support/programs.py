"""Programs with sites, each also as the straight line of Python that it means.

All arithmetic is on small integers, so that results are exact whatever XLA
fuses, and equal bit for bit or wrong.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxdrop

drop = partial(jaxdrop.dropout, rate=0.5)
RULES = {"s": drop}
X = jnp.array([1.0, 2.0, -1.0, 3.0, -2.0, 1.0])
WEIGHTS = jnp.array([1.0, 2.0, 1.0, -1.0, 2.0, -2.0])
ROWS = jnp.arange(18.0).reshape(3, 6) % 5


def new_key():
    return jax.random.key(7)


class ByHand:
    """What `site` does when planted: `drop` with the documented keys."""

    def __init__(self, key, drop=drop):
        self.key = key
        self.drop = drop
        self.runs = {}

    def __call__(self, x, name="s"):
        run = self.runs.get(name, 0)
        self.runs[name] = run + 1
        return self.drop(jaxdrop.site_key(self.key, name, run), x)


mark_site = partial(jaxdrop.site, name="s")


def block(x, mark=mark_site):
    return mark(x * WEIGHTS + 1)


def cell(carry, x):
    carry = block(carry + x)
    return carry, carry * x


@jax.custom_jvp
def jvp_block(x):
    return block(x)


jvp_block.defjvp(lambda primals, tangents: jax.jvp(block, primals, tangents))


@jax.custom_vjp
def vjp_block(x):
    return block(x)


def _vjp_forward(x):
    y, pull = jax.vjp(block, x)
    return y, pull


vjp_block.defvjp(_vjp_forward, lambda pull, y_bar: pull(y_bar))


class Program(NamedTuple):
    """A function of one array with sites, and the same without any control flow of JAX."""

    planted: object
    straight: object


def _cell_by_hand(carry, x, mark):
    carry = block(carry + x, mark)
    return carry, carry * x


def _scan_by_hand(x, mark, rows=ROWS):
    ys = []
    for row in rows:
        x, y = _cell_by_hand(x, row, mark)
        ys.append(y)
    return x, jnp.stack(ys)


def _reversed_by_hand(x, mark):
    carry, ys = _scan_by_hand(x, mark, ROWS[::-1])
    return carry, ys[::-1]


def nested(x):
    def outer(carry, _):
        carry = lax.scan(lambda c, _: (block(c), None), block(carry), length=2)[0]
        return block(carry), None

    return lax.scan(outer, x, length=2)[0]


def _times(count):
    def repeat(x, mark):
        for _ in range(count):
            x = block(x, mark)
        return x

    return repeat


def _repeated_jit(x):
    inner = jax.jit(block)
    return inner(inner(inner(x)))


def _reused(x):
    return lax.scan(lambda c, _: (block(c), None), block(x), length=2)[0]


def _branches(x):
    x = lax.cond(x.sum() > -1e9, block, lambda x: block(block(x)), x)
    return block(x)


def _branches_by_hand(x, mark):
    x = block(x, mark)
    mark.runs["s"] = 2  # as many as the longer branch
    return block(x, mark)


def _switch(x):
    return block(lax.switch(1, [jnp.negative, lambda x: block(block(x)), block], x))


REMAT = jax.checkpoint_policies

PROGRAMS = {
    "plain": Program(lambda x: block(block(x)), _times(2)),
    "jit": Program(lambda x: jax.jit(lambda x: block(block(x)))(block(x)), _times(3)),
    "repeated jit": Program(_repeated_jit, _times(3)),
    "scan": Program(lambda x: lax.scan(cell, x, ROWS), _scan_by_hand),
    "scan, reversed": Program(lambda x: lax.scan(cell, x, ROWS, reverse=True), _reversed_by_hand),
    "scan, unrolled": Program(lambda x: lax.scan(cell, x, ROWS, unroll=3), _scan_by_hand),
    "scan in scan": Program(nested, _times(8)),
    "scan of jit": Program(lambda x: lax.scan(jax.jit(cell), x, ROWS), _scan_by_hand),
    "scan of checkpoint": Program(lambda x: lax.scan(jax.checkpoint(cell), x, ROWS), _scan_by_hand),
    "map": Program(
        lambda x: lax.map(block, ROWS * 2),
        lambda x, mark: jnp.stack([block(row, mark) for row in ROWS * 2]),
    ),
    "fori_loop": Program(lambda x: lax.fori_loop(0, 3, lambda _, x: block(x), x), _times(3)),
    "cond": Program(_branches, _branches_by_hand),
    "switch": Program(_switch, _times(3)),
    "checkpoint": Program(lambda x: block(jax.checkpoint(_reused)(x)), _times(4)),
    "checkpoint, all saved": Program(
        lambda x: jax.checkpoint(lambda x: block(block(x)), policy=REMAT.everything_saveable)(x),
        _times(2),
    ),
    "checkpoint, dots saved": Program(
        lambda x: jax.checkpoint(
            lambda x: block(block(x)), policy=REMAT.dots_saveable, prevent_cse=False
        )(x),
        _times(2),
    ),
    "custom_jvp": Program(lambda x: block(jvp_block(jvp_block(x))), _times(3)),
    "custom_vjp": Program(lambda x: block(vjp_block(vjp_block(x))), _times(3)),
}
NAMES = list(PROGRAMS)


def loss(outputs):
    """One number that is quadratic in all outputs."""
    return sum((y * y).sum() for y in jax.tree.leaves(outputs))
