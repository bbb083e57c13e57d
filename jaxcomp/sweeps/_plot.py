"""A sweep drawn as a trade-off: every configuration a point, the front a staircase."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxcomp.sweeps._pareto import pareto_front
from jaxcomp.sweeps._result import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; each also has its own marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP"


def plot_pareto(
    sweep: Sweep,
    x: str,
    y: str,
    *,
    x_mode: Literal["max", "min"] = "min",
    y_mode: Literal["max", "min"] = "max",
    colour: str | None = None,
    label: str | None = None,
    log: Literal["", "x", "y", "xy"] = "",
) -> "Figure":
    """Draw two columns of a sweep against each other, and the Pareto front as steps.

    Points on the front are full, the others light; what lies behind the steps is dominated. Configurations that
    diverged are not drawn, and the title says how many they are.

    Args:
        sweep: from `jaxcomp.sweep`.
        x: column along the horizontal axis, and what to make `x_mode`.
        y: column along the vertical axis, and what to make `y_mode`.
        colour: a column whose values are told by colour and marker, six at most, such as ``"solver"``.
        label: a column that is written beside the points of the front, such as ``"density"``.
        log: which axes are logarithmic.

    Returns:
        a `matplotlib.figure.Figure`: ``.savefig("front.png")``. Needs ``pip install 'jaxcomp[sweeps]'``.

    Raises:
        ValueError: there is no such column, it holds text, or no configuration has both numbers; `colour` has more
            than six values.

    >>> import jaxcomp as jc
    >>> found = jc.sweep(lambda a: {"bytes": a, "error": 1 / a}, jc.grid(a=[1.0, 2.0, 4.0]), progress=False)
    >>> plot_pareto(found, "bytes", "error", y_mode="min", log="x").axes[0].get_xscale()
    'log'
    """
    from matplotlib.figure import Figure

    points = np.stack([sweep.values(x), sweep.values(y)], axis=1)
    points[sweep.diverged] = np.nan
    sound = ~np.isnan(points).any(axis=1)
    if not sound.any():
        raise ValueError(f"nothing to draw: none of {len(sweep)} configurations has finite numbers in {x!r} and {y!r}")
    front = pareto_front(points, (x_mode, y_mode))
    groups = np.array([str(value) for value in sweep.column(colour)] if colour else [""] * len(sweep))
    names = list(dict.fromkeys(groups[sound].tolist()))
    if len(names) > len(_COLOURS):
        raise ValueError(f"column {colour!r} has {len(names)} values, more than {len(_COLOURS)} colours can tell apart")

    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    steps = points[front][np.argsort(points[front, 0], kind="stable")]
    side = "post" if x_mode == "min" else "pre"  # a point dominates what is worse in x, up to the next point
    axes.plot(steps[:, 0], steps[:, 1], drawstyle=f"steps-{side}", color="0.35", linewidth=1.2, zorder=1)
    for name, tint, marker in zip(names, _COLOURS, _MARKERS, strict=False):
        style: dict[str, Any] = {"color": tint, "marker": marker, "linewidths": 0}
        for shown, size, alpha in ((sound & ~front, 22, 0.3), (front, 34, 1.0)):
            chosen = points[shown & (groups == name)]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=size, alpha=alpha, zorder=2 + alpha, **style)
        axes.scatter([], [], s=34, label=name, **style)
    for name in log:
        _logarithmic(axes, name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    told = []
    if label:
        texts = [value for value, shown in zip(sweep.column(label), front, strict=True) if shown]
        _annotate(axes, points[front], texts)
        told.append(f"beside the front: {label}")
    if sweep.diverged.any():
        told.append(f"{sweep.diverged.sum()} diverged, not drawn")
    axes.set_title("; ".join(told), loc="left", fontsize=9, color="0.35")
    if colour:
        axes.legend(title=colour, frameon=False)
    return figure


def _annotate(axes: "Axes", points: np.ndarray, texts: list) -> None:
    for point, text in zip(points.tolist(), texts, strict=True):
        shown = f"{text:g}" if isinstance(text, float) else str(text)
        axes.annotate(shown, point, xytext=(5, -9), textcoords="offset points", fontsize=8, color="0.25")


def _logarithmic(axes: "Axes", name: str) -> None:
    """A logarithmic axis with numbers that are read as they stand: 500, 1000, 2000."""
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axes, f"set_{name}scale")("log")
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())
