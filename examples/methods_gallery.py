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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from tqdm import tqdm
from train_digits import standard_error

import jaxdrop

RATE = 0.3
LOG_ODDS = math.log(RATE / (1 - RATE))  # of dropping; and the ln alpha of the same noise
COLORS = {"kept": "#b9dcf0", "zeroed": "#20344d", "replaced": "#e69f00", "disturbed": "#009e73"}
GAP = 0.5  # between the blocks of a panel, in cells


class Panel(NamedTuple):
    """A method on an array of ones, and what it is said to do there."""

    run: Callable[[Array, Array], Array]  # (key, x) -> y
    axes: dict[str, int]  # of x, with their sizes
    columns: tuple[str, ...]  # axes laid from left to right, outermost first; the others down
    alike: tuple[str, ...] = ()  # axes along which the decision is shared
    keeps: str = "the mean"
    fate: str = "zeroed"  # of what is hit
    asked: str = f"rate {RATE}"
    drawn: tuple[int, str] | None = None  # how many decisions of which kind, if not one a group
    note: str = ""  # for the picture, instead of `alike`

    @property
    def groups(self) -> int:
        """How many parts of the array live and die apart."""
        return math.prod(n for axis, n in self.axes.items() if axis not in self.alike)

    @property
    def decisions(self) -> tuple[int, str]:
        """How many independent decisions are drawn, and of what kind."""
        return self.drawn or (self.groups, "")


def attend(key: Array, x: Array) -> Array:
    """Attention's own weights, by values that are an identity matrix; 1 where none is dropped."""
    heads, queries, keys = x.shape
    query, zeros = jnp.zeros((queries, heads, keys)), jnp.zeros((keys, heads, keys))
    value = zeros + jnp.eye(keys)[:, None]
    weights = jaxdrop.dot_product_attention(key, query, zeros, value, RATE)
    return keys * jnp.swapaxes(weights, 0, 1)


def drop_key(key: Array, x: Array) -> Array:
    """The weights behind the softmax of equal logits; 1 where no key is dropped."""
    return x.shape[-1] * jax.nn.softmax(jaxdrop.drop_key(key, x, RATE))


def drop_tokens(key: Array, x: Array) -> Array:
    """The tokens that are left, where they were."""
    tokens, positions = jaxdrop.drop_tokens(key, x, RATE)
    return jaxdrop.restore_tokens(tokens, positions, x.shape[1])


def drop_condition(key: Array, x: Array) -> Array:
    """A condition of two leaves, side by side."""
    condition = {"text": x[:, :8], "label": x[:, 8:]}
    dropped = jaxdrop.drop_condition(key, condition, RATE, null=0)
    return jnp.concatenate([dropped["text"], dropped["label"]], axis=1)


def plain(method: Callable[..., Array], **options: object) -> Callable[[Array, Array], Array]:
    """A method at the common rate."""
    return partial(method, rate=RATE, **options)


FEATURES, COLUMNS = {"sample": 6, "unit": 12}, ("unit",)
SEQUENCE = {"sample": 3, "time": 4, "unit": 12}
IMAGES = {"sample": 2, "height": 8, "width": 8, "channel": 4}
MATRIX = {"input": 6, "output": 12}
WEIGHTS = {"head": 3, "query": 6, "key": 8}
features = partial(Panel, axes=FEATURES, columns=COLUMNS)
images = partial(Panel, axes=IMAGES, columns=("channel", "width"))
matrix = partial(Panel, axes=MATRIX, columns=("output",))
attention = partial(Panel, axes=WEIGHTS, columns=("head", "key"))

PANELS = {
    "dropout": features(plain(jaxdrop.dropout)),
    "gaussian_dropout": features(plain(jaxdrop.gaussian_dropout), fate="disturbed"),
    "alpha_dropout": features(
        plain(jaxdrop.alpha_dropout), keeps="mean 0 and variance 1", fate="replaced"
    ),
    "fixed_count_dropout": features(
        plain(jaxdrop.fixed_count_dropout, axis=1),
        keeps="the mean; 8 of 12 survive",
        drawn=(6, "sets"),
        note="4 of 12 in each sample",
    ),
    "concrete_dropout": features(
        partial(jaxdrop.concrete_dropout, rate_logit=LOG_ODDS),
        keeps="nearly the mean",
        fate="nearly zeroed",
        note="each on its own, softly",
    ),
    "variational_dropout": features(
        partial(jaxdrop.variational_dropout, log_alpha=LOG_ODDS), fate="disturbed"
    ),
    "spatial_dropout": images(plain(jaxdrop.spatial_dropout), alike=("height", "width")),
    "drop_block": images(
        plain(jaxdrop.drop_block, block_size=3),
        keeps="the sum of a constant map",
        drawn=(2 * 4 * 6 * 6, "seeds"),
        note="blocks of 3 x 3 in each map",
    ),
    "cutout": images(
        partial(jaxdrop.cutout, size=4),
        alike=("channel",),
        keeps="-",
        asked="4 x 4",
        drawn=(2, "centres"),
        note="a square, alike along channel",
    ),
    "drop_path": Panel(plain(jaxdrop.drop_path), FEATURES, COLUMNS, alike=("unit",)),
    "drop_tokens": Panel(
        drop_tokens,
        {"sample": 6, "time": 10, "unit": 3},
        ("time", "unit"),
        alike=("unit",),
        keeps="the order; 7 of 10 are left",
        drawn=(6, "sets"),
        note="3 of 10, alike along unit",
    ),
    "replace_tokens": Panel(
        plain(jaxdrop.replace_tokens, replacement=0),
        {"sample": 6, "time": 12},
        ("time",),
        keeps="-",
        fate="replaced",
    ),
    "drop_condition": Panel(
        drop_condition,
        {"sample": 6, "entry": 12},
        ("entry",),
        alike=("entry",),
        keeps="-",
        fate="replaced",
    ),
    "drop_connect": matrix(
        lambda key, x: jaxdrop.drop_connect(key, [x], RATE)[0], keeps="the mean pre-activation"
    ),
    "mixout": matrix(
        lambda key, x: jaxdrop.mixout(key, [x], RATE, target=[jnp.zeros_like(x)])[0],
        keeps="the mean weight",
        fate="replaced",
    ),
    "embedding_dropout": Panel(
        plain(jaxdrop.embedding_dropout), {"word": 12, "unit": 12}, ("unit",), alike=("unit",)
    ),
    "locked_dropout": Panel(
        plain(jaxdrop.locked_dropout, time_axis=1), SEQUENCE, ("unit",), alike=("time",)
    ),
    "zoneout": features(
        plain(jaxdrop.zoneout, old=0.0), keeps="0.7 new + 0.3 old, on average", fate="replaced"
    ),
    "drop_edges": Panel(
        plain(jaxdrop.drop_edges), {"edge": 12, "head": 4}, ("head",), alike=("head",)
    ),
    "drop_nodes": Panel(
        plain(jaxdrop.drop_nodes), {"node": 12, "unit": 12}, ("unit",), alike=("unit",)
    ),
    "dot_product_attention": attention(attend, keeps="the mean of each weight"),
    "drop_heads": Panel(
        plain(jaxdrop.drop_heads),
        {"sample": 3, "time": 4, "head": 4, "unit": 3},
        ("head", "unit"),
        alike=("time", "unit"),
        keeps="the mean, given that one survives",
    ),
    "drop_key": attention(drop_key, keeps="weights that add up to 1"),
}


def hit(panel: Panel, y: np.ndarray) -> np.ndarray:
    """How much each element is hit, from 0 to 1: whether dropped, or how far disturbed."""
    if panel.fate == "disturbed":
        return np.minimum(abs(y - 1) / (2 * math.exp(LOG_ODDS / 2)), 1)
    if panel.fate == "nearly zeroed":
        return 1 - (1 - RATE) * y
    return (y <= 0).astype(float)


def strength(panel: Panel, y: np.ndarray) -> np.ndarray:
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
        decisions = "{} {}".format(*panel.decisions)
        print(
            f"{name:<23}{panel.asked:<9}{found[0]:6.3f}  {mean:<19}{differs:<9}{decisions:<11}"
            f"{', '.join(panel.alike) or '-':<15}{panel.keeps}"
        )


def plot(results: dict[str, np.ndarray], path: Path) -> None:
    """Draws the first draw of every method, and what the colours mean."""
    figure = Figure(figsize=(8.2, 10.4), layout="constrained", facecolor="white")
    cells = figure.subplots(-(-(len(PANELS) + 1) // 4), 4).flat
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


def lay_out(panel: Panel, values: np.ndarray) -> np.ndarray:
    """The array as (row blocks, rows, column blocks, columns)."""
    names = list(panel.axes)
    rows = [name for name in names if name not in panel.columns]
    order = [names.index(name) for name in (*rows, *panel.columns)]
    sides = [[panel.axes[name] for name in side] for side in (rows, panel.columns)]
    shape = [n for side in sides for n in ([1, *side] if len(side) == 1 else side)]
    return values.transpose(order).reshape(shape)


def paint(cell: Axes, panel: Panel, values: np.ndarray) -> None:
    """Draws one panel, with gaps between its blocks."""
    blocks = lay_out(panel, values)
    kept = np.array(to_rgb(COLORS["kept"]))
    fate = np.array(to_rgb(COLORS[panel.fate.removeprefix("nearly ")]))
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
