"""How numbers are chosen, what is measured of the weights, and that a run writes what it says."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxcomp as jc
from experiments.__main__ import main
from experiments._compression_report import Outcome
from experiments.dynamic_regularization import Config, _compared, _halving, _Methods, _shares, _sizes

RNG = np.random.default_rng(0)


def test_every_method_gets_as_many_trials():
    config = Config()
    assert len(config.admm) == len(config.dynamic) == config.trials == 6
    assert config.lasso == config.reweighted == config.group_lasso == config.reweighted_blocks
    with pytest.raises(ValueError, match=r"admm needs .* 6 numbers: as many trials as the others"):
        Config(admm=(1e-2,))
    with pytest.raises(ValueError, match="lasso needs two bounds"):
        Config(lasso=(1e-4,))


def test_halving_closes_in_on_the_largest_number_that_is_accurate_enough():
    found = {}
    for number in _halving((1e-6, 1e-2), 6, found, goal=0.9):
        found[number] = 0.95 if number <= 3e-5 else 0.5
    reached = max(number for number in found if found[number] >= 0.9)
    assert len(found) == 6 and 3e-5 / 10 ** (4 / 32) < reached <= 3e-5


def test_the_gap_is_between_the_two_sides_of_the_threshold():
    weights = np.r_[np.full(900, 1e-5), np.full(90, 2e-3), np.full(1001, 0.5), np.full(9, 0.02)]
    sizes = _sizes({"fc": {"kernel": weights.reshape(20, 100), "bias": np.ones(100)}}, threshold=0.01)
    assert sizes["gap"] == pytest.approx(0.5 / 2e-3)  # the nine at 0.02 are fewer than one in a hundred
    assert sizes["undecided"] == 9 / 2000
    assert sum(count for name, count in sizes.items() if name.startswith("bin")) == 2000


def methods_on(outcomes, tolerance=0.005):
    """Methods whose runs have the accuracies and counts given: ``{(name, number): (accuracy, kept)}``."""
    template = {"fc": {"kernel": jnp.ones((25, 10))}}

    class Scripted(_Methods):
        def _trained(self, seed):
            return template

        def _run(self, name, params, solver, seed, **options):
            accuracy, kept = outcomes.get(name, (0.9, 1))
            return SimpleNamespace(params={"accuracy": accuracy}, report=SimpleNamespace(nonzeros=kept))

        def _method(self, name, trained, seed, number, rates):
            return self._run(f"{name} {number:g}", None, None, seed)

    task = SimpleNamespace(
        init=lambda seed: template,
        steps=1,
        console=Console(quiet=True),
        data=SimpleNamespace(validation=None),
        accuracy=lambda params, split: params["accuracy"],
    )
    bounds = dict.fromkeys(("lasso", "reweighted", "group_lasso", "reweighted_blocks"), (1.0, 256.0))
    given = dict.fromkeys(("admm", "dynamic"), (1.0, 2.0, 3.0))
    return Scripted(task, Config(trials=3, **bounds, **given, tolerance=tolerance))


def test_the_fewest_weights_within_the_tolerance_are_chosen():
    trials = {"lasso 16": (0.91, 300), "lasso 64": (0.894, 100), "lasso 32": (0.896, 200)}
    chosen, recorded = methods_on({"dense": (0.9, None)} | trials).tune(seed=0)
    assert chosen["lasso"] == 32
    assert recorded["lasso"][2] == {"number": 64, "accuracy": 0.894, "kept": 100}


def test_where_no_trial_is_within_the_tolerance_the_most_accurate_is_chosen():
    trials = {"lasso 16": (0.85, 300), "lasso 4": (0.88, 200), "lasso 2": (0.84, 100)}
    assert methods_on({"dense": (0.9, None)} | trials).tune(seed=0)[0]["lasso"] == 4


def test_at_given_rates_the_most_accurate_is_chosen():
    trials = {"admm 1": (0.90, 10), "admm 2": (0.91, 10), "admm 3": (0.899, 9)}
    assert methods_on({"dense": (0.9, None)} | trials).tune(seed=0)[0]["admm"] == 2.0


@pytest.mark.slow
def test_admm_gets_as_many_weights_in_every_layer_as_were_found():
    found = {layer: {"kernel": jnp.asarray(RNG.normal(size=(50, 60)) * (RNG.random((50, 60)) < rate))}
             for layer, rate in (("fc1", 0.013), ("fc2", 0.4))}  # fmt: skip
    shares = _shares(jc.assign(found, {".*/kernel": jc.Sparse(1.0)}), found)
    for layer, kernel in ((layer, found[layer]["kernel"]) for layer in found):
        dense = jnp.asarray(RNG.normal(size=kernel.shape))
        given = jc.Sparse(shares[f"{layer}/kernel"])
        assert np.count_nonzero(given.project(dense)) == np.count_nonzero(kernel)


def test_rates_are_compared_as_ratios_paired_by_seed():
    a = [Outcome(0.8, 0.9, 1, ratio, 1.0, 0.0, {}) for ratio in (20.0, 80.0)]
    b = [Outcome(0.7, accuracy, 1, ratio, 1.0, 0.0, {}) for accuracy, ratio in ((0.89, 10.0), (0.91, 40.0))]
    said = "a against b: 2.00 (x/ 1.00) times the rate, +10.00 ± 0.00 points just pruned, +0.00 ± 1.00 points retrained"
    assert _compared({"a": a, "b": b}, "a", "b") == said


@pytest.mark.slow
def test_a_run_writes_its_table_and_its_plot(tmp_path, capsys):
    settings = ["steps=3", "pretrain=1", "rounds=2", "retrain=1", "dynamic=1e-5"]
    assert main(["run", "dynamic-regularization", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("dynamic-regularization/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    methods = metrics["methods"]
    assert set(methods) == {"dense", "lasso", "reweighted", "admm", "dynamic"}
    assert methods["admm"]["layers"] == methods["reweighted"]["layers"]
    assert all(methods["dynamic"]["layers"][path] <= n for path, n in methods["reweighted"]["layers"].items())
    assert len(methods["reweighted"]["gap"]) == 2
    assert all(
        set(trial) == {"number", "accuracy", "kept"} for trials in metrics["trials"].values() for trial in trials
    )
    assert (result.parent / "sizes.png").stat().st_size > 0
    assert "reweighted L1" in capsys.readouterr().out
