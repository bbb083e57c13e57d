"""RTMobile's comparison: sets that keep what they say, networks within them, and verdicts that follow from figures."""

import json

import jax
import numpy as np
import pytest

import jaxcomp as jc
from experiments import _rtmobile_sets as sets
from experiments import rtmobile
from experiments.__main__ import main
from experiments._compression_report import Outcome
from experiments._rtmobile_network import SpeechGRU
from experiments._rtmobile_study import MAGNITUDE

UNITS, INPUTS, STRIPS = 24, 39, 4


@pytest.fixture(scope="module")
def params():
    return SpeechGRU(UNITS, 1).init(jax.random.key(0), np.zeros((1, 1, INPUTS), np.float32))["params"]


def projected(structure, params, rate):
    """One recurrent matrix; the others have its shape or fewer inputs."""
    matrix = params["gru1"]["hr"]["kernel"]
    for spec in sets.stages(structure, params, rate, STRIPS):
        matrix = jax.jit(spec["gru1/hr/kernel"].project)(matrix)
    return np.asarray(matrix)


def step_by_step(params, x):
    """The gated recurrent unit with the reset gate after the product, one frame after another."""
    leaves = jax.tree.map(np.asarray, params)
    h = np.zeros((len(x), UNITS), np.float32)
    states = []
    for frame in np.swapaxes(x, 0, 1):
        from_x = {g: frame @ leaves["gru1"][g]["kernel"] + leaves["gru1"][g]["bias"] for g in ("ir", "iz", "in")}
        from_h = {g: h @ leaves["gru1"][g]["kernel"] for g in ("hr", "hz", "hn")}
        reset, keep = (1 / (1 + np.exp(-(from_x["i" + g] + from_h["h" + g]))) for g in "rz")
        new = np.tanh(from_x["in"] + reset * (from_h["hn"] + leaves["gru1"]["hn"]["bias"]))
        h = (1 - keep) * new + keep * h
        states.append(h)
    return np.mean(states, axis=0) @ leaves["out"]["kernel"] + leaves["out"]["bias"]


def test_the_network_is_the_recurrence_that_it_states(params):
    x = np.random.default_rng(0).normal(size=(3, 5, INPUTS)).astype(np.float32)
    found = SpeechGRU(UNITS, 1).apply({"params": params}, x)
    np.testing.assert_allclose(found, step_by_step(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("structure", sets.STRUCTURES)
def test_all_structures_keep_as_many_weights_of_a_matrix(params, structure):
    assert np.count_nonzero(projected(structure, params, 5.0)) == UNITS * round(UNITS / 5)


def test_bsp_keeps_as_many_inputs_of_every_strip_and_half_of_the_rows_whole(params):
    matrix, inputs = projected(sets.BSP, params, 4.0), 2 * round(UNITS / 4)
    assert matrix.any(axis=0).sum() == UNITS / 2
    for strip in np.split(matrix, STRIPS, axis=1):
        read = strip != 0
        assert {int(count) for count in read.sum(axis=0)} <= {0, inputs}
        assert read.any(axis=1).sum() in (0, inputs)


def test_strips_choose_inputs_by_themselves_and_whole_columns_do_not(params):
    blocks, whole = (projected(structure, params, 4.0) != 0 for structure in (sets.BSP, sets.WHOLE))
    assert len({column.tobytes() for column in blocks.T if column.any()}) > 1
    assert len({column.tobytes() for column in whole.T if column.any()}) == 1


def test_the_first_layer_keeps_two_inputs_where_the_rate_would_leave_one(params):
    spec = sets.stages(sets.COLUMNS, params, 29.0, STRIPS)[0]
    assert float(spec["gru1/ir/kernel"].density) == pytest.approx(2 / INPUTS)


def test_the_exact_rate_counts_whole_inputs(params):
    """Of three matrices of 39 inputs and three of 24, a tenth is 4 and 2 of them."""
    assert sets.exact_rate(params, 10.0) == pytest.approx((39 + 24) / (4 + 2))


def test_circulant_blocks_store_an_eighth(params):
    (spec,) = sets.circulant(params, 8)
    report = jc.report(spec, jc.project(spec, params))
    recurrent = [leaf for leaf in report.constrained if "/h" in leaf.path]
    assert [leaf.values for leaf in recurrent] == [UNITS * UNITS // 8] * 3


def outcomes(accuracies, ratio=10.0):
    return [Outcome(0.5, accuracy, 1, ratio, ratio, 0.0, {}) for accuracy in accuracies]


@pytest.mark.parametrize(
    ("rivals", "words"),
    [([0.90, 0.91, 0.90], "Holds"), ([0.99, 0.98, 0.99], "Does not hold"), ([0.96, 0.92, 0.955], "Undecided")],
)
def test_verdicts_follow_from_paired_differences(rivals, words):
    ours = [0.96, 0.97, 0.96]
    found = {10.0: {sets.BSP: outcomes(ours), sets.WHOLE: outcomes(rivals), MAGNITUDE: outcomes(ours)}}
    claims = rtmobile._claims(found, {"block-circulant, 8": outcomes(rivals, 7.9)}, [0.965, 0.971, 0.962])
    said = {claim.split(": ", 1)[1].split(" (")[0]: claim.split(":")[0] for claim in claims}
    assert said[f"at 10.0x BSP is ahead of {sets.WHOLE}"] == words
    assert said["at 10.0x BSP is ahead of block-circulant, 8, at 7.9x"] == words
    assert said[f"at 10.0x BSP is ahead of {MAGNITUDE}"] == "Does not hold"
    assert said["at 10.0x BSP loses less than 1 point"] == "Holds"


@pytest.mark.slow
def test_a_run_writes_its_tables_its_plot_and_networks_at_the_stated_rate(tmp_path, capsys, shared_data, monkeypatch):
    monkeypatch.setenv("JAXCOMP_DATA", str(shared_data))
    settings = ["pretrain=2", "rounds=2", "retrain=2", "steps=5", "units=24", "published_units=32", "pairs=2"]
    assert main(["run", "rtmobile", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("rtmobile/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    (found,) = metrics["found"].values()
    assert set(found) == {sets.BSP, MAGNITUDE}
    for (each,) in found.values():
        assert each["ratio"] == pytest.approx(4.0, rel=0.05) and each["violation"] < 1e-5
    assert all(one["difference"] < 1e-4 for each in metrics["latencies"].values() for one in each)
    assert (result.parent / "accuracy.png").exists()
    shown = capsys.readouterr().out
    assert "BSP by magnitude" in shown and "compiled ms" in shown
