"""What `compare` measured as a picture: latency and throughput by batch, one column a length, the floor as a line."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

OURS = "Retort"
COLOURS = {OURS: "#b5482a", "torch.compile": "#3b6ea5", "PyTorch": "#7fa8cf", "TensorRT": "#5a9367", "ONNX": "#8a6fa8"}


def draw(rows: list[dict], path: Path) -> Path:
    """rows: those of `compare`; what is wrong or failed is not drawn, of torch.compile the best mode of each shape."""
    good = [row for row in rows if row["verdict"] == "right" and "p50_ms" in row]
    lengths = list(dict.fromkeys(row["length"] for row in good)) or [0]
    figure, axes = pyplot.subplots(2, len(lengths), figsize=(4.6 * len(lengths), 7), squeeze=False, sharex="col")
    for column, length in enumerate(lengths):
        here = [row for row in good if row["length"] == length]
        batches = sorted({int(row["batch"]) for row in here})
        for row, name in enumerate(("milliseconds a batch", "sequences a second")):
            axis = axes[row][column]
            for label, points in {**lines(here), **floors(here)}.items():
                values = [point if row == 0 else 1000 * batch / point for batch, point in points]
                dashed = label.startswith("floor")
                axis.plot(
                    [batch for batch, _ in points], values, label=label, color=colour(label), linewidth=1.5,
                    linestyle=("--" if label == "floor" else ":") if dashed else "-", marker="_" if dashed else "o",
                    markersize=4, zorder=3 if label.startswith(OURS) else 2,
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_major_locator(FixedLocator(batches))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticks(batches, [str(batch) for batch in batches])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(name)
        axes[0][column].set_title(f"{length} tokens a sequence", fontsize=10)
        axes[1][column].set_xlabel("sequences a batch")
    handles, labels = axes[0][0].get_legend_handles_labels()
    ncols = min(2 * len(lengths), max(1, len(labels)))  # wider, it would leave the picture
    figure.legend(handles, labels, loc="upper center", ncols=ncols, fontsize=8, frameon=False)
    first = rows[0]
    said = f"{first['engine']} on {first['device']}, {first['date']}\nfloor: {first['peaks']}"
    figure.text(0.5, 0.005, said, ha="center", va="bottom", fontsize=7)
    figure.tight_layout(rect=(0, 0.04, 1, 0.97 - 0.024 * -(-len(labels) // ncols)))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def lines(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Label -> (batch, p50 ms) of one length."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        name = row["entrant"]
        if name.startswith("torch.compile"):
            if not row["best"]:
                continue
            name = "torch.compile, best mode"
        found.setdefault(f"{name}, {row['precision']}", []).append((int(row["batch"]), float(row["p50_ms"])))
    return {label: sorted(points) for label, points in found.items()}


def floors(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """The floor of every precision that was timed."""
    kinds = list(dict.fromkeys(row["precision"] for row in rows))
    found = {}
    for kind in kinds:
        points = {int(r["batch"]): float(r["floor_ms"]) for r in rows if r["precision"] == kind}
        label = "floor" if len(kinds) == 1 else f"floor, {kind}"
        found[label] = sorted((batch, point) for batch, point in points.items() if point > 0)
    return found


def colour(label: str) -> str:
    return next((shade for name, shade in COLOURS.items() if label.startswith(name)), "#222222")
