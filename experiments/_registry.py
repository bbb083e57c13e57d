"""Experiments by name: each module of the package registers its own with `experiment`."""

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments._data import DIGITS, Dataset
from experiments._errors import UsageError


@dataclass(frozen=True)
class Context:
    """What a run is given besides its configuration.

    Attributes:
      console: where to report progress.
      folder: an existing folder for plots and checkpoints, beside ``result.json``.
      data: the data set.
      seeds: one independent repetition for each.
      quick: whether a short demonstration was asked for.
    """

    console: Console
    folder: Path
    data: Dataset
    seeds: tuple[int, ...]
    quick: bool


@dataclass(frozen=True)
class Experiment:
    """A published system that can be run: ``run(config, context)`` returns its metrics.

    Attributes:
      name: on the command line.
      paper: what it reproduces.
      summary: what a run shows, in one line.
      data: name of the data set used by default.
      config: a frozen dataclass whose fields all have defaults.
      run: maps a ``config`` and a `Context` to metrics: numbers, text, arrays, lists and dictionaries.
    """

    name: str
    paper: str
    summary: str
    data: str
    config: type
    run: Callable[[Any, Context], dict[str, Any]]

    def default_config(self, quick: bool) -> Any:
        """The configuration before any ``--set``: with ``quick``, the class's ``quick()`` if it has one."""
        return self.config.quick() if quick and hasattr(self.config, "quick") else self.config()


REGISTRY: dict[str, Experiment] = {}


def experiment(name: str, *, paper: str, summary: str, data: str = DIGITS) -> Callable:
    """Registers ``run(config: Config, context: Context) -> dict`` under ``name``.

    The configuration class is the annotation of the first parameter: a frozen dataclass with defaults, and
    where a full run is long a class method ``quick()`` that returns a configuration for a short one.
    """

    def register(run: Callable) -> Callable:
        first = next(iter(inspect.signature(run).parameters))
        config = typing.get_type_hints(run).get(first)
        if not is_dataclass(config) or not config.__dataclass_params__.frozen:
            raise TypeError(
                f"experiment {name!r}: the parameter {first!r} of {run.__name__} is annotated {config!r}, "
                "expected a frozen dataclass."
            )
        if name in REGISTRY:
            raise ValueError(f"experiment {name!r} is registered twice: give {run.__module__} another name.")
        REGISTRY[name] = Experiment(name, paper, summary, data, config, run)
        return run

    return register


def discover() -> list[Experiment]:
    """All experiments, sorted by name, once every public module of the package has been imported."""
    package = importlib.import_module("experiments")
    for module in pkgutil.iter_modules(package.__path__, "experiments."):
        if not module.name.rpartition(".")[-1].startswith("_"):
            importlib.import_module(module.name)
    return [REGISTRY[name] for name in sorted(REGISTRY)]


def find(name: str) -> Experiment:
    """The experiment called ``name``; an unknown name is a `UsageError` that lists the nearest ones."""
    known = {experiment.name: experiment for experiment in discover()}
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise UsageError(f"unknown experiment {name!r}: {hint}`python -m experiments list` shows all.")
