"""Adversarial attacks and adversarial training as min-max problems over the probability simplex.

Wang et al., Adversarial Attack Generation Empowered by Min-Max Optimization, NeurIPS 2021 (arXiv 1906.03563).

One perturbation must fool several networks, serve several images, or survive several transformations. The usual attack
descends the average of the losses; min-max descends their weighted sum while weights on the simplex climb, one set of
them for every example. Then a network is trained against perturbations in two balls at once: on the average of the two
losses, on the worse one of every image, and on what lies between. Every seed trains its networks anew and draws its
images. An interrupted command goes on after the last seed it finished.
"""

import functools
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcomp as jc
from experiments import _attacks, _min_max_report, _victims
from experiments._attacks import Attack, attacked, margin, perturb, transformed, valid
from experiments._data import Split
from experiments._registry import Context, experiment
from experiments._results import plain
from experiments._victims import AllConvolutional, LeNet, Perceptron, cross_entropies, right, trained

ENSEMBLE = {  # numbers of the authors' script for MNIST
    "linf": Attack("linf", 0.2, 4, 50, 3, 50, noise=0.1),
    "l2": Attack("l2", 3, 10, 100, 3, 50, noise=0.1),
    "l1": Attack("l1", 20, 4, 100, 5, 50, noise=0.1),
    "l0": Attack("l0", 30, 1, 100, 7, 50, noise=0.1),
}
UNIVERSAL = Attack("linf", 0.2, 6, 50, 4, 20)
TRANSFORMED = Attack("linf", 0.2, 6, 50, 3, 20, noise=0.1)

VICTIMS = {
    "MLP": Perceptron(),
    "all-conv": AllConvolutional(),
    "LeNet": LeNet(),
    "robust": Perceptron(width=256),  # trained on attacked images
}
STRATEGIES = ("average", "min-max")
DEFENCES = ("average", "worst", "min-max", "shared min-max")  # the last has one w for all images
_BALLS = ("linf", "l2")
_EVALUATION = 40  # steps of the attacks that a defence is measured by


@dataclass(frozen=True)
class Config:
    """Sizes of the run; the attacks have the numbers of the authors' scripts.

    Attributes:
      split: whose images are attacked: "test", or "validation" to choose by.
      images: attacked for each norm, and by each transformed attack.
      groups: of images of one class that share a universal perturbation, of `group_size` each.
      train: steps of Adam for each victim; `batch_size` and `learning_rate` serve all training.
      robust: radius, in the maximum norm, of the attacks that the robust victim is trained on, of `inner` steps.
      norms: of the attacks on several networks, "linf" among them.
      radii, gammas: other values for the attack in the maximum norm.
      grouped: networks for which groups of images are attacked.
      universal, transformed: radii of these attacks.
      defences: what is trained on, "average" among them.
      defend: steps of Adam for each of them.
      linf, l2: radii of the two balls to defend against.
      defence_rates: first learning rates of "average", "worst", "min-max" and "shared min-max".
      defence_gammas: of the last two of them.
    """

    split: str = "test"
    images: int = 200
    groups: int = 40
    group_size: int = 5
    train: int = 800
    batch_size: int = 64
    learning_rate: float = 3e-3
    robust: float = 0.15
    inner: int = 5
    norms: tuple[str, ...] = tuple(ENSEMBLE)
    radii: tuple[float, ...] = (0.1, 0.15, 0.25)
    gammas: tuple[float, ...] = (0.0, 10.0, 30.0, 100.0)
    grouped: tuple[str, ...] = tuple(VICTIMS)
    universal: float = 0.25
    transformed: float = 0.15
    defences: tuple[str, ...] = DEFENCES
    defend: int = 500
    linf: float = 0.1
    l2: float = 1.2
    defence_rates: tuple[float, float, float, float] = (0.01, 0.01, 0.01, 0.01)
    defence_gammas: tuple[float, float] = (0.5, 0.5)

    @classmethod
    def quick(cls) -> "Config":
        """For seconds, on a small data set."""
        few: dict[str, Any] = dict(norms=("linf",), radii=(0.1,), gammas=(0.0,), grouped=("MLP",))
        return cls(images=40, groups=8, train=150, batch_size=32, defences=("average", "min-max"), defend=60, **few)

    def __post_init__(self):
        if self.split not in ("test", "validation"):
            raise ValueError(f"split must be test or validation, found {self.split!r}")
        if min(self.images, self.groups, self.group_size, self.train, self.defend, self.inner) < 1:
            raise ValueError("images, groups, group_size, train, defend and inner must be at least 1")
        for name, known, needed in (
            ("norms", tuple(ENSEMBLE), "linf"),
            ("grouped", tuple(VICTIMS), next(iter(self.grouped), "MLP")),
            ("defences", DEFENCES, "average"),
        ):
            found = getattr(self, name)
            if not set(found) <= set(known) or needed not in found:
                raise ValueError(f"{name} must be some of {known}, {needed!r} among them, found {found}")


@experiment(
    "min-max",
    paper="arXiv 1906.03563",
    summary="attacks on several networks, images or transformations at once, and training against two balls",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    outcomes = []
    for seed in context.seeds:
        path = context.folder / f"seed-{seed}.json"
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(plain(_outcome(config, context, seed))))
            os.replace(unfinished, path)
        outcomes.append(json.loads(path.read_text()))
    return _min_max_report.write(context, outcomes, chance=1 / config.group_size)


def _outcome(config: Config, context: Context, seed: int) -> dict[str, Any]:
    """Everything that is measured with one seed; shares are from 0 to 1."""
    start = time.perf_counter()
    data = context.data
    split = _shuffled(getattr(data, config.split), seed)
    training: dict[str, Any] = dict(batch_size=config.batch_size, learning_rate=config.learning_rate, seed=seed)
    context.say(f"seed {seed}: training the victims")
    train = functools.partial(trained, split=data.train, steps=config.train, **training)
    losses = dict.fromkeys(VICTIMS, cross_entropies) | {"robust": _on_attacked("linf", config.robust, config.inner)}
    params = {name: train(model=model, risks=losses[name]) for name, model in VICTIMS.items()}
    versatile = train(model=LeNet(), risks=_on_transformed)
    context.say(f"seed {seed}: attacking")
    outcome = {
        "accuracy": {name: _share(right(VICTIMS[name], p, split.image, split.label)) for name, p in params.items()},
        **_ensemble(config, params, split, seed),
        "universal": {name: _universal(config, VICTIMS[name], params[name], split) for name in config.grouped},
        "transformed": _transformed(config, versatile, split, seed),
    }
    context.say(f"seed {seed}: training defences")
    defend = functools.partial(trained, Perceptron(width=256), data.train, steps=config.defend, **training)
    outcome["defence"] = {name: _defence(config, name, defend, split) for name in config.defences}
    return outcome | {"seconds": time.perf_counter() - start}


def _shuffled(split: Split, seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(split))
    return Split(split.image[order], split.label[order])


def _share(found: Any) -> float:
    return float(np.mean(found))


@functools.cache
def _on_attacked(norm: str, radius: float, steps: int) -> Callable[..., jax.Array]:
    def risks(forward, params, image, label):
        return cross_entropies(forward, params, attacked(forward, params, image, label, norm, radius, steps), label)

    return risks


def _on_transformed(forward, params, image, label):
    """Every image in one of its versions, in turn."""
    versions = jax.vmap(transformed)(image)
    turn = jnp.arange(len(image))
    return cross_entropies(forward, params, versions[turn, turn % versions.shape[1]], label)


# One perturbation for several networks.


def _ensemble_risks(delta, example, shared):
    image, label = example
    logits = [
        _victims.forward(model, params, (image + delta)[None])[0]
        for model, params in zip(VICTIMS.values(), shared, strict=True)
    ]
    return jnp.stack([margin(each, label) for each in logits])


def _ensemble(config: Config, params: dict[str, Any], split: Split, seed: int) -> dict[str, Any]:
    known = np.all([right(VICTIMS[name], p, split.image, split.label) for name, p in params.items()], axis=0)
    chosen = np.flatnonzero(known)[: config.images]
    image, label = split.image[chosen], split.label[chosen]
    shared = tuple(params[name] for name in VICTIMS)

    def measured(attack, **how):
        delta, weights = perturb(_ensemble_risks, attack, valid(image), (image, label), shared, seed=seed, **how)
        moved = image + np.asarray(delta)
        fooled = np.stack([~right(VICTIMS[name], p, moved, label) for name, p in params.items()])
        each, weight = fooled.mean(axis=1), np.mean(weights, axis=0)
        named = {name: {"fooled": each[i], "weight": weight[i]} for i, name in enumerate(params)}
        return {"all": _share(fooled.all(axis=0)), "victims": named}

    def both(attack):
        return {name: measured(attack, average=name == "average") for name in STRATEGIES}

    linf = ENSEMBLE["linf"]
    return {
        "ensemble": {norm: both(ENSEMBLE[norm]) for norm in config.norms},
        "clipped": {norm: measured(ENSEMBLE[norm], clipped=True) for norm in config.norms if norm in ("l1", "l2")},
        "radii": {radius: both(replace(linf, radius=radius)) for radius in config.radii},
        # Steps of the weights of more than 2 / gamma would overshoot for ever.
        "gammas": {g: measured(replace(linf, gamma=g, beta=max(linf.beta, g))) for g in config.gammas},
    }


# One perturbation for several images.


@functools.cache
def _universal_risks(model):
    def risks(delta, example, params):
        images, labels = example
        return margin(_victims.forward(model, params, images + delta[None]), labels)

    return risks


def _universal(config: Config, model: Any, params: Any, split: Split) -> dict[str, Any]:
    groups = _groups(right(model, params, split.image, split.label), split.label, config.groups, config.group_size)
    image, label = split.image[groups], split.label[groups]
    attack, risks = replace(UNIVERSAL, radius=config.universal), _universal_risks(model)
    low, high = valid(image)
    within = jnp.max(low, axis=1), jnp.min(high, axis=1)  # what all images of the group admit

    def fooled(delta, image, label):
        moved = (image + np.asarray(delta)[:, None]).reshape(-1, *image.shape[2:])
        return ~right(model, params, moved, label.ravel()).reshape(label.shape)

    def measured(strategy):
        delta, weights = perturb(risks, attack, within, (image, label), params, average=strategy == "average")
        found = fooled(delta, image, label)
        return {"all": _share(found.all(axis=1)), "mean": _share(found)}, np.argmax(weights, axis=1)

    (average, _), (min_max, heaviest) = (measured(strategy) for strategy in STRATEGIES)
    # How hard every image is for the same attack in the same box alone: what is left of its margin.
    each = image.reshape(-1, 1, *image.shape[2:]), label.reshape(-1, 1)
    low, high = (jnp.repeat(bound, config.group_size, axis=0) for bound in within)
    alone, _ = perturb(risks, attack, (low, high), each, params)
    left = jax.vmap(risks, (0, 0, None))(alone, each, params).reshape(label.shape)
    return {"average": average, "min-max": min_max, "hardest": _share(heaviest == np.argmax(left, axis=1))}


def _groups(known: np.ndarray, label: np.ndarray, count: int, size: int) -> np.ndarray:
    """Indices of images that are known and of one class, ``[count, size]``, the classes in turn."""
    per_class = [np.flatnonzero(known & (label == c)) for c in np.unique(label)]
    blocks = [rows[: len(rows) // size * size].reshape(-1, size) for rows in per_class]
    turns = itertools.zip_longest(*blocks)
    return np.stack([row for turn in turns for row in turn if row is not None][:count])


# One perturbation that survives several transformations.


def _transformed_risks(delta, example, params):
    image, label = example
    return jax.vmap(margin, (0, None))(_victims.forward(LeNet(), params, transformed(image + delta)), label)


@jax.jit
def _versions(image):
    return jax.vmap(transformed, out_axes=1)(image)


def _transformed(config: Config, params: Any, split: Split, seed: int) -> dict[str, Any]:
    def wrong(image, label):
        return np.stack([~right(LeNet(), params, version, label) for version in np.asarray(_versions(image))])

    some = min(len(split), 2 * config.images)  # more than half of which must be right in all their versions
    mistaken = wrong(split.image[:some], split.label[:some])
    chosen = np.flatnonzero(~mistaken.any(axis=0))[: config.images]
    image, label = split.image[chosen], split.label[chosen]
    attack = replace(TRANSFORMED, radius=config.transformed)

    def measured(strategy):
        how = dict(average=strategy == "average", seed=seed)
        delta, weights = perturb(_transformed_risks, attack, valid(image), (image, label), params, **how)
        fooled, weight = wrong(image + np.asarray(delta), label), np.mean(weights, axis=0)
        each = fooled.mean(axis=1)
        named = {name: {"fooled": each[i], "weight": weight[i]} for i, name in enumerate(_attacks.TRANSFORMATIONS)}
        return {"all": _share(fooled.all(axis=0)), "versions": named}

    return {"accuracy": 1 - _share(mistaken)} | {strategy: measured(strategy) for strategy in STRATEGIES}


# Training against two balls at once.


@functools.cache
def _defence_risks(name: str, radii: tuple[float, float], steps: int, gamma: float) -> Callable[..., jax.Array]:
    def risks(forward, params, image, label):
        moved = [attacked(forward, params, image, label, norm, r, steps) for norm, r in zip(_BALLS, radii, strict=True)]
        losses = jnp.stack([cross_entropies(forward, params, each, label) for each in moved], axis=1)
        match name:
            case "average":
                return losses
            case "worst":
                return losses.max(axis=1)
            case "min-max":  # the weights of every image that maximise its sum, in closed form
                weights = jax.vmap(jc.Simplex().project)(1 / losses.shape[1] + jax.lax.stop_gradient(losses) / gamma)
                return jnp.sum(weights * losses, axis=1)
            case _:
                return losses.mean(axis=0)

    return risks


def _defence(config: Config, name: str, defend: Callable[..., Any], split: Split) -> dict[str, float]:
    """Accuracy without an attack, under each, and under both."""
    radii = config.linf, config.l2
    each, shared = config.defence_gammas
    rate = dict(zip(DEFENCES, config.defence_rates, strict=True))[name]
    risks = _defence_risks(name, radii, config.inner, each if name == "min-max" else 0.0)
    solver = jc.MinMax(2, gamma=shared, rate=0.1, sequential=False) if name == "shared min-max" else None
    params = defend(risks=risks, solver=solver, learning_rate=rate)
    image, label = split.image[: 2 * config.images], split.label[: 2 * config.images]
    model = Perceptron(width=256)
    survived = {
        norm: right(model, params, np.asarray(_strongest(model, params, image, label, norm, radius)), label)
        for norm, radius in zip(_BALLS, radii, strict=True)
    }
    found = {"clean": right(model, params, image, label)} | survived
    return {name: _share(each) for name, each in found.items()} | {"both": _share(np.all(list(survived.values()), 0))}


@functools.partial(jax.jit, static_argnums=(0, 4))
def _strongest(model, params, image, label, norm, radius):
    forward = functools.partial(_victims.forward, model)
    return attacked(forward, params, image, label, norm, radius, _EVALUATION)
