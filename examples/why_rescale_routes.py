"""Divide by keep_prob while training, or multiply the weights by it at test time?

The training behind `why_rescale.py`: a 64-64-64-10 network learns scikit-learn's
bundled digits by both routes at once, from the same batches and under the same masks.

Let f(w m x) train without dividing, and f(v m x / q) with it, q being keep_prob. At
v = q w both are one function under every mask, and one at test time, f(q w x) = f(v x).
But the gradient for w is q times that for v, so in terms of v a step of SGD on w with
learning rate lr is one with q^2 lr, and a step of Adam, which ignores the scale of
gradients, one with q lr.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from jaxdrop import dropout, monte_carlo_moments, rescale

SIZES = (64, 64, 64, 10)
RATES = (0.5, 0.2)  # of dropping, at both hidden layers
BATCH = 64
MASKS = 30  # over which the logits of training are averaged

Params = list[dict[str, Array]]
State = tuple[Params, optax.OptState]


class Numbers(NamedTuple):
    """The settings of an optimizer; each takes those that concern it."""

    learning_rate: Any
    momentum: Any = 0.0
    decay: Any = 0.0
    epsilon: Any = 1e-8


Optimizer = Callable[[Numbers], optax.GradientTransformation]


def sgd(numbers: Numbers) -> optax.GradientTransformation:
    """SGD for the loss plus decay / 2 times the squared weights."""
    return optax.chain(
        optax.add_decayed_weights(numbers.decay),
        optax.trace(numbers.momentum),
        optax.scale_by_learning_rate(numbers.learning_rate),
    )


def adam(numbers: Numbers) -> optax.GradientTransformation:
    """Adam, whose epsilon is the one place where the scale of gradients enters."""
    return optax.adam(numbers.learning_rate, eps=numbers.epsilon)


# How the original trains the weights behind its drops, given q. All other parameters, and
# inverted dropout as a whole, have the numbers for q = 1.
RECIPES: dict[str, tuple[Optimizer, Callable[[Any], Numbers]]] = {
    "SGD, same lr": (sgd, lambda q: Numbers(0.2)),
    "SGD, lr/q²": (sgd, lambda q: Numbers(0.2 / q**2)),
    "momentum, lr/q²": (sgd, lambda q: Numbers(0.02 / q**2, momentum=0.9)),
    "decay, lr/q²": (sgd, lambda q: Numbers(0.2 / q**2, decay=1e-3)),
    "decay q², lr/q²": (sgd, lambda q: Numbers(0.2 / q**2, decay=1e-3 * q**2)),
    "Adam, same lr": (adam, lambda q: Numbers(2e-3)),
    "Adam, lr/q²": (adam, lambda q: Numbers(2e-3 / q**2)),
    "Adam, lr/q, epsilon q": (adam, lambda q: Numbers(2e-3 / q, epsilon=1e-8 * q)),
}


class Data(NamedTuple):
    """Images as 64 numbers in [0, 1], and their digits."""

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


class Route(NamedTuple):
    """One way to train: the survivors' factor, and the optimizer that goes with it."""

    rule: rescale.Rescale
    optimizer: optax.GradientTransformation

    def step(self, key: Array, data: Data, rate: Array, state: State) -> State:
        """A step on a random batch; the key says which batch and which masks."""
        params, opt_state = state
        rows = jax.random.randint(jax.random.fold_in(key, 0), (BATCH,), 0, len(data.images))
        batch = data.images[rows], data.labels[rows]

        def loss(params: Params) -> Array:
            drop_key = jax.random.fold_in(key, 1)
            return cross_entropy(network(drop_key, params, batch[0], rate, self.rule), batch[1])

        updates, opt_state = self.optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state


def load_data() -> Data:
    """A fixed split with the same share of each digit on both sides."""
    pixels, digits = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16, digits, test_size=0.25, stratify=digits, random_state=0)
    images, test_images, labels, test_labels = map(jnp.asarray, split)
    return Data(images, labels, test_images, test_labels)


def init(key: Array) -> Params:
    """He's random weights and zero biases."""
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        {"w": jax.random.normal(key, (n, m)) * (2 / n) ** 0.5, "b": jnp.zeros(m)}
        for key, (n, m) in zip(keys, itertools.pairwise(SIZES), strict=True)
    ]


def network(
    key: Array | None,
    params: Params,
    x: Array,
    rate: Array | float = 0.0,
    rule: rescale.Rescale = rescale.expected,
) -> Array:
    """The logits; without a key nothing is dropped."""
    for i, layer in enumerate(params):
        if i > 0:
            x = jax.nn.relu(x)
            if key is not None:
                x = dropout(jax.random.fold_in(key, i), x, rate, rescale=rule)
        x = x @ layer["w"] + layer["b"]
    return x


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over examples, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def behind_drops(change: Callable[[Any], Any], params: Any) -> Any:
    """Changes the weights that dropped activations are multiplied with, and no others."""
    first, *rest = params
    return [first, *({**layer, "w": change(layer["w"])} for layer in rest)]


def scale_weights(params: Params, rate: Array) -> Params:
    """The original paper's network at test time: q w for each w behind a drop."""
    return behind_drops(lambda w: rescale.inference_scale(w, rate), params)


def unscale_weights(params: Params, rate: Array) -> Params:
    """The original's weights w = v / q for those of inverted dropout."""
    q = rescale.inference_scale(jnp.ones(()), rate)
    return behind_drops(lambda v: v / q, params)


@jax.jit
def largest_difference(key: Array, v: Params, x: Array, rate: Array) -> dict[str, Array]:
    """Of the logits of both routes at w = v / q, under one mask and at test time."""
    w = unscale_weights(v, rate)
    under_mask = network(key, v, x, rate) - network(key, w, x, rate, rescale.none)
    at_test = network(None, v, x) - network(None, scale_weights(w, rate), x)
    return {"under a mask": jnp.abs(under_mask).max(), "at test time": jnp.abs(at_test).max()}


def make_routes(optimizer: Optimizer, numbers: Numbers, behind: Numbers) -> tuple[Route, Route]:
    """Inverted dropout, and the original with numbers of its own for weights behind drops."""
    kinds = behind_drops(lambda _: "behind", [{"w": "other", "b": "other"}] * (len(SIZES) - 1))
    by_kind = {"behind": optimizer(behind), "other": optimizer(numbers)}
    return (
        Route(rescale.expected, optimizer(numbers)),
        Route(rescale.none, optax.multi_transform(by_kind, kinds)),
    )


def distance(one: Any, other: Any) -> Array:
    """The 2-norm of the difference."""
    return optax.global_norm(jax.tree.map(jnp.subtract, one, other))


def train(
    routes: tuple[Route, Route], steps: int, data: Data, key: Array, rate: Array
) -> tuple[Params, Params, dict[str, Array]]:
    """Trains both routes from one function, on the same batches and masks.

    Returns:
      The parameters of inverted dropout, v; those of the original, w; and for each step
      `gap`, the distance of q w from v after it, by the norm of v, and `pace`, how far q w
      moved behind drops, by how far v did.
    """
    q = rescale.inference_scale(jnp.ones(()), rate)
    first = init(jax.random.fold_in(key, 0))
    firsts = first, unscale_weights(first, rate)

    def step(
        states: tuple[State, ...], number: Array
    ) -> tuple[tuple[State, ...], dict[str, Array]]:
        step_key, pairs = jax.random.fold_in(key, number), zip(routes, states, strict=True)
        after = tuple(route.step(step_key, data, rate, state) for route, state in pairs)
        (old_v, _), (old_w, _) = states
        (v, _), (w, _) = after
        moved = [
            distance([layer["w"] for layer in new[1:]], [layer["w"] for layer in old[1:]])
            for new, old in ((w, old_w), (v, old_v))
        ]
        gap = distance(scale_weights(w, rate), v) / optax.global_norm(v)
        return after, {"gap": gap, "pace": q * moved[0] / moved[1]}

    states = tuple((p, r.optimizer.init(p)) for p, r in zip(firsts, routes, strict=True))
    ((v, _), (w, _)), history = jax.lax.scan(step, states, 1 + jnp.arange(steps))
    return v, w, history


def measure(
    data: Data, key: Array, rate: Array, v: Params, w: Params
) -> dict[str, dict[str, Array]]:
    """What the three networks that there are at test time do.

    Returns:
      For each the test error in %, the cross-entropy, and the growth of its logits: how
      many times those of training, in the mean over masks, they are at test time.
    """

    def seen(params: Params, rule: rescale.Rescale) -> Array:
        run = partial(network, rate=rate, rule=rule)
        moments = monte_carlo_moments(run, MASKS)(jax.random.clone(key), params, data.test_images)
        return moments.mean

    def one(params: Params, in_training: Array) -> dict[str, Array]:
        logits = network(None, params, data.test_images)
        return {
            "error": 100 * jnp.mean(jnp.argmax(logits, axis=-1) != data.test_labels),
            "loss": cross_entropy(logits, data.test_labels),
            "growth": jnp.sum(logits**2) / jnp.sum(logits * in_training),
        }

    seen_by_w = seen(w, rescale.none)
    return {
        "inverted": one(v, seen(v, rescale.expected)),
        "original, q W": one(scale_weights(w, rate), seen_by_w),
        "original, W": one(w, seen_by_w),
    }


@partial(jax.jit, static_argnames=("optimizer", "steps"))
def train_all(
    optimizer: Optimizer,
    steps: int,
    numbers: Numbers,
    behind: Numbers,
    data: Data,
    keys: Array,
    rates: Array,
) -> tuple[Params, Params, dict[str, Array]]:
    """`train` for all rates, each with the numbers behind its drops, and all seeds."""

    def one(behind: Numbers, rate: Array, key: Array) -> tuple[Params, Params, dict[str, Array]]:
        return train(make_routes(optimizer, numbers, behind), steps, data, key, rate)

    return jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))(behind, rates, keys)


def run_recipes(seeds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Trains and measures by each recipe; arrays begin with the rates and the seeds."""
    data, rates = load_data(), jnp.asarray(RATES)
    train_keys, measure_keys = jax.random.split(jax.random.key(0), (2, seeds))
    q = np.array([rescale.inference_scale(jnp.ones(()), rate) for rate in RATES])
    measure_all = jax.jit(jax.vmap(jax.vmap(measure, (None, 0, None, 0, 0)), (None, None, 0, 0, 0)))
    results = {}
    for name in (progress := tqdm(RECIPES, unit="recipe")):
        progress.set_description(name)
        optimizer, numbers = RECIPES[name]
        behind = Numbers(*(number * np.ones_like(q) for number in numbers(q)))
        plain = numbers(1.0)
        v, w, history = train_all(optimizer, steps, plain, behind, data, train_keys, rates)
        found = measure_all(data, jax.random.clone(measure_keys), rates, v, w)
        results[name] = jax.device_get({**history, **found})
    return results
