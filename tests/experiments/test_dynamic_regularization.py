"""How numbers are chosen, what is measured of the weights, and that a run writes what it says."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxcomp as jc
from experiments.__main__ import main
from experiments.dynamic_regularization import Config, _compared, _Methods, _shares, _sizes

RNG = np.random.default_rng(0)


def test_every_method_gets_as_many_trials():
    assert {len(trials) for trials in Config().trials().values()} == {3}
    with pytest.raises(ValueError, match="every method needs as many trials"):
        Config(lasso=(1e-4,))


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
    names = ("lasso", "reweighted", "group_lasso", "reweighted_blocks", "admm", "dynamic")
    return Scripted(task, Config(**dict.fromkeys(names, (1.0, 2.0, 3.0)), tolerance=tolerance))


def test_the_fewest_weights_within_the_tolerance_are_chosen():
    trials = {"lasso 1": (0.91, 300), "lasso 2": (0.896, 200), "lasso 3": (0.894, 100)}
    chosen, recorded = methods_on({"dense": (0.9, None)} | trials).tune(seed=0)
    assert chosen["lasso"] == 2.0
    assert recorded["lasso"][2] == {"number": 3.0, "accuracy": 0.894, "kept": 100}


def test_where_no_trial_is_within_the_tolerance_the_most_accurate_is_chosen():
    trials = {"lasso 1": (0.85, 300), "lasso 2": (0.88, 200), "lasso 3": (0.84, 100)}
    assert methods_on({"dense": (0.9, None)} | trials).tune(seed=0)[0]["lasso"] == 2.0


def test_at_given_rates_the_most_accurate_is_chosen():
    trials = {"admm 1": (0.90, 10), "admm 2": (0.91, 10), "admm 3": (0.899, 9)}
    assert methods_on({"dense": (0.9, None)} | trials).tune(seed=0)[0]["admm"] == 2.0


def test_admm_gets_as_many_weights_in_every_layer_as_were_found():
    found = {layer: {"kernel": jnp.asarray(RNG.normal(size=(50, 60)) * (RNG.random((50, 60)) < rate))}
             for layer, rate in (("fc1", 0.013), ("fc2", 0.4))}  # fmt: skip
    shares = _shares(jc.assign(found, {".*/kernel": jc.Sparse(1.0)}), found)
    for layer, kernel in ((layer, found[layer]["kernel"]) for layer in found):
        dense = jnp.asarray(RNG.normal(size=kernel.shape))
        given = jc.Sparse(shares[f"{layer}/kernel"])
        assert np.count_nonzero(given.project(dense)) == np.count_nonzero(kernel)


def test_rates_are_compared_as_ratios_paired_by_seed():
    a = {"ratio": np.array([20.0, 80.0]), "accuracy": np.array([0.9, 0.9]), "landed": np.array([0.8, 0.8])}
    b = {"ratio": np.array([10.0, 40.0]), "accuracy": np.array([0.89, 0.91]), "landed": np.array([0.7, 0.7])}
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
    assert len(methods["reweighted"]["gaps"]) == 2
    assert all(
        set(trial) == {"number", "accuracy", "kept"} for trials in metrics["trials"].values() for trial in trials
    )
    assert (result.parent / "sizes.png").stat().st_size > 0
    assert "reweighted L1" in capsys.readouterr().out
