"""What the published span masks really mask: SpecAugment's, wav2vec 2.0's and HuBERT's.

SpecAugment (Park et al., arXiv:1904.08779, 2019) says how many spans there are and how
wide they may be, but not what share of the time they mask. The masks of wav2vec 2.0
(Baevski et al., arXiv:2006.11477, 2020), as `transformers` and fairseq draw them, ask for
a share `mask_prob`, and lay `mask_prob * length / mask_length` spans, as if they never
overlapped and there were no borders. `jaxdrop.drop_spans` draws the former with
`num_spans`, and with `rate` it drops what it is asked for. This example holds them against
each other: in closed form, by sampling and by position.

    python examples/drop_spans_audit.py

prints three tables and writes `figures/drop_spans_audit.png` beside this file, in about 10
seconds on two CPU cores.

What one sees:
- Of the .65 that wav2vec 2.0 asks for, its routine masks .491 in 15 seconds (the paper
  says 49 %) and .511 in one; of HuBERT's .8 it masks .567 and .584. About an eighth of
  what is asked for is left at the first and at the last step, .080 of .65, since no span
  begins in front of the sequence. Where little is asked for, as .05 of fine-tuning, spans hardly
  overlap, and the mean is right.
- `drop_spans` with `rate` drops what is asked for, at every step.
- SpecAugment's masks take a share that depends on the length: the same policy,
  "LibriSpeech double", masks .424 of 2 seconds and .066 of 15. With two masks of frequency
  of up to 27 of 80 bins, .305 of the bins, so .600 and .351 of all.
- torchaudio rounds widths down, so that its widest mask is one narrower than its argument:
  .295 of the bins for .305.
"""

import argparse
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from train_digits import standard_error

import jaxdrop

# The policies of SpecAugment's table 1: the widest mask and the number of masks of
# frequency, those of time, and the share of the time that one mask may cover.
POLICIES = {
    "LibriSpeech basic": (27, 1, 100, 1, 1.0),
    "LibriSpeech double": (27, 2, 100, 2, 1.0),
    "Switchboard mild": (15, 2, 70, 2, 0.2),
    "Switchboard strong": (27, 2, 70, 2, 0.2),
}
BINS = 80  # of frequency
STEPS = (200, 500, 1500)  # of 10 ms
ASKED = {"wav2vec 2.0": (0.65, 10), "HuBERT": (0.8, 10), "transformers' default": (0.05, 10)}
FRAMES = (49, 249, 749)  # of 20 ms, in 1, 5 and 15 seconds
SAMPLES = 2**12  # for each key
SHOWN = (49, 0.65, 10)
ASKS = np.linspace(0.02, 1, 50)
COLORS = ("#0072b2", "#d55e00")

Results = dict[str, dict[Any, Any]]


def covering(size: int, width: int) -> np.ndarray:
    """How many of the spans of a width that lie inside cover each position."""
    position = np.arange(size)
    return np.minimum(position, size - width) - np.maximum(position - width + 1, 0) + 1


def kept_by_spec_augment(size: int, most: int, number: int) -> np.ndarray:
    """The share kept of each position, by spans of 0 to `most` positions, drawn independently."""
    widths = range(min(most, size) + 1)
    covered = sum(covering(size, w) / (size - w + 1) for w in widths if w) / len(widths)
    return (1 - covered) ** number


def numbers(size: int, asked: float, width: int) -> dict[int, float]:
    """How many spans the routine of `transformers` lays, and how likely each number is."""
    wanted = asked * size / width  # rounded up with the probability of what is left
    most = min(size // width, size - width + 1)
    low, up = int(wanted), wanted - int(wanted)
    found: dict[int, float] = {}
    for number, chance in ((low, 1 - up), (low + 1, up)):
        number = most if number * width > size else number
        found[number] = found.get(number, 0) + chance
    return found


def kept_by_wav2vec(size: int, asked: float, width: int) -> np.ndarray:
    """The share kept of each position, by different starts of spans that lie inside."""
    places = size - width + 1
    kept = np.zeros(size)
    for number, chance in numbers(size, asked, width).items():
        ways = [comb(places - int(c), number) / comb(places, number) for c in covering(size, width)]
        kept += chance * np.array(ways)
    return kept


def spec_augment(steps: int, policy: tuple[int, int, int, int, float], less: int = 0) -> list[Any]:
    """What is masked of time, of frequency, and of both together.

    The widest span is `most - less`: 1 less in torchaudio, which rounds its widths down.
    """
    of_bins, bins, of_steps, times, cap = policy
    widest = min(of_steps, int(cap * steps))
    frequency = kept_by_spec_augment(BINS, of_bins - less, bins).mean()
    time = kept_by_spec_augment(steps, widest - less, times).mean()
    return [1 - time, 1 - frequency, 1 - time * frequency]


def draw_wav2vec(generator: np.random.Generator, size: int, asked: float, width: int) -> np.ndarray:
    """One mask, True where kept, by the routine of `transformers` restated in NumPy."""
    number = int(asked * size / width + generator.random())
    number = size // width if number * width > size else number
    kept = np.ones(size, bool)
    for start in generator.choice(size - width + 1, number, replace=False):
        kept[start : start + width] = False
    return kept


def draw_jaxdrop(key: jax.Array, size: int, asked: float, width: int) -> np.ndarray:
    """Masks of `drop_spans` at a rate."""
    return np.asarray(jaxdrop.drop_spans(key, jnp.ones((SAMPLES, size)), asked, width=width) != 0)


def sample_all(seeds: int) -> dict[Any, dict[str, np.ndarray]]:
    """The share kept of each position, for each key, by the routine and by `drop_spans`."""
    found: dict[Any, dict[str, np.ndarray]] = {}
    keys = jax.random.split(jax.random.key(0), seeds)
    for setting in [(size, *ask) for size in FRAMES[:2] for ask in ASKED.values()]:
        generator = np.random.default_rng(0)
        routine = [
            np.mean([draw_wav2vec(generator, *setting) for _ in range(SAMPLES // 8)], axis=0)
            for _ in range(seeds)
        ]
        ours = [draw_jaxdrop(jax.random.clone(key), *setting).mean(axis=0) for key in keys]
        found[setting] = {"transformers": np.array(routine), "drop_spans": np.array(ours)}
    return found


def report(results: Results) -> None:
    """Prints the three tables."""
    print("Share masked by SpecAugment, in closed form: of the time, of 80 bins of frequency, of")
    print("both; and the same in torchaudio, whose widest mask is one narrower than its argument\n")
    print(f"{'policy':<22}{'steps':>6}  {'time':>6}{'freq':>7}{'both':>7}  {'torchaudio':>14}")
    for (name, steps), (paper, torchaudio) in results["spec_augment"].items():
        cells = "".join(f"{share:7.3f}" for share in (*paper, *torchaudio))
        print(f"{name:<22}{steps:>6} {cells}")
    print(
        "\nShare masked where a share is asked for, in closed form: by the routine of transformers"
    )
    print("on average, at the first step and in the middle; and by drop_spans(rate=...) at each\n")
    titles = ("asked", "masked", "first", "middle", "rate=")
    print(f"{'setting':<24}{'steps':>6}" + "".join(f"{title:>9}" for title in titles))
    for (name, steps), (asked, kept) in results["wav2vec"].items():
        shares = (asked, 1 - kept.mean(), 1 - kept[0], 1 - kept[steps // 2], asked)
        print(f"{name:<24}{steps:>6}" + "".join(f"{share:9.3f}" for share in shares))
    report_samples(results["sampled"])


def report_samples(sampled: dict[Any, dict[str, np.ndarray]]) -> None:
    """Prints what sampling finds beside what must come out."""
    seeds = len(next(iter(sampled.values()))["drop_spans"])
    print(f"\nShare masked: in closed form, and sampled {seeds} times (mean ± standard error)\n")
    print(f"{'asked':>5} {'steps':>6}  {'transformers':<28}drop_spans")
    for (size, asked, width), found in sampled.items():
        exact = (1 - kept_by_wav2vec(size, asked, width).mean(), asked)
        cells = []
        for share, kept in zip(exact, (found["transformers"], found["drop_spans"]), strict=True):
            masked = 1 - kept.mean(axis=1)
            cells.append(f"{share:.4f}  {masked.mean():.4f} ± {standard_error(masked):.4f}")
        print(f"{asked:>5} {size:>6}  " + "     ".join(cells))


def plot(results: Results, path: Path) -> None:
    """Draws the share masked against the share asked for, and by position."""
    figure = Figure(figsize=(7, 3.3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    draw_curves(left)
    draw_positions(right, results["sampled"][SHOWN])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def draw_curves(panel: Axes) -> None:
    """Draws the share masked on average against the share asked for."""
    panel.plot(ASKS, ASKS, color="black", label="drop_spans(rate=...)")
    for size, color in zip((FRAMES[0], FRAMES[-1]), COLORS, strict=True):
        masked = [1 - kept_by_wav2vec(size, asked, 10).mean() for asked in ASKS]
        panel.plot(ASKS, masked, "--", color=color, label=f"transformers, {size} steps")
    panel.set(xlabel="share asked for", ylabel="share masked", xlim=(0, 1), ylim=(0, 1))
    panel.set_title("spans of 10 steps: average over positions", fontsize=9)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)


def draw_positions(panel: Axes, sampled: dict[str, np.ndarray]) -> None:
    """Draws the share masked of each position, with what was sampled."""
    size, asked, width = SHOWN
    exact = {"transformers": 1 - kept_by_wav2vec(*SHOWN), "drop_spans": np.full(size, asked)}
    for (name, shares), color in zip(exact.items(), (COLORS[0], "black"), strict=True):
        panel.plot(shares, color=color, label=name)
        style = {"fmt": "o", "ms": 2.5, "color": color, "lw": 0.8}
        kept = sampled[name]
        panel.errorbar(range(size), 1 - kept.mean(0), kept.std(0) / len(kept) ** 0.5, **style)
    panel.set(xlabel="step", ylabel="share masked", ylim=(0, 1))
    panel.set_title(f"{asked} asked for, spans of {width} in {size} steps", fontsize=9)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="lower center")


def main(argv: Sequence[str] | None = None) -> Results:
    """Audits, samples, reports and plots; returns what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="how many times to sample")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    results: Results = {
        "spec_augment": {
            (name, steps): (spec_augment(steps, policy), spec_augment(steps, policy, less=1))
            for name, policy in POLICIES.items()
            for steps in STEPS
        },
        "wav2vec": {
            (name, size): (asked, kept_by_wav2vec(size, asked, width))
            for name, (asked, width) in ASKED.items()
            for size in FRAMES
        },
        "sampled": sample_all(args.seeds),
    }
    report(results)
    plot(results, args.out / "drop_spans_audit.png")
    return results


if __name__ == "__main__":
    main()
