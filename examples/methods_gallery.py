"""What each method drops, at a glance: one picture with a panel for each.

All panels show arrays of ones under one fixed key, so that methods which decide alike
drop the same places. What differs is along which axes a decision is shared, and what
becomes of what is hit: zeroed, replaced or disturbed.

    python examples/methods_gallery.py

prints a table and writes `figures/methods_gallery.png` beside this file, in about 20
seconds on two CPU cores.

What one sees, beside the axes:
- `dropout`, `alpha_dropout`, `replace_tokens` and `zoneout` hit the same places, and so
  do dropped attention weights and `drop_key`: they differ in what comes there and in the
  factor of the others.
- All at the same rate, the share that is really dropped differs from draw to draw by
  .057 where 72 elements decide alone, by .179 where 6 samples decide, and not at all
  where a fixed number is dropped, 4 of 12 being as near to .3 as it gets.
- A square of 4 x 4 in 8 x 8 cuts out less than a quarter, .193: the border cuts it too.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from tqdm import tqdm
from train_digits import standard_error

# The table of methods that the tests run over, so that each method is described once.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from table.methods import RECORDS
from table.record import Gallery, Method

RATE = 0.3
LOG_ODDS = math.log(RATE / (1 - RATE))  # of dropping; and the ln alpha of the same noise
COLORS = {"kept": "#b9dcf0", "zeroed": "#20344d", "replaced": "#e69f00", "disturbed": "#009e73"}
GAP = 0.5  # between the blocks of a panel, in cells
COLUMNS = 4


def panel_of(record: Method) -> Gallery:
    """The record's panel, with what it leaves to the record filled in."""
    panel = record.gallery
    names = tuple(panel.axes)
    alike = tuple(names[axis] for axis in record.shared(len(names)))
    return replace(
        panel,
        run=partial(panel.run or record.run, rate=RATE),
        columns=panel.columns or names[-1:],
        alike=alike if panel.alike is None else panel.alike,
        asked=panel.asked or f"rate {RATE}",
    )


PANELS = {
    record.function: panel_of(record)
    for record in RECORDS
    if isinstance(record.gallery, Gallery)  # else it says why there is no panel
}


def groups(panel: Gallery) -> int:
    """How many parts of the array live and die apart."""
    return math.prod(n for axis, n in panel.axes.items() if axis not in panel.alike)


def decisions(panel: Gallery) -> tuple[int, str]:
    """How many independent decisions are drawn, and of what kind."""
    return panel.drawn or (groups(panel), "")


def hit(panel: Gallery, y: np.ndarray) -> np.ndarray:
    """How much each element is hit, from 0 to 1: whether dropped, or how far disturbed."""
    if panel.fate == "disturbed":
        return np.minimum(abs(y - 1) / (2 * math.exp(LOG_ODDS / 2)), 1)
    if panel.fate == "nearly zeroed":
        return 1 - (1 - RATE) * y
    if panel.fate == "partly zeroed":
        return 1 - y
    return (y <= 0).astype(float)


def strength(panel: Gallery, y: np.ndarray) -> np.ndarray:
    """For each draw the share that is dropped, or the standard deviation of the noise."""
    axes = tuple(range(1, y.ndim))
    if panel.fate == "disturbed":
        return np.sqrt(np.mean((y - 1) ** 2, axis=axes))
    return np.mean(hit(panel, y) > 0.5, axis=axes)


def draw_all(seeds: int) -> dict[str, np.ndarray]:
    """What every method makes of ones, once for each of the same keys."""
    keys, draws = jax.random.split(jax.random.key(0), seeds), {}
    for name, panel in tqdm(PANELS.items(), desc="drawing", unit="method"):
        ones = jnp.ones(tuple(panel.axes.values()))
        y = jax.vmap(panel.run, in_axes=(0, None))(jax.random.clone(keys), ones)
        draws[name] = np.asarray(y, np.float64)
    return draws


def report(results: dict[str, np.ndarray]) -> None:
    """Prints what each method was asked and what it did."""
    number = len(next(iter(results.values())))
    print("Share dropped, or standard deviation of the noise (std): in the draw of the picture;")
    print(f"mean ± standard error of {number} draws; and how much it differs from draw to draw\n")
    titles = f"{'asked':<9}{'here':>6}  {'mean':<19}{'differs':<9}{'decisions':<11}"
    print(f"{'method':<23}{titles}{'alike along':<15}keeps")
    for name, panel in PANELS.items():
        found = strength(panel, results[name])
        mean = f"{found.mean():.3f} ± {standard_error(found):.3f}"
        mean += " std" if panel.fate == "disturbed" else ""
        differs = f"{standard_error(found) * number**0.5:.3f}"
        drawn = "{} {}".format(*decisions(panel))
        print(
            f"{name:<23}{panel.asked:<9}{found[0]:6.3f}  {mean:<19}{differs:<9}{drawn:<11}"
            f"{', '.join(panel.alike) or '-':<15}{panel.keeps}"
        )


def plot(results: dict[str, np.ndarray], path: Path) -> None:
    """Draws the first draw of every method, and what the colours mean."""
    rows = math.ceil((len(PANELS) + 1) / COLUMNS)  # one cell is for the legend
    figure = Figure(figsize=(8.2, 10.4 / 6 * rows), layout="constrained", facecolor="white")
    cells = figure.subplots(rows, COLUMNS).flat
    for (name, panel), cell in zip(PANELS.items(), cells, strict=False):
        paint(cell, panel, hit(panel, results[name][0]))
        shared = f"alike along {', '.join(panel.alike)}" if panel.alike else "each on its own"
        cell.set_title(name, fontsize=9, fontweight="bold", pad=15)
        text = panel.note or shared
        cell.text(0.5, 1.04, text, transform=cell.transAxes, ha="center", fontsize=8)
    for cell in cells[len(PANELS) :]:
        cell.axis("off")
    handles = [Patch(color=color, label=name) for name, color in COLORS.items()]
    title = "disturbed: deeper\nwhere noise is stronger"
    cells[len(PANELS)].legend(handles=handles, loc="center", title=title, title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def lay_out(panel: Gallery, values: np.ndarray) -> np.ndarray:
    """The array as (row blocks, rows, column blocks, columns)."""
    names = list(panel.axes)
    rows = [name for name in names if name not in panel.columns]
    order = [names.index(name) for name in (*rows, *panel.columns)]
    sides = [[panel.axes[name] for name in side] for side in (rows, panel.columns)]
    shape = [n for side in sides for n in ([1, *side] if len(side) == 1 else side)]
    return values.transpose(order).reshape(shape)


def paint(cell: Axes, panel: Gallery, values: np.ndarray) -> None:
    """Draws one panel, with gaps between its blocks."""
    blocks = lay_out(panel, values)
    kept = np.array(to_rgb(COLORS["kept"]))
    fate = np.array(to_rgb(COLORS[panel.fate.split()[-1]]))
    row_blocks, height, column_blocks, width = blocks.shape
    for row, column in np.ndindex(row_blocks, column_blocks):
        colors = kept + blocks[row, :, column, :, None] * (fate - kept)
        x, y = column * (width + GAP) + np.arange(width + 1), row * (height + GAP)
        rows = y + np.arange(height + 1)
        cell.pcolormesh(x, rows, colors, edgecolors="white", lw=0.25, antialiased=True)
    sides = [name for name in panel.axes if name not in panel.columns], panel.columns
    cell.set_ylabel(", ".join(sides[0]), fontsize=8)
    cell.set_xlabel(", ".join(sides[1]), fontsize=8)
    cell.set(xticks=[], yticks=[])
    cell.invert_yaxis()
    cell.spines[:].set_visible(False)


def main(argv: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Draws, reports and plots; returns the draws by method, those of each key first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many keys to draw with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args(argv)
    results = draw_all(args.seeds)
    report(results)
    plot(results, args.out / "methods_gallery.png")
    return results


if __name__ == "__main__":
    main()
