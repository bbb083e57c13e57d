"""What the runs of `min_max` say: means over seeds, verdicts on the paper's claims, tables and a figure."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rich.box
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from experiments import _plots
from experiments._registry import Context
from experiments._statistics import percent, standard_error

_STRATEGIES = ("average", "min-max")
_PAPER = (
    "The paper, for larger networks, average and min-max: MNIST linf about 48 and 90 (read off a chart); CIFAR-10 "
    "l0 66.6 and 73.8, l1 66.2 and 83.1, l2 76.4 and 85.0, linf 70.5 and 81.2."
)


def write(context: Context, outcomes: Sequence[dict[str, Any]], chance: float) -> dict[str, Any]:
    """Print verdicts and tables, draw the figure, and give the metrics.

    Args:
      context: of the run.
      outcomes: what was measured with every seed.
      chance: that the image of largest weight is the hardest of its group.
    """
    each = _fold(lambda *values: np.array(values), *outcomes)
    verdicts = _verdicts(each, chance)
    context.say(*verdicts)
    for table in _tables(context, each):
        context.console.print(table)
    _draw(context, each)
    mean, error = _fold(np.mean, each), _fold(standard_error, each)
    return {"verdicts": verdicts, "mean": mean, "error": error, "seeds": list(outcomes)}


def _fold(function: Callable[..., Any], *trees: Any) -> Any:
    """A function of the leaves of nested dictionaries, whose order stays (`jax.tree.map` sorts them)."""
    if not isinstance(trees[0], dict):
        return function(*trees)
    return {key: _fold(function, *(tree[key] for tree in trees)) for key in trees[0]}


def _shown(values: np.ndarray) -> str:
    return percent(values, ".1f")


def _gain(found: dict[str, Any]) -> np.ndarray:
    return found["min-max"]["all"] - found["average"]["all"]


def _judged(claim: str, difference: np.ndarray) -> str:
    """A claim that a difference is positive, seed by seed."""
    error = standard_error(difference)
    if error is None:
        return f"{claim}: {100 * difference.mean():+.1f} points (one seed)"
    mean = difference.mean()
    word = "holds" if mean > 2 * error else "does NOT hold" if mean < -2 * error else "not decided"
    return f"{claim}: {word}, {100 * mean:+.1f} ± {100 * error:.1f} points"


def _verdicts(each: dict[str, Any], chance: float) -> list[str]:
    """What the seeds say of the paper's claims, for and against."""
    above = "min-max above average"
    claims = {f"all networks fooled, {norm}: {above}": _gain(found) for norm, found in each["ensemble"].items()}
    for radius, found in each["radii"].items():
        claims[f"all networks fooled, linf of radius {radius}: {above}"] = _gain(found)
    average, min_max = (each["ensemble"]["linf"][strategy]["victims"] for strategy in _STRATEGIES)
    fooled = {name: found["fooled"].mean() for name, found in average.items()}
    hardest, easiest = min(fooled, key=fooled.__getitem__), max(fooled, key=fooled.__getitem__)
    change = {name: found["fooled"] - average[name]["fooled"] for name, found in min_max.items()}
    claims[f"linf: the hardest network ({hardest}) is fooled more often"] = change[hardest]
    claims[f"linf: the easiest network ({easiest}) is fooled less often"] = -change[easiest]
    for norm, found in each["ensemble"].items():
        weights = {name: one["weight"] for name, one in found["min-max"]["victims"].items()}
        rival = np.max([weight for name, weight in weights.items() if name != "robust"], axis=0)
        claims[f"{norm}: the robust network has the largest weight"] = weights["robust"] - rival
    for norm, found in each["clipped"].items():
        better = each["ensemble"][norm]["min-max"]["all"] - found["all"]
        claims[f"{norm}: the nearest point of ball and box above ball, then clip"] = better
    for name, found in each["universal"].items():
        claims[f"all images of a group fooled, {name}: {above}"] = _gain(found)
    for name, found in each["universal"].items():
        claims[f"{name}: the heaviest image of a group is the hardest, above chance"] = found["hardest"] - chance
    claims[f"all transformations survived: {above}"] = _gain(each["transformed"])
    both = {name: found["both"] for name, found in each["defence"].items()}
    for name in both:
        if name != "average":
            claims[f"trained against both balls: {name} above average"] = both[name] - both["average"]
    return [_judged(claim, difference) for claim, difference in claims.items()]


def _tables(context: Context, each: dict[str, Any]) -> list[Table]:
    of = f"{context.data.name}, {len(context.seeds)} seed{'s' * (len(context.seeds) > 1)}"
    victims = list(each["accuracy"])

    columns = ["ball", "strategy", "all", *victims]
    ensemble = _table(f"One perturbation for {len(victims)} networks, % fooled (mean weight of each); {of}", columns)
    for norm, found in each["ensemble"].items():
        rows = {strategy: found[strategy] for strategy in _STRATEGIES}
        if norm in each["clipped"]:
            rows["clipped"] = each["clipped"][norm]  # min-max, projected on the ball and clipped after
        for name, row in rows.items():
            ensemble.add_row(norm, name, _shown(row["all"]), *map(_with_weight, row["victims"].values()))
    ensemble.add_row("none", "", "", *(f"{100 * (1 - each['accuracy'][name].mean()):.1f}" for name in victims))
    ensemble.caption = _PAPER

    swept = _table(f"The same, linf; {of}", ["radius or gamma", "average", "min-max"])
    for radius, found in each["radii"].items():
        swept.add_row(f"radius {radius}", *(_shown(found[s]["all"]) for s in _STRATEGIES))
    for gamma, found in each["gammas"].items():
        swept.add_row(f"gamma {gamma}", "", _shown(found["all"]))

    columns = ["network", "all:\naverage", "all:\nmin-max", "mean:\naverage", "mean:\nmin-max", "heaviest\nis hardest"]
    universal = _table(f"One perturbation for a group of images, % fooled; {of}", columns)
    for name, found in each["universal"].items():
        cells = [_shown(found[strategy][key]) for key in ("all", "mean") for strategy in _STRATEGIES]
        universal.add_row(name, *cells, _shown(found["hardest"]))

    versions = list(each["transformed"]["average"]["versions"])
    columns = ["strategy", "all", *(version.replace(" ", "\n", 1) for version in versions)]
    survive = _table(
        f"One perturbation for {len(versions)} transformations, % fooled (mean weight of each); {of}", columns
    )
    for strategy in _STRATEGIES:
        found = each["transformed"][strategy]
        survive.add_row(strategy, _shown(found["all"]), *map(_with_weight, found["versions"].values()))

    defence = _table(
        f"Trained against two balls, % right under attack; {of}", ["training on", "clean", "linf", "l2", "both"]
    )
    for name, found in each["defence"].items():
        defence.add_row(name, *(_shown(found[key]) for key in ("clean", "linf", "l2", "both")))
    return [ensemble, swept, universal, survive, defence]


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _with_weight(found: dict[str, np.ndarray]) -> str:
    return f"{100 * found['fooled'].mean():.0f} ({found['weight'].mean():.2f})"


def _draw(context: Context, each: dict[str, Any]) -> None:
    figure = Figure(figsize=(11.5, 3.9), dpi=110, layout="constrained")
    fooled, radii, defended = figure.subplots(1, 3, width_ratios=[1.2, 1, 1.2])
    attacks = {norm: _all(found) for norm, found in each["ensemble"].items()}
    _bars(fooled, attacks | {"transforms": _all(each["transformed"])})
    fooled.set(xlabel="norm, for 4 networks; 6 transformations, linf", ylabel="all fooled (%)")

    points = {float(radius): _all(found) for radius, found in each["radii"].items()} | {0.2: attacks["linf"]}
    for strategy, colour, marker in zip(_STRATEGIES, _plots.COLOURS, "os", strict=False):
        found = [points[radius][strategy] for radius in sorted(points)]
        style = dict(color=colour, marker=marker, capsize=3, label=strategy)
        radii.errorbar(sorted(points), *_heights(found), **style)
    radii.set(xlabel="radius in the maximum norm, for 4 networks", ylabel="all fooled (%)")

    names = {"clean": "no attack", "linf": "linf", "l2": "l2", "both": "both"}
    right = {label: {name: found[key] for name, found in each["defence"].items()} for key, label in names.items()}
    _bars(defended, right)
    defended.set(xlabel="attack, after training against both balls", ylabel="right (%)")
    for axes in (fooled, radii, defended):
        axes.set_ylim(0, 100)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    _plots.save(figure, context.folder / "min_max.png")


def _all(found: dict[str, Any]) -> dict[str, np.ndarray]:
    return {strategy: found[strategy]["all"] for strategy in _STRATEGIES}


def _heights(values: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
    """Means and standard errors, in percent."""
    return [100 * value.mean() for value in values], [100 * (standard_error(value) or 0.0) for value in values]


def _bars(axes: Axes, groups: dict[str, dict[str, np.ndarray]]) -> None:
    """For every group a bar for each of its entries."""
    series = list(next(iter(groups.values())))
    width = 0.8 / len(series)
    for i, (name, colour) in enumerate(zip(series, _plots.COLOURS, strict=False)):
        heights, errors = _heights([group[name] for group in groups.values()])
        places = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        axes.bar(places, heights, width, yerr=errors, color=colour, capsize=2, label=name)
    axes.set_xticks(np.arange(len(groups)), list(groups))
