"""Dropout in models written without it: trains with it, and asks how sure they are.

The networks of `untouched_models.py` are made of nothing but layers of
flax.linen, flax.nnx, equinox and haiku, and know nothing of dropout. They learn
few of scikit-learn's bundled digits, from clean labels and from labels of which
20 % are wrong, as they are and with dropout that `jaxdrop.plant` puts into them
while they train. Tested are always the models themselves.

    python examples/plant_any_model.py

prints what is planted and whether it helps, what Monte Carlo dropout tells about
a network that is trained already, and how a recurrent network's masks are
locked. It writes `figures/plant_any_model.png` beside this file and takes less
than two minutes on two CPU cores.

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
from plant_any_model_figure import plot
from sklearn.metrics import roc_auc_score
from train_digits import CONDITIONS, Data, corrupt, load_data, standard_error

import jaxdrop
from jaxdrop import Rule, match

IMAGES = 300  # to learn from: few, so that there is something to overfit
BATCH = 50
OPTIMIZER = optax.adam(2e-3)

TITLE = """\
Accuracy in %, training and test, after {steps} steps on {images} digits, mean ± standard
error over {seeds} seeds (training: against the labels trained on, wrong ones included).
Better or worse is what all seeds agree about, as by chance they would {chance:.0%} of the time."""
TITLE_OF_MONTE_CARLO = """
Monte Carlo dropout in trained transformers: the spread of predictions over masks, and how
well it, and the network's own doubt, tells other images from those it gets right"""

light, medium, heavy = (partial(jaxdrop.dropout, rate=rate) for rate in (0.1, 0.25, 0.5))
cell = match.named_scope("*/cell")  # the state that a cell returns, and that the next step reads


class Study(NamedTuple):
    """A model, and rules by which dropout is planted into it, each with a name."""

    model: models.Model
    treatments: Mapping[str, Any]


class Run(NamedTuple):
    """What training led to: parameters, accuracies in %, and which test images are right."""

    params: Any
    training: np.ndarray
    test: np.ndarray
    right: np.ndarray


Runs = dict[str, dict[str, Run]]  # of a condition and a treatment; all with a leading axis of seeds


def studies() -> dict[str, Study]:
    """All models. A rule that matched nothing would raise an error that lists what there is."""
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


def load_few(seeds: int) -> tuple[Data, Array]:
    """Few digits to learn from and all of the test set; labels (conditions, seeds, images)."""
    data = load_data()
    data = data._replace(images=data.images[:IMAGES], labels=data.labels[:IMAGES])
    keys = jax.random.split(jax.random.key(0), seeds)
    wrong = jax.vmap(corrupt, (0, None))(keys, data.labels)
    return data, jnp.stack([jnp.broadcast_to(data.labels, wrong.shape), wrong])


def train(
    model: models.Model, rules: Any, images: Array, labels: Array, start: Any, steps: int
) -> list[Any]:
    """Parameters for each condition; without rules the model is trained as it is."""
    planted = jaxdrop.plant(model.apply, rules) if rules else None

    def loss(params: Any, key: Array, images: Array, labels: Array) -> Array:
        logits = planted(key, params, images) if planted else model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def one_run(key: Array, params: Any, labels: Array) -> Any:
        def step(state: tuple[Any, Any], number: Array) -> tuple[tuple[Any, Any], None]:
            params, opt_state = state
            batch_key, drop_key = jax.random.split(jax.random.fold_in(key, number))
            rows = jax.random.randint(batch_key, (BATCH,), 0, IMAGES)
            gradient = jax.grad(loss)(params, drop_key, images[rows], labels[rows])
            updates, opt_state = OPTIMIZER.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        state = params, OPTIMIZER.init(params)
        return jax.lax.scan(step, state, jnp.arange(steps))[0][0]

    keys = jax.random.split(jax.random.key(1), labels.shape[1])
    run_all = jax.jit(jax.vmap(one_run))
    return [run_all(jax.random.clone(keys), start, of_condition) for of_condition in labels]


def first_of(params: Any) -> Any:
    """The parameters of the first seed."""
    return jax.tree.map(lambda leaf: leaf[0], params)


def text(values: np.ndarray, sign: str = "", digits: int = 2) -> str:
    """Mean and standard error over seeds."""
    return f"{values.mean():{sign}.{digits}f} ± {standard_error(values):.{digits}f}"


def verdict(gain: np.ndarray) -> str:
    """Whether it is for the better, which is said only if all seeds agree."""
    if gain.min() > 0:
        return "better"
    return "worse" if gain.max() < 0 else "no clear difference"


def run_study(study: Study, data: Data, labels: Array, steps: int) -> Runs:
    """Trains a model with and without dropout, from the same parameters on the same batches."""
    model, runs = study.model, {condition: {} for condition in CONDITIONS}
    start = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(2), labels.shape[1]))
    answer = jax.jit(jax.vmap(model.apply, (0, None)))
    images = jnp.concatenate([data.images, data.test_images])
    for treatment, rules in {"no dropout": None, **study.treatments}.items():
        trained = train(model, rules, data.images, labels, start, steps)
        for condition, params, learned in zip(CONDITIONS, trained, labels, strict=True):
            seen, unseen = np.split(np.asarray(answer(params, images).argmax(-1)), [IMAGES], axis=1)
            training, right = seen == np.asarray(learned), unseen == np.asarray(data.test_labels)
            accuracies = (100 * hits.mean(axis=1) for hits in (training, right))
            runs[condition][treatment] = Run(params, *accuracies, right)
    return runs


def list_sites(study: Study, runs: Runs, images: Array) -> Sequence[Any]:
    """What is planted, for a batch of images."""
    params = first_of(runs[CONDITIONS[0]]["no dropout"].params)
    rules = next(iter(study.treatments.values()))
    return jaxdrop.sites(study.model.apply, params, images[:BATCH], rules=rules)


def report_runs(name: str, table: Sequence[Any], runs: Runs) -> None:
    """Prints sites, accuracies, and how far dropout changes them, paired by seed."""
    print(f"\n{name}, in which is planted\n{table}")
    for condition, treatments in runs.items():
        print(f"  {condition}")
        for treatment, run in treatments.items():
            line = f"    {treatment:<10}  {text(run.training):<14}  {text(run.test):<14}"
            if treatment != "no dropout":
                gain = run.test - treatments["no dropout"].test
                line += f"{text(gain, '+')} points: {verdict(gain)}"
            print(line.rstrip())


def strangers(images: Array) -> dict[str, Array]:
    """Images of no digit: noise, and the pixels of digits in random order."""
    noise_key, order_key = jax.random.split(jax.random.key(3))
    return {
        "noise": jax.random.uniform(noise_key, images.shape),
        "shuffled": jax.random.permutation(order_key, images, axis=1, independent=True),
    }


def monte_carlo(study: Study, params: Any, images: Array, draws: int) -> dict[str, np.ndarray]:
    """How unsure each seed's network is about each image, by the masks and by itself.

    The spread is the standard deviation over masks of the ten probabilities, taken
    together; the doubt is one minus the greatest of them without any dropout.
    """
    apply = study.model.apply
    planted = jaxdrop.plant(apply, study.treatments["planted"])

    def one_network(params: Any) -> dict[str, Array]:
        keys = jax.random.split(jax.random.key(4), draws)
        logits = jax.vmap(planted, in_axes=(0, None, None))(keys, params, images)
        spread = jnp.sqrt(jax.nn.softmax(logits).var(axis=0).sum(axis=-1))
        own = jax.nn.softmax(apply(params, images))
        return {"spread": spread, "doubt": 1 - own.max(axis=-1)}

    scores = jax.jit(partial(jax.lax.map, one_network))(params)
    return {name: np.asarray(scores[name]) for name in ("spread", "doubt")}


def unsure(study: Study, run: Run, data: Data, draws: int) -> dict[str, Any]:
    """Scores of each kind of image; a dict from score and kind to a list over seeds."""
    others = strangers(data.test_images)
    images = jnp.concatenate([data.test_images, *others.values()])

    def by_kind(scores: np.ndarray) -> dict[str, Sequence[np.ndarray]]:
        test, *rest = np.split(scores, 1 + len(others), axis=1)
        pairs = [*zip(test, run.right, strict=True)]
        known = {"right": [s[r] for s, r in pairs], "wrong": [s[~r] for s, r in pairs]}
        return known | dict(zip(others, rest, strict=True))

    scores = monte_carlo(study, run.params, images, draws)
    return {name: by_kind(s) for name, s in scores.items()}


def area(low: np.ndarray, high: np.ndarray) -> float:
    """How often a random score of `high` is above one of `low`: the area under the ROC curve."""
    return roc_auc_score(np.repeat([0, 1], [len(low), len(high)]), np.concatenate([low, high]))


def report_unsure(scores: dict[str, Any]) -> None:
    """Prints the spreads, and how well they tell images that are not rightly known."""
    areas = {
        name: [np.array([*map(area, of["right"], of[kind])]) for kind in list(of)[1:]]
        for name, of in scores.items()
    }
    gains = [a - b for a, b in zip(areas["spread"], areas["doubt"], strict=True)]
    spreads = [np.array([*map(np.mean, rows)]) for rows in scores["spread"].values()]
    table = {
        "": [*scores["spread"]],
        "mean spread": [text(values, digits=3) for values in spreads],
        "AUC of spread": ["", *(text(values, digits=3) for values in areas["spread"])],
        "AUC of doubt": ["", *(text(values, digits=3) for values in areas["doubt"])],
        "difference": ["", *(text(values, "+", digits=3) for values in gains)],
        "the spread is": ["", *map(verdict, gains)],
    }
    for label, cells in table.items():
        print("    " + "".join(f"{cell:<21}" for cell in (label, *cells)).rstrip())


def masks(study: Study, params: Any, images: Array) -> dict[str, np.ndarray]:
    """Where the states of the first seed's recurrent network are zero: (images, steps, units).

    All of `tanh`'s values that are zero exactly have been dropped.
    """
    rnn, params, rows = models.RNN.apply, first_of(params["rnn"]), images.reshape(-1, 8, 8)
    zeros = {"no dropout": rnn(params, rows) == 0}
    for treatment, rules in study.treatments.items():
        zeros[treatment] = jaxdrop.plant(rnn, rules)(jax.random.key(5), params, rows) == 0
    return {treatment: np.asarray(zero) for treatment, zero in zeros.items()}


def report_masks(zeros: dict[str, np.ndarray]) -> None:
    """Prints how much is dropped, and how much of it throughout or at no step."""
    print("\nMasks of the recurrent network's state")
    for treatment, zero in zeros.items():
        same = (zero == zero[:, :1]).all(axis=1).mean()
        print(f"  {treatment:<10} {zero.mean():6.1%} dropped, {same:6.1%} alike at all steps")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, reports and plots; returns what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many runs of each kind")
    parser.add_argument("--steps", type=int, default=500, help="how long each run trains")
    parser.add_argument("--draws", type=int, default=50, help="masks of Monte Carlo dropout")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    data, labels = load_few(args.seeds)
    everything, runs, tables, scores = studies(), {}, {}, {}
    print(TITLE.format(**vars(args), images=IMAGES, chance=2 ** (1 - args.seeds)))
    for name, study in everything.items():
        runs[name] = run_study(study, data, labels, args.steps)
        tables[name] = list_sites(study, runs[name], data.images)
        report_runs(name, tables[name], runs[name])
    print(TITLE_OF_MONTE_CARLO)
    for treatment, run in runs["linen transformer"][CONDITIONS[0]].items():
        scores[treatment] = unsure(everything["linen transformer"], run, data, args.draws)
        print(f"  trained with {treatment}")
        report_unsure(scores[treatment])
    params = runs["linen RNN"][CONDITIONS[0]]["no dropout"].params
    zeros = masks(everything["linen RNN"], params, data.test_images[:64])
    report_masks(zeros)
    plot(runs, scores["no dropout"]["spread"], zeros, args.out / "plant_any_model.png")
    return {"runs": runs, "sites": tables, "scores": scores, "masks": zeros}


if __name__ == "__main__":
    main()
