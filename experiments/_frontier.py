"""What a method costs against what it brings: one figure."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import _plots
from experiments._statistics import standard_error


class Point(NamedTuple):
    """One setting of a method: both values, a seed an entry, and whether it is the setting that was chosen."""

    x: Sequence[float]
    y: Sequence[float]
    chosen: bool


def frontier(
    path: str | os.PathLike,
    methods: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    level: tuple[str, float],
    least: float,
) -> None:
    """Every setting of every method by two values: means over seeds with standard errors; the chosen ones are filled.

    Args:
      path: of the PNG to write.
      methods: their settings.
      x, y: labels of the axes.
      level: name and height of a horizontal line.
      least: settings whose x is smaller are left out, and counted under the axis.
    """
    figure, axes = _plots.blank()
    axes.axhline(level[1], color=_plots.GREY, linestyle="--", linewidth=1.2, label=level[0], zorder=1)
    left_out = sum(np.mean(point.x) < least for points in methods.values() for point in points)
    for (name, points), colour, marker in zip(methods.items(), _plots.COLOURS, _plots.MARKERS, strict=False):
        shown = [point for point in points if np.mean(point.x) >= least]
        points = sorted(shown, key=lambda point: float(np.mean(point.x)))
        means = np.array([(np.mean(point.x), np.mean(point.y)) for point in points]).reshape(-1, 2)
        axes.plot(*means.T, color=colour, linewidth=1.0, alpha=0.5)
        axes.plot([], color=colour, marker=marker, markersize=7, markerfacecolor="white", label=name)
        for point, (across, up) in zip(points, means, strict=True):
            axes.errorbar(
                across,
                up,
                standard_error(point.y) or 0.0,
                standard_error(point.x) or 0.0,
                color=colour,
                marker=marker,
                markersize=7,
                markerfacecolor=colour if point.chosen else "white",
                elinewidth=1.0,
            )
    note = f"\n({left_out} more settings below {least:.0f})" if left_out else ""
    axes.set(xlabel=x + note, ylabel=y)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, title="filled: chosen", title_fontsize=8)
    _plots.save(figure, path)
