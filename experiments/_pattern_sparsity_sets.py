"""Sets for the 3x3 kernels of a network, all but those of the first layer: patterns, and what they are set beside."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import jaxcomp as jc

KERNELS = r"conv[2-9]/kernel"
ENTRIES = 4  # of the nine taps, in every pattern

OWN = "patterns of its kernels"  # those most frequent among the trained ones, layer by layer
DESIGNED = "designed patterns"
RANDOM = "random patterns"
ONE = "one pattern"
FREE = "unstructured"
FILTERS = "whole filters"

LIBRARIES = OWN, DESIGNED, RANDOM, ONE


def spec(method: str, apply: Callable[..., Any], params: Any, x: Any, connectivity: float = 1.0) -> jc.Spec:
    """The set of every kernel: as many weights are kept as patterns leave in one kernel of `connectivity`.

    Args:
        method: one of the above. Only `FILTERS` reaches further than kernels: a channel that goes, goes with its bias
            and from the layer behind it.
        apply, x: the network, ``apply(params, x)``, of which channels that go together are read.
        params: the trained weights, whose kernels have the patterns of `OWN`.
        connectivity: kernels before by kernels kept.
    """
    if method == FILTERS:
        return filters(apply, params, x, rate(connectivity))
    if method == FREE:
        return jc.assign(params, {KERNELS: jc.Sparse(1 / rate(connectivity))})
    if method == OWN:
        return jc.assign(params, {KERNELS: jc.Patterned(centre=True, density=1 / connectivity)})
    return jc.assign(params, {KERNELS: jc.Patterned(library(method), density=1 / connectivity)})


def rate(connectivity: float) -> float:
    """Weights before by weights kept."""
    return 9 / ENTRIES * connectivity


def library(method: str) -> np.ndarray:
    """The patterns ``[patterns, 9]`` of a method that has the same for all layers."""
    libraries = {DESIGNED: jc.CROSSES_AND_CORNERS, RANDOM: random_patterns(8, 0), ONE: jc.CROSSES[:1]}
    return libraries[method]


def random_patterns(count: int, seed: int) -> np.ndarray:
    """Different patterns of so many of the nine taps, each as likely as any other."""
    every = np.array([np.isin(range(9), taps) for taps in itertools.combinations(range(9), ENTRIES)])
    return np.random.default_rng(seed).choice(every, count, replace=False)


def filters(apply: Callable[..., Any], params: Any, x: Any, rate: float) -> jc.Spec:
    """Channels between convolutions, the same share of each, so that no more than a weight in `rate` is kept.

    A filter takes with it its bias and its channel of the next layer, so that fewer of them need go than weights.
    """
    between = [each for each in jc.couplings(apply, params, x) if each.prunable and not _is_of_first(each)]
    first, *others = (leaf.shape[2] for leaf in _kernels(params))
    others.append(between[-1].size)

    def kept(share: float) -> int:
        return sum(9 * a * b for a, b in itertools.pairwise([first, *(round(share * each) for each in others)]))

    widest = max(others)
    shares = (each / widest for each in range(widest, 0, -1))
    share = next(share for share in shares if kept(share) <= kept(1) / rate)
    views = [each.views(params) for each in between]
    every = "|".join(sorted(set().union(*views)))
    parts = (jc.Coupled(jc.Sparse(share, jc.outputs()), each) for each in views)
    return jc.assign(params, {every: jc.JointChain(*parts)})


def energy(params: Any) -> dict[str, float]:
    """The share of the kernels' energy that every library leaves."""
    rules = {OWN: jc.Patterned(centre=True)} | {name: jc.Patterned(library(name)) for name in LIBRARIES[1:]}
    found = {}
    for name, constraint in rules.items():
        left = jc.project(jc.assign(params, {KERNELS: constraint}), params)
        found[name] = _energy(left) / _energy(params)
    return found


def with_centre(params: Any) -> float:
    """The share of kernels of which the centre is among the `ENTRIES` largest weights."""
    largest = [np.argsort(-np.abs(k.reshape(9, -1)), axis=0, stable=True)[:ENTRIES] for k in _kernels(params)]
    return float(np.mean(np.concatenate([np.any(each == 4, axis=0) for each in largest])))


def _energy(params: Any) -> float:
    return float(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in _kernels(params)))


def _kernels(params: Any) -> list[np.ndarray]:
    return [np.asarray(params[path.split("/")[0]]["kernel"]) for path in jc.assign(params, {KERNELS: jc.Sparse(1.0)})]


def _is_of_first(coupling: jc.Coupling) -> bool:
    return any(member.path.startswith("conv1/") for member in coupling.members)
