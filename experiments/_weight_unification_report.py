"""What unifying and pruning blocks left, side by side: claims, a table, and a plot."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from rich.table import Table

from experiments import _plots, _tables
from experiments import _weight_unification_sets as sets
from experiments._compression_report import ahead, values
from experiments._registry import Context
from experiments._statistics import percent, points, verdict
from experiments._weight_unification_blocks import gaussian
from experiments._weight_unification_sets import ALL, HARD, Shares

_RATIOS = 1.5, 2, 3, 4, 6, 8, 12, 16  # of stored bytes, at which the plot has ticks


@dataclass(frozen=True)
class Way:
    """What is done to the blocks: how many, and by ADMM or by projecting at once."""

    shares: Shares
    one_shot: bool = False

    def __str__(self) -> str:
        return f"{self.shares}, one-shot" if self.one_shot else str(self.shares)


@dataclass(frozen=True)
class Outcome:
    """One network as hard projection left it, and retrained.

    Attributes:
        landed, accuracy: shares of test images classified right, before retraining and after it.
        stored: bytes of all parameters before by those that footprints promise.
        promised_bytes, disk_bytes: the latter, and of the folder that `jaxcomp.save` wrote, with all there is in it.
        multiplications: of the whole network before, by those of a run over the blocks.
        exact: whether no fewer blocks than the set says are zero, and have one magnitude to the last bit.
    """

    landed: float
    accuracy: float
    stored: float
    promised_bytes: float
    disk_bytes: int
    multiplications: float
    exact: bool


Found = dict[str, dict[Way, list[Outcome]]]  # by block and by what is done to it, a seed an entry


def of_sets(facts: dict[str, list[dict[str, Any]]], found: Found) -> list[str]:
    """What needs no accuracy: whether members are members, and what projecting takes."""
    every = [each for ways in found.values() for outcomes in ways.values() for each in outcomes]
    projections = [each for seeds in facts.values() for one in seeds for each in one.values()]
    exact = sum(each.exact for each in every)
    off = max(abs(each["of_least"] - 1) for each in projections)
    over = max(each.disk_bytes / each.promised_bytes for each in every) - 1
    return [
        f"{_word(exact == len(every))}: retrained blocks of one magnitude have it to the last bit, as many as the set "
        f"says ({exact} of {len(every)} networks).",
        f"{_word(all(each['idempotent'] for each in projections))}: projecting again changes nothing.",
        f"{_word(off < 1e-4)}: the error of projecting is the sum of the least errors of blocks (to {off:.0e}).",
        f"{_word(over < 0.02)}: no folder is more than 2 % larger than its footprints ({100 * over:+.1f} % at most).",
        *_of_energy(facts),
    ]


def _of_energy(facts: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What unifying all blocks takes of trained weights, beside what it takes of normal ones."""
    lost = {block: np.array([one[str(ALL)]["lost"] for one in facts[block]]) for block in _by_law(facts)}
    each = (
        f"{block} {percent(shares, '.1f')} % (normal weights {100 * gaussian(sets.size(block)):.1f})"
        for block, shares in lost.items()
    )
    lines = [f"Of the energy of trained weights, unifying all blocks takes: {', '.join(each)}."]
    for small, large in itertools.pairwise(lost):
        more = 100 * (lost[large] - lost[small])
        lines.append(f"{verdict(more)}: before training, {large} takes more than {small} ({points(more)} points).")
    return lines


def of_accuracies(found: Found) -> list[str]:
    """What the run says of the paper's claims, and of what follows from the sets, after retraining."""
    lines = []

    def claim(ours: Sequence[Outcome], theirs: Sequence[Outcome], said: str, key: str = "accuracy") -> None:
        gain = ahead(ours, theirs, key)
        lines.append(f"{verdict(gain)}: {said} ({points(gain)} points).")

    for block, ways in found.items():
        ours, theirs = map(Way, HARD)
        claim(ways[ours], ways[theirs], f"{block}: {ours} is ahead of {theirs}")
    for block, ways in found.items():
        for way in ways:
            if way.one_shot:
                ours = Way(way.shares)
                for key, moment in (("landed", "before retraining"), ("accuracy", "retrained")):
                    claim(ways[ours], ways[way], f"{block}, {ours}, {moment}: ADMM is ahead of one-shot", key)
    for small, large in itertools.pairwise(_by_law(found)):
        for way in found[small]:
            if not way.one_shot and not way.shares.pruned and way in found[large]:
                claim(found[small][way], found[large][way], f"{way}: {small} is ahead of {large}")
    for block, ways in found.items():
        for both, *others in sets.levels(block):
            at = f"{block}, {values(ways[Way(both)], 'stored').mean():.1f}x stored"
            for other in filter(None, others):
                claim(ways[Way(both)], ways[Way(other)], f"{at}: {both} is ahead of {other}")
    return lines


def accuracies(context: Context, found: Found, dense: list[float]) -> Table:
    """A row for all that is done to a block."""
    seeds, n = len(context.seeds), len(context.data.test)
    drawn = _tables.blank(
        f"LeNet-5 on {context.data.name}, {n:,} test images, mean of {seeds} seed{'s' * (seeds > 1)}",
        ("blocks", "stored", "on disk", "products", "just\nprojected %", "retrained %", "to dense"),
        caption=f"By ADMM but where it says one-shot. Trained on without constraint: {percent(dense)} %.\n"
        "Stored, on disk, products (multiplications): how many times fewer, of the whole network.",
    )
    for block, ways in found.items():
        drawn.add_row(f"[bold]{block}[/]")
        for way, outcomes in ways.items():
            disk = np.mean([each.stored * each.promised_bytes / each.disk_bytes for each in outcomes])
            drawn.add_row(
                str(way),
                f"{values(outcomes, 'stored').mean():.1f}x",
                f"{disk:.1f}x",
                f"{values(outcomes, 'multiplications').mean():.1f}x",
                *(percent(values(outcomes, key)) for key in ("landed", "accuracy")),
                points(100 * (values(outcomes, "accuracy") - np.array(dense))),
                end_section=way == list(ways)[-1],
            )
    return drawn


def draw(path: Path, found: Found, dense: list[float]) -> None:
    """Accuracy against stored bytes, of ADMM: a colour for what is done to blocks, a marker for the block."""
    figure, axes = _plots.blank()
    _plots.level(axes, float(np.mean(dense)), "dense")
    colours = dict(zip(sets.KINDS, _plots.COLOURS, strict=False))
    markers = dict(zip(found, _plots.MARKERS, strict=False))
    for block, ways in found.items():
        for way, outcomes in ways.items():
            if not way.one_shot:
                style = dict(color=colours[way.shares.kind], marker=markers[block], markersize=5, linestyle="")
                stored = float(values(outcomes, "stored").mean())
                _plots.seeded(axes, [stored], [values(outcomes, "accuracy")], **style)
    axes.set_xscale("log")
    axes.set_xticks(_RATIOS, [f"{ratio}×" for ratio in _RATIOS])
    axes.minorticks_off()
    axes.set_xlabel("stored bytes, before / after")
    axes.set_ylabel("test accuracy (%)")
    named = [(name, colour, "o") for name, colour in colours.items()]
    named += [(f"{block} blocks", _plots.GREY, marker) for block, marker in markers.items()]
    handles = [Line2D([], [], color=colour, marker=marker, linestyle="", label=name) for name, colour, marker in named]
    axes.legend(handles=handles, frameon=False, loc="lower left")
    _plots.save(figure, path)


def _by_law(blocks: Iterable[str]) -> list[str]:
    """From the block in which unifying takes least of normal weights."""
    return sorted(blocks, key=lambda block: gaussian(sets.size(block)))


def _word(holds: bool) -> str:
    return "Holds" if holds else "Does not hold"
