"""Tables, verdicts and plots of `robust-gnn`."""

import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.table import Table

from experiments import _tables
from experiments._registry import Context
from experiments._statistics import standard_error

DEFENCES = ("gradient ascent", "greedy", "zeroth order")
_COLOURS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's
_LABELS = {"worst": "worst attack", "clean": "clean"}
_PAPER = (
    "Of the papers, on Cora with 5 % of the edges: 18.2 % clean, 25.2 greedy, 28.0 CE-PGD, 27.8 CW-PGD (a table of the "
    "attack paper, from memory). The defence tables of both are not known to us."
)


def means(outcomes: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds, each with its standard error (None for one seed, which tells nothing of it)."""
    return {key: _mean([outcome[key] for outcome in outcomes]) for key in outcomes[0]}


def _mean(values: list[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "error": standard_error(values),
        "each": values,
    }


def _percent(found: dict[str, Any]) -> str:
    spread = "" if found["error"] is None else f" ± {100 * found['error']:.1f}"
    return f"{100 * found['mean']:.1f}{spread}"


def _seconds(found: dict[str, Any]) -> str:
    return f"{found['mean']:.3g}" if found["mean"] else "-"


def attack_table(config: Any, context: Context, study: Any, attacks: dict[str, dict[str, Any]]) -> Table:
    seeds, graph = len(context.seeds), study.graph
    table = _tables.blank(
        f"Attacks on naturally trained networks: {config.graph}, {study.budget} flips for {len(graph.pairs):,} "
        f"edges, {len(study.nodes):,} test nodes, mean of {seeds} seed{'s' * (seeds > 1)}",
        ("attack", "error %", "CPU s", "flips", "added %"),
        caption=_PAPER,
    )
    for name, a in attacks.items():
        flips = f"{a['flips']['mean']:.0f}" if a["flips"]["mean"] else "-"
        added = f"{100 * a['added']['mean']:.0f}" if a["flips"]["mean"] else "-"
        table.add_row(name, _percent(a["error"]), _seconds(a["seconds"]), flips, added)
    return table


def defence_table(config: Any, context: Context, study: Any, defences: dict[str, dict[str, Any]]) -> Table:
    calls = "; ".join(f"{name} {count:,} {kind}" for name, (count, kind) in study.calls.items())
    columns = ["trained against", "clean", *study.strong, "worst", "CPU s"]
    table = _tables.blank(
        f"Robust training, {config.attacks} attacks of {config.steps} steps each: error % on test nodes",
        [column.partition(",")[0] for column in columns],
        caption="Each network is attacked anew, knowing its weights, with more iterations than in training. Calls of "
        f"the loss that the attacks in training take: {calls}.",
    )
    for name, found in defences.items():
        under = (f"{100 * found[attack]['mean']:.1f}" for attack in study.strong)
        row = _percent(found["clean"]), *under, _percent(found["worst"]), _seconds(found["seconds"])
        table.add_row("nothing" if name == "natural" else name, *row)
    return table


def verdicts(attacked: dict[str, list[dict[str, float]]], trained: dict[str, list[dict[str, float]]]) -> list[str]:
    """What the run says of the claims, those it speaks against first."""
    error = {name: np.array([outcome["error"] for outcome in outcomes]) for name, outcomes in attacked.items()}
    ladder = ["none", "random", "greedy, at once", "greedy, one by one", "CE-PGD"]
    means = [error[name].mean() for name in ladder]
    claims = [(" < ".join(ladder) + ", in error", all(a < b for a, b in itertools.pairwise(means)))]
    worst = {name: np.array([o["worst"] for o in outcomes]) for name, outcomes in trained.items()}
    seconds = {name: np.median([o["seconds"] for o in outcomes]) for name, outcomes in trained.items()}
    for name in DEFENCES:
        gain = 100 * (worst["natural"] - worst[name])
        claims.append(
            (f"{name}: lowers the error under the strongest attack, by {_spread(gain)} points", _beyond(gain) > 0)
        )
    for name in DEFENCES[1:]:
        loss = 100 * (worst[name] - worst[DEFENCES[0]])
        ratio = seconds[DEFENCES[0]] / seconds[name]
        claims.append((f"{name}: at least 5 times fewer seconds than gradient ascent: {ratio:.1f} times", ratio >= 5))
        claims.append(
            (
                f"{name}: no worse than gradient ascent under the strongest attack: {_spread(loss)} points",
                _beyond(loss) <= 0,
            )
        )
    claims.sort(key=lambda claim: claim[1])
    return [f"{'holds' if holds else 'NOT REPRODUCED'}: {claim}" for claim, holds in claims]


def _spread(values: np.ndarray) -> str:
    """Mean of differences, paired by seed, and its standard error."""
    if len(values) < 2:
        return f"{values.mean():+.1f} (one seed)"
    return f"{values.mean():+.1f} ± {standard_error(values):.1f}"


def _beyond(values: np.ndarray) -> float:
    """The mean, or 0 where it is within a standard error of 0."""
    error = standard_error(values) or 0.0
    return float(values.mean()) if abs(values.mean()) > error else 0.0


def draw(context: Context, attacks: dict[str, dict[str, Any]], defences: dict[str, dict[str, Any]]) -> None:
    """Left what each attack does to a natural network, right what each defence leaves of the worst, and its price."""
    figure = Figure(figsize=(9.2, 3.8), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if axes is left else "y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    names = list(attacks)[::-1]
    mean, error = np.array([_bar(attacks[name]["error"]) for name in names]).T
    left.errorbar(mean, names, xerr=error, color="0.25", marker="o", linestyle="", capsize=3)
    left.set_xlabel("test error of a naturally trained network (%)")

    for key, style in (("worst", "-"), ("clean", ":")):
        mean = _bar(defences["natural"][key])[0]
        right.axhline(mean, color="0.45", linestyle=style, linewidth=1.2, label=f"natural training, {_LABELS[key]}")
        for name, colour, marker in zip(DEFENCES, _COLOURS, "osD", strict=True):
            mean, error = _bar(defences[name][key])
            seconds = defences[name]["seconds"]["mean"]
            hollow = {} if key == "worst" else {"markerfacecolor": "white"}
            label = f"{name}, {_LABELS[key]}"
            right.errorbar(
                seconds, mean, error, color=colour, marker=marker, linestyle="", capsize=3, label=label, **hollow
            )
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    right.margins(x=0.2, y=0.1)
    right.set_xlabel("robust training, seconds of one core")
    right.set_ylabel("test error (%)")
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(context.folder / "robustness.png", format="png")


def _bar(found: dict[str, Any]) -> tuple[float, float]:
    return 100 * found["mean"], 100 * (found["error"] or 0.0)
