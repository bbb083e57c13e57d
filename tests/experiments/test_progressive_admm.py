"""The first experiment, run short: what it promises of its results, and on MNIST what the paper's setting gives."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxcomp as jc
from experiments import _data, progressive_admm
from experiments.__main__ import main
from experiments._classifier import Classifier, gradual_magnitude
from experiments._models import LeNet5

FIRST = progressive_admm.Config().first


@pytest.mark.slow
def test_densities_of_the_paper_keep_6050_weights_and_the_second_ratio_1750():
    params = LeNet5().init(jax.random.key(0), np.zeros((1, 28, 28, 1)))["params"]
    config = progressive_admm.Config()
    for density, kept in ((config.first, 6_050), (config.second, 1_750)):
        spec = progressive_admm._spec(params, density)
        assert jc.report(spec, jc.project(spec, params)).nonzeros == kept


@pytest.mark.slow
def test_gradual_pruning_ends_at_the_density_asked_for_and_prunes_on_the_way():
    rng = np.random.default_rng(0)
    params = {"w": np.asarray(rng.normal(size=100), np.float32)}
    params = jax.tree.map(jax.numpy.asarray, params)
    spec = jc.assign(params, {"w": jc.Sparse(0.1)})
    tx = gradual_magnitude(spec, steps=20, every=5)
    state, kept, update = tx.init(params), [], jax.jit(tx.update)
    for _ in range(20):
        updates, state = update({"w": 0.01 * jax.numpy.ones(100)}, state, params)
        params = {"w": params["w"] + updates["w"]}
        kept.append(int(jax.numpy.sum(params["w"] != 0)))
    assert kept[3] == 100 and kept[4] == round(100 * (0.1 + 0.9 * 0.75**3)) and kept[-1] == 10
    assert kept == sorted(kept, reverse=True)


@pytest.mark.slow
def test_a_run_writes_its_table_its_plots_and_feasible_networks_at_the_stated_ratios(tmp_path, capsys):
    settings = ["steps=3", "pretrain=1", "rounds=1", "retrain=1", "quantize=1"]
    assert main(["run", "progressive-admm", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("progressive-admm/*/result.json")
    methods = json.loads(result.read_text())["metrics"]["methods"]
    kept = {name: method["kept"] for name, method in methods.items()}
    assert kept.pop("dense") is None
    assert all(count == (6_050 if name.endswith("1") else 1_750) for name, count in kept.items())
    assert all(method["violation"] < 1e-4 for method in methods.values())
    assert {path.name for path in result.parent.glob("*.png")} >= {"accuracy.png", "residuals.png", "kept_weights.png"}
    assert "ADMM, progressive" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_admm_keeps_mnist_accuracy_at_71x_and_lands_far_above_magnitude_pruning(tmp_path, shared_data):
    """The paper's 71.2x setting in a fraction of the experiment's steps: rho grows faster, and bounds are looser."""
    data = _data.load("mnist", shared_data)
    options = dict(batch_size=32, steps=200, learning_rate=1e-3, folder=tmp_path, console=Console(quiet=True))
    task = Classifier(LeNet5(), data, **options)
    dense = task.run("dense", task.init(0), jc.ADMM({}), seed=0, rounds=3).params
    solver = jc.ADMM(progressive_admm._spec(dense, FIRST), rho=1e-3, growth=1.4)
    pruned = task.run("admm", dense, solver, seed=0, rounds=5, retrain=3)
    assert pruned.report.nonzeros == 6_050 and pruned.report.violation == 0
    assert task.accuracy(pruned.params, data.test) > task.accuracy(dense, data.test) - 0.01
    at_once = jc.project(solver.spec, dense)
    assert task.accuracy(pruned.landed, data.test) > task.accuracy(at_once, data.test) + 0.2
