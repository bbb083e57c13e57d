"""LeNet-5 with polarized fragments, what it then costs on crossbars, and what noise of the cells does to it.

Yuan et al., FORMS: Fine-grained Polarized ReRAM-based In-situ Computation, ISCA 2021 (arXiv 2106.09144). Its claims:
weights of which every fragment of m rows of a column has one sign, found by ADMM, are as accurate as others; so one
array does where two were needed, fragments need smaller converters, and input cycles without a bit are skipped.

One network is trained. Then, from it and for every m, ADMM or one-shot polarization and retraining, with as many steps
and the same batches in all; then magnitudes are rounded to levels without further training. Cells are multiplied by
log-normal noise, as positive and negative arrays have it, as an offset has it, and polarized. Structured pruning, the
factor 23.18 of the published 185.44, is not repeated here.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _plots, _tables
from experiments._classifier import Classifier
from experiments._compression_report import ahead, values
from experiments._forms_cost import Silicon, designs, input_cycles, workload
from experiments._models import LeNet5
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict, with_error
from experiments._trials import best

_TUNING = 1000  # the seed of the network that rho is chosen on
_DUAL, _OFFSET = "dense, two arrays", "dense, offset"


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; one-shot polarization retrains for ADMM's rounds as well.

    rho is chosen by validation accuracy at the largest fragment, retrained, on a network not used again. Noise is the
    standard deviation of the logarithm of a cell; `chips` of them are made of every network and tested on
    `noisy_images`. Accuracies are on the first so many `images` of the test split.
    """

    batch_size: int = 32
    steps: int = 30
    learning_rate: float = 1e-3
    pretrain: int = 12
    rounds: int = 3
    retrain: int = 2
    fragments: tuple[int, ...] = (4, 8, 16)
    rho: tuple[float, ...] = (3e-2, 3e-1)
    growth: float = 1.5
    bits: int = 8
    noise: float = 0.1
    chips: int = 10
    images: int = 2000
    noisy_images: int = 500

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set, most of them compilation."""
        return cls(
            batch_size=32,
            steps=20,
            pretrain=4,
            rounds=2,
            retrain=2,
            fragments=(8,),
            rho=(3e-1,),
            chips=4,
            images=400,
            noisy_images=200,
        )


@dataclass(frozen=True)
class Outcome:
    """One network polarized, in shares of test images classified right.

    Attributes:
        landed: straight after hard polarization.
        accuracy: retrained, and then with magnitudes on levels.
    """

    landed: float
    accuracy: float


Found = dict[str, dict[int, list[Outcome]]]  # by method and fragment, a seed an entry


@experiment(
    "forms",
    paper="arXiv 2106.09144",
    summary="LeNet-5 with fragments of one sign: accuracy, crossbars beside ISAAC, and noise of cells",
    data="mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    task = Classifier.of(LeNet5, config, context)
    study = _Study(task, config)
    rho = study.chosen_rho()
    context.say(f"best of {len(config.rho)}: rho {rho:g}")
    methods = {"ADMM": rho, "one-shot": None}
    found: Found = {method: {m: [] for m in config.fragments} for method in methods}
    noisy: dict[str, list[float]] = {}
    dense, cycles = [], {m: [] for m in config.fragments}
    for seed in context.seeds:
        trained_on = study.dense(seed)
        dense.append(study.accuracy(trained_on))
        networks = {_DUAL: study.on_levels(trained_on), _OFFSET: study.on_levels(trained_on)}
        for m in config.fragments:
            for method, weight in methods.items():
                landed, params = study.polarized(seed, m, weight)
                found[method][m].append(study.measured(landed, params, m))
                if method == "ADMM":
                    networks[f"polarized, {m}"] = study.on_levels(params)
                    read = input_cycles(task.model, params, task.data.validation.image[:100], (m,))
                    cycles[m].append(read[m])
        for name, params in networks.items():
            noisy.setdefault(name, []).append(study.loss_by_noise(params, seed, offset=name == _OFFSET))
        context.say(f"seed {seed} done")
    work = workload(task.model, task.init(0), context.data.test.image)
    means = {m: np.mean(each, axis=0) for m, each in cycles.items()}
    silicon = designs(work, float(config.bits), config.fragments, means)
    claims = _claims(found, dense, noisy, silicon)
    context.say(*claims)
    context.console.print(_accuracies(config, context, found, dense), _noise(config, context, noisy), _silicon(silicon))
    _draw(context, found, dense)
    return {
        "claims": claims,
        "dense": dense,
        "found": found,
        "rho": rho,
        "noise": noisy,
        "input_cycles": means,
        "silicon": silicon,
    }


class _Study:
    """Both ways to polarize, from one trained network a seed."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        self._template = task.init(0)
        self.trained = functools.cache(self._trained)

    def chosen_rho(self) -> float:
        """The rho that is best retrained, at the largest fragment, on a network of its own."""
        return best(self.config.rho, self._score)

    def dense(self, seed: int) -> Any:
        """The network trained on without constraint, for as many steps as the methods have."""
        return self.task.retrained(self.trained(seed), {}, seed=seed, rounds=self._all)

    def polarized(self, seed: int, m: int, rho: float | None) -> tuple[Any, Any]:
        """Networks after hard polarization and after retraining: by ADMM, or without rho at once."""
        spec = self._spec(m)
        if rho is None:
            landed, rounds = jc.project(spec, self.trained(seed)), self._all
        else:
            landed, rounds = self._coordinated(seed, m, rho), self.config.retrain
        return landed, self.task.retrained(landed, spec, seed=seed, rounds=rounds)

    def measured(self, landed: Any, params: Any, m: int) -> Outcome:
        if max(map(float, jc.violation(self._spec(m), params).values())) > 0:
            raise AssertionError(f"a fragment of {m} has two signs after retraining")
        return Outcome(self.accuracy(landed), self.accuracy(self.on_levels(params)))

    def accuracy(self, params: Any) -> float:
        """Share of test images classified right."""
        return self.task.accuracy(params, self.task.data.test.first(self.config.images))

    def on_levels(self, params: Any) -> Any:
        """Weights of every leaf on evenly spaced levels, signs kept."""
        return jc.project(jc.assign(params, {r".*/kernel": jc.Quantized(jc.Uniform(self.config.bits))}), params)

    def loss_by_noise(self, params: Any, seed: int, offset: bool) -> float:
        """Accuracy that noise of the cells takes, in points, the mean over chips.

        A cell holds a magnitude, or, with an offset, the weight above the least one that there can be.
        """
        keys = jax.random.split(jax.random.key(seed), self.config.chips)
        clean, noisy = self._noisy(params, keys, float(offset))
        return float(100 * (clean - jnp.mean(noisy)))

    @functools.cached_property
    def _noisy(self):
        """Accuracies without noise, and of every chip."""
        split, sigma = self.task.data.test.first(self.config.noisy_images), self.config.noise

        def accuracy(params, images, labels):
            return jnp.mean(self.task.model.apply({"params": params}, images).argmax(-1) == labels)

        def chip(params, key, offset):
            leaves, structure = jax.tree.flatten(params)
            keys = jax.random.split(key, len(leaves))
            read = [_through_cells(w, sigma, k, offset) if w.ndim > 1 else w for w, k in zip(leaves, keys, strict=True)]
            return jax.tree.unflatten(structure, read)

        @jax.jit
        def both(params, keys, offset, images, labels):
            each = jax.lax.map(lambda key: accuracy(chip(params, key, offset), images, labels), keys)
            return accuracy(params, images, labels), each

        return functools.partial(both, images=jnp.asarray(split.image), labels=jnp.asarray(split.label))

    @property
    def _all(self) -> int:
        return self.config.rounds + self.config.retrain

    def _trained(self, seed: int) -> Any:
        """The network that both ways start from."""
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params

    def _score(self, rho: float) -> float:
        _, params = self.polarized(_TUNING, max(self.config.fragments), rho)
        return self.task.accuracy(params, self.task.data.validation)

    def _coordinated(self, seed: int, m: int, rho: float) -> Any:
        solver = jc.ADMM(self._spec(m), rho=rho, growth=self.config.growth)
        return self.task.solved(self.trained(seed), solver, seed=seed, rounds=self.config.rounds).params

    def _spec(self, m: int) -> jc.Spec:
        return jc.assign(self._template, {r".*/kernel": jc.Polarized(jc.fragments(m))})


def _through_cells(w: jax.Array, sigma: float, key: jax.Array, offset: Any) -> jax.Array:
    cells = jnp.exp(sigma * jax.random.normal(key, w.shape))
    least = offset * jnp.max(jnp.abs(w))
    return (w + least) * cells - least


def _claims(found: Found, dense: list[float], noisy: dict[str, list[float]], silicon: dict[str, Silicon]) -> list[str]:
    """What the run says of the paper's claims."""
    lines = []
    for m, outcomes in found["ADMM"].items():
        lost = 100 * (np.array(dense) - values(outcomes, "accuracy"))
        lines.append(f"{verdict(0.3 - lost)}: fragments of {m}, on levels, lose at most 0.3 points ({points(lost)}).")
    for m, outcomes in found["ADMM"].items():
        for key, moment in (("landed", "before retraining"), ("accuracy", "retrained")):
            gain = ahead(outcomes, found["one-shot"][m], key)
            lines.append(f"{verdict(gain)}: ADMM is ahead of one-shot at {m}, {moment} ({points(gain)} points).")
    for name, losses in noisy.items():
        if name not in (_DUAL, _OFFSET):
            more = np.array(losses) - np.array(noisy[_DUAL])
            lines.append(f"{verdict(0.1 - more)}: noise takes at most 0.1 points more of {name} ({points(more)}).")
    base = next(design for name, design in silicon.items() if name.startswith("ISAAC, ") and "16" not in name)
    for name, design in silicon.items():
        if name.endswith("polarized"):
            speed = design.images_per_s_mm2 / base.images_per_s_mm2
            energy = base.energy_j / design.energy_j
            lines.append(f"{name}: {speed:.2f} times the images per second and mm2 of ISAAC, {energy:.2f} per joule.")
    return lines


def _accuracies(config: Config, context: Context, found: Found, dense: list[float]) -> Table:
    seeds = len(context.seeds)
    table = _tables.blank(
        f"LeNet-5 on {context.data.name}, {config.images:,} test images, mean of {seeds} seeds",
        ("fragment", "method", "just polarized %", "retrained, on levels %"),
        text=("method",),
        caption=f"Trained on without constraint: {percent(dense)} %.",
    )
    for m in found["ADMM"]:
        for method, outcomes in found.items():
            cells = (percent(values(outcomes[m], key)) for key in ("landed", "accuracy"))
            table.add_row(str(m), method, *cells, end_section=method == "one-shot")
    return table


def _noise(config: Config, context: Context, noisy: dict[str, list[float]]) -> Table:
    chips = config.chips * len(context.seeds)
    title = f"points lost to log-normal noise of {config.noise:g} in cells, {chips} chips"
    table = _tables.blank(title, ("weights", "lost"))
    for name, losses in noisy.items():
        table.add_row(name, with_error(losses, ".2f"))
    return table


def _silicon(silicon: dict[str, Silicon]) -> Table:
    table = _tables.blank(
        "one image on crossbars, modelled",
        ("design", "arrays", "mm2", "us", "uJ", "images / s mm2"),
        caption="FORMS' logic for signs and zeros is not counted: its power and area are not known here.",
    )
    for name, s in silicon.items():
        cells = (
            f"{s.area_mm2:.3f}",
            f"{s.latency_s * 1e6:.0f}",
            f"{s.energy_j * 1e6:.3f}",
            f"{s.images_per_s_mm2:,.0f}",
        )
        table.add_row(name, f"{s.arrays}", *cells)
    return table


def _draw(context: Context, found: Found, dense: list[float]) -> None:
    figure, axes = _plots.blank()
    _plots.level(axes, float(np.mean(dense)), "dense")
    for (method, outcomes), colour in zip(found.items(), _plots.COLOURS, strict=False):
        for key, line, moment in (("accuracy", "-", "retrained"), ("landed", ":", "just polarized")):
            style = dict(color=colour, linestyle=line, marker="o", markersize=4, label=f"{method}, {moment}")
            _plots.seeded(axes, list(outcomes), [values(each, key) for each in outcomes.values()], **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(found["ADMM"]), [str(m) for m in found["ADMM"]])
    axes.set_xlabel("rows of a fragment")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False)
    _plots.save(figure, context.folder / "accuracy.png")
