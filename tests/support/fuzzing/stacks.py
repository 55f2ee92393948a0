"""Transforms that stack: each takes a program and its reference to a program and its reference.

A program takes one dictionary: `key`, `x`, `t` (an array like `x`, to differentiate
along or against), `flag` (for `cond`), and `rate` if it is traced. Transforms with a
size add an axis in front of `x`, `t` and `flag`, and of `key` and `rate` if each item
has its own.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

DEVICES = (2, 4, 8)
DERIVATIVES = ("grad", "vjp", "jvp")
BATCHED = ("vmap", "scan", "while_loop", "shard_map")
DERIVED = ("split in scan", "fold in shard_map")  # make the items' keys of one
KINDS = (
    "jit",
    "vmap",
    "grad",
    "scan",
    "jvp",
    "checkpoint",
    "shard_map",
    "cond",
    "vjp",
    "while_loop",
    "split in scan",
    "fold in shard_map",
)


@dataclass(frozen=True)
class Transform:
    kind: str
    size: int = 0  # of the axis that it adds; 0 for none
    each_key: bool = False
    each_rate: bool = False
    after: str = "value"  # what the program gives that it is applied to

    @property
    def gives(self):
        """A value, or its derivative along or against `t`; those are linear in `t` again."""
        if self.kind == "jvp":
            return "tangent" if self.after == "value" else self.after
        if self.kind in DERIVATIVES:
            return "tangent" if self.after == "cotangent" else "cotangent"
        return self.after

    def program(self, run):
        return _PROGRAMS[self.kind](self, run)

    def reference(self, compute):
        """`compute(key, x, t, rate, flag)` gives a value and a bound; so does this."""
        if self.kind == "cond":
            return _negated_unless_flagged(compute)
        if not self.size:
            return compute

        def each(key, x, t, rate, flag):
            keys = self.keys(key)
            rates = rate if self.each_rate else [rate] * self.size
            items = zip(keys, x, t, rates, flag, strict=True)
            values, bounds = zip(*[compute(*item) for item in items], strict=True)
            return np.stack(values), np.stack(bounds)

        return each

    def keys(self, key):
        """The key of each item."""
        if self.kind == "split in scan":
            keys = []
            for _ in range(self.size):
                key, this = key.split(2)
                keys.append(this)
            return keys
        if self.kind == "fold in shard_map":
            return [key.fold_in(i) for i in range(self.size)]
        return key if self.each_key else [key] * self.size

    def moving(self, arguments):
        """The arguments that have an axis for the items, and the others."""
        fixed = {"key": self.each_key, "rate": self.each_rate}
        moving = {name: a for name, a in arguments.items() if fixed.get(name, True)}
        return moving, {name: a for name, a in arguments.items() if name not in moving}


def _negated_unless_flagged(compute):
    def either(key, x, t, rate, flag):
        value, bound = compute(key, x, t, rate, flag)
        return (value if np.ravel(flag)[0] else -value), bound

    return either


def _cond(self, run):
    def either(a):
        data, key_of = _opened(a.pop("key"))

        def branch(a, data):
            return run({**a, "key": key_of(data)})

        return lax.cond(jnp.ravel(a["flag"])[0], branch, lambda *a: -branch(*a), a, data)

    return lambda a: either(dict(a))


def _opened(key):
    """The data of a key, and how to make it a key again.

    Under `vmap` a `cond` selects its operands for each branch, in which the key reuse
    checker sees keys that are used twice.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key, lambda data: data
    impl = jax.random.key_impl(key)
    return jax.random.key_data(key), lambda data: jax.random.wrap_key_data(data, impl=impl)


def _differentiated(self, run):
    """The derivative by `x`, or of a derivative by what it is linear in."""
    name = "x" if self.after == "value" else "t"

    def derivative(a):
        def of(moved):
            return run({**a, name: moved})

        if self.kind == "jvp":
            return jax.jvp(of, (a[name],), (a["t"],))[1]
        if self.kind == "grad":
            return jax.grad(lambda moved: jnp.sum(of(moved) * a["t"]))(a[name])
        return jax.vjp(of, a[name])[1](a["t"])[0]

    return derivative


def _vmap(self, run):
    def batched(a):
        moving, _ = self.moving(a)
        return jax.vmap(run, in_axes=({name: 0 if name in moving else None for name in a},))(a)

    return batched


def _again(a):
    """The key reuse checker takes what is used in each step of a loop for used twice."""
    if jnp.issubdtype(a["key"].dtype, jax.dtypes.prng_key):
        return {**a, "key": jax.random.clone(a["key"])}
    return a


def _scan(self, run):
    def scanned(a):
        moving, fixed = self.moving(a)
        return lax.scan(lambda c, item: (c, run(_again({**fixed, **item}))), None, moving)[1]

    return scanned


def _split_in_scan(self, run):
    def step(carry, item):
        key, fixed = carry
        key, this = jax.random.split(key)
        return (key, fixed), run({**fixed, **item, "key": this})

    def scanned(a):
        moving, fixed = self.moving(a)
        return lax.scan(step, (fixed.pop("key"), fixed), moving)[1]

    return scanned


def _while_loop(self, run):
    def looped(a):
        moving, fixed = self.moving(a)

        def item(i):
            return _again({**fixed, **{name: values[i] for name, values in moving.items()}})

        def step(state):
            i, done = state
            return i + 1, lax.dynamic_update_index_in_dim(done, run(item(i)), i, 0)

        start = jnp.int32(0), a["t"]  # of the result's shape and dtype, and all overwritten
        return lax.while_loop(lambda state: state[0] < self.size, step, start)[1]

    return looped


def _shard_map(self, run, fold=False):
    def spread(a):
        moving, _ = self.moving(a)

        def local(a):
            a = {name: value[0] if name in moving else value for name, value in a.items()}
            if fold:
                a["key"] = jax.random.fold_in(a["key"], lax.axis_index("device"))
            return run(a)[None]

        mesh = Mesh(np.array(jax.devices()[: self.size]), ("device",))
        specs = {name: P("device") if name in moving else P() for name in a}
        return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=P("device"))(a)

    return spread


_PROGRAMS = {
    "jit": lambda self, run: jax.jit(run),
    "checkpoint": lambda self, run: jax.checkpoint(run),
    "cond": _cond,
    **dict.fromkeys(DERIVATIVES, _differentiated),
    "vmap": _vmap,
    "scan": _scan,
    "split in scan": _split_in_scan,
    "while_loop": _while_loop,
    "shard_map": _shard_map,
    "fold in shard_map": lambda self, run: _shard_map(self, run, fold=True),
}


@st.composite
def stacks(draw, first, key_is_threefry, traced_rate, real):
    """Two or three transforms, the innermost first; the simplest is number `first`."""
    stack, order = [], KINDS[first:] + KINDS[:first]
    for _ in range(draw(st.integers(2, 3))):
        used = {transform.kind for transform in stack}
        kinds = [kind for kind in order if _fits(kind, stack, used, key_is_threefry, real)]
        kind = draw(st.sampled_from(kinds))
        after = stack[-1].gives if stack else "value"
        stack.append(_sized(draw, kind, after, traced_rate))
    return tuple(stack)


def _fits(kind, stack, used, key_is_threefry, real):
    if "shard_map" in kind and any("shard_map" in other for other in used):
        return False
    if kind in ("grad", "vjp") and "while_loop" in used:
        return False  # JAX has no reverse mode for it
    if kind == "grad" and not real:
        return False
    if kind in DERIVED:
        return key_is_threefry and not any(other.each_key for other in stack)
    return True


def _sized(draw, kind, after, traced_rate):
    if kind not in BATCHED + DERIVED:
        return Transform(kind, after=after)
    size = draw(st.sampled_from(DEVICES if "shard_map" in kind else (2, 3, 1)))
    own_key = kind in BATCHED and draw(st.sampled_from([True, False]))
    own_rate = traced_rate and draw(st.sampled_from([True, False]))
    return Transform(kind, size, own_key, own_rate, after)


def sizes_of(stack, holds=lambda transform: True):
    """The axes in front, the outermost first."""
    return tuple(each.size for each in reversed(stack) if each.size and holds(each))
