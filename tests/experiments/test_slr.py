"""SLR's comparison, run short: equal trials for all, the rates as stated, and verdicts that follow from the figures."""

import json

import numpy as np
import pytest
from rich.console import Console

import jaxcomp as jc
from experiments import _data, slr
from experiments.__main__ import main
from experiments._classifier import Classifier
from experiments._compression_report import Outcome
from experiments._models import LeNet300


@pytest.fixture
def comparison(tmp_path):
    options = dict(batch_size=64, steps=2, learning_rate=1e-3, folder=tmp_path, console=Console(quiet=True))
    return slr._Comparison(Classifier(LeNet300(), _data.load("digits"), **options), slr.Config(steps=2))


@pytest.mark.slow
def test_every_method_gets_as_many_trials(comparison):
    trials = comparison._trials()
    assert len(trials) == 6 and {len(each) for each in trials.values()} == {6}


@pytest.mark.slow
def test_slr_gets_the_trials_of_admm(comparison):
    trials = comparison._trials()
    for admm, ours in slr._PAIRS.items():
        assert [trial | {"s0": trial["rho"]} for trial in trials[admm]] == trials[ours]


@pytest.mark.parametrize("rate", [10.0, 100.0])
def test_the_rate_counts_the_dense_last_layer(comparison, rate):
    spec = comparison._spec(rate)
    sizes = {"fc1": 784 * 300, "fc2": 300 * 100}
    kept = sum(sizes[path.split("/")[0]] * constraint.density for path, constraint in spec.items())
    assert set(spec) == {"fc1/kernel", "fc2/kernel"}
    np.testing.assert_allclose(kept + 1000, 266_200 / rate)


def outcomes(ours, admm):
    each = {name: ours for name in slr._PAIRS.values()} | {name: admm for name in slr._PAIRS}
    return {name: [Outcome(landed, 1.0, 1, 1.0, 1.0, 0.0, {}) for landed in every] for name, every in each.items()}


AHEAD, EVEN = ([0.9, 0.8, 0.7], [0.8, 0.71, 0.6]), ([0.9] * 3, [0.9, 0.91, 0.89])  # of SLR and of ADMM
YES, MAYBE, NO = "Reproduced", "Undecided", "Not reproduced"


@pytest.mark.parametrize(
    ("high", "low", "verdicts"),
    [
        (AHEAD, EVEN, [YES, YES]),
        (AHEAD, ([0.9] * 3, [0.7, 0.71, 0.69]), [YES, NO]),
        (([0.93, 0.9, 0.9], [0.9, 0.88, 0.905]), ([0.9] * 3, [0.7, 0.71, 0.69]), [MAYBE, NO]),
        (([0.8, 0.7, 0.6], [0.9, 0.71, 0.6]), EVEN, [NO, NO]),
        (([0.8], [0.9]), ([0.9], [0.9]), ["One seed tells nothing"] * 2),
    ],
)
def test_verdicts_follow_from_paired_differences(high, low, verdicts):
    claims = slr._claims({10.0: outcomes(*low), 100.0: outcomes(*high)})
    assert [claim.split(":")[0] for claim in claims] == [*verdicts, *verdicts, verdicts[0]]


@pytest.mark.slow
def test_a_run_writes_its_table_its_plots_and_networks_at_the_stated_rates(tmp_path, capsys):
    settings = ["steps=3", "pretrain=2", "rounds=2", "retrain=1", "gradual_every=2"]
    assert main(["run", "slr", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("slr/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    methods = [slr._ONE_SHOT, slr._GRADUAL, slr._DYNAMIC, *slr._PAIRS, *slr._PAIRS.values()]
    for rate, found in metrics["found"].items():
        assert sorted(found) == sorted(methods)
        for each in found.values():
            assert each[0]["ratio"] == pytest.approx(float(rate), rel=1e-3)
    names = {path.name for path in result.parent.glob("*.png")}
    assert names == {"accuracy.png", "accuracy_before_retraining.png", "residuals.png"}
    shown = capsys.readouterr().out
    assert shown.index("is ahead of ADMM") < shown.index("retrained %") and all(method in shown for method in methods)


@pytest.mark.slow
@pytest.mark.optimised
def test_slr_lands_far_above_one_shot_pruning_on_mnist(tmp_path, shared_data):
    data = _data.load("mnist", shared_data)
    options = dict(batch_size=64, steps=215, learning_rate=1e-3, folder=tmp_path, console=Console(quiet=True))
    config = slr.Config(pretrain=8, rounds=12)
    task = Classifier(LeNet300(), data, **options)
    comparison = slr._Comparison(task, config)
    (solution,) = comparison._prune(slr._SLR, 50.0, {"rho": 3e-3, "s0": 3e-3, "growth": 1.4}, (0,))
    at_once = jc.project(comparison._spec(50.0), comparison.dense(0))
    landed, projected = (task.accuracy(params, data.test) for params in (solution.params, at_once))
    assert not solution.diverged and landed > projected + 0.2 and landed > 0.9
