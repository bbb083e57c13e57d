"""Optuna asks, a sweep answers: a batch of trials at a time, as one program."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._result import Sweep
from jaxcomp.sweeps._sweep import sweep

if TYPE_CHECKING:
    from optuna import Study, Trial


def ask_tell(
    study: "Study",
    space: "Mapping[str, Any] | Callable[[Trial], dict[str, Any]]",
    fn: Callable,
    *args: Any,
    trials: int,
    batch: int,
    metrics: str | Sequence[str],
    **options: Any,
) -> Sweep:
    """Let an Optuna study choose configurations, and run a batch of them at a time with `jaxcomp.sweep`.

    Sampler and storage stay those of the study. A batch is asked for before any of it is told, so the sampler must
    guess without its latest trials: `TPESampler` does so well with ``constant_liar=True``, its default since Optuna 5.

    What diverged (a result with NaN or infinity, or a metric that is NaN) is told as ``PRUNED``: `TPESampler` takes
    pruned trials for bad ones and learns to stay away, while it forgets those that failed. On a loss that falls towards
    a cliff, 38 % of later trials go over it if told so, and 83 % if told as ``FAIL`` (ten seeds, Optuna 5.0.0, by
    `tests/test_optuna.py`). With several objectives Optuna cannot prune, and they are told as ``FAIL``. If a batch
    raises, or is interrupted, all its trials are told as failed, and none is left running.

    Args:
        study: from `optuna.create_study`, of one direction or several.
        space: ``{keyword: value}``, where the value may be a distribution of `optuna.distributions`; or a function
            ``trial -> configuration`` that calls ``trial.suggest_float`` and the like, and may build solvers from it.
        fn: ``fn(*args, **config)`` as for `jaxcomp.sweep`.
        *args: data, passed on.
        trials: how many more trials to run.
        batch: how many to ask for at once; the last batch may be smaller.
        metrics: the column of the results that is told, or one for each of the study's directions, in their order.
        **options: passed to `jaxcomp.sweep`: ``store``, ``mode``, ``prepare`` and so on.

    Returns:
        all the trials as one `Sweep`, in the order of their numbers.

    Raises:
        ValueError: the study has another number of directions than there are metrics; a batch of none; from
            `jaxcomp.sweep`.

    A pruner is not asked: the trials of a batch end together. Use `jaxcomp.halving` to stop early.

    >>> import optuna, jaxcomp as jc
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    >>> space = {"x": optuna.distributions.FloatDistribution(-3, 3), "power": 2.0}
    >>> def bowl(centre, *, x, power):
    ...     return {"loss": abs(x - centre) ** power}
    >>> found = ask_tell(study, space, bowl, 1.0, trials=24, batch=8, metrics="loss", progress=False)
    >>> len(found), len(study.trials), study.best_value < 0.1
    (24, 24, True)
    """
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    if len(metrics) != len(study.directions):
        raise ValueError(
            f"the study has {len(study.directions)} directions, but metrics are {list(metrics)}: name one for each"
        )
    if trials < 1 or batch < 1:
        raise ValueError(f"trials and batch must be at least 1, found {trials} and {batch}")
    found: Sweep | None = None
    for first in range(0, trials, batch):
        done = _batch(study, space, fn, args, min(batch, trials - first), metrics, options)
        found = done if found is None else found + done
    assert found is not None
    return found


def _batch(study: "Study", space: Any, fn: Callable, args: tuple, count: int, metrics: tuple, options: dict) -> Sweep:
    from optuna.distributions import BaseDistribution
    from optuna.trial import TrialState

    drawn = {} if callable(space) else {name: of for name, of in space.items() if isinstance(of, BaseDistribution)}
    asked: list[Trial] = []
    configs = []
    try:
        for _ in range(count):
            trial = study.ask(drawn)
            asked.append(trial)
            configs.append(space(trial) if callable(space) else {**space, **trial.params})
        done = sweep(fn, Configs(configs), *args, **options)
        values = np.stack([done.values(metric) for metric in metrics], axis=1)
    except BaseException:  # also when interrupted: a trial that nobody runs must not count as running
        for trial in asked:
            study.tell(trial, state=TrialState.FAIL)
        raise
    lost = TrialState.PRUNED if len(metrics) == 1 else TrialState.FAIL
    for trial, row, diverged in zip(asked, values.tolist(), done.diverged, strict=True):
        if diverged or np.isnan(row).any():
            study.tell(trial, state=lost)
        else:
            study.tell(trial, row)
    return done
