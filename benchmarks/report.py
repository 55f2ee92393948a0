"""What is shown of the measurements: tables for the terminal and one figure."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from elementwise import Record
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peers import BASELINE, BOTH, FORWARD, OURS
from training import REFERENCE_PEER

_COLOURS = {
    OURS: "#c8102e",
    "flax.linen": "#1b4f72",
    "flax.nnx": "#3a7ca5",
    "equinox": "#7fb3d5",
    "haiku": "#5d6d7e",
    "keras": "#95a5a6",
    "torch": "#d68910",
}
_INK = "#222222"


def tables(results: dict[str, Any]) -> str:
    """All measurements as text."""
    blocks = [
        f"{size}, {dtype}, rate {rate}\n{_dropout_table(list(records))}"
        for (size, dtype, rate), records in groupby(
            results["dropout"], lambda record: (record["size"], record["dtype"], record["rate"])
        )
    ]
    settings = results["settings"]
    blocks.append(f"compile time, {settings['compile']}\n{_compile_table(results['compile'])}")
    blocks.append(f"training step, {settings['step']}\n{_step_table(results['step'])}")
    blocks.append(f"eager call, {settings['eager']}\n{_eager_table(results['eager'])}")
    return "\n\n".join(blocks)


def _dropout_table(records: Sequence[Record]) -> str:
    ways = [("forward", FORWARD), ("fwd+bwd", BOTH)]
    header = ["candidate"]
    for label, _ in ways:
        header += [f"{label} ms", "/ jaxdrop", f"/ ({BASELINE})", "temp MiB"]
    rows = []
    for record in records:
        row = [record["candidate"]]
        for _, way in ways:
            row += [*_times(record[way]), mebibytes(record[way].get("temporary_bytes"))]
        kept = record.get("kept_bytes_per_element")
        rows.append([*row, "-" if kept is None else f"{kept:.3f}"])
    return _columns([*header, "kept B/element"], rows)


def _compile_table(records: Sequence[Record]) -> str:
    header = ["candidate", "forward ms", "/ jaxdrop", "fwd+bwd ms", "/ jaxdrop"]
    rows = [
        [record["candidate"], *_times(record[FORWARD])[:2], *_times(record[BOTH])[:2]]
        for record in records
    ]
    return _columns(header, rows)


def _step_table(records: Sequence[Record]) -> str:
    header = ["dropout", "step ms", "added ms", "quartiles", f"/ {REFERENCE_PEER}'s", "temp MiB"]
    rows = []
    for record in records:
        added = record.get("added", {})
        rows.append(
            [
                record["candidate"],
                _number(record["median_ms"]),
                _number(added.get("median_ms")),
                " to ".join(map(_number, added.get("quartiles_ms", []))) or "-",
                _number(record.get("added_over_peer")),
                mebibytes(record["temporary_bytes"]),
            ]
        )
    return _columns(header, rows)


def _eager_table(records: Sequence[Record]) -> str:
    rows = [
        [record["candidate"], f"{1e3 * record['median_ms']:.1f}", *_times(record)[1:]]
        for record in records
    ]
    return _columns(["candidate", "us a call", "/ jaxdrop", f"/ ({BASELINE})"], rows)


def _times(record: Record) -> list[str]:
    return [_number(record.get(key)) for key in ("median_ms", "over_jaxdrop", "over_double")]


def mebibytes(count: int | None) -> str:
    """A number of bytes in MiB, if it is known."""
    return "-" if count is None else f"{count / 2**20:.1f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, the first column to the left and numbers to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def draw_figure(results: dict[str, Any], size: str, rate: float, path: Path) -> None:
    """Bars of the time of each candidate at one size and rate, on white.

    Args:
      results: all measurements.
      size: the size to show, such as "4096x4096".
      rate: the rate to show.
      path: where the image goes.
    """
    shown = [r for r in results["dropout"] if r["size"] == size and r["rate"] == rate]
    figure = Figure(figsize=(10, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2)
    for ax, way, title in zip(
        axes, (FORWARD, BOTH), ("Forward", "Forward + backward"), strict=True
    ):
        _draw_bars(ax, shown, way)
        ax.set_title(title, color=_INK)
    axes[0].set_ylabel("milliseconds, median (lower is better)", color=_INK)
    legend_below(figure, axes[0])
    environment = results["environment"]
    figure.suptitle(
        f"Dropout of a {size} array, rate {rate}"
        f" ({environment['device']}, {environment['cpus']} CPUs, jax {environment['jax']})",
        color=_INK,
    )
    write_figure(path, figure)


def plain(ax: Axes) -> None:
    """Leaves out the frame but for the two axes."""
    ax.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, ax: Axes, columns: int | None = None) -> None:
    """A legend under the panels, of what one of them shows; in one row unless asked otherwise."""
    handles, labels = ax.get_legend_handles_labels()
    columns = columns or len(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure on white, with the folder that it goes into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def _draw_bars(ax: Axes, records: Sequence[Record], way: str) -> None:
    dtypes = list(dict.fromkeys(record["dtype"] for record in records))
    names = [name for name in _COLOURS if any(r["candidate"] == name for r in records)]
    width = 0.84 / len(names)
    for record in records:
        group = dtypes.index(record["dtype"])
        height = record[way]["median_ms"]
        if record["candidate"] == BASELINE:
            label = BASELINE if group == 0 else None
            ax.plot([group - 0.45, group + 0.45], [height] * 2, "--", color=_INK, label=label)
            continue
        place = names.index(record["candidate"])
        x = group + (place - (len(names) - 1) / 2) * width
        label = record["candidate"] if group == 0 else None
        ax.bar(x, height, 0.9 * width, color=_COLOURS[record["candidate"]], label=label)
        ax.annotate(
            _number(height),
            (x, height),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            size=6.5,
            color=_INK,
        )
    ax.set_xticks(range(len(dtypes)), dtypes)
    ax.set_facecolor("white")
    plain(ax)
