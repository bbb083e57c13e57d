"""The picture of a trade-off shows what is there: the front as steps, the rest light, and no diverged point."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._plot import plot_pareto
from jaxcomp.sweeps._result import Sweep

SIZES, ACCURACIES, LOST = [1.0, 2.0, 3.0, 4.0, 5.0], [0.2, 0.6, 0.5, 0.9, np.inf], [False] * 4 + [True]


def swept(lost=LOST):
    configs = Configs({"solver": name, "seed": i} for i, name in enumerate(["admm", "slr", "admm", "slr", "slr"]))
    results = [{"bytes": size, "accuracy": a} for size, a in zip(SIZES, ACCURACIES, strict=True)]
    return Sweep(configs, results, np.array(lost))


def scattered(axes):
    """Points by whether they are full or light."""
    points = {True: [], False: []}
    for cloud in axes.collections:
        points[cloud.get_alpha() == 1].extend(map(tuple, cloud.get_offsets().tolist()))
    return {full: sorted(found) for full, found in points.items()}


def test_the_front_is_full_the_rest_light_and_what_diverged_is_only_counted():
    axes = plot_pareto(swept(), "bytes", "accuracy").axes[0]
    assert scattered(axes) == {True: [(1, 0.2), (2, 0.6), (4, 0.9)], False: [(3, 0.5)]}
    assert axes.get_title("left") == "1 diverged, not drawn"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bytes", "accuracy")


@pytest.mark.parametrize(("x_mode", "drawstyle"), [("min", "steps-post"), ("max", "steps-pre")])
def test_no_point_lies_beyond_the_steps(x_mode, drawstyle):
    axes = plot_pareto(swept(), "bytes", "accuracy", x_mode=x_mode).axes[0]
    (steps,) = axes.lines
    assert steps.get_drawstyle() == drawstyle
    at, height = steps.get_xdata(), steps.get_ydata()
    for x, y in zip(SIZES[:4], ACCURACIES[:4], strict=True):
        reachable = height[at <= x] if x_mode == "min" else height[at >= x]
        assert y <= reachable.max()


def test_groups_are_told_by_colour_and_marker_and_the_front_by_its_labels():
    axes = plot_pareto(swept(), "bytes", "accuracy", colour="solver", label="seed", log="xy").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["admm", "slr"]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "3"]
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_it_draws_without_a_window(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_pareto(swept(), "bytes", "accuracy", log="x").savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000 and ("matplotlib.pyplot" in sys.modules) == before


def test_misuse_is_named():
    with pytest.raises(ValueError, match="nothing to draw: none of 5 configurations"):
        plot_pareto(swept([True] * 5), "bytes", "accuracy")
    with pytest.raises(ValueError, match="no column 'size'"):
        plot_pareto(swept(), "size", "accuracy")
    with pytest.raises(ValueError, match=r"no column 'sede'.* did you mean 'seed'"):
        plot_pareto(swept(), "bytes", "accuracy", label="sede")
    many = Sweep(Configs({"a": i} for i in range(7)), [float(i) for i in range(7)], np.zeros(7, bool))
    with pytest.raises(ValueError, match="column 'a' has 7 values, more than 6 colours can tell apart"):
        plot_pareto(many, "a", "result", colour="a")
