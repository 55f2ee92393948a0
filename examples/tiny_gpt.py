"""Dropout of attention weights: what a step of a tiny GPT costs with it, and without.

A GPT of characters, in bare JAX and trained with Optax, reads what Python says
about itself: `pydoc_data.topics`, the text behind `help()`, which differs
between versions of Python. Treatments differ in their attention only:
`jax.nn.dot_product_attention`, which drops nothing; flax's, which drops weights;
and `jaxdrop.dot_product_attention`, which drops them too but never holds them
all, nor their mask.

    python examples/tiny_gpt.py

prints one table and a sample of what was learned, and writes
`figures/tiny_gpt.png` beside this file, in less than two minutes on two CPU cores.

Time and memory are those of a training step on 1024 characters in a row. What
dropping costs jaxdrop shows against its own rate 0; the rest of its distance to
"no dropout" is that of tiles. Training with so many characters would take too
long here: losses are those of the same network trained on 64 in a row. They show
that each treatment learns, and nothing about which is best: a run ends long
before it could overfit, so that dropout has nothing to prevent and does not help.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm
from train_digits import standard_error

import jaxdrop

LAYERS, WIDTH, HEADS = 3, 64, 2
RATE = 0.1
CONTEXT, BATCH = 64, 4  # when training
EVALUATIONS = 10  # of each run
TITLE = """
Step on {device}: median of {rounds}, taken in turns, at context {context} and batch {batch}.
Ratio: median, over rounds, to the time of "no dropout". Temporaries: as planned by XLA.
Validation loss: nats per character, with nothing dropped, after {steps} steps at context {short}
and batch {few}; mean ± standard error over seeds ({seeds}).
"""

Params = dict[str, Any]
Optimizer = optax.GradientTransformation
State = tuple[Params, optax.OptState]
Attend = Callable[[Array, Array, Array, Array], Array]
Step = Callable[[Array, Array, State, Array], tuple[State, Array]]
Costs = dict[str, tuple[np.ndarray, float]]  # milliseconds of each round; MiB of temporaries
Losses = dict[str, np.ndarray]  # in nats: (training and validation, seeds, evaluations)


class Text(NamedTuple):
    """Characters as numbers, to learn from and, in rows, to validate with; and what they are."""

    training: Array
    validation: Array
    characters: np.ndarray


def no_dropout(rng: Array, query: Array, key: Array, value: Array) -> Array:
    """Attention as one has it without dropout; `rng` goes unused."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=True)


def flax_dropout(rng: Array, query: Array, key: Array, value: Array) -> Array:
    """Attention of flax, with a mask of its own for each head and sample."""
    options = {"dropout_rate": RATE, "broadcast_dropout": False, "deterministic": False}
    mask = nn.make_causal_mask(jnp.ones((1, query.shape[1])), dtype=bool)
    return nn.dot_product_attention(query, key, value, mask=mask, dropout_rng=rng, **options)


def by_tiles(rng: Array, query: Array, key: Array, value: Array, rate: float = RATE) -> Array:
    """Attention that holds a tile of the weights at a time."""
    return jaxdrop.dot_product_attention(rng, query, key, value, rate, is_causal=True)


TRAINED = {"no dropout": no_dropout, "flax": flax_dropout, "jaxdrop": by_tiles}
# Not trained: it is "no dropout" but for rounding. It tells what dropping adds to the tiles.
TREATMENTS = {**TRAINED, "jaxdrop at rate 0": partial(by_tiles, rate=0.0)}
COLORS = dict(zip(TREATMENTS, ("black", "#d55e00", "#0072b2", "#009e73"), strict=True))


def load_text() -> Text:
    """Python's topics in the order of their names, of which the last tenth validates.

    Topics repeat one another. A paragraph is kept only where it comes first, so
    that none to validate with has been learned, line breaks aside.
    """
    texts, seen = [], set()
    for name in sorted(topics):
        paragraphs = {" ".join(p.split()): p for p in topics[name].split("\n\n")}
        texts.append("\n\n".join(p for words, p in paragraphs.items() if words not in seen))
        seen.update(paragraphs)
    cut = len(texts) * 9 // 10
    parts = ["\n\n".join(part) for part in (texts[:cut], texts[cut:])]
    characters, numbers = np.unique([*"".join(parts)], return_inverse=True)
    training, validation = np.split(numbers, [len(parts[0])])
    starts = np.linspace(0, len(validation) - CONTEXT - 1, 128).astype(int)
    rows = validation[starts[:, None] + np.arange(CONTEXT + 1)]
    return Text(jnp.asarray(training), jnp.asarray(rows), characters)


def make_optimizer(steps: int) -> Optimizer:
    """AdamW with clipped gradients, warmed up for a tenth of the steps."""
    rate = optax.warmup_cosine_decay_schedule(0, 5e-3, 1 + steps // 10, steps)
    return optax.chain(optax.clip_by_global_norm(1), optax.adamw(rate, b2=0.99))


def init(key: Array, text: Text, context: int, optimizer: Optimizer) -> State:
    """Random weights, those of blocks with a leading axis of layers; the optimizer's state."""
    keys = iter(jax.random.split(key, 6))

    def matrix(*shape: int, fan_in: int) -> Array:
        return jax.random.normal(next(keys), shape) / fan_in**0.5

    # What is added to the residual stream is scaled by how often that happens, as in GPT-2.
    blocks = {
        "qkv": matrix(LAYERS, WIDTH, 3 * WIDTH, fan_in=WIDTH),
        "out": matrix(LAYERS, WIDTH, WIDTH, fan_in=2 * LAYERS * WIDTH),
        "up": matrix(LAYERS, WIDTH, 4 * WIDTH, fan_in=WIDTH),
        "down": matrix(LAYERS, 4 * WIDTH, WIDTH, fan_in=2 * LAYERS * 4 * WIDTH),
    }
    embedding, positions = (matrix(n, WIDTH, fan_in=WIDTH) for n in (len(text.characters), context))
    params = {"embedding": embedding, "positions": positions, "blocks": blocks}
    return params, optimizer.init(params)


def gpt(params: Params, tokens: Array, attend: Attend, key: Array) -> Array:
    """Logits of the next character, (batch, context, vocabulary)."""

    def block(x: Array, layer: tuple[Params, Array]) -> tuple[Array, None]:
        weights, layer_key = layer
        qkv = jax.nn.standardize(x) @ weights["qkv"]
        qkv = qkv.reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        attended = attend(layer_key, *jnp.moveaxis(qkv, 2, 0))
        x = x + attended.reshape(x.shape) @ weights["out"]
        hidden = jax.nn.relu(jax.nn.standardize(x) @ weights["up"])
        return x + hidden**2 @ weights["down"], None

    x = params["embedding"][tokens] + params["positions"][: tokens.shape[1]]
    layers = params["blocks"], jax.random.split(key, LAYERS)  # a key for each layer's mask
    x, _ = jax.lax.scan(block, x, layers)
    return jax.nn.standardize(x) @ params["embedding"].T


def cross_entropy(params: Params, rows: Array, attend: Attend, key: Array) -> Array:
    """Nats a character, where each of a row's characters is told from those before it."""
    logits = gpt(params, rows[:, :-1], attend, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def make_step(attend: Attend, optimizer: Optimizer, batch: int) -> Step:
    """A step of training on random pieces of a text, as long as there are positions."""

    def step(training: Array, key: Array, state: State, number: Array) -> tuple[State, Array]:
        batch_key, drop_key = jax.random.split(jax.random.fold_in(key, number))
        params, opt_state = state
        context = len(params["positions"])
        starts = jax.random.randint(batch_key, (batch, 1), 0, len(training) - context)
        rows = training[starts + jnp.arange(context + 1)]
        loss, gradient = jax.value_and_grad(cross_entropy)(params, rows, attend, drop_key)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return step


def measure(text: Text, context: int, batch: int, rounds: int) -> Costs:
    """What a step costs. Treatments take turns, so that noise of the machine meets all alike."""
    init_key, key = jax.random.split(jax.random.key(0))
    optimizer = make_optimizer(100)
    arguments = text.training, key, init(init_key, text, context, optimizer), 0
    steps, times = {}, {name: [] for name in TREATMENTS}
    for name, attend in tqdm(TREATMENTS.items(), desc="compiling", unit="step"):
        step = jax.jit(make_step(attend, optimizer, batch))
        steps[name] = step.lower(*arguments).compile()
        jax.block_until_ready(steps[name](*arguments))
    for _ in tqdm(range(rounds), desc="measuring", unit="round"):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            times[name].append(1e3 * (time.perf_counter() - start))
    memory = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
    return {name: (np.array(times[name]), memory[name] / 2**20) for name in steps}


def make_run(step: Step) -> Callable[..., tuple[State, tuple[Array, Array]]]:
    """Some steps: their mean loss, and then the loss on other text, with nothing dropped."""

    def run(text: Text, key: Array, state: State, numbers: Array) -> Any:
        state, losses = jax.lax.scan(partial(step, text.training, key), state, numbers)
        validation = cross_entropy(state[0], text.validation, no_dropout, jax.random.key(0))
        return state, (losses.mean(), validation)

    return jax.jit(run)


def train(text: Text, seeds: int, steps: int) -> tuple[Losses, Params]:
    """Trains all treatments, in each seed from the same parameters on the same batches.

    Also returns the last parameters trained: those of the last treatment and seed.
    """
    optimizer, numbers = make_optimizer(steps), np.arange(steps).reshape(EVALUATIONS, -1)
    arrays = text._replace(characters=None)  # JAX takes no strings
    losses = {name: np.empty((2, seeds, EVALUATIONS)) for name in TRAINED}
    with tqdm(total=seeds * len(TRAINED) * steps, desc="training", unit="step") as progress:
        for name, attend in TRAINED.items():
            run = make_run(make_step(attend, optimizer, BATCH))
            for seed in range(seeds):
                init_key, key = jax.random.split(jax.random.key(seed))
                state = init(init_key, text, CONTEXT, optimizer)
                for i, few in enumerate(numbers):
                    state, losses[name][:, seed, i] = run(arrays, key, state, few)
                    progress.update(len(few))
    return losses, state[0]


def generate(params: Params, text: Text, length: int) -> tuple[str, str]:
    """The start of the text to validate with, and how the network goes on."""

    def step(window: Array, key: Array) -> tuple[Array, Array]:
        logits = gpt(params, window[None], no_dropout, jax.random.key(0))[0, -1]
        choice = jax.random.categorical(key, 2 * logits)  # temperature 1/2
        return jnp.append(window[1:], choice), choice

    prompt = text.validation[0, :CONTEXT]
    keys = jax.random.split(jax.random.key(1), length)
    _, choices = jax.jit(partial(jax.lax.scan, step))(prompt, keys)
    return tuple("".join(text.characters[part]) for part in (prompt, choices))


def report(costs: Costs, losses: Losses) -> None:
    """Prints the table."""
    print(f"{'':<20}{'step':>9}{'ratio':>8}{'temporaries':>15}   validation loss")
    for name, (times, memory) in costs.items():
        ratio = np.median(times / costs["no dropout"][0])
        row = f"{name:<20}{np.median(times):6.1f} ms{ratio:8.2f}{memory:11.1f} MiB"
        if name in losses:
            last = losses[name][1, :, -1]
            row += f"   {last.mean():.3f} ± {standard_error(last):.3f}"
        print(row)


def plot(costs: Costs, losses: Losses, steps: int, path: Path) -> None:
    """Draws costs, with quartiles of the times, and losses, with standard errors."""
    figure = Figure(figsize=(10, 3.6), layout="constrained", facecolor="white")
    clock, memory, curves = figure.subplots(1, 3, width_ratios=(3, 3, 4))
    times, memories = zip(*costs.values(), strict=True)
    low, middle, high = np.percentile(times, (25, 50, 75), axis=1)
    _bars(clock, "time of a step (ms)", middle, xerr=(middle - low, high - middle), ecolor="gray")
    _bars(memory, "temporaries of a step (MiB)", memories)
    clock.set_yticks(range(len(costs)), costs)
    done = np.arange(1, EVALUATIONS + 1) * steps // EVALUATIONS
    for name, both in losses.items():
        for values, style, label in zip(both, ":-", (None, name), strict=True):
            mean, band = values.mean(axis=0), standard_error(values)
            curves.plot(done, mean, style, color=COLORS[name], label=label)
            curves.fill_between(done, mean - band, mean + band, color=COLORS[name], alpha=0.2, lw=0)
    curves.set(xlabel="steps of training", ylabel="loss (nats per character)")
    curves.set_title("training (dotted) and validation", fontsize="medium")
    curves.grid(alpha=0.3)
    curves.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _bars(panel: Axes, label: str, values: Sequence[float], **options: Any) -> None:
    bars = panel.barh(range(len(values)), values, color=COLORS.values(), **options)
    panel.bar_label(bars, fmt="%.0f", padding=3)
    panel.set(xlabel=label, yticks=(), ylim=(len(values) - 0.4, -0.6))
    panel.margins(x=0.2)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, trains, reports and plots; returns costs, losses and the generated text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each kind")
    parser.add_argument("--steps", type=int, default=1000, help="of each run, a multiple of 10")
    parser.add_argument("--rounds", type=int, default=15, help="how often a step is measured")
    parser.add_argument("--context", type=int, default=1024, help="of the measured step")
    parser.add_argument("--batch", type=int, default=1, help="of the measured step")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    text = load_text()
    costs = measure(text, args.context, args.batch, args.rounds)
    losses, params = train(text, args.seeds, args.steps)
    device = jax.devices()[0].device_kind
    print(TITLE.format(**vars(args), device=device, short=CONTEXT, few=BATCH))
    report(costs, losses)
    prompt, continuation = generate(params, text, 200)
    print(f"\nTrained with {[*losses][-1]}, the network continues {prompt!r}:\n\n{continuation}")
    plot(costs, losses, args.steps, args.out / "tiny_gpt.png")
    return {"costs": costs, "losses": losses}


if __name__ == "__main__":
    main()
