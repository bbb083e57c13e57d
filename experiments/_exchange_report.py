"""What came of schemes of gradient exchange: their rows, what they say of the claims, a table and a figure."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from experiments import _plots, _tables
from experiments._registry import Context
from experiments._statistics import standard_error

_PAPER = (
    "Of the paper, at 0.1 % and 4 / 8 workers, ResNet-110 on CIFAR-10: momentum descent 93.75 / 92.92, gradient "
    "dropping 92.75 / 93.02, DGC 93.87 / 93.28; 277x to 608x for its larger networks. Sent: dense bits over the bits "
    "of a message, indices and warm-up counted. Moved: weights that a step changes, which all workers must be told."
)


@dataclass(frozen=True)
class Row:
    """One scheme at one density, with what every seed gave."""

    name: str
    density: float
    rate: float
    tried: dict[float, float]
    outcomes: list[dict[str, float]]

    @property
    def title(self) -> str:
        return f"{self.name}, {100 * self.density:g} %"

    def values(self, key: str) -> np.ndarray:
        return np.array([outcome[key] for outcome in self.outcomes])

    def mean(self, key: str) -> float:
        return float(self.values(key).mean())

    def error(self, key: str) -> float | None:
        return standard_error(self.values(key))

    def to_dict(self) -> dict[str, Any]:
        found = {
            key: {"mean": self.mean(key), "error": self.error(key), "each": self.values(key)}
            for key in self.outcomes[0]
        }
        return {"scheme": self.name, "density": self.density, "rate": self.rate, "tried": self.tried} | found


_CLAIMS = (
    ("DGC", "gradient dropping", "better"),
    ("DGC", "momentum correction", "better"),
    ("DGC, warm-up", "DGC", "better"),
    ("DGC", "dense", "no worse"),
)


def verdicts(rows: list[Row]) -> list[str]:
    """What the run says of the claims, paired by seed: the same start and the same batches on both sides.

    A difference counts from two standard errors on.
    """
    found: dict[str, dict[float, Row]] = defaultdict(dict)
    for row in rows:
        found[row.name][row.density] = row
    lines = []
    for name, rival, claim in _CLAIMS:
        for density, row in found[name].items():
            other = found[rival].get(density) or found[rival][1.0]
            points = 100 * (row.values("accuracy") - other.values("accuracy"))
            lines.append(f"{100 * density:g} %: {name} is {claim} than {rival}: {verdict(points, claim)}")
    return lines


def verdict(points: np.ndarray, claim: str) -> str:
    """What differences in points, a seed each, say of the claim that the first is "better" or "no worse"."""
    error = standard_error(points)
    if error is None:
        return f"{points.mean():+.2f} points (one seed: no verdict)"
    if points.mean() < -2 * error:
        said = "not reproduced, it is worse"
    elif points.mean() > 2 * error or claim == "no worse":
        said = "reproduced"
    else:
        said = "not reproduced, no difference"
    return f"{points.mean():+.2f} ± {error:.2f} points: {said}"


def table(workers: int, batch_size: int, steps: int, context: Context, rows: list[Row]) -> Table:
    """A row a scheme and density; the first row given is the dense one."""
    seeds, n = len(context.seeds), len(context.data.test)
    drawn = _tables.blank(
        f"{workers} workers of {batch_size} images a step on {context.data.name}, {steps:,} "
        f"steps, {n:,} test images, mean of {seeds} seed{'s' * (seeds > 1)}",
        ("scheme", "kept\n%", "rate", "sent", "moved\n%", "train\nloss", "accuracy %", "to\ndense"),
        caption=_PAPER,
    )
    dense = rows[0].mean("accuracy")
    for row in sorted(rows, key=lambda row: -row.density):
        error = row.error("accuracy")
        drawn.add_row(
            row.name,
            f"{100 * row.density:g}",
            f"{row.rate:g}",
            f"{row.mean('ratio'):.1f}x",
            f"{100 * row.mean('moved'):.2f}",
            f"{row.mean('loss'):.4f}",
            f"{100 * row.mean('accuracy'):.2f}" + ("" if error is None else f" ± {100 * error:.2f}"),
            f"{100 * (row.mean('accuracy') - dense):+.2f}",
        )
    return drawn


_STYLES = {
    "binary": ("0.3", "*"),
    "gradient dropping": ("#D55E00", "s"),
    "momentum correction": ("#E69F00", "^"),
    "DGC": ("#0072B2", "o"),
    "DGC, warm-up": ("#56B4E9", "D"),
    "DGC, binary values": ("#009E73", "v"),
}


def draw(path: Path, rows: list[Row]) -> None:
    """Accuracy and training loss against how much less is sent."""
    figure = Figure(figsize=(9.6, 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, factor, label in zip(
        panels, ("accuracy", "loss"), (100, 1), ("test accuracy (%)", "training loss"), strict=True
    ):
        axes.axhline(factor * rows[0].mean(key), color=_plots.GREY, linestyle="--", linewidth=1.2, label=rows[0].name)
        for name, (colour, marker) in _STYLES.items():
            points = sorted((r.mean("ratio"), r.mean(key), r.error(key) or 0.0) for r in rows if r.name == name)
            ratio, mean, error = np.array(points).T
            style = dict(color=colour, marker=marker, markersize=5, linewidth=1.6, capsize=3)
            axes.errorbar(ratio, factor * mean, factor * error, label=name, **style)
        axes.set(xscale="log", xlabel="dense bits / bits sent, over the whole run", ylabel=label)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}×")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    _plots.save(figure, path)
