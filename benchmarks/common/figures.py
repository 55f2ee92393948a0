"""What the figures share: colours, plain axes, a legend below, and a white file."""

from pathlib import Path

from common.peers import BASELINE, OURS, TORCH
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#222222"
COLOURS = {
    BASELINE: INK,
    OURS: "#c8102e",
    "flax.linen": "#1b4f72",
    "flax.nnx": "#3a7ca5",
    "equinox": "#7fb3d5",
    "haiku": "#5d6d7e",
    "keras": "#95a5a6",
    TORCH: "#d68910",
}


def two_panels(height: float, title: str, *, sharey: bool) -> tuple[Figure, list[Axes]]:
    """A figure of two panels side by side, on white."""
    figure = Figure(figsize=(10, height), layout="constrained", facecolor="white")
    figure.suptitle(title)
    axes = list(figure.subplots(1, 2, sharey=sharey))
    for ax in axes:
        ax.set_facecolor("white")
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def write_with_legend(path: Path, figure: Figure, columns: int | None = None) -> None:
    """Writes a figure whose legend lies below and says what the first panel shows.

    Args:
      path: where the image goes.
      figure: what is written.
      columns: those of the legend; by default all entries stand in one row.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = columns or len(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib, the same figure is the same file.
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
