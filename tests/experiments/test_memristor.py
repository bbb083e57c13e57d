"""Whole arrays of memristors: weights and arrays as counted by hand, and a run cut short."""

import json

import numpy as np
import pytest
from rich.console import Console

import jaxcomp as jc
from experiments import _data, memristor
from experiments.__main__ import main
from experiments._classifier import Classifier
from experiments._models import LeNet5


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    options = dict(batch_size=32, steps=2, learning_rate=1e-3, console=Console(quiet=True))
    task = Classifier(LeNet5(), _data.load("digits"), folder=tmp_path_factory.mktemp("memristor"), **options)
    return memristor._Study(task, memristor.Config(steps=2))


@pytest.mark.parametrize("rate", [pytest.param("19x", marks=pytest.mark.slow), "39x", "105x"])
def test_projecting_keeps_as_many_weights_as_the_rate_says_at_most(study, rate):
    pruned = jc.project(study.spec(rate), study.task.init(0))
    kept = sum(np.count_nonzero(layer["kernel"]) for layer in pruned.values())
    assert kept == pytest.approx(430_500 / study.rate(rate), rel=0.01)


@pytest.mark.slow
def test_arrays_saved_are_those_counted_by_hand(study):
    params = jc.project(study.spec("19x"), study.task.init(0))
    spec = study._on_conductances(5)
    # Dense: 25 x 20, 500 x 50, 800 x 500, 500 x 10, four arrays a block; pruned: two.
    before = 4 * (1 + 16 * 2 + 25 * 16 + 16)
    after = 2 * (1 + 7 + 9 * 2 + 2)  # 25 x 8, 200 x 18, 288 x 64, 64 x 10
    assert study.saved(jc.footprint(spec, params)) == pytest.approx(1 - after / before)


@pytest.mark.slow
def test_levels_are_conductances_and_pruned_weights_stay_away(study):
    params = jc.project(study.spec("39x"), study.task.init(0))
    landed = jc.project(study._on_conductances(5), params)
    for path in ("conv2", "fc1"):
        before, after = np.asarray(params[path]["kernel"]), np.asarray(landed[path]["kernel"])
        assert ((before == 0) == (after == 0)).all()
        magnitudes = np.unique(np.abs(after[after != 0]).round(6))
        assert len(magnitudes) <= 16 and magnitudes[0] / magnitudes[-1] >= 0.099


def test_verdicts_follow_from_paired_differences():
    found = {"39x": [memristor.Outcome(a, {5: a - 0.01}, {5: 0.9}) for a in (0.98, 0.979)]}
    claims = memristor._claims(memristor.Config(bits=(5,)), found, {"39x": [0.97, 0.968]}, [0.981, 0.98])
    assert [claim.split(":")[0] for claim in claims] == ["Holds", "Holds", "Does not hold"]


@pytest.mark.slow
def test_a_run_writes_its_table_and_its_plot(tmp_path):
    settings = ["steps=2", "pretrain=1", "rounds=1", "retrain=1", "images=50"]
    assert (
        main(["run", "memristor", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    )
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["metrics"]["found"]["39x"]
    assert (result.parent / "accuracy.png").exists()
