"""Dropout in models written without it: trains with it, and asks how sure they are.

The networks of `untouched_models.py` are made of nothing but layers of
flax.linen, flax.nnx, equinox and haiku, and know nothing of dropout. They learn
scikit-learn's bundled digits as they are, and with dropout that `jaxdrop.plant`
puts into them while they train; tested are always the models themselves.

    python examples/plant_any_model.py

prints what is planted and whether it helps, what Monte Carlo dropout tells about
a network that is trained already, and how a recurrent network's masks are
locked. It writes `figures/plant_any_model.png` beside this file and takes about
a minute on two CPU cores. Besides `jaxdrop[examples]` it needs dm-haiku,
equinox and flax.

The rates are customary ones, set once; none was chosen by its results.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import untouched_models as models
from jax import Array
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from train_digits import Data, load_data, standard_error

import jaxdrop
from jaxdrop import Rule, match

IMAGES = 300  # to learn from: few, so that there is something to overfit
BATCH = 50
OPTIMIZER = optax.adam(2e-3)

light, medium, heavy = (partial(jaxdrop.dropout, rate=rate) for rate in (0.1, 0.25, 0.5))
cell = match.named_scope("*/cell")  # what a cell returns: the state, which goes on to the next step


class Study(NamedTuple):
    """A model, and rules by which dropout is planted into it."""

    model: models.Model
    treatments: Mapping[str, jaxdrop.transforms.planting.rules.Rules]


def studies() -> dict[str, Study]:
    """All models. What there is to match, `jaxdrop.sites` says where a rule matches nothing."""
    attention = {
        match.function("softmax"): light,  # the probabilities, inside of flax's attention
        match.named_scope("*/attention"): light,  # and both residual branches
        match.named_scope("*/mlp"): light,
    }
    relu = {match.jit("relu"): heavy}
    tanh = {match.primitive("tanh"): heavy}
    layers = {match.named_scope("mlp/linear_[01]"): heavy}
    state = {"every step": {cell: medium}, "locked": {cell: Rule(medium, share_loop=True)}}
    return {
        "linen transformer": Study(models.linen_transformer(), {"planted": attention}),
        "nnx perceptron": Study(models.nnx_mlp(), {"planted": relu}),
        "equinox perceptron": Study(models.equinox_mlp(), {"planted": tanh}),
        "haiku perceptron": Study(models.haiku_mlp(), {"planted": layers}),
        "linen RNN": Study(models.linen_rnn(), state),
    }


def load_few() -> Data:
    """Few digits to learn from, and all of the test set."""
    data = load_data()
    return data._replace(images=data.images[:IMAGES], labels=data.labels[:IMAGES])


def train(model: models.Model, rules: Any, data: Data, params: Any, steps: int) -> Any:
    """Parameters that each seed arrives at; without rules the model is trained as it is."""
    planted = jaxdrop.plant(model.apply, rules) if rules else None

    def loss(params: Any, key: Array, rows: Array) -> Array:
        images = data.images[rows]
        logits = planted(key, params, images) if planted else model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels[rows]).mean()

    def step(state: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], None]:
        params, opt_state = state
        batch_key, drop_key = jax.random.split(key)
        rows = jax.random.randint(batch_key, (BATCH,), 0, len(data.images))
        gradient = jax.grad(loss)(params, drop_key, rows)
        updates, opt_state = OPTIMIZER.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def one_run(key: Array, params: Any) -> Any:
        start = params, OPTIMIZER.init(params)
        return jax.lax.scan(step, start, jax.random.split(key, steps))[0][0]

    seeds = len(jax.tree.leaves(params)[0])
    return jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(1), seeds), params)


def first_of(params: Any) -> Any:
    """The parameters of the first seed."""
    return jax.tree.map(lambda leaf: leaf[0], params)


def text(values: np.ndarray, sign: str = "", digits: int = 2) -> str:
    """Mean and standard error over seeds."""
    return f"{values.mean():{sign}.{digits}f} ± {standard_error(values):.{digits}f}"


def verdict(gain: np.ndarray) -> str:
    """Whether dropout helped, which is said only if all seeds agree."""
    better = f"better with {(gain > 0).sum()} of {len(gain)} seeds"
    if gain.min() > 0:
        return f"{better}: it helps"
    return f"{better}: it hurts" if gain.max() < 0 else f"{better}: no clear difference"


def compare(name: str, study: Study, data: Data, seeds: int, steps: int) -> dict[str, Any]:
    """Trains a model with and without dropout; prints and returns what comes of it."""
    model, results = study.model, {}
    start = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), seeds))
    answer = jax.jit(jax.vmap(model.apply, (0, None)))
    images = jnp.concatenate([data.images, data.test_images])
    labels = jnp.concatenate([data.labels, data.test_labels])
    print(f"\n{name}")
    for treatment, rules in {"no dropout": None, **study.treatments}.items():
        params = train(model, rules, data, start, steps)
        right = np.asarray(answer(params, images).argmax(axis=-1) == labels)
        train_score, test_score = (100 * r.mean(axis=1) for r in np.split(right, [IMAGES], axis=1))
        results[treatment] = {"params": params, "test": test_score, "right": right[:, IMAGES:]}
        line = f"  {treatment:<10}  training {text(train_score):<14}  test {text(test_score):<14}"
        if rules:
            gain = test_score - results["no dropout"]["test"]
            line += f"{text(gain, '+')} points, {verdict(gain)}"
        print(line.rstrip())
    for treatment, rules in study.treatments.items():
        params = first_of(results[treatment]["params"])
        table = jaxdrop.sites(model.apply, params, data.images[:BATCH], rules=rules)
        print(
            f"  what is {treatment}:"
            if treatment == "planted"
            else f"  what is planted, {treatment}:"
        )
        print("    " + str(table).replace("\n", "\n    "))
        results[treatment]["sites"] = table
    return results


def strangers(images: Array) -> dict[str, Array]:
    """Images of no digit: noise, and the pixels of digits in random order."""
    noise_key, order_key = jax.random.split(jax.random.key(2))
    return {
        "noise": jax.random.uniform(noise_key, images.shape),
        "shuffled": jax.random.permutation(order_key, images, axis=1, independent=True),
    }


def monte_carlo(study: Study, params: Any, images: Array, draws: int) -> dict[str, np.ndarray]:
    """How unsure each seed's network is about each image, by the masks and by itself.

    The spread is the standard deviation over masks of the ten probabilities, taken
    together; the doubt is one minus the greatest of them without any dropout.
    """
    model = study.model
    planted = jaxdrop.plant(model.apply, study.treatments["planted"])
    keys = jax.random.split(jax.random.key(1), draws)

    def one_network(params: Any) -> dict[str, Array]:
        logits = jax.vmap(planted, in_axes=(0, None, None))(keys, params, images)
        spread = jnp.sqrt(jax.nn.softmax(logits).var(axis=0).sum(axis=-1))
        own = jax.nn.softmax(model.apply(params, images))
        return {"spread": spread, "doubt": 1 - own.max(axis=-1)}

    return jax.device_get(jax.jit(partial(jax.lax.map, one_network))(params))


def unsure(study: Study, run: dict[str, Any], data: Data, draws: int) -> dict[str, Any]:
    """Scores of each kind of image; a dict from score and kind to a list over seeds."""
    others = strangers(data.test_images)
    images = jnp.concatenate([data.test_images, *others.values()])
    scores = monte_carlo(study, run["params"], images, draws)

    def by_kind(scores: np.ndarray) -> dict[str, Sequence[np.ndarray]]:
        test, *rest = np.split(scores, 1 + len(others), axis=1)
        pairs = [*zip(test, run["right"], strict=True)]
        known = {"right": [s[r] for s, r in pairs], "wrong": [s[~r] for s, r in pairs]}
        return known | dict(zip(others, rest, strict=True))

    return {name: by_kind(s) for name, s in scores.items()}


def area(low: np.ndarray, high: np.ndarray) -> float:
    """How often a random score of `high` is above one of `low`: the area under the ROC curve."""
    return roc_auc_score(np.repeat([0, 1], [len(low), len(high)]), np.concatenate([low, high]))


def report_unsure(scores: dict[str, Any]) -> None:
    """Prints the spreads, and how well they tell images that are not rightly known."""
    spread = scores["spread"]
    means = {kind: np.array([s.mean() for s in rows]) for kind, rows in spread.items()}
    print("    mean spread     " + ", ".join(f"{k} {text(m, digits=3)}" for k, m in means.items()))
    for name, of in scores.items():
        areas = {kind: np.array([*map(area, of["right"], rows)]) for kind, rows in of.items()}
        del areas["right"]
        print(
            f"    AUC by {name:<8} "
            + ", ".join(f"{k} {text(a, digits=3)}" for k, a in areas.items())
        )


def masks(study: Study, params: Any, images: Array) -> dict[str, np.ndarray]:
    """Where the states of the first seed's recurrent network are zero: (images, steps, units).

    All of `tanh`'s values that are zero exactly have been dropped.
    """
    rnn, rows = models.RNN.apply, images.reshape(-1, 8, 8)
    params = first_of(params["rnn"])
    zeros = {"no dropout": rnn(params, rows) == 0}
    for treatment, rules in study.treatments.items():
        zeros[treatment] = jaxdrop.plant(rnn, rules)(jax.random.key(3), params, rows) == 0
    return {treatment: np.asarray(zero) for treatment, zero in zeros.items()}


def report_masks(zeros: dict[str, np.ndarray]) -> None:
    """Prints how much is dropped, and how much of it throughout or at no step."""
    print("\nMasks of the recurrent network's state")
    for treatment, zero in zeros.items():
        same = (zero == zero[:, :1]).all(axis=1).mean()
        print(f"  {treatment:<10}  {zero.mean():6.1%} dropped, {same:6.1%} alike at all steps")


def plot(results: dict[str, Any], spread: Any, zeros: dict[str, np.ndarray], path: Path) -> None:
    """Draws test accuracies, spreads of predictions, and masks."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained", facecolor="white")
    panels = figure.subplot_mosaic([["test", "spread", "every step"], ["test", "spread", "locked"]])
    colors = {
        "no dropout": "black",
        "planted": "#0072b2",
        "every step": "#d55e00",
        "locked": "#009e73",
    }
    for place, runs in enumerate(results.values()):
        for shift, (treatment, run) in zip((-0.1, 0.1, 0.3), runs.items(), strict=False):
            places = np.full(len(run["test"]), place + shift)
            panels["test"].plot(run["test"], places, "o", ms=4, alpha=0.7, color=colors[treatment])
    panels["test"].set(title="test accuracy (%)", ylim=(len(results) - 0.5, -0.5))
    panels["test"].set_yticks(range(len(results)), results)
    for treatment, color in colors.items():
        panels["test"].plot([], [], "o", ms=4, color=color, label=treatment)
    panels["test"].legend(fontsize="small")
    panels["spread"].boxplot(
        [np.concatenate([*rows]) for rows in spread.values()], showfliers=False
    )
    panels["spread"].set_xticks(range(1, 1 + len(spread)), spread)
    panels["spread"].set_title("spread over masks")
    for treatment in ("every step", "locked"):
        panels[treatment].imshow(zeros[treatment][0, :, :32], cmap="gray_r", aspect="auto")
        panels[treatment].set(title=f"dropped, {treatment}", ylabel="step", xticks=(), yticks=())
    panels["locked"].set_xlabel("unit")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, reports and plots; returns what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many runs of each kind")
    parser.add_argument("--steps", type=int, default=500, help="how long each run trains")
    parser.add_argument("--draws", type=int, default=50, help="masks of Monte Carlo dropout")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    data, everything = load_few(), studies()
    print(f"Accuracy in % after {args.steps} steps on {IMAGES} digits, mean ± standard error over")
    print(f"{args.seeds} seeds; tested, without dropout, on {len(data.test_images)} digits")
    results = {n: compare(n, s, data, args.seeds, args.steps) for n, s in everything.items()}
    print(
        "\nMonte Carlo dropout in the trained transformers: spread over masks, and how well it and"
    )
    print("the network's own doubt tell images from those it gets right (AUC; 0.5 is chance)")
    name, scores = "linen transformer", {}
    for treatment, run in results[name].items():
        print(f"  trained with {treatment}")
        scores[treatment] = unsure(everything[name], run, data, args.draws)
        report_unsure(scores[treatment])
    params = results["linen RNN"]["no dropout"]["params"]
    zeros = masks(everything["linen RNN"], params, data.test_images[:64])
    report_masks(zeros)
    plot(results, scores["no dropout"]["spread"], zeros, args.out / "plant_any_model.png")
    return {"results": results, "scores": scores, "masks": zeros}


if __name__ == "__main__":
    main()
