"""BLK-REW's comparison: one price for groups of all sizes, sets that keep what they say, and what a run writes."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import _data, blk_rew
from experiments.__main__ import main
from experiments._classifier import Classifier
from experiments._compression_report import Outcome

PRUNED = r"(conv[23]|fc1)/kernel"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blk_rew")
    options = dict(batch_size=64, steps=2, learning_rate=1e-3, folder=folder, console=Console(quiet=True))
    task = Classifier(blk_rew.SmallVgg(), _data.load("digits"), **options)
    return blk_rew._Study(task, blk_rew.Config(steps=2), PRUNED)


@jax.jit
def after_a_step(solver, params):
    return solver.prox(solver.init(params), params)


@pytest.mark.parametrize("view", blk_rew._VIEWS)
def test_a_layer_keeps_the_fraction_to_a_group(study, view):
    constraint, leaf = study._spec(view, 0.25)["conv3/kernel"], study._leaf("conv3/kernel")
    kept = np.count_nonzero(jax.jit(constraint.project)(leaf))
    group = leaf.size / blk_rew._VIEWS[view].sizes(leaf.shape).total
    assert abs(kept - leaf.size / 4) <= group


def test_blocks_keep_unequal_numbers_of_columns(study):
    path = "fc1/kernel"
    matrix = np.asarray(jax.jit(study._spec("8x8 blocks", 0.25)[path].project)(study._leaf(path))).T
    columns = np.any(matrix.reshape(8, 8, -1, 8) != 0, axis=1).sum(axis=2)
    assert columns.min() < columns.max()


def test_a_price_takes_as_much_of_a_weight_whatever_the_size_of_its_group(study):
    """Of weights that are all alike, every group is as large and must shrink by as much."""
    taken = []
    for view in ("whole columns", "8x8 blocks", "unstructured"):
        solver = study._penalty(view, "reweighted", 1e-5)
        params = jax.tree.map(lambda x: np.full(x.shape, 0.05, np.float32), study.template)
        moved = after_a_step(solver, params)
        taken.append(float(np.mean(0.05 - moved["fc1"]["kernel"])))
    np.testing.assert_allclose(taken, 1e-5 / (0.05 + 1e-3), rtol=1e-2)


def test_group_lasso_takes_the_price_itself_from_groups_of_any_size(study):
    solver = study._penalty("8x8 blocks", "group lasso", 1e-4)
    params = study.template
    params = params | {"fc1": params["fc1"] | {"kernel": np.full((1568, 64), 0.05, np.float32)}}
    moved = after_a_step(solver, params)
    np.testing.assert_allclose(0.05 - moved["fc1"]["kernel"], 1e-4, rtol=1e-2)


def outcomes(accuracies):
    return [Outcome(0.5, accuracy, 1, 4.0, 4.0, 0.0, {}) for accuracy in accuracies]


def test_verdicts_follow_from_paired_differences():
    low, high = outcomes([0.90, 0.91, 0.90]), outcomes([0.96, 0.97, 0.96])
    fine, coarse = ("8x8 blocks", "16x16 blocks")
    found = {
        0.25: {
            f"{fine}, reweighted": high,
            f"{fine}, group lasso": low,
            f"{fine}, magnitude": high,
            f"{coarse}, reweighted": low,
        }
    }
    claims = dict(claim.split(": ", 1)[::-1] for claim in blk_rew._claims("cnn", found))
    said = {claim.split(": ")[1].split(" (")[0]: word for claim, word in claims.items()}
    assert said == {
        f"{fine}, reweighted, ahead of {fine}, group lasso": "Holds",
        f"{fine}, reweighted, ahead of {fine}, magnitude": "Does not hold",
        f"{fine}, group lasso, ahead of {fine}, magnitude": "Does not hold",
        f"{fine}, reweighted, ahead of {coarse}, reweighted": "Holds",
    }


@pytest.mark.slow
def test_a_run_writes_its_tables_and_networks_with_the_stated_fraction(tmp_path, capsys):
    settings = ["steps=5"]
    assert main(["run", "blk-rew", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("blk-rew/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]["cnn"]
    (found,) = metrics["found"].values()
    assert set(found) == {f"8x8 blocks, {how}" for how in ("reweighted", "group lasso", "magnitude")}
    for (each,) in found.values():
        assert each["ratio"] == pytest.approx(4.0, rel=1e-2) and each["violation"] < 1e-5
    assert all(one["difference"] < 1e-4 for each in metrics["latencies"].values() for one in each)
    assert (result.parent / "accuracy-cnn.png").exists()
    shown = capsys.readouterr().out
    assert "8x8 blocks, group lasso" in shown and "compiled ms" in shown
