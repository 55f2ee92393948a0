"""Why divide by keep_prob? What dividing keeps, what it does not, and what else there is.

Questions of people who meet inverted dropout in a course, answered by counting over
all masks where that is possible, and by sampling and training where it is not.

    python examples/why_rescale.py

prints the tables and writes `figures/why_rescale.png` beside this file, in about a
minute on two CPU cores. It computes in float64, so that what is equal but for rounding
looks so. The counting is in `why_rescale_units.py`, the training in
`why_rescale_routes.py`.

What one sees, q being keep_prob and p = 1 - q:

Dividing keeps the mean, not the sum of a draw. The 16 masks of [2, 4, 4, 2] at q = .5
give sums from 0 to 24, 12 in the mean. Dividing by the fraction really kept, and keeping
the sum by force, give 12 in the mean of the 15 masks that keep something, but 11.25 in
all, as the empty mask has nothing to rescale; the latter turns a 2 into 2.27 and a 4
into 3.35 in the mean. Nor does dividing keep the energy: the mean squared norm goes from
40 to 80, without dividing to 20, and a factor 1/sqrt(q) that keeps it loses the sum.

The sum of n ones spreads by sqrt(p/(q n)): 2.24 % at n = 2000 and 50 % at n = 4. A fixed
number of survivors has no such spread; the fraction really kept has none either, unless
everything drops, which leaves 24.21 % at n = 4.

The effect does not go away: with or without dividing, a unit's standard deviation is
sqrt(p/q) times its mean, 100 % at q = .5 and 50 % at q = .8. What it adds to the loss of a
linear unit is a penalty on the weights, p/2q times the sum of w^2 x^2: .9 and .225 here,
counted over masks as in closed form.

The first paper's q W at test time is the same function, and trains to the same weights
if weights behind drops have their learning rate divided by q^2 (to 1.2e-15; at q = .5 bit
for bit). At equal settings a first step of SGD is q^2 as long in q W, and one of Adam q.
Weight decay and Adam part with SGD's correction, but neither is past mending: the decay
wants a factor q^2, Adam lr/q and epsilon q.

If nobody rescales, logits behind two drops of .5 are 3.92 times those of training. That
breaks less than one would think. Where both routes trained the same network, the test
error rises from 3.3 to 3.8 % to 4.2 to 4.4 %, while the cross-entropy doubles, from .133
to .139 to .262 to .303: most answers hold, their confidence does not.

One key for a batch trains one network a step, a key for each example 32, and the mean of
a unit over the batch is sqrt(32) times less noisy: .176 against 1. Rate 0 returns the
input bit for bit.
"""

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from train_digits import standard_error
from why_rescale_figure import plot
from why_rescale_routes import RATES, init, largest_difference, load_data, run_recipes
from why_rescale_units import (
    BATCH,
    RULES,
    UNITS,
    WIDTH,
    Counted,
    added_loss,
    batch_noise,
    count_masks,
    drop_batch,
    exact_layer,
    penalty,
    sample_layer,
    unchanged_at_rate_0,
)

from jaxdrop import draw_mask

KEEP_PROBS = (0.5, 0.8)
LAYERS = (2000, 1000, 200, 100, 20, 10, 4)
MASK_RATE = 0.15


class Results(NamedTuple):
    """What the example found; arrays over seeds begin with the seeds."""

    counted: dict[float, Counted]  # by keep_prob
    layers: dict[str, dict[int, np.ndarray]]  # rule, units -> mean and deviation of the sum
    masks: np.ndarray
    differences: list[dict[str, float]]  # see `largest_difference`; for each rate
    recipes: dict[str, dict[str, Any]]  # see `run_recipes`
    batches: dict[str, np.ndarray]
    noise: dict[str, np.ndarray]
    unchanged: dict[str, bool]


def find(seeds: int, steps: int) -> Results:
    """Counts, samples and trains."""
    layer_key, mask_key, batch_key, noise_key, zero_key, init_key = jax.random.split(
        jax.random.key(0), 6
    )
    layer_keys, noise_keys = (jax.random.split(key, seeds) for key in (layer_key, noise_key))
    layers = {n: jax.jit(jax.vmap(partial(sample_layer, n)))(layer_keys) for n in LAYERS}
    params, images = init(init_key), load_data().test_images
    return Results(
        counted={keep_prob: count_masks(UNITS, keep_prob) for keep_prob in KEEP_PROBS},
        layers={k: {n: np.asarray(layers[n][k]) for n in LAYERS} for k in exact_layer(1)},
        masks=np.asarray(draw_mask(mask_key, (20, 10, 10), MASK_RATE).unpack()),
        batches=jax.device_get(drop_batch(batch_key, jnp.ones((BATCH, WIDTH)))),
        noise=jax.device_get(jax.jit(jax.vmap(batch_noise))(noise_keys)),
        unchanged=unchanged_at_rate_0(zero_key, jnp.linspace(-3.0, 3.0, 1000)),
        differences=[
            jax.device_get(largest_difference(jax.random.clone(zero_key), params, images, rate))
            for rate in RATES
        ],
        recipes=run_recipes(seeds, steps),
    )


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a title and columns, the first of them to the left."""
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}\n")
    for first, *rest in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        print("  " + "  ".join([f"{first:<{widths[0]}}", *cells]))


def spread(values: np.ndarray, digits: int) -> str:
    """Mean and standard error over seeds."""
    return f"{values.mean():.{digits}f} ± {standard_error(values):.{digits}f}"


def report_units(counted: dict[float, Counted]) -> None:
    """Prints the sums over all masks of four units, and the moments of each rule."""
    half = counted[0.5]
    sums = np.stack([half.outputs[name].sum(axis=-1) for name in RULES], axis=-1)
    kept = half.keep.sum(axis=-1)
    groups = {
        "mean of all 16": kept >= 0,
        "of the 15 that keep some": kept > 0,
        "of the 6 that keep two": kept == 2,  # all that `fixed_count_dropout` draws
    }
    rows = [
        ("".join(map(str, keep.astype(int))), *row)
        for keep, row in zip(half.keep, sums, strict=True)
    ]
    rows += [(name, *sums[chosen].mean(axis=0)) for name, chosen in groups.items()]
    text = [(name, *(f"{value:.2f}" for value in values)) for name, *values in rows]
    table(
        "Sum of [2, 4, 4, 2] under each mask, keep_prob 0.5; 12 if nothing drops",
        ["", *RULES],
        text,
    )
    for keep_prob, of in counted.items():
        text = []
        for name, y in of.outputs.items():
            mean, noise, total = of.mean(y), of.deviation(y) / of.mean(y), y.sum(axis=-1)
            energy = of.mean((y**2).sum(axis=-1))
            values = (*mean[:2], *(100 * noise[:2]), of.mean(total), of.deviation(total), energy)
            text.append((name, *(f"{value:.2f}" for value in values)))
        head = ["", "mean of 2", "mean of 4", "sd/mean, % (2)", "(4)", "sum", "sd", "squared norm"]
        table(f"The same in the mean over masks, keep_prob {keep_prob}", head, text)
        print(
            f"\n  Half the squared error of a linear unit behind `expected` grows by"
            f" {added_loss(of):.4f};\n  p/2q times the sum of w^2 x^2 is {penalty(keep_prob):.4f}."
        )


def report_layers(layers: dict[str, dict[int, np.ndarray]]) -> None:
    """Prints mean and spread of the sum of constant layers, sampled and exact."""
    rows = []
    for n in LAYERS:
        row = [str(n)]
        for name, found in layers.items():
            mean, deviation = exact_layer(n)[name]
            sampled = (f"{spread(100 * found[n][:, i], 2)}" for i in range(2))
            pairs = zip(sampled, (mean, deviation), strict=True)
            row += [f"{text} ({100 * exact:.2f})" for text, exact in pairs]
        rows.append(row)
    head = ["n", *(f"{name}, {what}" for name in layers for what in ("mean", "sd"))]
    table("Sum of n ones at keep_prob 0.5, in % of n; in brackets: exact", head, rows)


def report_masks(masks: np.ndarray) -> None:
    """Prints what each of some masks keeps, and the mean so far."""
    kept = masks.mean(axis=(1, 2))
    running = np.cumsum(kept) / np.arange(1, len(kept) + 1)
    rows = [
        (name, *(f"{100 * value:.1f}" for value in values[half]))
        for half in (slice(10), slice(10, 20))
        for name, values in (("kept", kept), ("mean so far", running))
    ]
    title = f"Kept by 20 masks of 10 x 10, keep_prob {1 - MASK_RATE}, in %; the latter ten below"
    table(title, ["", *map(str, range(1, 11))], rows)


def report_routes(results: Results) -> None:
    """Prints how far the two routes part, and what the networks do at test time."""
    keep_probs, recipes = [f"keep_prob {1 - rate}" for rate in RATES], results.recipes
    rows = [
        (where, *(f"{of[where]:.1e}" for of in results.differences))
        for where in results.differences[0]
    ]
    title = "Largest difference of logits between inverted dropout at W and the original at W/q"
    table(title, ["", *keep_probs], rows)
    rows = [
        (
            name,
            *(f"{of['pace'][i, :, 0].mean():.4f}" for i in range(len(RATES))),
            *(f"{of['gap'][i, :, -1].mean():.1e}" for i in range(len(RATES))),
        )
        for name, of in recipes.items()
    ]
    title = "First step of q W (original) over that of W (inverted), and their distance at the end"
    table(title, ["original, behind drops", *keep_probs, *keep_probs], rows)
    networks = ("inverted", "original, q W", "original, W")
    rows = [
        (
            name,
            *(spread(of[network]["error"][0], 1) for network in networks),
            *(spread(of[network]["loss"][0], 3) for network in networks),
        )
        for name, of in recipes.items()
    ]
    title = f"Test error in %, then cross-entropy in nats, {keep_probs[0]}"
    table(title, ["", *networks, *networks], rows)
    last = list(recipes)[-1]
    rows = [(name, *(spread(of, 3) for of in recipes[last][name]["growth"])) for name in networks]
    table(f"Logits at test time over their mean in training; {last}", ["", *keep_probs], rows)


def report_batches(results: Results) -> None:
    """Prints how many networks a batch trains, and under which rules rate 0 drops nothing."""
    exact = dict(zip(results.batches, ((1 / BATCH) ** 0.5, 1.0), strict=True))
    rows = [
        (name, str(len(np.unique(y, axis=0))), spread(results.noise[name], 3), f"{exact[name]:.3f}")
        for name, y in results.batches.items()
    ]
    head = ["", "networks", "sd of a unit's mean over the batch", "exact"]
    table(f"A batch of {BATCH} at keep_prob 0.5", head, rows)
    names = ", ".join(name for name, unchanged in results.unchanged.items() if unchanged)
    print(f"\nRate 0 gives the input bit for bit, known or traced, under: {names}")


def main(argv: Sequence[str] | None = None) -> Results:
    """Counts, samples, trains, reports and plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many runs of each kind")
    parser.add_argument("--steps", type=int, default=600, help="how long each network trains")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    results = find(args.seeds, args.steps)
    report_units(results.counted)
    report_layers(results.layers)
    report_masks(results.masks)
    report_routes(results)
    report_batches(results)
    exact = {k: np.array([exact_layer(n)[k][1] for n in LAYERS]) for k in results.layers}
    plot(results, exact, args.out / "why_rescale.png")
    return results


if __name__ == "__main__":
    main()
