"""Pruning and an attacker in the loop against membership inference, beside DP-SGD and early stopping.

Wang et al., MCMIA: Model Compression Against Membership Inference Attack in Deep Neural Networks, 2020 (arXiv
2008.13578v1), whose fourth version is Against Membership Inference Attack: Pruning is All You Need, IJCAI 2021.

LeNet-300-100 is fitted to so few images that it learns them by heart. An attacker who sees the probabilities it gives
an image, and its label, guesses whether the image was among them; of half of the images the answer is known. Defences:
pruning by ADMM with masked retraining; the game of Nasr et al. (CCS 2018), in which the network also spoils the answers
of an attacker trained beside it; both; gradients clipped and made noisy (DP-SGD: Abadi et al., CCS 2016); and, which
the paper leaves out, to stop training early. All take the steps of the dense network, but for early stopping, and all
have as many settings to choose from, by samples that the figures reported do not see.

The paper's networks were LeNet-5, VGG-16, MobileNetV2 and ResNet-18 on MNIST, CIFAR and ImageNet.
"""

import json
from collections import defaultdict
from typing import Any

import numpy as np
from rich.table import Table

from experiments import _membership, _tables
from experiments._defences import Config, Defences
from experiments._frontier import Point, frontier
from experiments._registry import Context, experiment
from experiments._statistics import standard_error, with_error

_PAPER = (
    "Of the paper: attack accuracy up to 13.6 % below the baseline's and up to 10 % below that of the min-max game by "
    "pruning (abstract of v4); lowest of all by both, and far below that of differential privacy (abstract of v1)."
)
_SURE = 2  # standard errors, beyond which a difference counts
_SHOWN = 12  # points of test accuracy below the dense network that the figure reaches

Outcomes = dict[str, dict[str, list[dict[str, Any]]]]  # by method and setting, one of each seed


@experiment(
    "mcmia",
    paper="arXiv 2008.13578",
    summary="who was in the training data? pruning and an attacker in the loop, beside DP-SGD",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    defences = Defences(config, context.data.num_classes)
    found: Outcomes = defaultdict(lambda: defaultdict(list))
    for seed in context.seeds:
        for method, setting, outcome in _of_seed(defences, context, seed):
            found[method][setting].append(outcome)
    chosen = {method: choose(found, method, config.tolerance) for method in found}
    members = _membership.size_of(context.data, config.members)
    budgets = {f"{noise:g}": defences.epsilon(noise, members) for noise in config.private}
    claims = verdicts(found, chosen)
    context.say(*claims)
    context.console.print(_table(context, found, chosen, budgets, members))
    _draw(context, found, chosen)
    return {"claims": claims, "chosen": chosen, "epsilon": budgets, "trials": found}


def _of_seed(defences: Defences, context: Context, seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, setting and outcome of every trial; a seed that an interrupted run has finished is read, not run."""
    path = context.folder / f"seed-{seed}.json"
    if not path.exists():
        config = defences.config
        people = _membership.draw(context.data, config.members, config.noise, seed)
        trials = [
            (trial.method, trial.setting, defences.measured(trial.params, people, seed))
            for trial in defences.trials(people, seed)
        ]
        context.console.print(f"seed {seed}: {len(trials)} networks trained and attacked")
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(trials))
        unfinished.replace(path)
    return json.loads(path.read_text())


def attack(outcome: dict[str, Any], sample: str = "test") -> float:
    """Accuracy of the attacker that did better on the validation sample."""
    ours = outcome["attack"]["validation"]
    return outcome["attack"][sample][max(ours, key=ours.get)]


def accuracy(outcome: dict[str, Any], sample: str = "test") -> float:
    """Of the network."""
    return outcome["accuracy"][sample]


def choose(found: Outcomes, method: str, tolerance: float) -> str:
    """The setting with the lowest attack accuracy of those that cost no more than the tolerance; on validation.

    Where all cost more, the most accurate.
    """

    def mean(of, outcomes):
        return float(np.mean([of(outcome, "validation") for outcome in outcomes]))

    least = mean(accuracy, found["dense"][""]) - tolerance
    affordable = [setting for setting, outcomes in found[method].items() if mean(accuracy, outcomes) >= least]
    if not affordable:
        return max(found[method], key=lambda setting: mean(accuracy, found[method][setting]))
    return min(affordable, key=lambda setting: mean(attack, found[method][setting]))


def verdicts(found: Outcomes, chosen: dict[str, str]) -> list[str]:
    """What the run says of the claims, in words, for and against."""
    ours = {method: found[method][setting] for method, setting in chosen.items()}
    pairs = [
        ("v4, pruning below the dense network", "pruned", "dense"),
        ("v4, pruning below the game", "pruned", "game"),
        ("v1, both below pruning alone", "pruned, game", "pruned"),
        ("v1, both below the game alone", "pruned, game", "game"),
        ("v1, both below DP-SGD", "pruned, game", "DP-SGD"),
        ("not in the paper, both below early stopping", "pruned, game", "stopped early"),
    ]
    lines = [f"{claim}: {_compared(ours[one], ours[other])}" for claim, one, other in pairs]
    settings = sorted(found["pruned"], key=float, reverse=True)
    means = [float(np.mean([attack(o) for o in found["pruned"][setting]])) for setting in settings]
    falls = "holds" if all(np.diff(means) < 0) else "does not hold"
    shown = ", ".join(f"{100 * mean:.1f}" for mean in means)
    lines.append(f"attack accuracy falls with every cut in density: {falls}: {shown} % at {', '.join(settings)}")
    for setting, outcomes in found["pruned, game"].items():
        density, weight = setting.split(", ")
        if density in found["pruned"]:
            compared = _compared(outcomes, found["pruned"][density])
            lines.append(f"at density {density} a game of weight {weight} lowers it: {compared}")
    return lines


def _compared(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Differences of attack and of test accuracy, paired by seed: the same samples and the same first weights."""
    attacks, accuracies = (
        [100 * (of(a) - of(b)) for a, b in zip(ours, theirs, strict=True)] for of in (attack, accuracy)
    )
    shown = f"attack {_signed(attacks)}, test {_signed(accuracies)} points"
    if len(ours) == 1:
        return f"one seed: {shown}"
    lower, higher, poorer = _surely_below(attacks), _surely_below([-a for a in attacks]), _surely_below(accuracies)
    cost = ", at a cost of accuracy" if poorer else ""
    return f"{'holds' + cost if lower else 'the reverse holds' if higher else 'does not hold'}: {shown}"


def _surely_below(values: list[float]) -> bool:
    """Whether their mean is below zero by more than so many standard errors."""
    return float(np.mean(values)) < -_SURE * (standard_error(values) or 0.0)


def _signed(values: list[float]) -> str:
    return with_error(values, "+.1f")


def _table(context: Context, found: Outcomes, chosen: dict[str, str], epsilon: dict[str, float], members: int) -> Table:
    seeds = len(context.seeds)
    budgets = ", ".join(f"{value:.3g} at noise {noise}" for noise, value in epsilon.items())
    table = _tables.blank(
        f"LeNet-300-100 on {members:,} images of {context.data.name}, mean of {seeds} seed{'s' * (seeds > 1)}",
        ("defence", "train %", "test %", "loss\nattack", "network\nattack", "better\nattack %"),
        caption=f"* chosen on validation. DP-SGD's epsilon: {budgets}. {_PAPER}",
    )
    for method, settings in found.items():
        for setting, outcomes in settings.items():
            attacks = [[o["attack"]["test"][name] for o in outcomes] for name in _membership.ATTACKERS]
            table.add_row(
                _name(method, setting) + " *" * (len(settings) > 1 and chosen[method] == setting),
                _percent([accuracy(o, "members") for o in outcomes], spread=False),
                _percent([accuracy(o) for o in outcomes]),
                *(_percent(values, spread=False) for values in attacks),
                _percent([attack(o) for o in outcomes]),
            )
    return table


def _name(method: str, setting: str) -> str:
    """As in "pruned 0.05, game 3"."""
    if not setting:
        return method
    return ", ".join(f"{m} {s}" for m, s in zip(method.split(", "), setting.split(", "), strict=True))


def _percent(values: list[float], spread: bool = True) -> str:
    values = [100 * value for value in values]
    return with_error(values, ".1f") if spread else f"{np.mean(values):.1f}"


def _draw(context: Context, found: Outcomes, chosen: dict[str, str]) -> None:
    methods = {
        method: [
            Point([100 * accuracy(o) for o in outcomes], [100 * attack(o) for o in outcomes], chosen[method] == setting)
            for setting, outcomes in settings.items()
        ]
        for method, settings in found.items()
    }
    frontier(
        context.folder / "attack.png",
        methods,
        x="test accuracy (%)",
        y="attack accuracy (%)",
        level=("guessing", 50.0),
        least=float(np.mean(methods["dense"][0].x)) - _SHOWN,
    )
