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
      data: the data set; of an experiment that reads data of its own, `None`.
      seeds: one independent repetition for each.
      quick: whether a short demonstration was asked for.
    """

    console: Console
    folder: Path
    data: Dataset | None
    seeds: tuple[int, ...]
    quick: bool

    def say(self, *lines: str) -> None:
        """Reports lines as they are: no number coloured, none broken."""
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Experiment:
    """A published system that can be run: ``run(config, context)`` returns its metrics.

    Attributes:
      name: on the command line.
      paper: what it reproduces.
      summary: what a run shows, in one line.
      data: name of the data set used by default; `None` for an experiment that reads data of its own.
      config: a frozen dataclass whose fields all have defaults.
      run: maps a ``config`` and a `Context` to metrics: numbers, text, arrays, lists and dictionaries.
    """

    name: str
    paper: str
    summary: str
    data: str | None
    config: type
    run: Callable[[Any, Context], dict[str, Any]]

    def default_config(self, quick: bool) -> Any:
        """The configuration before any ``--set``: with ``quick``, the class's ``quick()`` if it has one."""
        return self.config.quick() if quick and hasattr(self.config, "quick") else self.config()


REGISTRY: dict[str, Experiment] = {}
BROKEN: dict[str, str] = {}  # by name, why the module of an experiment could not be imported


def experiment(name: str, *, paper: str, summary: str, data: str | None = DIGITS) -> Callable:
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
    """All experiments, sorted by name, once every public module of the package has been imported.

    One that cannot be imported must not take the others with it: `BROKEN` then has the reason.
    """
    package = importlib.import_module("experiments")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        name = module.name.replace("_", "-")
        BROKEN.pop(name, None)
        try:
            importlib.import_module(f"experiments.{module.name}")
        except Exception as error:  # whatever a module may do on import
            BROKEN[name] = f"{type(error).__name__}: {error}"
    return [REGISTRY[name] for name in sorted(REGISTRY)]


def find(name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
      UsageError: there is none, and the nearest names; or it cannot be imported, and why.
    """
    known = {experiment.name: experiment for experiment in discover()}
    if name in known:
        return known[name]
    if name in BROKEN:
        raise UsageError(f"experiment {name!r} cannot be imported: {BROKEN[name]}")
    nearest = difflib.get_close_matches(name, [*known, *BROKEN], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise UsageError(f"unknown experiment {name!r}: {hint}`python -m experiments list` shows all.")
