"""DropBlock's published gamma keeps more than it is asked to: how much, and where.

DropBlock (Ghiasi, Lin and Le, arXiv:1810.12890, 2018) lets seeds fall with a
probability gamma and drops a block at each. Its formula for gamma takes the blocks for
disjoint; they overlap, so that more is kept. `jaxdrop.drop_block` solves for the gamma
that keeps the share asked for, and has the paper's under `exact=False`. This example
holds the two against each other: in closed form, by sampling, by position, and through
the rescaling that follows.

    python examples/drop_block_audit.py

prints four tables and writes `figures/drop_block_audit.png` beside this file, in about 20
seconds on two CPU cores.

What one sees:
- At keep .5 the published gamma really keeps .614 (map 8, block 3) or .642 (map 14,
  block 7). At keep .9 it is off by .004 to .007 only, and it is right where one block
  fills the map.
- The formula needs seeds whose blocks lie wholly inside, as in torchvision. Where seeds
  fall everywhere and blocks are cut at the border, as in timm by default, the same gamma
  drops more, not less, on small maps: of keep .9 it leaves .791 (map 14, block 7), .382
  (map 8, block 7) and .070 (map 7, block 7). `benchmarks/definitions.py` measures both
  libraries.
- The exact gamma keeps the share on average, not at each position. Of .5 it keeps .858
  in a corner and .252 in the middle; the published one .901 and .392.
- Multiplying by size / kept hides both. Either gamma leaves the mean of a constant map
  at 1, unless all of it is dropped, so that only the strength of the noise is off. But
  what was a 1 is on average 1.844 in a corner and .249 in the middle (map 6, keep .5,
  exact gamma). Dividing by each position's own share kept gives 1 everywhere, but then
  the mean of the map varies, with a standard deviation of .533 for .032.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm
from train_digits import standard_error

import jaxdrop
from jaxdrop import rescale

SIZES = (7, 8, 14, 28, 56)
BLOCKS = (3, 5, 7)
KEEPS = (0.5, 0.75, 0.9, 0.95)
GAMMAS = {"published": False, "exact": True}  # what `exact` is
CURVES = ((8, 3), (14, 7))
RATES = np.linspace(0, 0.99, 34)
SAMPLED = [(size, block, keep) for size in (8, 14) for block in BLOCKS for keep in KEEPS]
ELEMENTS = 2**17  # sampled for each key and setting
MAPS = ((8, 3, 0.5), (14, 7, 0.9))
SMALL = (6, 3, 0.5)  # so small that all sets of seeds can be counted out
COLORS = ("#0072b2", "#d55e00")

Results = dict[str, dict[Any, Any]]


def cover(size: int, block: int) -> np.ndarray:
    """How many seeds can cover each position of an axis, if blocks lie wholly inside."""
    position = np.arange(size)
    return np.minimum(position, size - block) - np.maximum(position - block + 1, 0) + 1


def clipped_cover(size: int, block: int) -> np.ndarray:
    """The same if seeds fall everywhere and odd blocks around them are cut at the border."""
    position, reach = np.arange(size), block // 2
    return np.minimum(position + reach, size - 1) - np.maximum(position - reach, 0) + 1


def kept_by_position(gamma: float, covers: np.ndarray) -> np.ndarray:
    """The probability that none of the seeds that can cover a position falls."""
    return (1 - gamma) ** np.outer(covers, covers)


def audit(size: int, block: int, keep: float) -> dict[str, float]:
    """Both gammas and the share that each keeps on average."""
    gammas = {
        name: jaxdrop.drop_block_gamma(1 - keep, (size, size), block, exact=exact)
        for name, exact in GAMMAS.items()
    }
    kept = {n: kept_by_position(g, cover(size, block)).mean() for n, g in gammas.items()}
    cut = kept_by_position(gammas["published"], clipped_cover(size, block)).mean()
    return {**{f"gamma, {n}": g for n, g in gammas.items()}, **kept, "blocks cut": cut}


def sample(keys: jax.Array, size: int, block: int, keep: float, exact: bool) -> np.ndarray:
    """The share of maps in which each position is kept: (keys, size, size)."""
    x = jnp.ones((ELEMENTS // size**2, size, size, 1))
    drop = partial(jaxdrop.drop_block, rate=1 - keep, block_size=block, exact=exact)
    kept = jax.vmap(lambda key: jnp.mean(drop(key, x) != 0, axis=(0, 3)))(keys)
    return np.asarray(kept, np.float64)


def sample_all(seeds: int) -> dict[Any, dict[str, np.ndarray]]:
    """Samples some settings with both gammas, all with keys of their own."""
    found: dict[Any, dict[str, np.ndarray]] = {setting: {} for setting in SAMPLED}
    runs = [(setting, name) for setting in SAMPLED for name in GAMMAS]
    for number, (setting, name) in enumerate(tqdm(runs, desc="sampling", unit="setting")):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), seeds)
        found[setting][name] = sample(keys, *setting, GAMMAS[name])
    return found


def all_masks(size: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """What each set of seeds keeps, (sets, size, size), and the number of its seeds."""
    edge = size - block + 1
    bits = np.arange(2 ** (edge * edge))[:, None] >> np.arange(edge * edge)
    seeds = (bits & 1).astype(bool).reshape(-1, edge, edge)
    kept = np.ones((len(seeds), size, size), bool)
    for row, column in np.ndindex(edge, edge):
        kept[:, row : row + block, column : column + block] &= ~seeds[:, row, column, None, None]
    return kept, seeds.sum(axis=(1, 2))


def rescaled(size: int, block: int, keep: float) -> dict[str, dict[str, Any]]:
    """Exact moments of a map of ones, by gamma and rule: each position's mean, and the sum's."""
    kept, number = all_masks(size, block)
    ones = jnp.ones(kept.shape)
    mask = jaxdrop.Mask.pack(jnp.asarray(kept), keep)
    found = {}
    for name, exact in GAMMAS.items():
        gamma = jaxdrop.drop_block_gamma(1 - keep, (size, size), block, exact=exact)
        chance = gamma**number * (1 - gamma) ** ((size - block + 1) ** 2 - number)
        own = jnp.asarray(1 / kept_by_position(gamma, cover(size, block))[None], jnp.float32)
        rules = {
            "1 / keep asked": rescale.expected,
            "1 / keep of position": lambda mask, x, own=own: own,
            "size / kept": rescale.realized((1, 2)),
        }
        for rule_name, rule in rules.items():
            y = np.asarray(jaxdrop.apply_mask(mask, ones, rescale=rule), float)
            of_map = y.mean(axis=(1, 2))
            mean = chance @ of_map
            found[f"{name}, {rule_name}"] = {
                "positions": np.einsum("s,sij->ij", chance, y),
                "mean": mean,
                "spread": np.sqrt(chance @ (of_map - mean) ** 2),
                "all dropped": chance[~kept.any(axis=(1, 2))].sum(),
            }
    return found


def places(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What lies in a corner, in the middle of an edge and in the middle of (..., map, map)."""
    middle = values.shape[-1] // 2
    return values[..., 0, 0], values[..., 0, middle], values[..., middle, middle]


def report(results: Results) -> None:
    """Prints the four tables."""
    print("Share kept on average, in closed form. For each share asked: with the published gamma;")
    print("with it, but seeds everywhere and blocks cut at the border; and the exact gamma.\n")
    print(f"{'map':>3} {'block':>5}" + "".join(f"  |{f'keep {keep}':^22}" for keep in KEEPS))
    print(" " * 9 + "".join(f"  |{'publ.':>6}{'cut':>6}{'gamma':>10}" for _ in KEEPS))
    for size in SIZES:
        for block in BLOCKS:
            rows = [results["kept"][size, block, keep] for keep in KEEPS]
            cells = (
                f"  |{row['published']:6.3f}{row['blocks cut']:6.3f}{row['gamma, exact']:10.6f}"
                for row in rows
            )
            print(f"{size:>3} {block:>5}" + "".join(cells))
    worst = max(abs(row["exact"] - key[2]) for key, row in results["kept"].items())
    print(f"\nThe exact gamma misses the share asked by at most {worst:.0e}.")
    report_samples(results)
    report_positions(results)
    report_rescaling(results["rescaled"])


def text(values: np.ndarray, digits: int) -> str:
    """Mean and standard error."""
    return f"{values.mean():.{digits}f} ± {standard_error(values):.{digits}f}"


def report_samples(results: Results) -> None:
    """Prints what sampling finds beside what must come out."""
    seeds = len(results["sampled"][SAMPLED[0]]["exact"])
    print(f"\nShare kept: in closed form, and sampled with {seeds} keys (mean ± standard error)\n")
    print(f"{'map':>3} {'block':>5} {'keep':>5}  {'published gamma':<25}exact gamma")
    for (size, block, keep), sampled in results["sampled"].items():
        row = results["kept"][size, block, keep]
        cells = (f"{row[n]:.4f}  {text(sampled[n].mean(axis=(1, 2)), 4)}" for n in GAMMAS)
        print(f"{size:>3} {block:>5} {keep:>5.2f}  " + "   ".join(cells))


def report_positions(results: Results) -> None:
    """Prints what corners, edges and the middle keep."""
    print("\nShare kept by position: in closed form, and sampled\n")
    print(f"{'':<32}{'corner':<22}{'middle of an edge':<22}middle")
    for size, block, keep in MAPS:
        for name in GAMMAS:
            gamma = results["kept"][size, block, keep][f"gamma, {name}"]
            exact = places(kept_by_position(gamma, cover(size, block)))
            sampled = places(results["sampled"][size, block, keep][name])
            cells = (f"{e:.3f}  {text(s, 3):<15}" for e, s in zip(exact, sampled, strict=True))
            print(f"map {size:>2}, block {block}, keep {keep}, {name:<10}" + "".join(cells))


def report_rescaling(rescaled: dict[str, dict[str, Any]]) -> None:
    """Prints what each factor makes of a map of ones."""
    size, block, keep = SMALL
    sets = 2 ** (size - block + 1) ** 2
    print(f"\nA map of ones times each factor, map {size}, block {block}, keep {keep}: exact means")
    print(f"over all {sets:,} sets of seeds, and standard deviation of the map's mean\n")
    titles = ("corner", "edge", "middle", "map", "std")
    print(f"{'gamma, factor':<32}{''.join(f'{t:>8}' for t in titles)}{'all gone':>10}")
    for name, found in rescaled.items():
        numbers = (*places(found["positions"]), found["mean"], found["spread"])
        cells = "".join(f"{number:8.3f}" for number in numbers)
        print(f"{name:<32}{cells}{found['all dropped']:10.1e}")


def plot(results: Results, path: Path) -> None:
    """Draws the share kept against the rate, and by position before and after the rescaling."""
    figure = Figure(figsize=(7, 6.4), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 2)
    draw_curves(panels[0, 0], results["sampled"])
    size, block, keep = MAPS[0]
    for panel, name in zip((panels[0, 1], panels[1, 0]), GAMMAS, strict=True):
        gamma = results["kept"][MAPS[0]][f"gamma, {name}"]
        values = kept_by_position(gamma, cover(size, block))
        title = f"share kept, {name} gamma: mean {values.mean():.3f}"
        draw_map(panel, values, f"{title}\nmap {size}, block {block}, keep {keep} asked", (0, 1))
    values = results["rescaled"]["exact, size / kept"]["positions"]
    size, block, keep = SMALL
    title = "mean of ones times size / kept, exact gamma"
    draw_map(panels[1, 1], values, f"{title}\nmap {size}, block {block}, keep {keep}", (0, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def draw_curves(panel: Axes, sampled: dict[Any, dict[str, np.ndarray]]) -> None:
    """Draws the share kept against the rate asked, with what was sampled."""
    panel.plot(RATES, 1 - RATES, color="black", label="exact")
    for (size, block), color in zip(CURVES, COLORS, strict=True):
        rows = [audit(size, block, 1 - rate) for rate in RATES]
        for name, line in (("published", "--"), ("blocks cut", ":")):
            label = f"{name}, {size} / {block}"
            panel.plot(RATES, [row[name] for row in rows], line, color=color, label=label)
        for (*shape, keep), found in sampled.items():
            if shape == [size, block]:
                for name, fill in (("published", color), ("exact", "white")):
                    shares = found[name].mean(axis=(1, 2))
                    style = {"fmt": "o", "ms": 4, "capsize": 2, "color": color, "mfc": fill}
                    panel.errorbar(1 - keep, shares.mean(), standard_error(shares), **style)
    panel.set(xlabel="rate asked", ylabel="share kept", xlim=(0, 1), ylim=(0, 1))
    panel.set_title(
        "share kept on average: closed form, and\nsampled (circles, larger than their errors)",
        fontsize=9,
    )
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, title="gamma, map / block", title_fontsize=7, loc="upper right")


def draw_map(panel: Axes, values: np.ndarray, title: str, limits: tuple[float, float]) -> None:
    """Draws a number for each position, and writes it in one quarter: the others mirror it."""
    panel.imshow(values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    half = -(-len(values) // 2)
    for (row, column), value in np.ndenumerate(values[:half, :half]):
        color = "white" if value < sum(limits) / 2 else "black"
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
    panel.set_title(title, fontsize=9)
    panel.set(xlabel="column of the map", ylabel="row of the map")


def main(argv: Sequence[str] | None = None) -> Results:
    """Audits, samples, reports and plots; returns what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="how many keys to sample with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    settings = [(size, block, keep) for size in SIZES for block in BLOCKS for keep in KEEPS]
    results: Results = {
        "kept": {setting: audit(*setting) for setting in settings},
        "sampled": sample_all(args.seeds),
        "rescaled": rescaled(*SMALL),
    }
    report(results)
    plot(results, args.out / "drop_block_audit.png")
    return results


if __name__ == "__main__":
    main()
