"""What compression left of a classifier, and the table that sets methods side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from experiments import _tables
from experiments._registry import Context
from experiments._statistics import percent, points, standard_error


@dataclass(frozen=True)
class Outcome:
    """One network as hard pruning left it, and after retraining.

    Attributes:
      landed, accuracy: shares of test images classified right, before retraining and after it.
      kept: weights left of those under a set; `None` where none is.
      ratio: bits of those weights before by bits after, indices not counted.
      storage_ratio: the same of all parameters, indices and scales counted.
      violation: the largest distance of a leaf from its set.
      layers: weights left, by leaf path.
    """

    landed: float
    accuracy: float
    kept: int | None
    ratio: float
    storage_ratio: float
    violation: float
    layers: dict[str, int]


def values(outcomes: Sequence[Outcome], key: str) -> np.ndarray:
    """One figure of every seed."""
    return np.array([getattr(outcome, key) for outcome in outcomes])


def ahead(ours: Sequence[Outcome], theirs: Sequence[Outcome], key: str) -> np.ndarray:
    """By how many points, paired by seed: the same trained network and the same batches on both sides."""
    return 100 * (values(ours, key) - values(theirs, key))


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over seeds, the standard error of the accuracy, and what each seed gave."""
    first = outcomes[0]
    means = {key: float(values(outcomes, key).mean()) for key in ("accuracy", "landed", "ratio", "storage_ratio")}
    return means | {
        "kept": None if first.kept is None else float(values(outcomes, "kept").mean()),
        "violation": float(values(outcomes, "violation").max()),
        "layers": {path: float(np.mean([outcome.layers[path] for outcome in outcomes])) for path in first.layers},
        "error": standard_error(values(outcomes, "accuracy")),
        "accuracies": values(outcomes, "accuracy"),
        "landings": values(outcomes, "landed"),
        "ratios": values(outcomes, "ratio"),
    }


def curve_point(outcomes: Sequence[Outcome], key: str) -> tuple[float, float, float]:
    """Where a plot of accuracy against compression has them."""
    found = values(outcomes, key)
    return float(values(outcomes, "ratio").mean()), float(found.mean()), standard_error(found) or 0.0


@dataclass(frozen=True)
class Row:
    """One method at one setting: its outcomes, a seed an entry, and those of a rival to set beside them."""

    title: str
    outcomes: Sequence[Outcome]
    rival: Sequence[Outcome] | None = None


def table(
    context: Context,
    model: str,
    sections: Mapping[str, Sequence[Row]],
    *,
    rival: str,
    compared: Sequence[str],
    caption: str,
    sizes: bool = True,
) -> Table:
    """A row a method: what is left, and accuracies with their standard errors.

    Args:
      context: of the run.
      model: name of the network.
      sections: rows under a heading each; an empty heading is not shown.
      rival: what the columns of differences, in points and paired by seed, are "to".
      compared: the accuracies that have such a column, of ``"landed"`` and ``"accuracy"``.
      caption: what a reader must know besides.
      sizes: whether to show what is left; no, where the headings say it.
    """
    seeds, n = len(context.seeds), len(context.data.test)
    accuracies = {"landed": "just\npruned %", "accuracy": "retrained %"}
    columns = ["method", *["kept", "weights\nonly", "stored"] * sizes]
    for key, heading in accuracies.items():
        columns += [heading, f"to\n{rival}"] if key in compared else [heading]
    title = f"{model} on {context.data.name}, {n:,} test images, mean of {seeds} seed{'s' * (seeds > 1)}"
    drawn = _tables.blank(title, columns, caption=caption)
    for heading, rows in sections.items():
        if heading:
            drawn.add_row(f"[bold]{heading}[/]")
        for row in rows:
            cells = [row.title, *_sizes(row.outcomes) * sizes]
            for key in accuracies:
                pruned = key == "accuracy" or row.outcomes[0].kept is not None
                cells.append(percent(values(row.outcomes, key)) if pruned else "-")
                if key in compared:
                    compare = pruned and row.rival is not None
                    cells.append(points(ahead(row.outcomes, row.rival, key)) if compare else "")
            drawn.add_row(*cells, end_section=row is rows[-1])
    return drawn


def _sizes(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """Weights kept, and how many times smaller that is: counting weights alone, and as stored."""
    kept = "all" if outcomes[0].kept is None else f"{values(outcomes, 'kept').mean():,.0f}"
    return kept, *(f"{values(outcomes, key).mean():.1f}x" for key in ("ratio", "storage_ratio"))
