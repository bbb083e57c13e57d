"""How long ways of doing a product take: measured in turns, on the shapes that it has, and remembered."""

import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp.compiler._apart import apart
from jaxcomp.compiler._known import bind
from jaxcomp.compiler._rewrite import Site, Way

Program = tuple[Callable[..., Any], Any]  # what is done with an activation, and with which arrays

_LEAST_S = 2e-4  # a timed run takes about so long, so that what a call costs is little of it
_PACE = 2e10  # multiplications in a second: only to choose how many products a timed run does
_MOST = 64


class Timings:
    """Measurements of products that are remembered: for as long as it lives, and in a file if it has one.

    Products whose operation, shapes and packed shapes are the same are measured once.
    """

    def __init__(self, file: Path | str | None, rounds: int):
        self._file, self._rounds = Path(file) if file else None, rounds
        self._known: dict[str, list[float]] = {}

    def __enter__(self) -> Self:
        if self._file and self._file.exists():
            try:
                self._known = json.loads(self._file.read_text())
            except ValueError as error:
                raise ValueError(f"{self._file} holds no measurements: {error}; delete it to start anew") from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
            beside.write_text(json.dumps(self._known, indent=1))
            beside.replace(self._file)

    def seconds(self, site: Site, ways: Sequence[Way]) -> list[float]:
        """How long the product takes as it is, and in every way."""
        weights, *arrays = (_step(each, len(site.weights.loops)) for each in (site.weights.array, *ways))
        programs = [(_dense(site), weights), *((_packed, each) for each in arrays)]
        x = site.eqn.invars[1 - site.side].aval
        key = str(
            (_machine(), site.eqn.primitive, site.eqn.params, site.side, x, [_kind(each) for _, each in programs])
        )
        if key not in self._known:
            copies = int(np.clip(_LEAST_S * _PACE / _multiplications(site), 1, _MOST))
            xs = jax.random.normal(jax.random.key(0), (copies, *x.shape), jnp.float32).astype(x.dtype)
            runs = [functools.partial(jax.jit(_repeated(program)), each, xs) for program, each in programs]
            self._known[key] = typical(in_turns(runs, self._rounds) / copies)
        return self._known[key]


def in_turns(runs: Sequence[Callable[[], Any]], rounds: int, least_s: float = 0.0) -> np.ndarray:
    """Seconds ``[rounds, runs]``; all run in every round, so that what the machine does beside falls on all alike.

    What takes less than ``least_s`` is run that much more often at a time, warm as in use.
    """
    for run in runs:
        jax.block_until_ready(run())
    repeats = [max(1, round(least_s / _seconds(run, 1))) if least_s else 1 for run in runs]
    return np.array([[_seconds(*each) for each in zip(runs, repeats, strict=True)] for _ in range(rounds)])


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(run())
    return (time.perf_counter() - start) / repeats


def typical(times: np.ndarray) -> list[float]:
    """Seconds of every run: its median ratio to the first in the same round, times the median of the first."""
    return [float(np.median(times[:, 0]) * np.median(column / times[:, 0])) for column in times.T]


def _repeated(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program on one activation after another, as in a model, where no two are the same."""

    def one(arrays: Any, each: tuple[jax.Array, jax.Array]) -> Any:
        return program(arrays, apart(*each))

    return lambda arrays, xs: lax.map(functools.partial(one, arrays), (xs, jnp.arange(len(xs))))


def _dense(site: Site) -> Callable[[Any, jax.Array], Any]:
    return lambda weights, x: bind(site.eqn, *((weights, x) if site.side == 0 else (x, weights)))


def _packed(way: Way, x: jax.Array) -> jax.Array:
    return way(x)


def _multiplications(site: Site) -> int:
    params, shape = site.eqn.params, site.eqn.invars[site.side].aval.shape
    if site.eqn.primitive.name == "dot_general":
        depth = math.prod(shape[axis] for axis in params["dimension_numbers"][0][site.side])
    else:
        depth = math.prod(shape) // shape[params["dimension_numbers"].rhs_spec[0]]
    return max(1, depth * math.prod(site.eqn.outvars[0].aval.shape))


def _step(tree: Any, loops: int) -> Any:
    """What the first step of all loops sees."""
    return jax.tree.map(lambda x: x[(0,) * loops], tree)


def _kind(tree: Any) -> str:
    leaves, structure = jax.tree.flatten(tree)
    return f"{structure} {[(x.shape, x.dtype.name) for x in leaves]}"


def _machine() -> str:
    device = jax.devices()[0]
    return f"jax {jax.__version__}, {device.platform} {device.device_kind}, {os.cpu_count()} cores"
