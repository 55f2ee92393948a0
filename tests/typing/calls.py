"""What a type checker must accept and what it must refuse. It is only read, by pyright."""

# pyright: standard, reportUnnecessaryTypeIgnoreComment=error

from functools import partial
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxdrop
from jaxdrop import Drop, Key, Moments, Rate, Rule, dropout, match, plant

key: Key = jax.random.key(0)
x = jnp.ones(3)
rate: Rate = np.float32(0.5)


def model(w: Array, *, scale: float) -> Array:
    return w * scale


def noisy(key: Key, w: Array, scale: float) -> Array:
    return dropout(key, w, 0.5) * scale


# Rules that are written down first, and drops of all kinds.
drop: Drop = partial(dropout, rate=0.5)
rules = {"h": drop}
planted = plant(model, rules)
assert_type(planted(key, x, scale=2.0), Array)
plant(model, {"h": Rule(drop, share_runs=True), "g": drop})(key, x, scale=2.0)
plant(model, {match.jit("f"): drop})
plant(model, [("h", drop), (match.jit("f"), Rule(drop))])
plant(model, {"h": Rule(dropout, rate=(0.0, 0.2)), "g": None})
plant(model, {"h": Rule(dropout, rate=lambda run, runs: 0.1 * run / runs)})
plant(model, {match.jit("f") & ~match.within(match.function("g")): drop})

# NumPy arrays and Python numbers are arrays here too.
p, labels = np.ones((3, 2)), np.ones(3, int)
jaxdrop.uncertainty.classification(p[None])
jaxdrop.uncertainty.regression(p, p)
jaxdrop.uncertainty.predictive_log_likelihood(p[0], p, 0.1)
jaxdrop.uncertainty.brier_score(p, labels)
jaxdrop.uncertainty.expected_calibration_error(p, labels, bins=5)
jaxdrop.uncertainty.classwise_calibration_error(p, labels, adaptive=True)
jaxdrop.uncertainty.crps_normal(p[0], 0.0, p[0])
jaxdrop.uncertainty.crps_ensemble(p[0], p, estimator="plain")
jaxdrop.uncertainty.interval_score(p[0], p[0], 1.0, alpha=0.1)
jaxdrop.uncertainty.probability_integral_transform(p[0], p)
jaxdrop.symmetric_kl(p, p)
jaxdrop.checks.assert_keep_rate(drop, key, p, 0.5)
jaxdrop.checks.assert_same_under_jit(drop, key, p)

# Transforms keep the arguments and the results.
assert_type(jaxdrop.monte_carlo(noisy, 3)(key, x, scale=2.0), Array)
assert_type(jaxdrop.monte_carlo_moments(noisy, 3)(key, x, 2.0), Moments)
assert_type(jaxdrop.multi_sample(noisy, 3)(key, x, 2.0), Array)
assert_type(jaxdrop.two_views(noisy)(key, x, 2.0), tuple[Array, Array])
assert_type(jaxdrop.chain(drop, jaxdrop.per_sample(drop))(key, x), Array)

# Arrays of NumPy, numbers, and no key where nothing is drawn.
assert_type(dropout(key, np.ones(3), rate), Array)
dropout(key, 1.0, jnp.float32(0.5))
dropout(None, x, 0.0)
jaxdrop.draw_mask(key, 3, np.array([0.1, 0.2, 0.3]))
jaxdrop.Mask.pack(np.ones(3, bool), np.full(3, 0.5))
mask = jaxdrop.draw_mask(key, 3, 0.5)
assert_type(~mask & mask, jaxdrop.Mask)

# What is wrong. Each line needs its `ignore`, or the checker would say so.
planted(x, scale=2.0)  # pyright: ignore[reportCallIssue]
planted(key, x, scale="2")  # pyright: ignore[reportArgumentType]
planted(key, x)  # pyright: ignore[reportCallIssue]
plant(model, {"h": 0.5})  # pyright: ignore[reportArgumentType]
plant(model, {3: drop})  # pyright: ignore[reportArgumentType]
jaxdrop.monte_carlo(noisy, 3)(key, x)  # pyright: ignore[reportCallIssue]
jaxdrop.multi_sample(noisy, 3)(key, x, "2")  # pyright: ignore[reportArgumentType]
dropout(key, "x", 0.5)  # pyright: ignore[reportArgumentType]
dropout(key, x, "0.5")  # pyright: ignore[reportArgumentType]
_ = mask & True  # pyright: ignore[reportOperatorIssue]
