"""The table of methods side by side: what is left, means with errors, and differences paired by seed."""

import io
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import jaxcomp as jc
from experiments import _data
from experiments._classifier import Classifier, Landing
from experiments._compression_report import Outcome, Row, ahead, curve_point, summary, table
from experiments._models import LeNet300

DENSE = [Outcome(0.99, accuracy, None, 1.0, 1.0, 0.0, {}) for accuracy in (0.98, 0.96)]
PRUNED = [
    Outcome(landed, accuracy, kept, ratio, 5.0, violation, {"w": kept})
    for landed, accuracy, kept, ratio, violation in ((0.90, 0.97, 1000, 8.0, 0.0), (0.94, 0.97, 3000, 12.0, 1e-3))
]


def shown(*rows, heading="", **options):
    context = SimpleNamespace(seeds=(0, 1), data=SimpleNamespace(name="digits", test=range(400)))
    options = dict(rival="dense", compared=("accuracy",), caption="no more") | options
    console = Console(width=120, file=io.StringIO())
    console.print(table(context, "LeNet", {heading: rows}, **options))
    return [line.split() for line in console.file.getvalue().splitlines() if line.split()]


def test_a_row_has_sizes_accuracies_with_errors_and_the_difference_paired_by_seed():
    lines = shown(Row("dense", DENSE), Row("ours", PRUNED, DENSE))
    assert lines[0] == "LeNet on digits, 400 test images, mean of 2 seeds".split()
    assert "dense all 1.0x 1.0x - 97.00 ± 1.00".split() in lines
    assert "ours 2,000 10.0x 5.0x 92.00 ± 2.00 97.00 ± 0.00 +0.00 ± 1.00".split() in lines
    assert lines[-1] == ["no", "more"]


def test_sizes_may_be_left_to_the_headings_and_both_accuracies_be_compared():
    lines = shown(Row("ours", PRUNED, PRUNED), heading="10x", sizes=False, compared=("landed", "accuracy"))
    assert "ours 92.00 ± 2.00 +0.00 ± 0.00 97.00 ± 0.00 +0.00 ± 0.00".split() in lines
    assert ["10x"] in lines


def test_differences_are_in_points_and_by_seed():
    np.testing.assert_allclose(ahead(PRUNED, DENSE, "accuracy"), [-1, 1])


def test_a_summary_keeps_the_worst_violation_and_every_seed():
    found = summary(PRUNED)
    assert found["violation"] == 1e-3 and found["kept"] == 2000 and found["layers"] == {"w": 2000}
    assert found["accuracies"].tolist() == [0.97, 0.97] and found["error"] == 0
    assert summary(DENSE)["kept"] is None and summary(DENSE[:1])["error"] is None


def test_one_seed_has_no_error_in_a_plot():
    assert curve_point(PRUNED, "landed") == pytest.approx((10, 0.92, 0.02))
    assert curve_point(PRUNED[:1], "landed") == (8, 0.9, 0.0)


@pytest.mark.slow
def test_a_run_that_diverges_is_a_result_and_is_not_retrained(tmp_path: Path):
    data = _data.load("digits")
    options = dict(batch_size=64, steps=2, learning_rate=1e-3, folder=tmp_path, console=Console(quiet=True))
    task = Classifier(LeNet300(), data, **options)
    far = optax.sgd(1e30)
    result = task.run("far", task.init(0), Landing({}), seed=0, rounds=2, retrain=2, optimizer=far)
    assert result.diverged and {record["stage"] for record in result.history} == {"solve"}
    assert task.measured(result.landed, result.params, result.report).accuracy < 0.3


@pytest.mark.slow
def test_what_is_measured_of_a_network_is_what_was_left_of_it(tmp_path: Path):
    data = _data.load("digits")
    options = dict(batch_size=64, steps=2, learning_rate=1e-3, folder=tmp_path, console=Console(quiet=True))
    task = Classifier(LeNet300(), data, **options)
    params = task.init(0)
    dense = task.run("dense", params, Landing({}), seed=0, retrain=1)
    assert task.measured(dense.landed, dense.params, dense.report).kept is None
    spec = jc.assign(params, {"fc1/kernel": jc.Sparse(0.1)})
    result = task.run("pruned", params, Landing(spec), seed=0, retrain=1)
    found = task.measured(result.landed, result.params, result.report)
    assert found.kept == found.layers["fc1/kernel"] == jnp.count_nonzero(result.params["fc1"]["kernel"]) == 23_520
    assert found.ratio == pytest.approx(10) and found.storage_ratio < 10 and found.violation == 0
    assert found.accuracy == task.accuracy(result.params, data.test) != found.landed
