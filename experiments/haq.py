"""Bits for every layer under a budget of cycles: an agent's, a dynamic programme's, gradients' and uniform ones.

Wang et al., HAQ: Hardware-Aware Automated Quantization with Mixed Precision, CVPR 2019, arXiv 1811.08886. Its claim: at
equal latency a policy found by reinforcement learning is more accurate than the same bits everywhere. The paper has
ImageNet networks; this is a small network with four depthwise blocks, without batch norm, on the bit-serial device that
the authors' table describes (`jaxcomp.BitSerial`).

One network is trained. A query quantizes it by some policy and measures it on validation images. All that search have
as many queries. The agent and random policies spend one an episode, after a few steps of finetuning and behind the
authors' wall, which takes bits away until the budget is kept. `jaxcomp.allocate` spends them on the loss that each
width of each layer costs alone, once for all budgets, and then asks no more. The policy that a method likes best is
finetuned for longer and tested.

Not as published: rewards are validation accuracy, not training accuracy; clips below five bits are those of least
squared error, not of least divergence; a query finetunes for a few steps, not for an epoch; there are about a hundred
queries, not 600.
"""

import dataclasses
from typing import Any

import numpy as np
from rich.table import Table

from experiments import _plots, _tables
from experiments._haq_study import MOST, Numbers, Study
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict

_UNIFORM, _RANDOM, _AGENT = "uniform", "random, wall", "DDPG, wall (published)"
_GRADIENT, _EXACT = "gradients", "dynamic programme"
_METHODS = (_UNIFORM, _RANDOM, _AGENT, _GRADIENT, _EXACT)

Found = dict[int, dict[str, list[dict[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Config:
    """A budget is what the network costs with so many `bits`; 0 queries are as many as `jaxcomp.allocate` takes.

    Finetuning takes a whole number of times the steps of a query.
    """

    bits: tuple[int, ...] = (3,)
    queries: int = 0
    warm_up: int = 20
    batch_size: int = 64
    steps: int = 1500
    learning_rate: float = 3e-3
    query_steps: int = 5
    query_images: int = 500
    query_rate: float = 1e-3
    final_steps: int = 150
    final_rate: float = 3e-3

    @classmethod
    def quick(cls) -> "Config":
        """For a small data set."""
        return cls(bits=(3,), queries=15, warm_up=5, steps=150, query_steps=2, query_images=200, final_steps=20)


@experiment(
    "haq",
    paper="arXiv 1811.08886",
    summary="bits by layer under a budget of cycles: DDPG, gradients, a dynamic programme, uniform",
    data="fashion_mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    numbers = Numbers(**{name: getattr(config, name) for name in Numbers._fields})
    found: Found = {bits: {method: [] for method in _METHODS} for bits in config.bits}
    ends: dict[str, list[float]] = {"float": [], "8 bits": []}
    for seed in context.seeds:
        study = Study(context.data, numbers, seed)
        queries = config.queries or study.queries
        ends["float"].append(study.accuracy(None))
        ends["8 bits"].append(study.accuracy(study.uniform(MOST)))
        for bits in config.bits:
            for method, policy in _policies(study, bits, queries).items():
                share = study.cost(policy) / study.cost(study.uniform(MOST))
                outcome = {"accuracy": study.accuracy(policy), "share": share, "policy": policy}
                found[bits][method].append(outcome)
                context.say(f"seed {seed}, cycles of {bits} bits, {method}: {outcome['accuracy']:.2%}")
    claims = _claims(found)
    context.say(*claims)
    context.console.print(_table(context, found, ends, queries))
    _draw(context, found, ends)
    return {"claims": claims, "queries": queries, "ends": ends, "found": found}


def _policies(study: Study, bits: int, queries: int) -> dict[str, np.ndarray]:
    """What every method chooses within what uniform bits cost."""
    budget = study.cost(study.uniform(bits))
    return {
        _UNIFORM: study.uniform(bits),
        _RANDOM: study.searched(budget, queries, learn=False),
        _AGENT: study.searched(budget, queries, learn=True),
        _GRADIENT: study.allocated(budget, "gradient"),
        _EXACT: study.allocated(budget, "exact"),
    }


def _claims(found: Found) -> list[str]:
    """The paper's claim, what learning adds to the wall, and what solving adds to learning."""
    pairs = (
        (_AGENT, _UNIFORM, "the published search is ahead of uniform bits"),
        (_AGENT, _RANDOM, "the published search is ahead of random policies behind its wall"),
        (_EXACT, _UNIFORM, "the dynamic programme is ahead of uniform bits"),
        (_EXACT, _AGENT, "the dynamic programme is ahead of the published search"),
        (_GRADIENT, _AGENT, "gradients are ahead of the published search"),
    )
    lines = []
    for one, other, claim in pairs:
        for bits in found:
            ahead = _ahead(found[bits], one, other)
            said = verdict(ahead, "Found", "Not found")
            lines.append(f"{said} at the cycles of {bits} bits: {claim} ({points(ahead)} points).")
    return lines


def _ahead(outcomes: dict[str, list[dict]], one: str, other: str) -> np.ndarray:
    """By how many points of test accuracy, paired by seed: the same trained network and batches on both sides."""
    return 100 * np.subtract(*([outcome["accuracy"] for outcome in outcomes[method]] for method in (one, other)))


def _table(context: Context, found: Found, ends: dict[str, list[float]], queries: int) -> Table:
    seeds, n = len(context.seeds), len(context.data.test)
    shown = ", ".join(f"{name} {percent(values)} %" for name, values in ends.items())
    table = _tables.blank(
        f"{context.data.name}, {n:,} test images, mean of {seeds} seed{'s' * (seeds > 1)}, {queries} queries",
        ("cycles of", "method", "cycles, % of 8 bits", "test %", "ahead of uniform"),
        text=("method",),
        caption=f"{shown}. No figure of the paper is for this network.",
    )
    for bits, outcomes in found.items():
        for method in _METHODS:
            share, accuracy = ([outcome[key] for outcome in outcomes[method]] for key in ("share", "accuracy"))
            ahead = "" if method == _UNIFORM else points(_ahead(outcomes, method, _UNIFORM))
            label = f"{bits} bits" if method == _UNIFORM else ""
            cells = (label, method, f"{100 * np.mean(share):.1f}", percent(accuracy), ahead)
            table.add_row(*cells, end_section=method == _METHODS[-1])
    return table


def _draw(context: Context, found: Found, ends: dict[str, list[float]]) -> None:
    """Test accuracy against the budget."""
    figure, axes = _plots.blank()
    _plots.level(axes, float(np.mean(ends["8 bits"])), "8 bits")
    # Shares of the budget, so of all methods.
    budgets = [100 * np.mean([outcome["share"] for outcome in outcomes[_UNIFORM]]) for outcomes in found.values()]
    for method, colour, marker in zip(_METHODS, _plots.COLOURS, _plots.MARKERS, strict=False):
        shares = [[outcome["accuracy"] for outcome in outcomes[method]] for outcomes in found.values()]
        style = dict(color=colour, marker=marker, markersize=5, linewidth=1.6, label=method)
        _plots.seeded(axes, budgets, shares, **style)
    axes.set_xlabel("budget (% of the cycles of 8 bits)")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False)
    _plots.save(figure, context.folder / "accuracy.png")
