"""An LSTM in haiku with variational dropout: one mask for all steps of a sequence."""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from jaxdrop import locked_dropout
from jaxdrop.frameworks.haiku import Drop


# With haiku alone.
def haiku_lstm(xs, is_training):
    lstm = hk.LSTM(32)
    if is_training:
        xs *= hk.dropout(hk.next_rng_key(), 0.2, jnp.ones_like(xs[:1]))
    ys, _ = hk.dynamic_unroll(lstm, xs, lstm.initial_state(xs.shape[1]))
    if is_training:
        ys *= hk.dropout(hk.next_rng_key(), 0.2, jnp.ones_like(ys[:1]))
    return hk.Linear(1)(ys)


# With jaxdrop.
def lstm(xs, is_training):
    lstm = hk.LSTM(32)
    drop = Drop(partial(locked_dropout, rate=0.2, time_axis=0))
    ys, _ = hk.dynamic_unroll(lstm, drop(xs, is_training), lstm.initial_state(xs.shape[1]))
    return hk.Linear(1)(drop(ys, is_training))


# Both, trained to add up what was seen.
def train(net: hk.transform) -> tuple[float, float]:
    """The loss at test time, before and after."""
    xs = jax.random.normal(jax.random.key(0), (12, 64, 4))
    model = hk.transform(net)
    params = jax.jit(model.init, static_argnums=2)(jax.random.key(1), xs, False)
    optimizer = optax.adam(1e-2)

    def loss(params, key=None):
        ys = model.apply(params, key, xs, key is not None)
        return jnp.mean((ys - jnp.cumsum(xs.mean(-1, keepdims=True), 0)) ** 2)

    @jax.jit
    def step(state, key):
        params, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(params, key), memory)
        return (optax.apply_updates(params, updates), memory), None

    keys = jax.random.split(jax.random.key(2), 100)
    (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    score = jax.jit(loss)
    return float(score(params)), float(score(trained))


PROGRAMS = {"haiku": lambda: train(haiku_lstm), "jaxdrop": lambda: train(lstm)}
