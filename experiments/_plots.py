"""Figures of a run, written as PNG files."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from experiments._statistics import standard_error

# Okabe and Ito's colours, which colour-blind readers can tell apart; each curve also has its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
GREY = "0.45"

# Diverging, without the pale middle: a small weight that was kept must not look like one that was removed.
_KEPT = ListedColormap(matplotlib.colormaps["RdBu_r"](np.r_[0.02:0.36:128j, 0.64:0.98:128j]), "kept")
_DOTS = 200


def blank() -> tuple[Figure, Axes]:
    """A figure of one panel in the style of all."""
    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def level(axes: Axes, share: float, name: str) -> None:
    """A share, 0 to 1, as a horizontal line to compare with, in percent."""
    axes.axhline(100 * share, color=GREY, linestyle="--", linewidth=1.2, label=name, zorder=1)


def seeded(axes: Axes, x: Sequence[float], shares: Sequence[Sequence[float] | np.ndarray], **style: Any) -> None:
    """A curve of shares, 0 to 1, a seed an entry: their means in percent, and standard errors."""
    means, errors = [100 * np.mean(each) for each in shares], [100 * (standard_error(each) or 0.0) for each in shares]
    axes.errorbar(x, means, errors, capsize=3, **style)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """As a PNG file, in a folder that is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def accuracy_against_compression(
    path: str | os.PathLike,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    dense: float,
) -> None:
    """Accuracy of compressed networks against how far they were compressed.

    Args:
      path: of the PNG to write.
      curves: for each method its points ``(compression ratio, mean accuracy, standard error)``, the last two
        as fractions of 1.
      dense: accuracy of the network before compression, a fraction of 1, drawn as a horizontal line.
    """
    figure, axes = blank()
    level(axes, dense, "dense")
    for (name, points), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        ratio, mean, error = np.array(sorted(points)).T
        style = dict(color=colour, marker=marker, markersize=5, linewidth=1.6, capsize=3, elinewidth=1.2)
        axes.errorbar(ratio, 100 * mean, 100 * error, label=name, **style)

    ratios = sorted({ratio for points in curves.values() for ratio, _, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(_apart(ratios, 1.15))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:.3g}×")
    axes.set_xlabel("compression (weights before / weights kept)")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False)
    save(figure, path)


def residuals(path: str | os.PathLike, history: Mapping[str, Sequence[float]], stages: Sequence[int] = ()) -> None:
    """Residuals of a solver against its rounds, on a logarithmic axis.

    Args:
      path: of the PNG to write.
      history: for each curve, such as "primal" and "dual", one residual a round.
      stages: the rounds, counted from 0, at which a new stage begins; each is marked by a vertical line.
    """
    figure, axes = blank()
    for (name, values), colour, marker in zip(history.items(), COLOURS, MARKERS, strict=False):
        values = np.where(np.asarray(values) > 0, values, np.nan)  # a logarithmic axis has no zero: leave a gap
        rounds = np.arange(1, len(values) + 1)
        axes.plot(rounds, values, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
    for index, start in enumerate(stage for stage in stages if stage > 0):
        label = None if index else "new stage"
        axes.axvline(start + 0.5, color=GREY, linestyle=":", linewidth=1.2, label=label, zorder=1)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("residual (Euclidean norm)")
    axes.legend(frameon=False)
    save(figure, path)


def kept_weights(path: str | os.PathLike, weights: Mapping[str, np.ndarray]) -> None:
    """The weights that were kept, one image a leaf: red above zero, blue below, white where removed.

    Args:
      path: of the PNG to write.
      weights: by leaf path, matrices ``[in, out]`` or convolution kernels ``[height, width, in, out]``, which
        are drawn as tiles, a row of tiles for each input and a column for each output. Matrices too large for
        the picture are reduced: a dot shows the weight of largest magnitude of those it stands for.
    """
    columns = min(2, len(weights))
    rows = math.ceil(len(weights) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (name, array), axes in zip(weights.items(), panels, strict=False):
        _draw(axes, name, np.asarray(array, np.float32))
    for axes in panels:  # those left over
        axes.set_axis_off()
    save(figure, path)


def gallery(path: str | os.PathLike, panels: Mapping[str, tuple[np.ndarray, str]], columns: int = 5) -> None:
    """Variants of one leaf side by side, on one scale of colours: white where a weight is zero.

    Args:
      path: of the PNG to write.
      panels: for each title the array, as in `kept_weights`, and a line to put under the title.
      columns: panels in a row.
    """
    rows = math.ceil(len(panels) / columns)
    limit = float(np.quantile(np.abs(next(iter(panels.values()))[0]), 0.98))
    figure = Figure(figsize=(2.9 * columns, 2.6 * rows), dpi=110, layout="constrained")
    frames = figure.subplots(rows, columns, squeeze=False).flat
    for (title, (array, line)), axes in zip(panels.items(), frames, strict=False):
        image = (_tiled(array) if array.ndim == 4 else _reduced(array))[0]
        axes.imshow(_pixels(image, limit), aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="0.7")
        axes.set_title(f"{title}\n{line}", fontsize=9)
    for axes in frames:  # those left over
        axes.set_axis_off()
    save(figure, path)


def _pixels(image: np.ndarray, limit: float) -> np.ndarray:
    """Colours of weights up to a limit; white where a weight is zero, grey between tiles."""
    pixels = ScalarMappable(Normalize(-limit, limit), _KEPT).to_rgba(image)
    pixels[image == 0] = 1
    pixels[np.isnan(image)] = (0.9, 0.9, 0.9, 1)
    return pixels


def _draw(axes: Axes, name: str, array: np.ndarray) -> None:
    image, vertical, horizontal = _tiled(array) if array.ndim == 4 else _reduced(array)
    kept = np.abs(array[array != 0])
    limit = float(np.quantile(kept, 0.98)) if kept.size else 1.0  # a few large weights must not pale the others
    scale = ScalarMappable(Normalize(-limit, limit), _KEPT)
    axes.imshow(_pixels(image, limit), aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[], xlabel=horizontal, ylabel=vertical)
    axes.spines[:].set(visible=True, color="0.7")
    shape = "×".join(map(str, array.shape))
    axes.set_title(f"{name}  {shape}\n{kept.size:,} weights kept ({kept.size / array.size:.2%})", fontsize=10)
    bar = axes.figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.02, extend="both")
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _tiled(kernel: np.ndarray) -> tuple[np.ndarray, str, str]:
    """Tiles of a kernel with NaN between them, and the labels of the axes."""
    height, width, inputs, outputs = kernel.shape
    tiles = kernel.transpose(2, 3, 0, 1)
    vertical, horizontal = f"{inputs} inputs", f"{outputs} outputs"
    if inputs == 1:  # one row would be a thin line: fold it
        columns = math.ceil(math.sqrt(2 * outputs))
        tiles = np.pad(tiles[0], ((0, -outputs % columns), (0, 0), (0, 0)), constant_values=np.nan)
        tiles = tiles.reshape(-1, columns, height, width)
        vertical, horizontal = "", f"{outputs} outputs, row by row"
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return np.block([list(row) for row in tiles])[:-1, :-1], vertical, horizontal


def _reduced(matrix: np.ndarray) -> tuple[np.ndarray, str, str]:
    """A matrix, its longer side horizontal, with at most `_DOTS` dots a side; and the labels of the axes."""
    vertical, horizontal = (f"{matrix.shape[0]} inputs", f"{matrix.shape[1]} outputs")
    if matrix.shape[0] > matrix.shape[1]:
        matrix, vertical, horizontal = matrix.T, horizontal, vertical
    rows, columns = (math.ceil(size / _DOTS) for size in matrix.shape)
    padded = np.pad(matrix, ((0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns)))
    bins = padded.reshape(padded.shape[0] // rows, rows, -1, columns).swapaxes(1, 2)
    bins = bins.reshape(*bins.shape[:2], rows * columns)
    largest = np.take_along_axis(bins, np.abs(bins).argmax(-1, keepdims=True), -1)[..., 0]
    if rows * columns > 1:
        horizontal += f"  (a dot: {rows}×{columns} weights)"
    return largest, vertical, horizontal


def _apart(ratios: Sequence[float], factor: float) -> list[float]:
    """Those of the sorted ``ratios`` that lie at least ``factor`` above the one chosen before."""
    chosen = []
    for ratio in ratios:
        if not chosen or ratio >= factor * chosen[-1]:
            chosen.append(ratio)
    return chosen
