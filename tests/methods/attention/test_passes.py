"""Any object of passes is an implementation, with derivatives in both directions."""

from dataclasses import dataclass
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from modes import enable_x64, make_key, quick_jit

from jaxdrop import dot_product_attention, dropout
from jaxdrop.methods.attention import dot_product
from jaxdrop.methods.attention.operands import Attended, Inputs
from jaxdrop.methods.attention.passes import Passes, attention_by
from jaxdrop.methods.attention.tiled import tiled_passes

whole = partial(dot_product_attention, implementation="whole")
mine = partial(dot_product_attention, implementation="mine")
SHAPE, WEIGHTS = (2, 5, 2, 3), (2, 2, 5, 5)
RATE = 0.5


@dataclass(frozen=True)
class Plain:
    """All weights at once, differentiated by JAX, with a mask that was drawn before."""

    keep: tuple[bool, ...]

    def forward(self, inputs, selection):
        logits = jnp.einsum("btnh,bsnh->bnts", inputs.query, inputs.key) * inputs.scale
        highest = lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
        log_total = jnp.log(jnp.sum(jnp.exp(logits - highest), -1, keepdims=True))
        weights = jnp.exp(logits - highest - log_total)
        kept = jnp.where(np.reshape(self.keep, WEIGHTS), weights, 0)
        out = jnp.einsum("bnts,bsnh->btnh", kept, inputs.value) * selection.factor(kept.dtype)
        by_group = (*WEIGHTS[:2], 1, WEIGHTS[2], 1)
        return Attended(out, highest.reshape(by_group), log_total.reshape(by_group))

    def along(self, residuals, tangents):
        inputs, selection, _ = residuals
        pairs = zip(inputs, tangents, strict=True)
        d = Inputs(*(x if x is None else jnp.zeros_like(x) if t is None else t for x, t in pairs))
        moved = jax.jvp(lambda inputs: self.forward(inputs, selection), (inputs,), (d,))[1]
        return moved.out, moved.log_total

    def back(self, asked, residuals, cotangents):
        inputs, selection, attended = residuals
        _, pull = jax.vjp(lambda inputs: self.forward(inputs, selection), inputs)
        cotangent = Attended(cotangents[0], jnp.zeros_like(attended.highest), cotangents[1])
        pairs = zip(pull(cotangent)[0], asked, strict=True)
        return Inputs(*(slope if wanted else None for slope, wanted in pairs))


@dataclass(frozen=True)
class Mixed:
    """The forward pass of one object with the derivatives of another."""

    first: Passes
    then: Passes

    def forward(self, *operands):
        return self.first.forward(*operands)

    def along(self, *operands):
        return self.then.along(*operands)

    def back(self, *operands):
        return self.then.back(*operands)


def drawn(arguments):
    with jax.ensure_compile_time_eval():
        keep = dropout(make_key("raw"), jnp.ones(WEIGHTS), RATE) != 0
    return Plain(tuple(np.asarray(keep).ravel().tolist()))


MINE = {
    "plain": drawn,
    "plain, then tiles": lambda arguments: Mixed(drawn(arguments), tiled_passes(arguments)),
    "tiles, then plain": lambda arguments: Mixed(tiled_passes(arguments), drawn(arguments)),
}


@pytest.fixture
def add(monkeypatch):
    """Adds an implementation as a new one would be, by a line in the table."""

    def line(passes_of):
        def attend(check, arguments):
            return attention_by(passes_of(arguments), arguments)

        monkeypatch.setitem(dot_product._IMPLEMENTATIONS, "mine", attend)

    return line


def arrays(count):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=SHAPE)) for _ in range(count)]


def loss(attend, *arrays):
    return jnp.sum(jnp.sin(attend(make_key("raw"), *arrays, RATE) + 1))


def derivatives(attend, *arrays):
    """Of first and second order, forwards and backwards."""
    at, direction, run = arrays[:3], arrays[3:], partial(loss, attend)
    slopes = jax.grad(run, (0, 1, 2))

    def steepness(*at):
        return sum(map(jnp.vdot, slopes(*at), direction))

    return (
        jax.jvp(run, at, direction),
        slopes(*at),
        jax.jvp(slopes, at, direction)[1],
        jax.grad(steepness, (0, 1, 2))(*at),
    )


@pytest.mark.parametrize("passes_of", MINE.values(), ids=MINE)
def test_any_passes_have_derivatives_of_both_orders_in_both_directions(passes_of, add):
    add(passes_of)
    with enable_x64():
        found = quick_jit(partial(derivatives, mine))(*arrays(6))
        expected = quick_jit(partial(derivatives, whole))(*arrays(6))
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.quick
def test_passes_are_told_what_is_asked_for(add):
    asked = []

    class Told(Plain):
        def back(self, wanted, residuals, cotangents):
            asked.append(wanted)
            return super().back(wanted, residuals, cotangents)

    add(lambda arguments: Told(drawn(arguments).keep))
    query, key, value = arrays(3)
    jax.grad(lambda value: loss(mine, query, key, value))(value)
    assert set(asked) == {Inputs(False, False, True, False, False)}


@pytest.mark.quick
def test_whole_is_differentiated_by_jax_alone():
    """Or the derivatives of passes would be compared with themselves."""

    def jaxpr(attend):
        return str(jax.make_jaxpr(jax.grad(partial(loss, attend)))(*arrays(3)))

    assert "jaxdrop_linear" in jaxpr(dot_product_attention)
    for own in ("jaxdrop_linear", "custom_jvp", "custom_vjp"):
        assert own not in jaxpr(whole)
