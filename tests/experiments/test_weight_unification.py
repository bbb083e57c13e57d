"""Unified and pruned blocks side by side: equal bits, states read from numbers, verdicts that follow from figures."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import _weight_unification_blocks as blocks
from experiments import _weight_unification_report as report
from experiments import _weight_unification_sets as sets
from experiments.__main__ import main
from experiments._weight_unification_report import Outcome, Way
from experiments._weight_unification_sets import HARD, Shares


@pytest.mark.parametrize("block", sets.BLOCKS)
def test_what_is_compared_at_equal_bits_takes_equally_many(block):
    for level in sets.levels(block):
        (bits, *others) = (shares.bits(sets.size(block)) for shares in level if shares)
        assert others == pytest.approx([bits] * len(others), rel=1e-6)


def test_bits_of_a_block_are_its_weights_or_a_sign_each_and_a_magnitude_and_a_code():
    assert Shares(1.0).bits(8) == 8 + 32
    assert Shares(0.5).bits(8) == (8 * 32 + 8 + 32) / 2 + 1
    assert Shares(0.5, 0.25).bits(8) == (8 * 32 + 2 * (8 + 32)) / 4 + 2


def test_blocks_of_four_unified_alone_never_are_as_small_as_half_unified_and_two_fifths_pruned():
    assert sets.unified_at(4, Shares(0.5, 0.4).bits(4)) is None
    assert sets.unified_at(16, Shares(0.5, 0.4).bits(16)) is not None


def test_states_and_multiplications_are_those_of_the_numbers_with_smaller_last_blocks():
    # Outputs by inputs, in blocks of 4 by 4: unified, free in one weight, a last column of blocks 4 by 2, of zeros.
    matrix = np.ones((4, 10), np.float32)
    matrix[1] = -1
    matrix[0, 4], matrix[:, 8:] = 2, 0
    found = blocks.states(matrix.T, "4x4")  # flax's layout: inputs by outputs
    assert found == blocks.States(weights=40, unified=1, pruned=1, free=1, multiplications=4 + 16)
    assert blocks.states(matrix.T[:9] + 3 * (matrix.T[:9] == 0), "4x4").multiplications == 4 + 16 + 1


def test_counts_allow_for_magnitudes_that_went_to_zero_but_not_for_blocks_that_came_apart():
    shares = Shares(0.5, 0.25)
    assert blocks.as_many(shares, blocks.States(32, unified=4, pruned=2, free=2, multiplications=0))
    assert blocks.as_many(shares, blocks.States(32, unified=3, pruned=3, free=2, multiplications=0))
    assert not blocks.as_many(shares, blocks.States(32, unified=3, pruned=2, free=3, multiplications=0))
    assert not blocks.as_many(shares, blocks.States(32, unified=5, pruned=1, free=2, multiplications=0))


def outcomes(accuracies):
    return [Outcome(0.5, each, 6.4, 1000.0, 1010, 4.0, True) for each in accuracies]


@pytest.mark.parametrize(
    ("pruned", "word"),
    [([0.80, 0.81, 0.80], "Holds"), ([0.91, 0.92, 0.91], "Does not hold"), ([0.898, 0.890, 0.898], "Undecided")],
)
def test_verdicts_follow_from_paired_differences(pruned, word):
    levels = [Way(each) for level in sets.levels("8x8") for each in level]
    ways = {way: outcomes([0.9, 0.9, 0.9]) for way in levels}
    ways |= {Way(HARD[0]): outcomes([0.9, 0.91, 0.9]), Way(HARD[1]): outcomes(pruned)}
    first = report.of_accuracies({"8x8": ways})[0]
    assert first.startswith(f"{word}: 8x8: 90 % unified is ahead of 90 % pruned (")


def test_one_network_that_came_apart_is_told():
    facts = {"8x8": [{"100 % unified": {"lost": 0.3, "of_least": 1.0, "idempotent": True}}]}
    good, *others = outcomes([0.9, 0.9])
    apart = dataclasses.replace(good, exact=False)
    said = report.of_sets(facts, {"8x8": {Way(Shares(1.0)): [apart, *others]}})
    assert said[0].startswith("Does not hold: ") and "(1 of 2 networks)" in said[0]
    assert [line.split(":")[0] for line in said[1:4]] == ["Holds"] * 3


@pytest.mark.slow
def test_a_run_writes_its_table_its_plot_and_networks_that_keep_to_their_sets(tmp_path, capsys):
    settings = ["steps=3", "pretrain=2", "retrain=1", "images=50"]
    command = ["run", "weight-unification", "--data", "digits", "--quick", "--results", str(tmp_path)]
    assert main([*command, "--set", *settings]) == 0
    (result,) = tmp_path.glob("weight-unification/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    for name, (each,) in metrics["found"]["8x8"].items():
        assert each["exact"], name
        assert each["disk_bytes"] < 1.05 * each["promised_bytes"], name
    found = {name: each["stored"] for name, (each,) in metrics["found"]["8x8"].items()}
    for level in sets.levels("8x8"):
        first, *others = (found[str(shares)] for shares in level)
        assert others == pytest.approx([first] * len(others), rel=0.02)
    assert (result.parent / "accuracy.png").exists()
    assert "47.6 % unified, 50 % pruned" in capsys.readouterr().out
