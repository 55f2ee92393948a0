"""Dropout on the football assignment: divide by `keep_prob`, or by what was really kept?

A well-known course trains a 2-20-3-1 network on 211 points of a football field, with
dropout at `keep_prob` .86 on both hidden layers. A forum asked whether one should not
divide by the fraction that the mask D really kept of the layer A, sum(D) / A.size, and
found about 92.5 % of training and 95 % of test points right either way. The course's file
is not at hand, so each seed draws 211 points of its own: uniform positions, a diagonal
that tells the teams apart, and one label in twenty wrong. It draws 200 test points, as in
the course, and 20,000 fresh ones, since 200 have a standard error of 2 points.

Published solutions of the course call `np.random.seed(1)` inside the forward pass, and so
drop the same units at each iteration. A key that is an argument shows that: two networks
here use one key at each step, the first with a mask for each point, as those solutions
do, the second with one mask for all points, which is one thinned network. JAX's checker
(`JAX_DEBUG_KEY_REUSE=1`) refuses both unless `jax.random.clone` says that it is meant.

    python examples/football.py

prints tables and writes `figures/football.png` beside this file, in about half a minute
on two CPU cores. The networks take 3,000 steps of Adam on all points, seeds side by side
under `vmap`; a seed has the same points and first weights in all treatments.

What one sees, with 40 seeds:

- Without dropout 95.9 % of the training points and 87.8 ± 0.3 % of fresh ones are right,
  with it 92.8 % and 90.3 ± 0.1 %. The diagonal itself gets 91.4 %.
- The factors do equally well: with A.size / sum(D) fresh accuracy differs by -0.03 ± 0.06
  points. That factor is 1.1627 with a standard deviation of 0.0073 for 211 x 20 units, and
  1.1631 with 0.0188 for 211 x 3, where 1 / keep_prob is 1.1628.
- That test points do better than training points is not what dropout does, but the luck
  of a small test set: it happens to 5 seeds of 40.
- With the same key each point trains 1 thinned network instead of 2033. That costs only
  0.87 ± 0.26 points, so that it is easily missed; but the network fits its masks and is
  sure of itself: the loss on fresh points triples, and is worse than without dropout.
- One thinned network costs 4.58 ± 0.67 points and does worse than no dropout: units that
  were never trained come back at test time.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from football_field import GRID, Points, best_accuracy, draw_field, draw_points
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm
from train_digits import standard_error

import jaxdrop
from jaxdrop import rescale


class Treatment(NamedTuple):
    """How the hidden units are dropped."""

    rate: float = 0.14
    rule: rescale.Rescale = rescale.expected
    new_key: bool = True  # at each step
    one_mask: bool = False  # for all points


HIDDEN = (20, 3)
SIZES = (2, *HIDDEN, 1)
POINTS, TEST_POINTS, FRESH_POINTS = 211, 200, 20_000
TREATMENTS = {
    "no dropout": Treatment(rate=0.0),
    "1 / keep_prob": Treatment(),
    "A.size / sum(D)": Treatment(rule=rescale.realized()),  # counts over points and units
    "same key each step": Treatment(new_key=False),
    "one thinned network": Treatment(new_key=False, one_mask=True),
}
MEASURES = {
    "train": "211 training points",
    "test": "200 test points",
    "fresh": "20,000 fresh points",
    "loss": "loss there, nats",
}
OPTIMIZER = optax.adam(0.01)
CHUNK = 250  # most steps in one call

Params = list[dict[str, Array]]
State = tuple[Params, optax.OptState]
Drop = Callable[[int, Array], Array]
Results = dict[str, dict[str, np.ndarray]]


def init(key: Array) -> State:
    """Random weights of variance 1 / inputs, and biases of .1 so that no layer is dead."""
    keys = jax.random.split(key, len(SIZES) - 1)
    params = [
        {"w": jax.random.normal(key, (n, m)) / n**0.5, "b": jnp.full(m, 0.1, jnp.float32)}
        for key, n, m in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]
    return params, OPTIMIZER.init(params)


def network(params: Params, x: Array, drop: Drop = lambda site, x: x) -> Array:
    """The logit of blue; `drop(1, x)` and `drop(2, x)` are applied to the hidden layers."""
    for site, layer in enumerate(params):
        if site > 0:
            x = drop(site, jax.nn.relu(x))
        x = x @ layer["w"] + layer["b"]
    return x[:, 0]


def step_key(treatment: Treatment, key: Array, step: Array | int) -> Array:
    """The key of a step: a new one, or, as if seeded in the forward pass, the first again."""
    return jax.random.fold_in(key, step) if treatment.new_key else jax.random.clone(key)


def make_drop(treatment: Treatment, key: Array) -> Drop:
    """Drops units of the hidden layers, each under a key of its own."""
    keys = dict(enumerate(jax.random.split(key, len(HIDDEN)), start=1))

    def drop(site: int, x: Array) -> Array:
        shared = (0,) if treatment.one_mask else ()
        return jaxdrop.dropout(
            keys[site], x, treatment.rate, broadcast_dims=shared, rescale=treatment.rule
        )

    return drop


def loss(params: Params, points: Points, drop: Drop) -> Array:
    """Mean log loss in nats."""
    logits = network(params, points.positions, drop)
    return optax.sigmoid_binary_cross_entropy(logits, points.labels).mean()


def train_chunk(
    treatment: Treatment, key: Array, points: Points, state: State, steps: Array
) -> State:
    """A step of Adam on all points for each of the numbered steps."""

    def step(state: State, number: Array) -> tuple[State, None]:
        drop = make_drop(treatment, step_key(treatment, key, number))
        params, opt_state = state
        gradient = jax.grad(loss)(params, points, drop)
        updates, opt_state = OPTIMIZER.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, state, steps)[0]


def see_field(params: Params) -> np.ndarray:
    """The network's probability of blue on the grid of the field."""
    logits = network(params, jnp.asarray(GRID.reshape(-1, 2)))
    return np.asarray(jax.nn.sigmoid(logits)).reshape(GRID.shape[:2])


def measure(params: Params, points: Points, test: Points, fresh: Points) -> dict[str, Array]:
    """Accuracies in %, with nothing dropped, and the loss on fresh points."""

    def accuracy(of: Points) -> Array:
        return 100 * jnp.mean((network(params, of.positions) > 0) == (of.labels > 0))

    return {
        "train": accuracy(points),
        "test": accuracy(test),
        "fresh": accuracy(fresh),
        "loss": loss(params, fresh, lambda site, x: x),
    }


def seed_keys(seeds: int) -> Array:
    """Five keys for each seed: points, test points, fresh points, weights and masks."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(seeds))
    return jax.vmap(lambda key: jax.random.split(key, 5), out_axes=1)(keys)


def train(seeds: int, steps: int) -> tuple[Results, dict[str, np.ndarray], Points]:
    """Trains all treatments: what they reach, and seed 0's fields and points."""
    *point_keys, init_keys, mask_keys = seed_keys(seeds)
    points, *others = (
        jax.jit(jax.vmap(partial(draw_points, count=count)))(keys)
        for keys, count in zip(point_keys, (POINTS, TEST_POINTS, FRESH_POINTS), strict=True)
    )
    first = jax.jit(jax.vmap(init))(init_keys)
    measure_all = jax.jit(jax.vmap(measure))
    results, fields = {}, {}
    with tqdm(total=len(TREATMENTS) * steps, unit="step") as progress:
        for name, treatment in TREATMENTS.items():
            progress.set_description(name)
            run = jax.jit(jax.vmap(partial(train_chunk, treatment), (0, 0, 0, None)))
            state = first
            for start in range(0, steps, CHUNK):
                numbers = np.arange(start, min(start + CHUNK, steps))
                state = jax.block_until_ready(run(mask_keys, points, state, numbers))
                progress.update(len(numbers))
            results[name] = jax.device_get(measure_all(state[0], points, *others))
            fields[name] = see_field(jax.tree.map(lambda leaf: leaf[0], state[0]))
    return results, fields, jax.tree.map(lambda leaf: leaf[0], points)


def see_masks(treatment: Treatment, key: Array, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of the first point's hidden units at each step, and each layer's factor."""

    def see(step: Array) -> tuple[Array, Array]:
        drop = make_drop(treatment, step_key(treatment, key, step))
        layers = [drop(site, jnp.ones((POINTS, units))) for site, units in enumerate(HIDDEN, 1)]
        kept = jnp.concatenate([layer[0] > 0 for layer in layers])
        return kept, jnp.stack([layer.max() for layer in layers])

    return jax.device_get(jax.jit(jax.vmap(see))(jnp.arange(steps)))


def expected_distinct(units: int, keep_prob: float, draws: int) -> float:
    """The mean number of different masks of so many units among independent draws."""
    kept = np.arange(units + 1)
    probability = keep_prob**kept * (1 - keep_prob) ** (units - kept)  # of each such mask
    masks = np.array([math.comb(units, count) for count in kept])
    return float(np.sum(masks * (1 - (1 - probability) ** draws)))


def text(values: np.ndarray, sign: str = "") -> str:
    """Mean and standard error."""
    return f"{values.mean():{sign}.2f} ± {standard_error(values):.2f}"


def report(results: Results, steps: int) -> None:
    """Prints what the networks reach, and how the treatments differ by seed."""

    def row(name: str, cells: Iterable[str]) -> str:
        return f"{name:<21}" + "".join(f"{cell:<22}" for cell in cells)

    seeds = len(results["no dropout"]["train"])
    print(f"Accuracy in % and loss after {steps} steps, mean ± standard error over {seeds} seeds")
    print(row("", MEASURES.values()))
    for name, runs in results.items():
        print(row(name, (text(runs[of]) for of in MEASURES)))
    print(f"{'the diagonal':<65}{best_accuracy():.2f}")
    print("\nThe same less that with 1 / keep_prob, paired by seed")
    dropped = results["1 / keep_prob"]
    for name in (name for name in results if name != "1 / keep_prob"):
        print(row(name, (text(results[name][of] - dropped[of], "+") for of in MEASURES)))
    above = int(np.sum(dropped["test"] > dropped["train"]))
    print(f"\nWith 1 / keep_prob, {above} of {seeds} seeds do better on test than training points")


def report_masks(steps: int) -> None:
    """Prints what seed 0 divides by, and how many thinned networks its first point trains."""
    *_, (key,) = seed_keys(1)
    seen = {name: see_masks(treatment, key, steps) for name, treatment in TREATMENTS.items()}
    print(f"\nA.size / sum(D) in {steps} steps")
    for size, factors in zip(HIDDEN, seen["A.size / sum(D)"][1].T, strict=True):
        print(f"  {POINTS} x {size:<3} mean {factors.mean():.4f}, deviation {factors.std():.4f}")
    keep_prob = float(jaxdrop.draw_mask(key, (), TREATMENTS["1 / keep_prob"].rate).keep_prob)
    print(f"  1 / keep_prob is {1 / keep_prob:.4f}")
    print(f"Thinned networks, of 2^{sum(HIDDEN)}, that the first point trains in {steps} steps")
    for name, (kept, _) in seen.items():
        print(f"  {name:<21}{len(np.unique(kept, axis=0))}")
    print(f"  {'expected of new keys':<21}{expected_distinct(sum(HIDDEN), keep_prob, steps):.1f}")


def draw_accuracies(panel: Axes, results: Results) -> None:
    """Mean accuracies with standard errors, a row for each treatment."""
    rows = np.arange(len(results))
    colors = {"train": "black", "test": "#009e73", "fresh": "#cc79a7"}
    for shift, (of, color) in zip((-0.2, 0, 0.2), colors.items(), strict=True):
        means = [runs[of].mean() for runs in results.values()]
        errors = [standard_error(runs[of]) for runs in results.values()]
        options = {"fmt": "o", "ms": 4, "color": color, "label": MEASURES[of]}
        panel.errorbar(means, rows + shift, xerr=errors, **options)
    for row, name in zip(rows, results, strict=True):
        panel.text(57, row, name, va="center", fontsize=9)
    panel.axvline(best_accuracy(), color="black", ls=":", lw=1, label="the diagonal")
    panel.set(title="accuracy (%)", xlim=(56, 99), ylim=(len(rows) - 0.5, -3.4), yticks=())
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="upper right")


def plot(results: Results, fields: dict[str, np.ndarray], points: Points, path: Path) -> None:
    """Draws seed 0's decision boundaries, and all accuracies with standard errors."""
    figure = Figure(figsize=(8.4, 6), layout="constrained", facecolor="white")
    *field_panels, last = figure.subplots(2, 3).flat
    for panel, (name, probability) in zip(field_panels, fields.items(), strict=True):
        draw_field(panel, probability, points)
        train, fresh = results[name]["train"][0], results[name]["fresh"][0]
        panel.set_title(f"{name}\ntrain {train:.1f} %, fresh {fresh:.1f} %", fontsize=10)
    draw_accuracies(last, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main(argv: Sequence[str] | None = None) -> Results:
    """Trains, reports and plots; returns `results[treatment][measure]`, one number a seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40, help="how many runs of each kind")
    parser.add_argument("--steps", type=int, default=3000, help="how long each run trains")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    results, fields, points = train(args.seeds, args.steps)
    report(results, args.steps)
    report_masks(args.steps)
    plot(results, fields, points, args.out / "football.png")
    return results


if __name__ == "__main__":
    main()
