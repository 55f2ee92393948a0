"""The simulation of `adaptive_l2.py`: rare but useful features among much noise.

75 examples have 1050 features. The first 50 form 5 groups of 10; each group is active in
one example of 25, where its features have one value, an exponential variable times a
random sign, of mean square 1 over all examples. The other 1000 are standard normal noise.
Labels are Bernoulli variables of sigmoid(w.x) with w = .057 in the groups and 0 elsewhere,
so that |w.x| is 2 on average where a group is active.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.nn import sigmoid, softplus
from jax.scipy.stats import norm
from tqdm import tqdm
from train_digits import standard_error

import jaxdrop

GROUPS, GROUP_SIZE, NUISANCE, CYCLE, EXAMPLES = 5, 10, 1000, 25, 75
RARE = GROUPS * GROUP_SIZE
WEIGHT = 0.057
MEAN = (CYCLE / 2) ** 0.5  # of an active value: the mean square is twice that squared
STRENGTHS = {
    "ridge": (1.0, 32.0, 1000.0, 10_000.0, 100_000.0),
    "quadratic": (0.5, 0.9, 0.98, 0.995, 0.999),
    "dropout": (0.5, 0.9, 0.98, 0.995, 0.999),
}
PAPER = {"ridge": (32.0, 66), "dropout": (0.9, 73)}  # its strengths, and % of active ones right
TUNING_RUNS = 10

Results = dict[str, dict[str, np.ndarray]]


class Problem(NamedTuple):
    """Inputs of shape (examples, features), and the targets."""

    x: Array
    y: Array


def quadratic_penalty(x: Array, w: Array, rate: float | Array) -> Array:
    """The paper's approximation of what dropout adds to an example's loss."""
    probability = sigmoid(x @ w)
    return rate / (1 - rate) / 2 * probability * (1 - probability) * (x**2 @ w**2)


def text(values: np.ndarray, digits: int, sign: str = "") -> str:
    """Mean and standard error."""
    return f"{values.mean():{sign}.{digits}f} ± {standard_error(values):.{digits}f}"


def draw_rare(key: Array) -> Problem:
    """The simulation's training set: each group is active in every 25th example."""
    sign_key, value_key, noise_key, label_key = jax.random.split(key, 4)
    active = jnp.arange(GROUPS)[None] == jnp.arange(EXAMPLES)[:, None] % CYCLE
    signs = jax.random.rademacher(sign_key, (EXAMPLES, 1), jnp.float32)
    values = MEAN * signs * jax.random.exponential(value_key, (EXAMPLES, 1), jnp.float32)
    rare = jnp.repeat(jnp.where(active, values, 0), GROUP_SIZE, axis=1)
    noise = jax.random.normal(noise_key, (EXAMPLES, NUISANCE), jnp.float32)
    labels = jax.random.bernoulli(label_key, sigmoid(WEIGHT * rare.sum(axis=1)))
    return Problem(jnp.concatenate([rare, noise], axis=1), labels.astype(jnp.float32))


def objective(method: str, problem: Problem, strength: Array, w: Array, key: Array) -> Array:
    """The mean logistic loss of an example with one of the three penalties."""
    x, y = problem
    penalty = 0.0
    if method == "ridge":
        penalty = strength / 2 * jnp.sum(w**2) / len(y)
    if method == "quadratic":
        penalty = quadratic_penalty(x, w, strength).mean()
    if method == "dropout":
        x = jaxdrop.dropout(key, x, strength)
    return jnp.mean(softplus(x @ w) - y * (x @ w)) + penalty


def fit(method: str, steps: int, strength: Array, key: Array, problem: Problem) -> Array:
    """The weights after so many steps of Adam from 0."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(state: tuple[Array, optax.OptState], number: Array) -> tuple[tuple, None]:
        w, opt_state = state
        step_key = jax.random.fold_in(key, number)
        gradient = jax.grad(partial(objective, method, problem, strength))(w, step_key)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(w, updates), opt_state), None

    first = jnp.zeros(RARE + NUISANCE, jnp.float32)
    (w, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), jnp.arange(steps))
    return w


def active_accuracy(w: Array) -> Array:
    """How many of all active examples the weights get right, in %.

    An example's sign changes nothing, and the noise adds to w.x a normal variable whose
    variance is the squared norm of its weights, which leaves an integral over one value.
    """
    quantiles = (np.arange(4000) + 0.5) / 4000
    values = np.float32(-MEAN * np.log1p(-quantiles))[:, None]
    signal = values * w[:RARE].reshape(1, GROUPS, GROUP_SIZE).sum(axis=-1)
    says_one = norm.cdf(signal / jnp.linalg.norm(w[RARE:]))
    is_one = sigmoid(GROUP_SIZE * WEIGHT * values)
    return 100 * jnp.mean(says_one * is_one + (1 - says_one) * (1 - is_one))


def measure(w: Array) -> dict[str, Array]:
    """What the weights get right, and how large they are."""
    size = jnp.abs(w)
    return {
        "accuracy": active_accuracy(w),
        "rare": size[:RARE].mean(),
        "nuisance": size[RARE:].mean(),
    }


def simulate(seeds: int, steps: int) -> Results:
    """What each method reaches; arrays have shape (strengths, tuning runs and then seeds)."""
    draw_keys, fit_keys = jax.random.split(jax.random.key(2), (2, TUNING_RUNS + seeds))
    problems = jax.jit(jax.vmap(draw_rare))(draw_keys)
    measure_all = jax.jit(jax.vmap(measure))
    results = {}
    with tqdm(total=sum(map(len, STRENGTHS.values())), unit="fit") as progress:
        for method, strengths in STRENGTHS.items():
            progress.set_description(method)
            fit_all = jax.jit(jax.vmap(partial(fit, method, steps), (None, 0, 0)))
            rows = []
            for strength in np.float32(strengths):
                w = fit_all(strength, jax.random.clone(fit_keys), problems)
                rows.append(jax.device_get(measure_all(w)))
                progress.update()
            results[method] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return results


def on_seeds(results: Results, method: str, strength: float) -> dict[str, np.ndarray]:
    """What a method of this strength reaches on the seeds."""
    row = STRENGTHS[method].index(strength)
    return {name: values[row, TUNING_RUNS:] for name, values in results[method].items()}


def tune(results: Results) -> dict[str, float]:
    """The strength of each method that does best on the tuning runs."""
    means = {name: of["accuracy"][:, :TUNING_RUNS].mean(axis=1) for name, of in results.items()}
    return {name: STRENGTHS[name][mean.argmax()] for name, mean in means.items()}


def report(results: Results) -> None:
    """Prints how each method was tuned, and what it then reaches."""
    print(f"\n3. Rare but useful features: % of active examples right in {TUNING_RUNS} tuning runs")
    for method, found in results.items():
        means = found["accuracy"][:, :TUNING_RUNS].mean(axis=1)
        cells = (f"{at:g}: {mean:.1f}" for at, mean in zip(STRENGTHS[method], means, strict=True))
        print(f"   {method:<11}" + "   ".join(cells))
    best = tune(results)
    ridge = on_seeds(results, "ridge", best["ridge"])["accuracy"]
    print(f"   {len(ridge)} other runs, mean ± standard error: the best of each, then the paper's")
    print(f"   {'':<18}{'active':<15}{'all':<15}{'less best ridge':<18}mean |w|: rare, nuisance")
    rows = [*best.items(), *((method, strength) for method, (strength, _) in PAPER.items())]
    for method, strength in rows:
        found = on_seeds(results, method, strength)
        active = found["accuracy"]
        every = 50 + (active - 50) * GROUPS / CYCLE  # nothing tells the others' labels
        print(
            f"   {method + f' {strength:g}':<18}{text(active, 2):<15}{text(every, 2):<15}"
            f"{text(active - ridge, 2, '+'):<18}{found['rare'].mean():.2g}, "
            f"{found['nuisance'].mean():.2g}"
        )
