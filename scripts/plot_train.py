"""Draw what `bench_train` measured: python -m scripts.plot_train --csv results/train_speed.csv"""

import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from configs import command
from configs.options import setting

matplotlib.use("svg")
from matplotlib import pyplot

COLOURS = {"retort": "#b5482a", "torch.compile": "#7a7f87"}


@dataclass(frozen=True)
class PlotConfig:
    """Draw the rates in a CSV of `bench_train` as bars."""

    csv: str = setting("results/train_speed.csv", help="what bench_train wrote")
    out: str | None = setting(None, help="picture; none: beside the CSV, .svg")


def main(config: PlotConfig) -> dict:
    path = Path(config.csv)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {"out": str(draw(rows, Path(config.out) if config.out else path.with_suffix(".svg")))}


def draw(rows: list[dict], path: Path) -> Path:
    """Bars of sequences a second, a group for each part, model and precision, one scale for each model."""
    rows = [row for row in rows if row["seq_per_s"] and row["part"] in ("full", "memory", "real")]
    models, devices = (sorted({row[name] for row in rows}) for name in ("model", "device"))
    most = max((sum(row["model"] == model for row in rows) for model in models), default=1)
    size = (5.5 * max(1, len(models)), 1.2 + 0.4 * max(6, most))
    figure, axes = pyplot.subplots(1, max(1, len(models)), figsize=size, squeeze=False)
    for axis, model in zip(axes[0], models, strict=False):
        chosen = [row for row in rows if row["model"] == model]
        names = [
            f"{row['framework']}, {row['part']}{', ' + row['device'] if len(devices) > 1 else ''}\n"
            f"{row['precision']}, {row['detail']}" for row in chosen
        ]  # fmt: skip
        rates = [float(row["seq_per_s"]) for row in chosen]
        colours = [COLOURS.get(row["framework"], "#444444") for row in chosen]
        bars = axis.barh(range(len(names)), rates, tick_label=names, color=colours)
        axis.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_title(model, fontsize=10)
        axis.set_xlabel("sequences a second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Training on {', '.join(devices)}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    command.run("scripts.plot_train", PlotConfig, main)
