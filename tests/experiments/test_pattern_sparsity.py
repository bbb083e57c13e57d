"""The comparison of kernel patterns: sets that keep what they say, and verdicts and lines that follow from figures."""

import json

import jax
import numpy as np
import pytest

import jaxcomp as jc
from experiments import _pattern_sparsity_sets as sets
from experiments import pattern_sparsity
from experiments.__main__ import main
from experiments._compression_report import Outcome
from experiments._pattern_sparsity_network import SmallVGG

IMAGE = np.zeros((1, 28, 28, 1), np.float32)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), IMAGE)["params"]


def test_nearly_all_weights_are_in_kernels_under_a_set():
    shapes = shapes_of(SmallVGG())
    sizes = {name: layer["kernel"].size for name, layer in shapes.items()}
    assert sum(sizes.values()) == 69_904
    assert sum(sizes[path.split("/")[0]] for path in jc.assign(shapes, {sets.KERNELS: jc.Sparse(1.0)})) == 69_120


def test_random_patterns_differ_and_have_four_taps():
    patterns = sets.random_patterns(100, seed=0)
    assert {int(pattern.sum()) for pattern in patterns} == {4}
    assert len({pattern.tobytes() for pattern in patterns}) == 100


def test_the_centre_counts_where_it_is_among_the_four_largest_weights():
    kernel = np.ones((3, 3, 2, 1), np.float32)
    kernel[1, 1] = [[5.0], [0.1]]
    assert sets.with_centre({"conv2": {"kernel": kernel}}) == 0.5


def test_filters_go_with_their_channels_so_that_as_many_go_as_the_rate_needs_and_no_more():
    model = SmallVGG(widths=(4, 12, 12, 12, 12))
    normal = np.random.default_rng(0).normal
    params = jax.tree.map(lambda leaf: normal(size=leaf.shape).astype(np.float32), shapes_of(model))
    spec = sets.filters(lambda params, x: model.apply({"params": params}, x), params, IMAGE, rate=8.1)
    left = jax.device_get(jc.project(spec, params))
    # (4 + 3 a) a <= (4 + 3 12) 12 / 8.1 holds for a = 3, not for a = 4: of every layer so many filters stay.
    for name, inputs in (("conv2", 4), ("conv3", 3), ("conv4", 3), ("conv5", 3)):
        assert np.count_nonzero(left[name]["kernel"]) == 9 * inputs * 3, name
    assert np.array_equal(left["conv1"]["kernel"], params["conv1"]["kernel"])
    for name, behind in (("conv2", "conv3"), ("conv3", "conv4"), ("conv4", "conv5")):
        written = left[name]["kernel"].any(axis=(0, 1, 2))
        assert np.array_equal(written, left[behind]["kernel"].any(axis=(0, 1, 3)))


def outcomes(accuracies):
    return [Outcome(0.5, accuracy, 1, 8.1, 7.0, 0.0, {}) for accuracy in accuracies]


@pytest.mark.parametrize(
    ("filters", "word"),
    [([0.90, 0.91, 0.90], "Holds"), ([0.955, 0.965, 0.955], "Does not hold"), ([0.948, 0.940, 0.948], "Undecided")],
)
def test_verdicts_follow_from_paired_differences(filters, word):
    ours, dense = [0.96, 0.97, 0.96], [0.961, 0.971, 0.961]
    every = {method: outcomes(ours) for method in (*sets.LIBRARIES, sets.FREE)}
    fewer = {sets.OWN: outcomes(ours), sets.FREE: outcomes(ours), sets.FILTERS: outcomes(filters)}
    claims = pattern_sparsity._claims({"2.25x": every, "8.1x": fewer}, dense)
    said = {claim.split(": ", 1)[1].split(" (")[0]: claim.split(":")[0] for claim in claims}
    assert said[f"at 8.1x, patterns are more than 1 point ahead of {sets.FILTERS}"] == word
    assert said[f"at 2.25x, {sets.OWN} lose less than 0.2 points"] == "Holds"
    assert said[f"at 2.25x, {sets.RANDOM} are ahead of {sets.ONE}"] == "Does not hold"


@pytest.mark.slow
def test_a_run_writes_its_tables_its_plot_and_networks_at_the_stated_rates(tmp_path, capsys):
    settings = ["steps=3", "pretrain=2", "retrain=1", "images=50"]
    command = ["run", "pattern-sparsity", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]
    assert main(command) == 0
    (result,) = tmp_path.glob("pattern-sparsity/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    assert set(metrics["found"]) == {"2.25x", "8.1x"}
    for rate, methods in metrics["found"].items():
        for method, (each,) in methods.items():
            assert each["violation"] < 1e-5, method
            assert each["ratio"] == pytest.approx(float(rate[:-1]), rel=0.05), method
    assert all(one["difference"] < 1e-4 for each in metrics["latencies"].values() for one in each)
    assert (result.parent / "accuracy.png").exists()
    shown = capsys.readouterr().out
    assert "compiled ms" in shown and all(method in shown for method in (*sets.LIBRARIES, sets.FREE, sets.FILTERS))
