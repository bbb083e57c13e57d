"""The comparison of gather-scatter sets: as many weights for all, reads that count, verdicts that follow."""

import json

import numpy as np
import pytest

import jaxcomp as jc
from experiments import _gather_scatter_sets as sets
from experiments import gather_scatter
from experiments.__main__ import main
from experiments._compression_report import Outcome

METHODS = (*sets.OURS, *sets.OTHERS)


@pytest.fixture(scope="module")
def params():
    normal = np.random.default_rng(0).normal
    shapes = {"fc1": (96, 40), "fc2": (64, 16), "fc3": (16, 10)}
    return {name: {"kernel": normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}


@pytest.mark.parametrize("method", [sets.HORIZONTAL, sets.FREE, sets.BANKED, sets.WIDE])
def test_all_sets_keep_as_many_weights(params, method):
    spec = sets.spec(method, params, 8.0)
    left = jc.project(spec, params)
    # An output keeps 12 of its 96 inputs: to whole groups of 8, 16.
    assert np.count_nonzero(left["fc1"]["kernel"]) == 40 * 16
    assert np.count_nonzero(left["fc2"]["kernel"]) == 16 * 8
    assert np.count_nonzero(left["fc3"]["kernel"]) == 160


def test_reads_of_a_strip_are_counted_for_both_matrices():
    kernel = np.zeros((16, 8), np.float32)
    kernel[[0, 8], 0] = 1  # one output reads bank 0 twice
    kernel[[0, 1], 1] = 1  # and one two banks at once
    params = {"fc1": {"kernel": kernel}, "fc2": {"kernel": kernel}}
    spec = sets.spec(sets.FREE, params, 8.0)
    assert sets.reads(spec, params, sets.FREE) == {"in_order": 1.5, "reordered": 1.5}


def test_a_horizontal_set_is_read_without_waiting_in_the_best_order(params):
    spec = sets.spec(sets.HORIZONTAL, params, 4.0)
    assert sets.reads(spec, jc.project(spec, params), sets.HORIZONTAL)["reordered"] == 1.0


def found(accuracies):
    return gather_scatter.Found([Outcome(0.5, each, 1, 8.0, 6.0, 0.0, {}) for each in accuracies], [], [])


@pytest.mark.parametrize(
    ("ours", "near", "ahead"),
    [
        ([0.980, 0.981, 0.980], "Holds", "Holds"),
        ([0.975, 0.976, 0.975], "Does not hold", "Does not hold"),
        ([0.9782, 0.9810, 0.9782], "Undecided", "Holds"),
    ],
)
def test_verdicts_follow_from_paired_differences(ours, near, ahead):
    methods = {method: found([0.975, 0.976, 0.975]) for method in METHODS}
    methods[sets.FREE] = found([0.981, 0.982, 0.981])
    methods |= dict.fromkeys((sets.HORIZONTAL, sets.HYBRID, sets.VERTICAL), found(ours))
    claims = gather_scatter._claims({8.0: methods})
    said = {claim.split(": ", 1)[1].split(" (")[0]: claim.split(":")[0] for claim in claims}
    assert said[f"at 8x, {sets.HORIZONTAL} is less than 0.3 points behind {sets.FREE}"] == near
    assert said[f"at 8x, {sets.HORIZONTAL} is ahead of {sets.WIDE}"] == ahead
    assert said[f"at 8x, {sets.VERTICAL} is within 0.3 points of {sets.HORIZONTAL}"] == "Holds"


@pytest.mark.slow
def test_a_run_writes_its_tables_its_plot_and_networks_at_the_stated_rate(tmp_path, capsys):
    settings = ["steps=3", "pretrain=2", "retrain=1", "side=64"]
    command = ["run", "gather-scatter", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]
    assert main(command) == 0
    (result,) = tmp_path.glob("gather-scatter/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    (methods,) = metrics["found"].values()
    assert set(methods) == set(METHODS)
    for method, each in methods.items():
        (outcome,), (reads,) = each["outcomes"], each["reads"]
        assert outcome["violation"] < 1e-5 and outcome["ratio"] == pytest.approx(8.0, rel=0.05), method
        assert reads["in_order"] >= reads["reordered"] >= 1, method
    assert all(one["difference"] < 1e-4 for each in metrics["latencies"].values() for one in each)
    assert (result.parent / "accuracy.png").exists()
    shown = capsys.readouterr().out
    assert "reordered" in shown and "compiled ms" in shown and all(method in shown for method in METHODS)
